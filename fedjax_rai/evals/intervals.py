"""Intervals of rates over prompts and seeds, and of paired differences between arms, by a seeded bootstrap in NumPy.

A rate is the mean over seeds of a run's share of verdicts. Two things make it vary, and a replicate draws both anew:

* **prompts** get random weights (the Bayesian bootstrap, Rubin 1981): one weight for each distinct prompt, so that all
  answers to a prompt stay together, in every sample and in every seed that asks it. Half an answer of either kind is
  added (Jeffreys 1946), as answers that are all alike do not prove that every other one would be: with one seed and an
  answer a prompt the interval is Jeffreys', Beta(k + 1/2, n - k + 1/2).
* **seeds** get random weights around 1/s whose sum with the seeds' rates is Student's t: with prompts without end the
  interval is Student's over the seeds' rates. Seeds drawn as they are would be too narrow: of three, the 95 % interval
  misses one time in four (`tests/evals/test_intervals.py` holds what this one misses).

Arms that are compared get the same weights, prompt by prompt and seed by seed: their difference is paired.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import isnan
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from fedjax_rai.evals.rate import PERCENT, Unit, Verdict

REPLICATES = 10_000
BLOCK = 1_000  # replicates at once: their weights are what takes memory
SEED = 20_260_101  # of the weights, so that a table is the same each time
LEVEL = 95.0
INNER = 90.0  # by which two one-sided tests at 5 % tell

Judged: TypeAlias = Sequence[tuple[str, Sequence[Verdict]]]
"""Of one run and one rate: every prompt with the verdicts on its answers."""


class Sums(NamedTuple):
    """What the prompts of one arm add to a rate or a mean, by seed and distinct prompt."""

    total: Float[np.ndarray, "seeds n"]
    """Verdicts that count towards the rate; or nats, or marks."""
    weight: Float[np.ndarray, "seeds n"]
    """All verdicts; or tokens, or marked answers. 0 where a seed has none on that prompt."""

    @property
    def present(self) -> Bool[np.ndarray, "seeds n"]:
        """Whether a seed has anything on a prompt."""
        return self.weight > 0

    @property
    def prompts(self) -> int:
        """Distinct prompts with a verdict, or with anything to average."""
        return int(self.present.any(axis=0).sum())

    @property
    def by_seed(self) -> Float[np.ndarray, " seeds"]:
        """Each seed's share, 0 to 1, or mean."""
        return self.total.sum(axis=1) / self.weight.sum(axis=1)

    @property
    def is_measured(self) -> bool:
        """Whether there is a seed, and each has something."""
        return bool(len(self.weight) and self.weight.any(axis=1).all())


class Interval(NamedTuple):
    """A rate in percent, or a mean in its unit, and where the truth may lie."""

    mean: float
    low: float
    """NaN: there is no interval."""
    high: float
    """NaN in the same way."""
    prompts: int
    """Distinct prompts that it rests on."""
    seeds: int


class Difference(NamedTuple):
    """One arm's rate minus another's, paired by prompt and by seed, in points; of a mean in its unit, or the ratio."""

    mean: float
    low: float
    """Lower end of the 95 % interval. NaN: there is none."""
    high: float
    """Upper end of the 95 % interval, NaN in the same way."""
    prompts: int
    """Distinct prompts that it rests on."""
    by_seed: tuple[float, ...]
    inner: tuple[float, float]
    """The 90 % interval, by which two one-sided tests at 5 % say whether two arms are equivalent."""
    same: bool
    """Every prompt has as many verdicts of either kind in both arms, or the same sums, in each seed."""
    unit: Unit = PERCENT
    """Of the two that are compared; `unit.gap` names what the numbers here are counted in."""

    @property
    def ends(self) -> tuple[float, float] | None:
        """Of the 95 % interval; None where there is none."""
        return None if isnan(self.low) else (self.low, self.high)

    def within(self, margin: float) -> bool:
        """Whether the arms are equivalent within so many points: two one-sided tests at 5 % (Schuirmann 1987).

        Raises ValueError for what is not counted in points.
        """
        if self.unit != PERCENT:
            raise ValueError(f"a margin in points is none in {self.unit.gap}")
        low, high = self.inner
        return -margin < low and high < margin


