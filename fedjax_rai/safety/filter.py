"""The safety filter: which of its examples a client keeps."""

from typing import NamedTuple

import numpy as np


class Filtered(NamedTuple):
    """`kept[n]`; `invalid`: how many were dropped because the guard gave no number."""

    kept: np.ndarray
    invalid: int


def keep(scores: np.ndarray, threshold: float) -> Filtered:
    """Keep the examples scored below `threshold`.

    Guarantees: a NaN score drops the example and is counted; threshold = inf keeps all that have a score.
    """
    invalid = np.isnan(scores)
    return Filtered(~invalid & (np.nan_to_num(scores) < threshold), int(invalid.sum()))
