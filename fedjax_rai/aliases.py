"""Array aliases and the axis alphabet of every annotation in this package.

Axes: `c` client, `b` batch, `l` length, `d` model, `r` rank, `v` vocabulary, `k` local step, `n` pair, example or
revision, `s` KV-cache slot, `h` head, `t` generated token, `e` token that ends a turn. Functions are written for one
client; `vmap` adds `c`.
"""

from typing import Any, TypeAlias

from jax import Array
from jaxtyping import Bool, Float, Int, Key, PyTree

Adapter: TypeAlias = PyTree[Float[Array, "..."]]
"""LoRA parameters: {"layers": {...: {"a": [L, in, r], "b": [L, r, out]}}}}, leaves [c, ...] once mapped."""
Base: TypeAlias = PyTree[Array]
"""Frozen parameters of the decoder, as its `params` collection; quantised kernels are codes and scales."""
Metrics: TypeAlias = dict[str, Any]

__all__ = ["Adapter", "Array", "Base", "Bool", "Float", "Int", "Key", "Metrics", "PyTree"]
