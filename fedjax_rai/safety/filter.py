"""The safety filter: which of its examples a client keeps."""

import numpy as np


def keep(scores: np.ndarray, threshold: float) -> np.ndarray:
    """bool[n]: the examples scored below `threshold`.

    Guarantees: a score that is no number drops its example; threshold = inf keeps all that have a score.
    """
    return ~np.isnan(scores) & (np.nan_to_num(scores) < threshold)
