"""The device mesh, and which logical axis lies along which of its axes. Axis types are always Auto."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_rai.aliases import PyTree
from fedjax_rai.errors import InputError

AXES = ("clients", "fsdp", "tensor")
ROWS = ("clients", "fsdp")  # what the rows of a batch are split over
RULES = (("layers", None), ("embed", "fsdp"), ("heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor"))
AXIS_OF = dict(RULES)


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


def _even(leaf: jax.ShapeDtypeStruct | jax.Array, lie: NamedSharding) -> NamedSharding:
    # An array's shards are all of one size; vocabularies are often odd (32001), and so is the number of scales in a
    # column of a quantised kernel (896 rows: 14).
    named = zip(lie.spec, leaf.shape, strict=True)
    axes = [axis if axis and size % lie.mesh.shape[axis] == 0 else None for axis, size in named]
    return NamedSharding(lie.mesh, P(*axes))


def lay(tree: PyTree, mesh: Mesh | AbstractMesh, places: Mapping[int, Sequence[str]]) -> PyTree:
    """Axes of every leaf, by their places, over axes of the mesh; the others are left to the compiler.

    A tree stays as it is where the mesh has one device along all that is named. Within a program.
    """
    placed = {axis: tuple(name for name in names if mesh.shape.get(name, 1) > 1) for axis, names in places.items()}
    if not any(placed.values()):
        return tree

    def constrain(leaf: jax.Array) -> jax.Array:
        spec: list[Any] = [P.UNCONSTRAINED] * leaf.ndim
        for axis, names in placed.items():
            spec[axis] = names or None
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(constrain, tree)


@lru_cache  # one function for one mesh, which compiled programs are found by
def over_rows(mesh: Mesh | AbstractMesh) -> Callable[[PyTree], PyTree]:
    """Lays the leading axis of every leaf, the rows of one batch, over `ROWS`."""
    return partial(lay, mesh=mesh, places={0: ROWS})


def ways(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return prod(mesh.shape.get(name, 1) for name in ROWS)


def mesh_of(tree: PyTree) -> AbstractMesh:
    """The mesh that an array of the tree lies on, also within a program; one without axes where it lies on none."""
    return jax.typeof(jax.tree.leaves(tree)[0]).sharding.mesh


def split_rows(rows: PyTree, beside: PyTree, axis: int = 0) -> PyTree:
    """Rows dealt out to all devices that `beside`, which lies on a mesh, has parts on; within a program.

    `axis`: that of the rows in every leaf; the others are left to the compiler, as is all where there is one device.
    """
    return lay(rows, mesh_of(beside), {axis: ROWS})


def is_sharded(parameter: PyTree) -> bool:
    """Whether the rows of a kernel may lie on several devices."""
    return mesh_of(parameter).shape.get("fsdp", 1) > 1


def worth_gathering(tokens: int, size: int) -> bool:
    """Whether so many tokens are reason enough to gather parameters whose axis of `size` is split by `fsdp`.

    As much is sent either way at about half that size: an all-reduce of what the parts give sends every number twice.
    A quarter is enough, as tokens that stay where they are need memory on one device only.
    """
    return 4 * tokens >= size


def gathered(parameter: PyTree, axes: Sequence[str | None]) -> PyTree:
    """A parameter of these logical axes, all of it on each device that had a part by `fsdp`; within a program."""
    mesh = mesh_of(parameter)
    split = P(*(AXIS_OF[name] if name else None for name in axes))
    kept = P(*(AXIS_OF[name] if name and name != "embed" else None for name in axes))

    def gather(leaf: jax.Array) -> jax.Array:
        # Held in its parts first: else XLA gathers what was cut out of a stack before the axis of layers is dropped,
        # wants the rows in front for that, and copies the stacks of all layers to have them so.
        leaf = jax.lax.with_sharding_constraint(leaf, _even(leaf, NamedSharding(mesh, split)))
        return jax.lax.with_sharding_constraint(leaf, _even(leaf, NamedSharding(mesh, kept)))

    return jax.tree.map(gather, parameter)


def everywhere_but_spread(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays on every device of a mesh, but for those that are spread over devices already."""

    def placed(leaf: jax.Array) -> jax.Array:
        return jax.device_put(leaf, replicated(mesh)) if leaf.sharding.is_fully_replicated else leaf

    return jax.tree.map(placed, tree)


def whole(tree: PyTree, beside: PyTree) -> PyTree:
    """What a program gives, all of it on each device that `beside` has parts on by `tensor`; within a program.

    Else XLA leaves adapters as their gradients come, split, and the program that they go into next is compiled again.
    """
    mesh = mesh_of(beside)
    if mesh.shape.get("tensor", 1) == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def with_whole_channels(x: jax.Array, beside: PyTree, by_rows: bool) -> jax.Array:
    """Activations whose last axis is not split over the devices that `beside` has parts on; within a program.

    `by_rows`: the first axis is, over `ROWS`; else that is left to the compiler, as where clients have devices each.
    """
    spec = P(ROWS if by_rows else P.UNCONSTRAINED, *(P.UNCONSTRAINED,) * (x.ndim - 2), None)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh_of(beside), spec))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())
