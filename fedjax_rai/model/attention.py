"""Attention, one function per implementation, all equal to `xla` on valid queries.

    attend("xla", q, k, v, sight, Attention(window=4096))

A layer says who sees whom by a `Sight` (segments and positions, no dense mask), so that an implementation builds
only as much of the mask as it needs. What is fixed for a layer (scale, soft cap, window) is an `Attention`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai.aliases import Array, Bool, Float, Int, PyTree
from fedjax_rai.errors import InputError

CHUNK = 512
"""Most queries that `chunked` takes at once."""


class Sight(NamedTuple):
    """Which keys a token sees: those of the token's segment that are not after it."""

    query_segment: Int[Array, "b t"]  # 0: padding; packed examples have 1, 2, ...
    query_position: Int[Array, "b t"]  # counts the valid tokens of the segment
    key_segment: Int[Array, "b s"]
    key_position: Int[Array, "b s"]


class Attention(NamedTuple):
    """What is fixed for a layer; hashable, static under `jit`.

    `scale` multiplies the logits (None: 1 / sqrt(head size)); `softcap` bounds them, cap * tanh(logits / cap), before
    the mask (Gemma 2, arXiv:2408.00118); `window` is how many tokens of its segment, itself the last, a token sees.
    """

    scale: float | None = None
    softcap: float | None = None
    window: int | None = None


def visible(sight: Sight, window: int | None) -> Bool[Array, "b t s"]:
    """The dense mask: same segment, not after the query and, with a window, less than `window` tokens before it."""
    past = sight.query_position[:, :, None] - sight.key_position[:, None, :]
    seen = (sight.query_segment[:, :, None] == sight.key_segment[:, None, :]) & (past >= 0)
    return seen if window is None else seen & (past < window)


def _scale(q: Array, options: Attention) -> float:
    return q.shape[-1] ** -0.5 if options.scale is None else options.scale


def _by_key_head(x: Float[Array, "b t h e"], groups: int) -> Float[Array, "b g n e"]:
    """The queries that share a key head, head by head: n = (h // g) * t."""
    batch, length, _, size = x.shape
    heads = x.reshape(batch, length, groups, -1, size).transpose(0, 2, 3, 1, 4)
    return heads.reshape(batch, groups, -1, size)


def _by_token(x: Float[Array, "b g n e"], length: int) -> Float[Array, "b t h e"]:
    """What `_by_key_head` was made of."""
    batch, groups, _, size = x.shape
    heads = x.reshape(batch, groups, -1, length, size).transpose(0, 3, 1, 2, 4)
    return heads.reshape(batch, length, -1, size)


def _products(queries: Float[Array, "b g n e"], keys: Float[Array, "b s g e"]) -> Float[Array, "b g n s"]:
    """Of every query and every key of its head, in float32."""
    return jnp.einsum("bgne,bges->bgns", queries, keys.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)


def _logits(products: Float[Array, "b g n s"], q: Array, sight: Sight, options: Attention) -> Float[Array, "b g n s"]:
    """Scaled, capped and masked products of the queries q and their keys."""
    mask = visible(sight, options.window)[:, None, None]
    length, slots = mask.shape[-2:]
    logits = products.reshape(*products.shape[:2], -1, length, slots) * _scale(q, options)
    if options.softcap is not None:
        logits = options.softcap * jnp.tanh(logits / options.softcap)
    # Finite: a query that sees nothing averages all values, and neither it nor its gradient is NaN.
    return jnp.where(mask, logits, 0.5 * jnp.finfo(jnp.float32).min).reshape(products.shape)


def without_single_row(x: Float[Array, "b ..."]) -> Array:
    """x[0] if b is 1, or x: behind an axis of size 1 XLA's CPU backend takes 12 times as long for some sums over rows.

    (jax 0.10.2; docs/performance.md. More than that is not merged: the axes may lie on several devices.)
    """
    return x[0] if x.shape[0] == 1 else x


def _by_probabilities(logits: Float[Array, "b g n s"], values: Float[Array, "b g s e"]) -> Float[Array, "b g n e"]:
    p = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("bgns,bgse->bgne", p.astype(values.dtype), values)


