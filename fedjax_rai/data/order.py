"""In which order rows are used: fresh permutations, one after another."""

import math

import numpy as np

from fedjax_rai import rng


def cycle(rows: np.ndarray, n: int, g: np.random.Generator) -> np.ndarray:
    """n entries of `rows`: a fresh permutation each time they are used up."""
    times = math.ceil(n / max(len(rows), 1))
    permutations = [g.permutation(rows) for _ in range(times)]
    return np.concatenate([rows[:0], *permutations])[:n]  # no rows where n is 0


def passes(rows: int, n: int, seed: int) -> np.ndarray:
    """Which of so many red prompts each of n conversations is about: a fresh permutation each time all were taken.

    The first ones are the same for any larger n.
    """
    times = math.ceil(n / rows)
    permutations = [rng.host(seed, "prepared prompts", cycle=i).permutation(rows) for i in range(times)]
    return np.concatenate(permutations)[:n]
