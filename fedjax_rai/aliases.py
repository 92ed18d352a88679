"""Array aliases and the axis alphabet of every annotation in this package.

| letter | axis |
|---|---|
| `c` | client |
| `b` | row of a batch |
| `l` | token of a padded sequence |
| `d` | channel of the residual stream |
| `r` | rank of an adapter |
| `v` | token of the vocabulary |
| `k` | local step |
| `n` | row of a set: an example, a prompt or a pair |
| `t` | token that is computed: of a whole text, or of what is appended to a cache or generated |
| `s` | key that tokens see: a token of a whole text, or a slot of the KV cache |
| `h`, `g` | query head; key head, which a group of query heads shares |
| `e`, `f` | channel of a head; rotary angle of a head, one for two channels |
| `i`, `o` | row (input) and column (output) of a kernel |
| `j` | packed row of a kernel: a byte, which holds one or two rows |
| `L` | layer |
| `R`, `m` | row of a packed batch; example of such a row |

An axis that no letter stands for is written out (`kinds`, `ends`, `revisions`). Functions are written for one client;
`vmap` adds `c`.
"""

from typing import Any, TypeAlias

from jax import Array
from jaxtyping import Bool, Float, Int, Key, PyTree

Adapter: TypeAlias = PyTree[Float[Array, "..."]]
"""LoRA parameters: {"layers": {...: {"a": [L, in, r], "b": [L, r, out]}}}}, leaves [c, ...] once mapped."""
Base: TypeAlias = PyTree[Array]
"""Frozen parameters of the decoder, as its `params` collection; quantised kernels are codes and scales."""
Metrics: TypeAlias = dict[str, Any]
"""Numbers that a program reports, by name: scalars, on the device until they are read."""

__all__ = ["Adapter", "Array", "Base", "Bool", "Float", "Int", "Key", "Metrics", "PyTree"]
