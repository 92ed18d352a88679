"""What 95 % intervals of means miss, by simulation.

`python -m tests.evals.coverage_of_means` prints the table of docs/evaluations.md. Samples of a few prompts are drawn of
worlds whose truth is known; counted is how often the truth is outside.
"""

from collections.abc import Callable
from math import exp
from typing import NamedTuple

import numpy as np

from fedjax_rai.evals import intervals, mean_intervals
from fedjax_rai.evals.means import MARK, NATS, PERPLEXITY, Total, mean_rate
from fedjax_rai.evals.rate import Unit

Random = np.random.Generator
Run = list[tuple[str, Total]]
LENGTHS = np.arange(4, 61)  # tokens of an answer
PROMPTS = (5, 10, 20, 32, 80)


class World(NamedTuple):
    """What is measured, and its truth."""

    name: str
    unit: Unit
    truth: float
    """Of the mean, or of the paired difference, in what the unit shows."""
    draw: Callable[[Random, int], list[list[Run]]]
    """One or two arms by seed, of so many prompts."""


def run_of(totals: np.ndarray, weights: np.ndarray) -> Run:
    pairs = zip(totals.tolist(), weights.tolist(), strict=True)
    return [(f"prompt {i}", Total(*pair)) for i, pair in enumerate(pairs)]


def drifting(random: Random, n: int, level: float = 1.0, sd: float = 0.5) -> Run:
    """Nats by prompt are log-normal, with this standard deviation of the logarithm, and longer answers drift more."""
    tokens = random.choice(LENGTHS, n).astype(float)
    totals = level * tokens**1.3 * np.exp(sd * random.standard_normal(n) - sd * sd / 2)
    return run_of(totals, tokens)


def marked(random: Random, n: int, shares: np.ndarray) -> Run:
    """Two marks a prompt, of which the second is the first's in one of two."""
    first = random.choice(10, n, p=shares) + 1
    second = np.where(random.random(n) < 0.5, first, random.choice(10, n, p=shares) + 1)
    return run_of((first + second).astype(float), np.full(n, 2.0))


def read_by_two(random: Random, n: int) -> list[list[Run]]:
    """The same answers: nats a token vary by 1 from prompt to prompt, and by 0.2 between arms, whose truth is 0.1."""
    tokens = random.choice(LENGTHS, n).astype(float)
    of_one = 3.0 + random.standard_normal(n)
    of_other = of_one - 0.1 + 0.2 * random.standard_normal(n)
    return [[run_of(of_one * tokens, tokens)], [run_of(of_other * tokens, tokens)]]


def by_seed(random: Random, n: int) -> list[list[Run]]:
    """Three seeds of their own level, a tenth apart."""
    return [[drifting(random, n, level) for level in random.normal(1.0, 0.1, 3)]]


MIDDLE = np.array([1, 1, 2, 3, 5, 6, 8, 6, 3, 1]) / 36
HIGH = np.array([3, 0, 0, 3, 4, 5, 10, 20, 40, 100]) / 185
MARKS = np.arange(1, 11)
DRIFT = float((LENGTHS**1.3).mean() / LENGTHS.mean())
WORLDS = (
    World("drift", NATS, DRIFT, lambda random, n: [[drifting(random, n)]]),
    World("drift, three seeds", NATS, DRIFT, by_seed),
    World("marks around 6.2", MARK, float(MIDDLE @ MARKS), lambda random, n: [[marked(random, n, MIDDLE)]]),
    World("marks around 8.9", MARK, float(HIGH @ MARKS), lambda random, n: [[marked(random, n, HIGH)]]),
    World("ratio of perplexities", PERPLEXITY, exp(0.1), read_by_two),
    World("drift of few prompts", NATS, DRIFT, lambda random, n: [[drifting(random, n, sd=1.0)]]),
)


def missed(world: World, prompts: int, times: int) -> tuple[float, float | None]:
    """Percent of truths outside: of the bootstrap, and of a run's linearised interval (one arm, one seed alone)."""
    random = np.random.default_rng([prompts, WORLDS.index(world)])
    outside = linearised = 0
    for _ in range(times):
        arms = world.draw(random, prompts)
        if len(arms) == 2:
            found = mean_intervals.difference(arms[0], arms[1], world.unit)
        else:
            found = mean_intervals.interval(arms[0], world.unit)
        assert found is not None
        outside += not found.low <= world.truth <= found.high  # without an interval, too
        rate = mean_rate([total for _, total in arms[0][0]], world.unit, "x")
        linearised += rate is None or not rate.low <= world.truth <= rate.high
    is_one_run = len(arms) == len(arms[0]) == 1
    return 100 * outside / times, 100 * linearised / times if is_one_run else None


def main(times: int = 1000) -> None:
    intervals.REPLICATES = 2000
    for world in WORLDS:
        fields = []
        for prompts in PROMPTS:
            ours, linearised = missed(world, prompts, times)
            fields.append(f"{ours:.1f}" + ("" if linearised is None else f" ({linearised:.1f})"))
        print(f"| {world.name} | {' | '.join(fields)} |", flush=True)


if __name__ == "__main__":
    main()