Added: TypeAlias = Sequence[tuple[str, float, float]]
"""Of one run: prompts, each with a total and a weight."""


def add_up(arms: Sequence[Sequence[Added]]) -> list[Sums]:
    """What arms, each given seed by seed, add up to on all prompts of which any of them has something, in one order.

    A prompt is its text: one that several seeds ask, or that stands twice in a set, is one.
    """
    every_run = [added for by_seed in arms for added in by_seed]
    texts = dict.fromkeys(prompt for added in every_run for prompt, _, _ in added)
    place = {text: i for i, text in enumerate(texts)}
    found = []
    for by_seed in arms:
        total = np.zeros((len(by_seed), len(place)))
        weight = np.zeros_like(total)
        for row, added in enumerate(by_seed):
            for prompt, more, weighing in added:
                total[row, place[prompt]] += more
                weight[row, place[prompt]] += weighing
        found.append(Sums(total, weight))
    known = np.any([sums.weight.any(axis=0) for sums in found], axis=0)
    return [Sums(sums.total[:, known], sums.weight[:, known]) for sums in found]


def count(arms: Sequence[Sequence[Judged]]) -> list[Sums]:
    """The verdicts of arms, each given seed by seed."""
    return add_up([[_counted(judged) for judged in by_seed] for by_seed in arms])


def _counted(judged: Judged) -> Added:
    counted = []
    for prompt, given in judged:
        known = [verdict for verdict in given if verdict is not None]
        counted.append((prompt, float(sum(known)), float(len(known))))
    return counted


def interval(judged: Sequence[Judged], level: float = LEVEL) -> Interval | None:
    """The rate of an arm over its seeds, in percent; None where some seed has no verdict at all."""
    (counts,) = count([judged])
    if not counts.is_measured:
        return None
    replicates = np.concatenate([_rates(counts, draw) for draw in draws(counts.present)])
    mean = 100 * float(counts.by_seed.mean())
    low, high = ends(100 * replicates, mean, level)
    return Interval(mean, max(low, 0.0), min(high, 100.0), counts.prompts, len(judged))


def difference(judged: Sequence[Judged], others: Sequence[Judged]) -> Difference | None:
    """An arm's rate minus another's, both given by the same seeds in the same order; None where one is not measured.

    Raises ValueError for another number of seeds.
    """
    check_paired(judged, others)
    counts, other_counts = count([judged, others])
    if not (counts.is_measured and other_counts.is_measured):
        return None
    present = counts.present | other_counts.present
    replicates = []
    for draw in draws(present):
        replicates.append(_rates(counts, draw) - _rates(other_counts, draw.swapped))
    by_seed = 100 * (counts.by_seed - other_counts.by_seed)
    mean = float(by_seed.mean())
    points = 100 * np.concatenate(replicates)
    low, high = ends(points, mean, LEVEL)
    prompts = int(present.any(axis=0).sum())
    inner = ends(points, mean, INNER)
    return Difference(
        mean=mean,
        low=low,
        high=high,
        prompts=prompts,
        by_seed=tuple(by_seed.tolist()),
        inner=inner,
        same=are_same(counts, other_counts),
    )


def check_paired(by_seed: Sequence, others: Sequence) -> None:
    """Raise ValueError for arms of other numbers of seeds."""
    if len(by_seed) != len(others):
        raise ValueError(f"{len(by_seed)} seeds cannot be paired with {len(others)}")


def are_same(sums: Sums, others: Sums) -> bool:
    """Whether every prompt adds the same in two arms."""
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(sums, others, strict=True))


