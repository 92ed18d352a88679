"""The device mesh, and which logical axis lies along which of its axes. Axis types are always Auto."""

from collections.abc import Callable
from functools import lru_cache

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_rai.aliases import PyTree
from fedjax_rai.errors import InputError

AXES = ("clients", "fsdp", "tensor")
RULES = (("layers", None), ("embed", "fsdp"), ("heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor"))


def make_mesh(fsdp: int = 1, tensor: int = 1) -> Mesh:
    """All devices as (clients, fsdp, tensor); clients get what the other two leave. InputError where that is none."""
    devices = jax.device_count()
    if devices % (fsdp * tensor):
        raise InputError(f"mesh.fsdp * mesh.tensor = {fsdp * tensor}: must divide the {devices} devices here")
    shape = (devices // (fsdp * tensor), fsdp, tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3)


def base_shardings(mesh: Mesh | AbstractMesh, boxed: PyTree) -> PyTree:
    """Where each parameter lies, from its logical axis names (`decoder.abstract_base`).

    A leaf's axis that the mesh does not divide is not split: each device has all of it.
    """
    specs = nn.get_partition_spec(boxed)
    lie = nn.logical_to_mesh_sharding(specs, mesh, RULES)  # pyright: ignore
    return jax.tree.map(_even, nn.unbox(boxed), lie)


def _even(leaf: jax.ShapeDtypeStruct, lie: NamedSharding) -> NamedSharding:
    # An array's shards are all of one size; vocabularies are often odd (32001), and so is the number of scales in a
    # column of a quantised kernel (896 rows: 14).
    named = zip(lie.spec, leaf.shape, strict=True)
    axes = [axis if axis and size % lie.mesh.shape[axis] == 0 else None for axis, size in named]
    return NamedSharding(lie.mesh, P(*axes))


@lru_cache  # one function for one mesh, which compiled programs are found by
def over_clients(mesh: Mesh | AbstractMesh) -> Callable[[PyTree], PyTree]:
    """Constrains the leading axis of every leaf to the mesh's clients; the other axes are left to the compiler."""
    if mesh.shape["clients"] == 1:
        return lambda tree: tree

    def constrain(leaf: jax.Array) -> jax.Array:
        spec = P("clients", *(P.UNCONSTRAINED,) * (leaf.ndim - 1))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return lambda tree: jax.tree.map(constrain, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())
