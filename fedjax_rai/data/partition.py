"""Which client holds which example."""

from collections.abc import Callable

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
