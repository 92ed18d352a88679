"""The KV cache: keys and values of every slot, and what they are stored as.

`model` stores them as they are computed. `bfloat16` rounds each number to 8 bits of precision, an error of at most a
256th of it. `int8` stores each head of each token as multiples of a scale, a 127th of its largest magnitude, with an
error of at most half a scale. Attention reads what is stored, also of the tokens that have just been written.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fedjax_rai.aliases import Array, Float, Int, PyTree
from fedjax_rai.model.architecture import DecoderConfig


class KVCache(NamedTuple):
    """Keys and values of all layers, written in place; every array in it is [L, b, s, kv_heads, n]."""

    k: Any  # an Array of head_dim numbers, or Codes
    v: Any


class Codes(NamedTuple):
    """Heads in 8 bits a number, symmetric around zero."""

    values: Any  # int8 [..., head_dim]
    scales: Any  # float32 [..., 1]


class _Form(NamedTuple):
    """How keys or values `[..., head_dim]` are stored."""

    store: Callable[[Array], PyTree]
    restore: Callable[[PyTree, DTypeLike], Array]


def _encode(x: Float[Array, "... e"]) -> Codes:
    x32 = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x32), axis=-1, keepdims=True) / 127
    multiples = x32 / jnp.where(scales == 0, 1, scales)
    return Codes(jnp.round(multiples).astype(jnp.int8), scales)


def _decode(codes: Codes, dtype: DTypeLike) -> Float[Array, "... e"]:
    return (codes.values.astype(jnp.float32) * codes.scales).astype(dtype)


CACHES = {
    "model": _Form(lambda x: x, lambda stored, dtype: stored),
    "bfloat16": _Form(lambda x: x.astype(jnp.bfloat16), lambda stored, dtype: stored.astype(dtype)),
    "int8": _Form(_encode, _decode),
}
"""`model`, `bfloat16`: arrays [..., head_dim]. `int8`: `Codes`."""


def empty_cache(config: DecoderConfig, batch: int, slots: int) -> KVCache:
    shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
    stored = jax.eval_shape(CACHES[config.kv_cache].store, jax.ShapeDtypeStruct(shape, config.dtype))

    def zeros() -> PyTree:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stored)

    return KVCache(zeros(), zeros())


def written(
    cache: KVCache, config: DecoderConfig, new: KVCache, layer: Int[Array, ""], slot: Int[Array, ""]
) -> KVCache:
    """The cache with one layer's new keys and values, arrays [b, t, g, e], stored in it, from a slot on."""
    start = (layer, 0, slot, 0, 0)
    stored = KVCache(*map(CACHES[config.kv_cache].store, new))
    return jax.tree.map(lambda old, part: jax.lax.dynamic_update_slice(old, part[None], start), cache, stored)


def of_layer(cache: KVCache, config: DecoderConfig, layer: Int[Array, ""]) -> KVCache:
    """Keys and values of one layer, arrays [b, s, g, e] of the model's dtype."""
    stored = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), cache)
    restore = CACHES[config.kv_cache].restore
    return KVCache(restore(stored.k, config.dtype), restore(stored.v, config.dtype))
