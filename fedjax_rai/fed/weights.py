"""The weight that a client reports, by which a weighted mean counts it: what the server learns of the client by it."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from fedjax_rai.fed.base import Row


class Counts(NamedTuple):
    """What a client that has something to train on may make its weight of."""

    examples: int
    """Pairs that its filter left it."""
    steps: int
    """Local steps that it takes in a round."""


Weigher: TypeAlias = Callable[[Counts, np.random.Generator], float]
"""(counts, generator) -> the weight, greater than 0. The generator is the client's, the same in every round."""


def examples() -> Weigher:
    """The number of its examples (FedAvg, arXiv 1602.05629): tells the server how many the filter left."""
    return _examples


def uniform() -> Weigher:
    """1: tells nothing beyond presence, that the client has something to train on; its trained tokens tell more."""
    return _uniform


def steps() -> Weigher:
    """The number of its local steps, which is the same for all: the mean of `uniform`, but for rounding."""
    return _steps


def noised(distribution: str, scale: float) -> Weigher:
    """The number of its examples with noise of that scale, drawn once for all rounds; at least 1.

    Laplace noise of scale s tells the presence of one example apart by a factor of at most exp(1 / s): one report is
    (1 / s)-differentially private for one example, and (m / s) for m of them, among clients that have one left to
    train on. Not between none and one: a client without any makes no weight, and is known by its weight of exactly 0.
    Gaussian noise, whose standard deviation the scale is, is so with a small chance of failure only.
    """

    def weigh(counts: Counts, g: np.random.Generator) -> float:
        noise = NOISES[distribution](g, scale)
        return max(counts.examples + noise, 1.0)  # a weight of 0 would be an absent client's

    return weigh


def _examples(counts: Counts, g: np.random.Generator) -> float:
    return float(counts.examples)


def _uniform(counts: Counts, g: np.random.Generator) -> float:
    return 1.0


def _steps(counts: Counts, g: np.random.Generator) -> float:
    return float(counts.steps)


NOISES: dict[str, Callable[[np.random.Generator, float], float]] = {
    "laplace": lambda g, scale: float(g.laplace(0.0, scale)),
    "gaussian": lambda g, scale: float(g.normal(0.0, scale)),
}
WEIGHTS: dict[str, Row] = {
    "uniform": Row(uniform),
    "examples": Row(examples),
    "steps": Row(steps),
    "noised": Row(noised, "noised"),
}
