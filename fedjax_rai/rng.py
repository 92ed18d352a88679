"""Random keys derived by name, never by position: adding a consumer moves nobody else's numbers."""

import zlib

import jax
import numpy as np

from fedjax_rai.aliases import Array, Key


def _tag(text: str) -> int:
    return zlib.crc32(text.encode())


def stream(root: Key[Array, ""], name: str, **ids: int | Array) -> Key[Array, ""]:
    """The key of `name` at `ids` (`round=3, client=7`), whatever order the ids are written in."""
    key = jax.random.fold_in(root, _tag(name))
    for field in sorted(ids):
        key = jax.random.fold_in(jax.random.fold_in(key, _tag(field)), ids[field])
    return key


def host(seed: int, name: str, **ids: int) -> np.random.Generator:
    """The same, for choices made on the host (partitions, batches, cohorts): a NumPy generator."""
    fields = [word for field in sorted(ids) for word in (_tag(field), ids[field])]
    return np.random.default_rng([seed, _tag(name), *fields])
