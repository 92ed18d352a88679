"""Which client holds which example."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_rai import rng
from fedjax_rai.errors import InputError


def iid(n: int, clients: int, seed: int) -> list[np.ndarray]:
    """`n` examples dealt at random: an index array for each client, disjoint, covering all, sizes within one.

    Raises InputError where there are fewer examples than clients.
    """
    if n < clients:
        raise InputError(f"federated.clients = {clients}: more than the {n} training pairs; must be at most {n}")
    return np.array_split(rng.host(seed, "partition").permutation(n), clients)


PARTITIONS: dict[str, Callable[[int, int, int], list[np.ndarray]]] = {"iid": iid}
"""Partitions by name: (number of examples, number of clients, seed) -> an index array for each client.

The arrays are disjoint, and a function of these three alone.
"""


def checked_partition(parts: Any, pairs: int, clients: int, name: str) -> list[np.ndarray]:
    """The index array of each client, by the partition `name`; pairs that no client holds are allowed.

    Raises InputError unless there is an integer array [n] for each client, indices are those of pairs, and none stands
    twice.
    """
    stated = f"data.partition = {name}"
    if not isinstance(parts, Sequence | np.ndarray) or len(parts) != clients:
        found = len(parts) if isinstance(parts, Sequence | np.ndarray) else f"a {type(parts).__name__}, not a list of"
        raise InputError(f"{stated}: gives {found} arrays; must give one for each of the {clients} clients")
    held = [_indices(part, f"{stated}: client {client}", pairs) for client, part in enumerate(parts)]
    together = np.concatenate(held)
    indices, times = np.unique(together, return_counts=True)
    if len(indices) < len(together):
        twice = indices[times > 1][0]
        holders = [client for client, part in enumerate(held) if twice in part]
        raise InputError(f"{stated}: pair {twice} stands twice, at clients {holders}; no index may")
    return held


def _indices(part: Any, stated: str, pairs: int) -> np.ndarray:
    try:
        array = np.asarray(part)
    except ValueError:  # lists of unequal lengths
        raise InputError(f"{stated} gets no array; must get an integer array of indices") from None
    if array.shape == (0,):
        return array.astype(int)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{stated} gets {array.dtype}{[*array.shape]}; must get an integer array [n] of indices")
    outside = array[(array < 0) | (array >= pairs)]
    if len(outside):
        raise InputError(f"{stated} gets the index {outside[0]}; must be from 0 to {pairs - 1}")
    return array