class Draw(NamedTuple):
    """The random weights of some replicates."""

    prompts: Float[np.ndarray, "replicates n"]
    """Of distinct prompts: exponential, of mean 1, float32."""
    extra: Float[np.ndarray, "2 replicates seeds"]
    """Of the half answer that counts towards the rate, and of the half that does not, in each seed."""
    seeds: Float[np.ndarray, "replicates seeds"]
    """Of seeds, around 1 / seeds: they sum up to 0, and with the rates to Student's t."""

    @property
    def swapped(self) -> "Draw":
        """For the other arm of a difference: where one arm's half answer counts, the other's does not."""
        return self._replace(extra=self.extra[::-1])


def draws(present: Bool[np.ndarray, "seeds n"]) -> tuple[Draw, ...]:
    """The weights of `REPLICATES` replicates, block by block: the same for arms that asked the same prompts."""
    return _kept_draws(present.tobytes(), present.shape, REPLICATES // BLOCK)


@lru_cache(maxsize=1)  # the arms of a table follow each other, and drawing is what takes time
def _kept_draws(present: bytes, shape: tuple[int, int], blocks: int) -> tuple[Draw, ...]:
    asked = np.frombuffer(present, bool).reshape(shape)
    drawn = []
    for block in range(blocks):
        of_prompts, of_extra, of_seeds = (np.random.default_rng([SEED, block, part]) for part in range(3))
        weights = of_prompts.standard_exponential((BLOCK, shape[1]), dtype=np.float32)
        drawn.append(Draw(weights, _extra(of_extra, asked), _seed_weights(of_seeds, shape[0])))
    return tuple(drawn)


def _extra(random: np.random.Generator, present: Bool[np.ndarray, "seeds n"]) -> Float[np.ndarray, "2 b seeds"]:
    """Weights of the half answers, of mean 1/2 over all prompts: seeds that ask the same prompts share them, and those
    that ask others have each their part, so that n prompts are n prompts, whichever seeds ask them.
    """
    patterns, sizes = np.unique(present, axis=1, return_counts=True)
    shares = sizes / present.shape[1]
    drawn = random.standard_gamma(shares / 2, (2, BLOCK, len(sizes)))
    return drawn @ patterns.T.astype(float)


def _seed_weights(random: np.random.Generator, seeds: int) -> Float[np.ndarray, "b seeds"]:
    """Weights c that sum up to 0, of which c . rates is t(seeds - 1) x standard error; zeros for one seed."""
    if seeds == 1:
        return np.zeros((BLOCK, 1))
    normal = random.standard_normal((BLOCK, seeds))
    spread = np.sqrt(random.chisquare(seeds - 1, (BLOCK, 1)) / (seeds - 1))
    return (normal - normal.mean(axis=1, keepdims=True)) / (spread * np.sqrt(seeds * (seeds - 1)))


def _rates(counts: Sums, draw: Draw) -> Float[np.ndarray, " b"]:
    """The rate, 0 to 1, in each replicate: mean over seeds of the prompts' weighted share, and what seeds add."""
    answers = counts.weight.sum(axis=1) / counts.present.sum(axis=1)  # to a prompt
    positive = draw.prompts @ counts.total.T + draw.extra[0] * answers
    verdicts = draw.prompts @ counts.weight.T + draw.extra.sum(axis=0) * answers
    return (positive / verdicts).mean(axis=1) + draw.seeds @ counts.by_seed


def ends(replicates: Float[np.ndarray, " b"], mean: float, level: float) -> tuple[float, float]:
    """The middle `level` percent of replicates; the mean is never outside."""
    low, high = np.percentile(replicates, [(100 - level) / 2, (100 + level) / 2])
    return min(float(low), mean), max(float(high), mean)


def by_rate(rows: Sequence[Mapping]) -> dict[str, list[tuple[str, Sequence[Verdict]]]]:
    """Rate -> `Judged`, of the rows of one run's `answers.jsonl`; rows of what is no verdict are passed over."""
    found: dict[str, list[tuple[str, Sequence[Verdict]]]] = {}
    for row in rows:
        for rate, verdicts in row.get("verdicts", {}).items():
            found.setdefault(rate, []).append((row["prompt"], verdicts))
    return found
