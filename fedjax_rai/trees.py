"""Arithmetic on pytrees of arrays, leaf by leaf."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_rai.aliases import Array, Float, PyTree


def add(x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, x, y)


def sub(x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, x, y)


def scale(scalar: Any, x: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: scalar * leaf, x)


def zeros_like(x: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, x)


def select(condition: Any, x: PyTree, y: PyTree) -> PyTree:
    """`x` where the scalar `condition` holds, else `y`; a NaN in the branch not taken does not leak."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


def weighted_mean(x: PyTree, weight: Float[Array, "c"]) -> PyTree:
    """sum_i weight_i x_i / sum_i weight_i over the leading axis of every leaf.

    A row of weight 0 is absent, whatever it holds (NaN included); all weights 0 give zeros.
    """
    total = jnp.sum(weight)
    share = weight / jnp.where(total > 0, total, 1.0)

    def mean(leaf: Array) -> Array:
        rows = share.reshape(share.shape + (1,) * (leaf.ndim - 1)).astype(leaf.dtype)
        return jnp.sum(jnp.where(rows > 0, leaf * rows, 0), axis=0)

    return jax.tree.map(mean, x)


def squared_norm(x: PyTree) -> Float[Array, ""]:
    """Sum of the squares of all leaves, in float32."""
    return jnp.asarray(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(x)))


def norm(x: PyTree) -> Float[Array, ""]:
    """Euclidean norm of all leaves taken as one vector, in float32."""
    return jnp.sqrt(squared_norm(x))


def all_finite(x: PyTree) -> Array:
    """Scalar bool: no leaf holds a NaN or an infinity."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(x)]))


def in_chunks(
    fn: Callable[[Any], Any],
    rows: Any,
    chunk: int,
    constrain: Callable[[Any], Any] = lambda x: x,
    constrain_out: Callable[[Any], Any] | None = None,
) -> Any:
    """`fn` of a pytree of rows [b, ...], `chunk` of them at once, one chunk after another; leaves [b, ...] out.

    The last chunk is filled up with copies of the first row. `constrain` lays a chunk's rows out on the mesh, and what
    `fn` makes of them, unless `constrain_out` does that.
    """
    laid_out = constrain_out or constrain
    (count,) = {leaf.shape[0] for leaf in jax.tree.leaves(rows)}
    missing = -count % chunk

    def fill(leaf: Array) -> Array:
        whole = jnp.concatenate([leaf, jnp.repeat(leaf[:1], missing, axis=0)]) if missing else leaf
        return whole.reshape(-1, chunk, *leaf.shape[1:])

    def apply(chunk_rows: Any) -> Any:
        return laid_out(fn(constrain(chunk_rows)))

    mapped = jax.lax.map(apply, jax.tree.map(fill, rows))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], mapped)


def paths(x: PyTree) -> Iterator[tuple[str, Any]]:
    """(dotted path, leaf) of every leaf, in tree order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        yield ".".join(_step_name(step) for step in path), leaf


def _step_name(step: Any) -> str:
    """A step of jax's path to a leaf: a key of a mapping, a field, or a place in a sequence."""
    for attribute in ("key", "name", "idx"):
        if hasattr(step, attribute):
            return str(getattr(step, attribute))
    return str(step)
