"""What the programs share that split a base over eight devices: loading it on one and on eight, and what lies where."""

import collections
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding

from fedjax_rai.aliases import Base
from fedjax_rai.mesh import base_shardings, make_mesh
from fedjax_rai.model import decoder, weights
from fedjax_rai.model.architecture import DecoderConfig

MESH = make_mesh(fsdp=2, tensor=2)
assert dict(MESH.shape) == {"clients": 2, "fsdp": 2, "tensor": 2}
Part = tuple[str, tuple[range, ...], int]
READ: collections.Counter[Part] = collections.Counter()
"""How often each part was read of the base loaded last: (tensor, places of the part by axis, size of the tensor)."""

_read = weights.Stored.read


def _counted(stored: Any, index: Any = ..., dtype: Any = None) -> np.ndarray:
    places = [range(size)[part] for size, part in zip(stored.shape, index, strict=True)]
    READ[stored.name, tuple(places), int(np.prod(stored.shape))] += 1
    return _read(stored, index, dtype)


setattr(weights.Stored, "read", _counted)  # noqa: B010


def load(folder: Path, config: DecoderConfig) -> tuple[Base, Base]:
    """The base on one device and on eight, which hold the same."""
    shardings = base_shardings(MESH, decoder.abstract_base(config))
    one = weights.load_base(folder, config)
    READ.clear()
    eight = weights.load_base(folder, config, shardings)
    jax.tree.map(np.testing.assert_array_equal, eight, one)
    jax.tree.map(_check_sharding, eight, shardings)
    assert jax.tree.leaves(one)[0].sharding == SingleDeviceSharding(jax.devices()[0])
    return one, eight


def _check_sharding(leaf: jax.Array, expected: NamedSharding) -> None:
    found: Any = leaf.sharding
    assert found.is_equivalent_to(expected, len(expected.spec)), (found, expected)
    assert found.spec == expected.spec, (found, expected)


def share(leaf: jax.Array) -> float:
    """What one device holds of it, each as much."""
    (held,) = {shard.data.size / leaf.size for shard in leaf.addressable_shards}
    return held