def _divided_last(logits: Float[Array, "b g n s"], values: Float[Array, "b g s e"]) -> Float[Array, "b g n e"]:
    """`_by_probabilities` with a pass less over an array [n, s]; accelerators fuse those, and would move more."""
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum("bgns,bgse->bgne", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (out / total).astype(values.dtype)


def _mean_of_values(logits: Float[Array, "b g n s"], v: Float[Array, "b s g e"]) -> Float[Array, "b g n e"]:
    """Weighted by the softmax of the logits."""
    values = v.swapaxes(1, 2)
    return jax.lax.platform_dependent(logits, values, cpu=_divided_last, default=_by_probabilities)


def _softmax_backward(p: Float[Array, "b g n s"], dp: Float[Array, "b g n s"]) -> Float[Array, "b g n s"]:
    """The gradient of the logits, of that of their probabilities."""
    rows = without_single_row(p)
    d_rows = without_single_row(dp)
    return (rows * (d_rows - (rows * d_rows).sum(axis=-1, keepdims=True))).reshape(p.shape)


# With its own backward pass, in which no array [n, s] is turned; jax's of this forward pass would turn two. It keeps
# its operands: probabilities cost much to keep and little to compute again.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _dense(q: Array, k: Array, v: Array, sight: Sight, options: Attention) -> Array:
    products = _products(_by_key_head(q, k.shape[2]), k)
    return _by_token(_mean_of_values(_logits(products, q, sight, options), v), q.shape[1])


def _dense_forward(q: Array, k: Array, v: Array, sight: Sight, options: Attention):
    return _dense(q, k, v, sight, options), (q, k, v, sight)


def _dense_backward(options: Attention, operands: tuple[Array, Array, Array, Sight], cotangent: Array):
    q, k, v, sight = operands
    queries = _by_key_head(q, k.shape[2])
    cotangent = _by_key_head(cotangent, k.shape[2])
    logits, of_products = jax.vjp(lambda products: _logits(products, q, sight, options), _products(queries, k))
    p = jax.nn.softmax(logits, axis=-1)

    (ds,) = of_products(_softmax_backward(p, _products(cotangent, v)))
    ds = ds.astype(q.dtype)
    dq = jnp.einsum("bgns,bgse->bgne", ds, k.swapaxes(1, 2))
    dk = jnp.einsum("bgen,bgns->bges", queries.swapaxes(2, 3), ds)
    dv = jnp.einsum("bgen,bgns->bges", cotangent.swapaxes(2, 3), p.astype(v.dtype))
    return _by_token(dq, q.shape[1]), dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2), None


_dense.defvjp(_dense_forward, _dense_backward)


def _xla(q: Array, k: Array, v: Array, sight: Sight, options: Attention) -> Array:
    """Logits and mask of all queries at once; memory grows with t * s."""
    return jnp.asarray(_dense(q, k, v, sight, options))


_recomputed = partial(jax.checkpoint, prevent_cse=False)


@partial(_recomputed, static_argnums=4)
def _chunked(q: Array, k: Array, v: Array, sight: Sight, options: Attention) -> Array:
    """Equal chunks of at most CHUNK queries, one after the other; memory grows with s, and with t only as q does."""
    batch, length = q.shape[:2]
    chunks = math.ceil(length / CHUNK)
    rows = math.ceil(length / chunks)  # of equal size, so that the padding is less than a row for each chunk
    # Every chunk adds to the gradients of k and v: in float32, whatever the type of k and v.
    dtype = k.dtype
    k = k.astype(jnp.float32)
    v = v.astype(jnp.float32)

    def split(x: Array) -> Array:
        further_axes = [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, ((0, 0), (0, chunks * rows - length), *further_axes))
        return jnp.moveaxis(x.reshape(batch, chunks, rows, *x.shape[2:]), 1, 0)

    @_recomputed
    def attend_chunk(chunk: tuple[Array, Array, Array]) -> Array:
        queries, segment, position = chunk
        chunk_sight = Sight(segment, position, sight.key_segment, sight.key_position)
        return _dense(queries, k.astype(dtype), v.astype(dtype), chunk_sight, options)

    out = jax.lax.map(attend_chunk, (split(q), split(sight.query_segment), split(sight.query_position)))
    return jnp.moveaxis(out, 0, 1).reshape(batch, chunks * rows, *q.shape[2:])[:, :length]


