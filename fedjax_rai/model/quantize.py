"""The frozen base's kernels in 8 or 4 bits a parameter, with one scale for each block of 64 rows of a column.

A kernel `[..., in, out]` becomes a `Quantized`; `matmul` multiplies by it. Every column is quantised by itself and
so is everything in front of the last two axes, so that fusing projections (q|k|v along `out`), stacking layers and
slicing either commute with `quantize`. Codes are packed into bytes by us, so that any device and any checkpoint
format can hold them.
"""

from collections.abc import Callable
from functools import partial, reduce
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Int8, Integer, UInt8

from fedjax_rai.aliases import Array, Float

BLOCK = 64
"""Rows that share a scale; where `in` is not a multiple of it, gcd(in, 64) rows do."""

NF4_LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""NormalFloat4: quantiles of the normal distribution scaled to [-1, 1], zero among them (arXiv 2305.14314, E)."""


@struct.dataclass
class Quantized:
    """A kernel `[..., in, out]` as codes and scales; both may have the same further axes in front.

    values: int8 `[..., in, out]`; nf4 uint8 `[..., in / 2, out]`, row 2i in the low half of byte i, 2i + 1 in the high.
    scales: float32 `[..., in / block, out]`; a block of zeros has scale 0.
    kind: a name of `QUANTIZATIONS`, static.
    """

    values: Any  # an Array; Any, because a pytree's leaves may also be shapes, shardings, paths
    scales: Any
    kind: str = struct.field(pytree_node=False)


class _Scheme(NamedTuple):
    """How multiples of a block's scale are stored; the largest magnitude of a block is `top` times the scale."""

    top: float
    encode: Callable[[Float[Array, "... i o"]], Integer[Array, "... j o"]]
    decode: Callable[[Integer[Array, "... j o"]], Float[Array, "... i o"]]


def _encode_int8(multiples: Float[Array, "... i o"]) -> Int8[Array, "... i o"]:
    return jnp.clip(jnp.round(multiples), -127, 127).astype(jnp.int8)


def _decode_int8(values: Int8[Array, "... i o"]) -> Float[Array, "... i o"]:
    return values.astype(jnp.float32)


def _encode_nf4(multiples: Float[Array, "... i o"]) -> UInt8[Array, "... j o"]:
    *front, rows, columns = multiples.shape
    if rows % 2:
        raise ValueError(f"nf4 packs two rows of a kernel into a byte, and the input size {rows} is odd")
    codes = jnp.zeros(multiples.shape, jnp.uint8)  # a code is the number of middles between levels below the value
    for middle in (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2:
        codes += multiples > middle
    pairs = codes.reshape(*front, rows // 2, 2, columns)
    return pairs[..., 0, :] | pairs[..., 1, :] << 4


def _decode_nf4(values: UInt8[Array, "... j o"]) -> Float[Array, "... i o"]:
    *front, pairs, columns = values.shape
    shifts = jnp.array([0, 4], jnp.uint8).reshape((1,) * (values.ndim - 1) + (2, 1))
    codes = values[..., None, :] >> shifts & 15
    # Element-wise and exact: at most one term is not zero. A gather of scalars is slow on a TPU; selects between
    # levels are broadcast to whole kernels first, which a scan computes ahead and keeps.
    multiples = reduce(jnp.add, ((codes == code) * float(level) for code, level in enumerate(NF4_LEVELS)))
    return multiples.reshape(*front, 2 * pairs, columns)


_SCHEMES = {"int8": _Scheme(127.0, _encode_int8, _decode_int8), "nf4": _Scheme(1.0, _encode_nf4, _decode_nf4)}
QUANTIZATIONS = tuple(_SCHEMES)


def quantize(kernel: Float[Array, "... i o"], kind: str) -> Quantized:
    """The kernel in codes, symmetric around zero and nearest to it; pure, whatever the kernel's dtype.

    int8: an error of at most half a scale, which is absmax / 127 of the block. nf4: the nearest level, times absmax.
    Raises ValueError for nf4 when the input size is odd.
    """
    scheme = _SCHEMES[kind]
    *front, rows, columns = kernel.shape
    block = gcd(rows, BLOCK)
    blocks = kernel.astype(jnp.float32).reshape(*front, rows // block, block, columns)
    scales = jnp.max(jnp.abs(blocks), axis=-2) / scheme.top
    multiples = blocks / jnp.where(scales == 0, 1, scales)[..., None, :]
    return Quantized(scheme.encode(multiples.reshape(kernel.shape)), scales, kind)


def dequantize(quantized: Quantized, dtype: DTypeLike) -> Float[Array, "... i o"]:
    """The kernel that the codes stand for, rounded to `dtype` once, last."""
    multiples = _SCHEMES[quantized.kind].decode(quantized.values)
    *front, blocks, columns = quantized.scales.shape
    split = multiples.reshape(*front, blocks, -1, columns) * quantized.scales[..., None, :]
    return split.reshape(multiples.shape).astype(dtype)


def abstract(shape: tuple[int, ...], kind: str) -> Quantized:
    """Shapes of the quantised kernel of `shape`; nothing is allocated."""
    return jax.eval_shape(partial(quantize, kind=kind), jax.ShapeDtypeStruct(shape, jnp.float32))


@partial(jax.checkpoint, prevent_cse=False)
def matmul(x: Float[Array, "t i"], kernel: Quantized) -> Float[Array, "t o"]:
    """x @ dequantize(kernel), in the dtype of x.

    In a scan over layers the backward pass dequantises again and keeps no kernel, nor a copy of its codes. Layers
    unrolled in one program share the forward pass's dequantised kernels, which then all stay.
    """
    return x @ dequantize(kernel, x.dtype)
