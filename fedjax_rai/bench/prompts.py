"""Random prompts, the same for us and for a peer that is given ours. NumPy alone, for peers too."""

import numpy as np


def prompt_ids(vocabulary: int, rows: int, length: int) -> np.ndarray:
    """int32[rows, length]: random tokens, none of them padding."""
    return np.random.default_rng(1).integers(0, vocabulary, (rows, length), np.int32)