def _flattening(function: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """`function` of arrays [b, ...], for which a vmapped axis becomes part of b. Not differentiable."""
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def _(size: int, batched: list[bool], *args: Array):
        rows = []
        for x, is_batched in zip(args, batched, strict=True):
            whole = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            rows.append(whole.reshape(-1, *whole.shape[2:]))
        out = mapped(*rows)
        return tuple(y.reshape(size, -1, *y.shape[1:]) for y in out), (True,) * len(out)

    return mapped


def _fused(q: Array, k: Array, v: Array, sight: Sight, options: Attention) -> Array:
    """cuDNN's kernel, forward; not to be vmapped."""

    def even(x: Array, *axes: int) -> Array:
        """Pad axes to an even size, which the kernel asks of t and s when there is a mask."""
        widths = [(0, 0)] * x.ndim
        for axis in axes:
            widths[axis] = (0, x.shape[axis] % 2)
        return jnp.pad(x, widths)

    mask = even(visible(sight, options.window), 1, 2)[:, None]  # with False: nobody sees a key that was added
    out = jax.nn.dot_product_attention(
        *(even(q, 1), even(k, 1), even(v, 1)),
        mask=mask,
        is_causal=q.shape[1] == k.shape[1],  # the mask says so, too, but the kernel then skips what nobody sees
        scale=options.scale,
        implementation="cudnn",
    )
    return out[:, : q.shape[1]]


def _fused_with_backward(q: Array, k: Array, v: Array, sight: Sight, options: Attention) -> tuple[Array, PyTree]:
    """What the kernel gives, and its backward pass: a pytree of what that needs."""
    return jax.vjp(lambda q, k, v: _fused(q, k, v, sight, options), q, k, v)


def _made_by_kernel(leaves: list[Array], q: Array) -> list[int]:
    """Which of what its backward pass needs the kernel has made: the softmax's statistics, and its output, the last.

    All else is cheap to make again. What is left out here by mistake is made again, too, by the kernel.
    """
    of_rows = [place for place, leaf in enumerate(leaves) if leaf.shape[:1] == q.shape[:1]]
    outputs = [place for place in of_rows if leaves[place].dtype == q.dtype and leaves[place].ndim == q.ndim]
    return [place for place in of_rows if leaves[place].dtype == jnp.float32] + outputs[-1:]


def _fused_and_kept(q: Array, k: Array, v: Array, sight: Sight, options: Attention) -> tuple[Array, ...]:
    """What the kernel gives, and what it has made for its backward pass."""
    out, backward = _fused_with_backward(q, k, v, sight, options)
    leaves = jax.tree.leaves(backward)
    return out, *(leaves[place] for place in _made_by_kernel(leaves, q))


def _fused_gradients(
    cotangent: Array, operands: tuple[Array, Array, Array, Sight], kept: Sequence[Array], options: Attention
) -> tuple[Array, ...]:
    """The kernel's backward pass of (q, k, v, sight), with what the forward pass has kept.

    It is traced again for its structure; with what was kept in its place, nothing uses the forward pass in it.
    """
    leaves, structure = jax.tree.flatten(_fused_with_backward(*operands, options)[1])
    for place, leaf in zip(_made_by_kernel(leaves, operands[0]), kept, strict=True):
        leaves[place] = leaf
    return jax.tree.unflatten(structure, leaves)(cotangent)


# The batching rule that jax has for its cuDNN primitive fails on a mask that all heads share (jax-ml/jax#34920),
# and a mask of every head would cost what the kernel saves. So the primitive never sees a vmap.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _fused_flat(q: Array, k: Array, v: Array, sight: Sight, options: Attention) -> Array:
    def forward(q: Array, k: Array, v: Array, *sight: Array) -> tuple[Array]:
        return (_fused(q, k, v, Sight(*sight), options),)

    return _flattening(forward)(q, k, v, *sight)[0]


def _fused_forward(q: Array, k: Array, v: Array, sight: Sight, options: Attention):
    def forward(q: Array, k: Array, v: Array, *sight: Array) -> tuple[Array, ...]:
        return _fused_and_kept(q, k, v, Sight(*sight), options)

    out, *kept = _flattening(forward)(q, k, v, *sight)
    return out, (q, k, v, sight, kept)


def _fused_backward(options: Attention, saved: tuple[Array, Array, Array, Sight, list[Array]], cotangent: Array):
    def backward(cotangent: Array, q: Array, k: Array, v: Array, *others: Array) -> tuple[Array, ...]:
        return _fused_gradients(cotangent, (q, k, v, Sight(*others[:4])), others[4:], options)

    q, k, v, sight, kept = saved
    return *_flattening(backward)(cotangent, q, k, v, *sight, *kept), None


_fused_flat.defvjp(_fused_forward, _fused_backward)


def _cudnn(q: Array, k: Array, v: Array, sight: Sight, options: Attention) -> Array:
    """cuDNN's flash attention under a dense mask [b, t, s] that the heads share.

    As many keys as queries are taken to be the queries' own tokens: the valid tokens of a segment lie in order.
    On CUDA GPUs, for bfloat16 and float16, without soft cap, head sizes that are multiples of 8 up to 128 (Hopper and
    later: 256). Raises InputError for another type or a soft cap.
    """
    if options.softcap is not None:
        raise InputError(f"attention 'cudnn' has no soft cap (got {options.softcap}): use 'xla' or 'chunked'")
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise InputError(f"attention 'cudnn' takes bfloat16 or float16, not {q.dtype}: or use 'xla' or 'chunked'")
    return jnp.asarray(_fused_flat(q, k, v, sight, options))


def _splash(q: Array, k: Array, v: Array, sight: Sight, options: Attention) -> Array:
    """Pallas splash attention: the kernel on TPU, its interpreter (slow, for tests) elsewhere.

    Self-attention only; raises InputError if t != s. Sees by slot, so the valid tokens of a segment must lie in
    contiguous slots, in order: padding on either side and packed segments do, a ragged KV cache does not. For the
    backward pass it keeps the output and one float32 per query and head.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import, and rarely wanted

    _, length, heads, _ = q.shape
    keys = k.shape[1]
    if length != keys:
        raise InputError(f"attention 'splash' takes as many keys as queries, not {keys} keys for {length} queries")
    slots = 128 * math.ceil(length / 128)  # the kernel's blocks are multiples of 128
    block = next(size for size in (512, 256, 128) if slots % size == 0)
    block_names = [field.name for field in fields(splash.BlockSizes) if field.name.startswith("block_")]
    sizes: dict[str, Any] = dict.fromkeys(block_names, block)
    shape = (slots, slots)
    if options.window is None:
        mask = splash.CausalMask(shape)
    else:
        mask = splash.LocalMask(shape, (options.window - 1, 0), 0)

    def attend_slots(q: Array, k: Array, v: Array, segment: Array, interpret: bool) -> Array:
        kernel = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([mask] * heads),
            block_sizes=splash.BlockSizes(**sizes),
            attn_logits_soft_cap=options.softcap,
            interpret=interpret,
        )
        return jnp.asarray(jax.vmap(kernel)(q, k, v, splash.SegmentIds(segment, segment)))

    def padded(x: Array) -> Array:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, slots - length), (0, 0)))

    scaled = (q.astype(jnp.float32) * _scale(q, options)).astype(q.dtype)
    segment = jnp.pad(sight.query_segment, ((0, 0), (0, slots - length)))
    # Decided when the program is lowered for a platform: here nobody asks which devices there are.
    out = jax.lax.platform_dependent(
        *(padded(scaled), padded(k), padded(v), segment),
        tpu=partial(attend_slots, interpret=False),
        default=partial(attend_slots, interpret=True),
    )
    return out[:, :, :length].swapaxes(1, 2)


ATTENTIONS: dict[str, Callable[[Array, Array, Array, Sight, Attention], Array]] = {
    "xla": _xla,
    "chunked": _chunked,
    "cudnn": _cudnn,
    "splash": _splash,
}


def attend(
    implementation: str,
    q: Float[Array, "b t h e"],
    k: Float[Array, "b s g e"],
    v: Float[Array, "b s g e"],
    sight: Sight,
    options: Attention,
) -> Float[Array, "b t h e"]:
    """Grouped-query attention of t queries to s keys by ATTENTIONS[implementation].

    `h` is a multiple of `g`; query head i uses key head i // (h // g). The softmax is in float32. A padding query
    (segment 0) gives finite values of no meaning and finite gradients, and no valid query sees a padding key.
    """
    return ATTENTIONS[implementation](q, k, v, sight, options)
