"""Intervals of means (nats, perplexities, marks) over prompts and seeds, and of paired differences between arms.

The bootstrap of `intervals`, with its weights: a mean is sum(total) / sum(weight) over a seed's prompts, averaged over
seeds. Two things are otherwise than with rates:

* **No half answer is added**: it would need an end of the scale at which to lie, and nats have none. What few prompts
  show of their spread is too little instead, so that what they vary is widened to Student's t: it is multiplied by
  sqrt((n + 1) / chi-square of n - 1 degrees of freedom), where n is the fewest prompts of a seed. The Bayesian
  bootstrap's own variance is (n - 1) / (n + 1) of a mean's unbiased one; its skewness stays, which is on the side on
  which a mean of skewed numbers misses (`tests/evals/coverage_of_means.py` counts what is missed).
* **Perplexity is averaged and compared in its logarithm**: over seeds it is the geometric mean, and two arms have a
  ratio.

One prompt shows no spread, marks that are all alike show none that others would have, and seeds that cancel on every
prompt hide what each of them shows: there is no interval then. Numbers without steps that agree on every prompt to the
last bit are of one model; their interval has no width.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import nan
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from fedjax_rai.evals.intervals import (
    INNER,
    LEVEL,
    SEED,
    Added,
    Difference,
    Interval,
    Sums,
    add_up,
    are_same,
    check_paired,
    draws,
    ends,
)
from fedjax_rai.evals.means import ROUNDING, Total
from fedjax_rai.evals.mt_bench import totals_of
from fedjax_rai.evals.rate import Unit

Totals: TypeAlias = Sequence[tuple[str, Total]]
"""Of one run and one mean: every prompt with what it adds."""
_STREAM = 3  # of randomness, behind those of `intervals`


def interval(by_seed: Sequence[Totals], unit: Unit, level: float = LEVEL) -> Interval | None:
    """The mean of an arm over its seeds, in its unit; None where some seed has nothing to average."""
    (sums,) = add_up([[_known(totals) for totals in by_seed]])
    if not sums.is_measured:
        return None
    mean = float(sums.by_seed.mean())
    replicates = _replicates({1: sums}, sums.present, unit)
    low, high = (unit.within(unit.shown(end)) for end in _ends(replicates, mean, level))
    return Interval(unit.shown(mean), low, high, sums.prompts, len(by_seed))


def difference(by_seed: Sequence[Totals], others: Sequence[Totals], unit: Unit) -> Difference | None:
    """An arm's mean minus another's, or the ratio of the two, both given by the same seeds in the same order.

    None where some seed of either has nothing to average. Raises ValueError for another number of seeds.
    """
    check_paired(by_seed, others)
    sums, other_sums = add_up([[_known(totals) for totals in of_arm] for of_arm in (by_seed, others)])
    if not (sums.is_measured and other_sums.is_measured):
        return None
    present = sums.present | other_sums.present
    replicates = _replicates({1: sums, -1: other_sums}, present, unit)
    gaps = sums.by_seed - other_sums.by_seed
    mean = float(gaps.mean())
    low, high = (unit.shown(end) for end in _ends(replicates, mean, LEVEL))
    inner_low, inner_high = (unit.shown(end) for end in _ends(replicates, mean, INNER))
    return Difference(
        mean=unit.shown(mean),
        low=low,
        high=high,
        prompts=int(present.any(axis=0).sum()),
        by_seed=tuple(unit.shown(gap) for gap in gaps.tolist()),
        inner=(inner_low, inner_high),
        same=are_same(sums, other_sums),
        unit=unit,
    )


def _known(totals: Totals) -> Added:
    return [(prompt, float(total.total), float(total.weight)) for prompt, total in totals if total.is_known]


def _replicates(
    arms: Mapping[int, Sums], present: Bool[np.ndarray, "seeds n"], unit: Unit
) -> Float[np.ndarray, " b"] | None:
    """Of the sum of arms' means, each by its sign; None where prompts show no spread."""
    fewest = min(int(sums.present.sum(axis=1).min()) for sums in arms.values())
    by_seed = np.sum([sign * sums.by_seed for sign, sums in arms.items()], axis=0)
    if fewest < 2 or _show_no_spread(_residuals(arms), by_seed, unit):
        return None
    of_prompts = []
    of_seeds = []
    for draw in draws(present):
        of_prompts.append(sum(sign * _weighted(sums, draw.prompts) for sign, sums in arms.items()))
        of_seeds.append(draw.seeds @ by_seed)
    mean = np.mean(by_seed)
    apart = np.concatenate(of_prompts) - mean
    return mean + apart * _widening(fewest, len(apart)) + np.concatenate(of_seeds)


def _weighted(sums: Sums, weights: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    """The mean over seeds in each replicate, whose prompts have these weights."""
    return ((weights @ sums.total.T) / (weights @ sums.weight.T)).mean(axis=1)


def _widening(prompts: int, replicates: int) -> Float[np.ndarray, " b"]:
    """By how much what prompts vary is multiplied, which makes a normal spread Student's."""
    squares = np.random.default_rng([SEED, _STREAM]).chisquare(prompts - 1, replicates)
    return np.sqrt((prompts + 1) / squares)


def _residuals(arms: Mapping[int, Sums]) -> Float[np.ndarray, "seeds n"]:
    """How each prompt moves each seed's mean: the residuals of ratios of sums, over the sum of weights."""
    moved = 0.0
    for sign, sums in arms.items():
        residuals = sums.total - sums.by_seed[:, None] * sums.weight
        moved = moved + sign * residuals / sums.weight.sum(axis=1, keepdims=True)
    return np.asarray(moved)


def _show_no_spread(moved: Float[np.ndarray, "seeds n"], by_seed: Float[np.ndarray, " seeds"], unit: Unit) -> bool:
    """Whether numbers with steps are alike in every seed, or seeds of one mean differ and cancel on every prompt."""
    if _are_zero(moved):
        return unit.in_steps
    return _are_zero(moved.sum(axis=0)) and _are_zero(by_seed - by_seed[0])


def _are_zero(numbers: Float[np.ndarray, "..."]) -> bool:
    """But for rounding."""
    return bool(np.all(np.abs(numbers) < ROUNDING))


def _ends(replicates: Float[np.ndarray, " b"] | None, mean: float, level: float) -> tuple[float, float]:
    return (nan, nan) if replicates is None else ends(replicates, mean, level)


def by_mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, Total]]]:
    """Mean -> `Totals`, of the rows of one run's `answers.jsonl`; rows of verdicts are passed over."""
    found: dict[str, list[tuple[str, Total]]] = {}
    for row in rows:
        for mean, prompt, total in _added(row):
            found.setdefault(mean, []).append((prompt, total))
    return found


def _added(row: Mapping[str, Any]) -> Iterator[tuple[str, str, Total]]:
    """(mean, prompt, what it adds) of a `TokensRow` or a `ConversationRow` with marks."""
    if "tokens" in row:
        total = nan if row["total"] is None else row["total"]
        yield row["set"], row["prompt"], Total(total, row["tokens"])
    elif row.get("marks"):
        prompt = "\n\n".join(row["prompts"])
        for mean, total in totals_of(row["set"], row["category"], row["marks"]).items():
            yield mean, prompt, total
