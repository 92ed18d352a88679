"""In which order rows are used: fresh permutations, one after another."""

import numpy as np

from fedjax_rai import rng


def cycle(rows: np.ndarray, n: int, g: np.random.Generator) -> np.ndarray:
    """n entries of `rows`: a fresh permutation each time they are used up."""
    times = -(-n // max(len(rows), 1))
    return np.concatenate([rows[:0], *(g.permutation(rows) for _ in range(times))])[:n]


def passes(rows: int, n: int, seed: int) -> np.ndarray:
    """Which of so many red prompts each of n conversations is about: a fresh permutation each time all were taken.

    The first ones are the same for any larger n.
    """
    times = -(-n // rows)
    return np.concatenate([rng.host(seed, "prepared prompts", cycle=i).permutation(rows) for i in range(times)])[:n]
