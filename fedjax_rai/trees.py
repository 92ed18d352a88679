"""Arithmetic on pytrees of arrays: one line each, leaf by leaf."""

from collections.abc import Iterator
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


def norm(x: PyTree) -> Float[Array, ""]:
    """Euclidean norm of all leaves taken as one vector, in float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(x)))


def all_finite(x: PyTree) -> Array:
    """Scalar bool: no leaf holds a NaN or an infinity."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(x)]))


def paths(x: PyTree) -> Iterator[tuple[str, Any]]:
    """(dotted path, leaf) of every leaf, in tree order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        yield ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path), leaf
