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
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from fedjax_rai.evals.rate import Verdict

REPLICATES = 10_000
BLOCK = 1_000  # replicates at once: their weights are what takes memory
SEED = 20_260_101  # of the weights, so that a table is the same each time
LEVEL = 95.0

Judged: TypeAlias = Sequence[tuple[str, Sequence[Verdict]]]
"""Of one run and one rate: every prompt with the verdicts on its answers."""


class Counts(NamedTuple):
    """The verdicts of one arm on one rate, summed by seed and distinct prompt."""

    positive: Float[np.ndarray, "seeds n"]
    """Verdicts that count towards the rate."""
    verdicts: Float[np.ndarray, "seeds n"]
    """All of them; 0 where a seed has none on that prompt."""

    @property
    def prompts(self) -> int:
        """Distinct prompts with a verdict."""
        return int(self.verdicts.any(axis=0).sum())

    @property
    def by_seed(self) -> Float[np.ndarray, " seeds"]:
        """Each seed's share, 0 to 1."""
        return self.positive.sum(axis=1) / self.verdicts.sum(axis=1)


class Interval(NamedTuple):
    """A rate in percent, or a difference of two in points, and where the truth may lie."""

    mean: float
    low: float
    high: float
    prompts: int
    """Distinct prompts that it rests on."""
    seeds: int


class Difference(NamedTuple):
    """One arm's rate minus another's, paired by prompt and by seed, in points."""

    mean: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    prompts: int
    """Distinct prompts that it rests on."""
    by_seed: tuple[float, ...]
    inner: tuple[float, float]
    """The 90 % interval, by which two one-sided tests at 5 % say whether two arms are equivalent."""
    same: bool
    """Every prompt has as many verdicts of either kind in both arms, in each seed."""

    def within(self, margin: float) -> bool:
        """Whether the arms are equivalent within so many points: two one-sided tests at 5 % (Schuirmann 1987)."""
        low, high = self.inner
        return -margin < low and high < margin


def count(arms: Sequence[Sequence[Judged]]) -> list[Counts]:
    """The verdicts of arms, each given seed by seed, on all prompts that any of them has one of, in the same order.

    A prompt is its text: one that several seeds ask, or that stands twice in a set, is one.
    """
    every_run = [judged for by_seed in arms for judged in by_seed]
    texts = dict.fromkeys(prompt for judged in every_run for prompt, _ in judged)
    place = {text: i for i, text in enumerate(texts)}
    counted = []
    for by_seed in arms:
        positive = np.zeros((len(by_seed), len(place)))
        verdicts = np.zeros_like(positive)
        for row, judged in enumerate(by_seed):
            for prompt, given in judged:
                known = [verdict for verdict in given if verdict is not None]
                positive[row, place[prompt]] += sum(known)
                verdicts[row, place[prompt]] += len(known)
        counted.append(Counts(positive, verdicts))
    known = np.any([counts.verdicts.any(axis=0) for counts in counted], axis=0)
    return [Counts(positive[:, known], verdicts[:, known]) for positive, verdicts in counted]


def interval(judged: Sequence[Judged], level: float = LEVEL) -> Interval | None:
    """The rate of an arm over its seeds, in percent; None where some seed has no verdict at all."""
    (counts,) = count([judged])
    if not _is_measured(counts):
        return None
    replicates = np.concatenate([_rates(counts, draw) for draw in _draws(counts.verdicts > 0)])
    mean = 100 * float(counts.by_seed.mean())
    low, high = _ends(100 * replicates, mean, level)
    return Interval(mean, max(low, 0.0), min(high, 100.0), counts.prompts, len(judged))


def difference(judged: Sequence[Judged], others: Sequence[Judged]) -> Difference | None:
    """An arm's rate minus another's, both given by the same seeds in the same order; None where one is not measured.

    Raises ValueError for another number of seeds.
    """
    if len(judged) != len(others):
        raise ValueError(f"{len(judged)} seeds cannot be paired with {len(others)}")
    counts, other_counts = count([judged, others])
    if not (_is_measured(counts) and _is_measured(other_counts)):
        return None
    present = (counts.verdicts > 0) | (other_counts.verdicts > 0)
    replicates = []
    for draw in _draws(present):
        replicates.append(_rates(counts, draw) - _rates(other_counts, draw.swapped))
    by_seed = 100 * (counts.by_seed - other_counts.by_seed)
    mean = float(by_seed.mean())
    points = 100 * np.concatenate(replicates)
    low, high = _ends(points, mean, LEVEL)
    same = all(np.array_equal(mine, theirs) for mine, theirs in zip(counts, other_counts, strict=True))
    prompts = int(present.any(axis=0).sum())
    return Difference(mean, low, high, prompts, tuple(by_seed.tolist()), _ends(points, mean, 90.0), same)


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


def _draws(present: Bool[np.ndarray, "seeds n"]) -> tuple[Draw, ...]:
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


def _rates(counts: Counts, draw: Draw) -> Float[np.ndarray, " b"]:
    """The rate, 0 to 1, in each replicate: mean over seeds of the prompts' weighted share, and what seeds add."""
    answers = counts.verdicts.sum(axis=1) / (counts.verdicts > 0).sum(axis=1)  # to a prompt
    positive = draw.prompts @ counts.positive.T + draw.extra[0] * answers
    verdicts = draw.prompts @ counts.verdicts.T + draw.extra.sum(axis=0) * answers
    return (positive / verdicts).mean(axis=1) + draw.seeds @ counts.by_seed


def _is_measured(counts: Counts) -> bool:
    """Whether every seed has a verdict."""
    return bool(len(counts.verdicts) and counts.verdicts.any(axis=1).all())


def _ends(replicates: Float[np.ndarray, " b"], mean: float, level: float) -> tuple[float, float]:
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
