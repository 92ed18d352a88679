"""What programs hold at once on one device, in bytes: one formula a part, from the shapes of a decoder alone.

What a local step keeps for its backward pass is read off the traced model. The rest, which only the compiler decides,
follows the arrays that XLA's CPU programs hold at once; `tests/memory/test_footprint.py` compares the sums with what
XLA reports. Programs for GPUs and TPUs hold less or more: docs/performance.md compares some, by
`tests/programs/absent_devices.py`.
"""

import dataclasses
from functools import lru_cache
from math import ceil, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType

from fedjax_rai import mesh as meshes
from fedjax_rai.aliases import PyTree
from fedjax_rai.model.architecture import FUSED, DecoderConfig, fan_in, outputs
from fedjax_rai.model.attention import CHUNK
from fedjax_rai.model.decoder import LM, Decoder, abstract_base, forward
from fedjax_rai.model.lora import Lora, abstract_adapter, rank_of_each
from fedjax_rai.model.quantize import Quantized
from fedjax_rai.train.generate import start as start_decoding
from fedjax_rai.train.losses import positions_at_once
from fedjax_rai.train.optimizers import DEFAULT

FLOAT = 4
"""Bytes of a float32."""


class Computation(NamedTuple):
    """What the bytes of a program depend on besides the shapes of its arrays."""

    fsdp: int
    cotangent_bytes: int  # of the cotangent of a logit, and of its copy in the activations' dtype
    tensor: int = 1  # devices that a vocabulary lies over, of whose part the shapes given here are
    optimizer: optax.GradientTransformation = DEFAULT  # of a program that trains


class DecodingShape(NamedTuple):
    """What a program that decodes is compiled for: its rows, its cache, and how it draws."""

    rows: int
    length: int  # of the longest text that is appended at once
    slots: int  # of the KV cache
    further_slots: int = 0  # of another cache that is held beside it
    read_at_once: int | None = None  # rows that a text is appended to at once; None: all
    sorts: bool = False  # tokens are drawn by top-k or top-p


def nbytes(tree: PyTree) -> int:
    """Bytes of all leaves of a pytree of arrays or of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def loaded(config: DecoderConfig) -> PyTree:
    """Shapes of the base as `weights.load_base` gives it: what is not quantised has the config's dtype."""

    def cast(shape: Any) -> Any:
        return shape if isinstance(shape, Quantized) else jax.ShapeDtypeStruct(shape.shape, config.dtype)

    return jax.tree.map(cast, nn.unbox(abstract_base(config)), is_leaf=lambda leaf: isinstance(leaf, Quantized))


@lru_cache(maxsize=64)
def base_bytes(config: DecoderConfig, mesh: AbstractMesh) -> int:
    """Bytes of one device's part of the base."""
    shardings = meshes.base_shardings(mesh, abstract_base(config))

    return sum(jax.tree.leaves(jax.tree.map(_bytes_of_part, loaded(config), shardings)))


def merged_bytes(model: Decoder, fsdp: int) -> int:
    """Bytes of one device's part of all kernels that an adapter is added to; shapes are its own along `tensor`."""
    config = model.config
    mesh = AbstractMesh((1, fsdp, 1), meshes.AXES, axis_types=(AxisType.Auto,) * 3)
    shardings = meshes.base_shardings(mesh, abstract_base(config))["layers"]
    layers = loaded(config)["layers"]
    adapted = [name for name in FUSED if rank_of_each(config, model.lora, name)]
    return sum(_bytes_of_part(layers[name], shardings[name]) for name in adapted)


def _bytes_of_part(leaf: Any, sharding: Any) -> int:
    return prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def training(
    model: Decoder, rows: int, length: int, computation: Computation, clients: int = 1, parts: int = 1
) -> dict[str, int]:
    """Bytes, by part, of a local step of `clients` clients at once, each on `rows` sequences at once.

    Of several `parts` of a step the gradients are added up: another adapter.
    """
    config = model.config
    shapes = abstract_adapter(config, model.lora)
    adapter = nbytes(shapes)
    moments = nbytes(jax.eval_shape(computation.optimizer.init, shapes))
    kept = _saved(config, model.lora, rows, length)
    recomputed = _recomputed_layer(model, rows, length, kept)
    layer = recomputed + _layer_backward(config, rows, length)
    head = _head_with_gradient(config, rows, length, computation)
    transient = max(layer, head)
    gradients = 1 if parts == 1 else 2
    return {
        "clients' adapters": 2 * clients * adapter,  # while training, and the delta that is made of it
        "optimizer and gradient": clients * (moments + gradients * adapter),
        "activations": clients * (kept + transient),
        "kernels in use": _kernels(config, computation.fsdp),
    }


def decoding(config: DecoderConfig, shape: DecodingShape, computation: Computation) -> dict[str, int]:
    """Bytes, by part, of appending texts to a KV cache and drawing tokens one by one."""
    state = jax.eval_shape(lambda: start_decoding(Decoder(config), shape.rows, shape.slots))
    reading = shape.rows if shape.read_at_once is None else shape.read_at_once
    prefill = _layer_forward(config, reading, shape.length, shape.slots, cached=True)
    # Five arrays as large as the logits: those that come next, those before, the noise of sampling, its random bits,
    # and the sum. Top-k and top-p add the sorted logits, and two arrays of what they leave.
    arrays = 8 if shape.sorts else 5
    all_slots = shape.slots + shape.further_slots
    return {
        "KV cache": nbytes(state.cache) * all_slots // shape.slots,
        "activations": max(prefill, arrays * nbytes(state.logits)),
        "kernels in use": _kernels(config, computation.fsdp),
    }


def whole_sequences(
    config: DecoderConfig, rows: int, length: int, scored: int, computation: Computation
) -> dict[str, int]:
    """Bytes, by part, of a forward pass without a cache, and of the logits of `scored` tokens a row."""
    layer = _layer_forward(config, rows, length, length)
    head = _head(config, rows, scored, computation) + _slices(config, rows, scored, computation)
    return {
        "activations": max(layer, head),
        "kernels in use": _kernels(config, computation.fsdp),
    }


def compared(config: DecoderConfig, rows: int, length: int, computation: Computation) -> dict[str, int]:
    """Bytes, by part, of two forward passes whose logits are compared, a slice of positions at a time."""
    # A slice is cut by four arrays of logits and their logarithms, of which two are held: the others are fused.
    wider = dataclasses.replace(config, vocab_size=4 * config.vocab_size)
    head = _head(wider, rows, length, computation) // 2 + 2 * _slices(wider, rows, length, computation)
    return {
        "hidden states of the base": rows * length * config.hidden_size * FLOAT,
        "activations": max(_layer_forward(config, rows, length, length), head),
        "kernels in use": _kernels(config, computation.fsdp),
    }


def _recomputed_layer(model: Decoder, rows: int, length: int, kept: int) -> int:
    """Bytes that one layer keeps while the backward pass computes it again: what it would have kept at first.

    `kept` is what all layers keep as they are configured. 0 where nothing is computed again.
    """
    config = model.config
    if config.remat == "none":
        return 0
    without_remat = dataclasses.replace(config, remat="none")
    whole = _saved(without_remat, model.lora, rows, length)
    return max(0, whole - kept) // config.num_hidden_layers


def _saved(config: DecoderConfig, lora: Lora, rows: int, length: int) -> int:
    """Bytes that a local step keeps from its forward for its backward pass, the base and the adapter left out.

    A straight line through one and two rows of CHUNK tokens: so much for every token, and so much for none (copies
    of the adapter in another dtype).
    """
    one_row = _residuals(config, lora, 1, CHUNK)
    two_rows = _residuals(config, lora, 2, CHUNK)
    further_row = two_rows - one_row
    no_row = one_row - further_row
    return no_row + further_row * rows * length // CHUNK


@lru_cache(maxsize=64)
def _residuals(config: DecoderConfig, lora: Lora, rows: int, length: int) -> int:
    """Bytes of what the linearised hidden states take besides what they are computed from.

    Read off the traced model, so that remat, attention and quantisation count as they are, whatever a layer saves. What
    the loss makes of hidden states, logits or slices, is gone before a layer's backward pass begins.
    """
    model = Decoder(dataclasses.replace(config, unroll="none"), lora)  # unrolled, layers keep the same
    base = loaded(config)
    adapter = abstract_adapter(config, lora)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def residuals(base: PyTree, adapter: PyTree, tokens: Any) -> list[Any]:
        _, linearised = jax.vjp(lambda adapter: forward(LM(model, base), adapter, tokens, tokens), adapter)
        return jax.tree.leaves(linearised)

    traced = jax.make_jaxpr(residuals)(base, adapter, tokens).jaxpr
    given = {id(variable) for variable in (*traced.invars, *traced.constvars)}
    kept = {}
    for variable in traced.outvars:
        literal = hasattr(variable, "val")
        if not literal and id(variable) not in given:
            kept[id(variable)] = jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)
    return nbytes(list(kept.values()))


def _itemsize(config: DecoderConfig) -> int:
    return jnp.dtype(config.dtype).itemsize


def _widths(config: DecoderConfig) -> tuple[int, int]:
    """Columns of q|k|v and of gate|up."""
    qkv = sum(outputs(config, "qkv_proj").values())
    gate_up = sum(outputs(config, "gate_up_proj").values())
    return qkv, gate_up


def _logits_of_attention(config: DecoderConfig, rows: int, queries: int, keys: int, cached: bool = False) -> int:
    """Bytes of attention's float32 logits at any one time; fused kernels hold none."""
    if config.attention in ("cudnn", "splash") and not cached:
        return 0
    if config.attention != "xla":
        chunks = max(1, ceil(queries / CHUNK))
        queries = ceil(queries / chunks)  # chunks are of equal size
    return 4 * rows * config.num_attention_heads * queries * keys


def _layer_forward(config: DecoderConfig, rows: int, length: int, keys: int, cached: bool = False) -> int:
    """Bytes of one layer: the residual stream, and the larger of attention and MLP."""
    qkv, gate_up = _widths(config)
    column = rows * length * _itemsize(config)  # one channel of every token
    keys_and_values = 2 * rows * keys * config.num_key_value_heads * config.head_dim * _itemsize(config)
    # logits and probabilities
    attention = 2 * _logits_of_attention(config, rows, length, keys, cached) + keys_and_values + column * qkv
    mlp = column * (2 * gate_up + config.hidden_size)  # the product, its halves apart, and the normed input
    return column * config.hidden_size + max(attention, mlp)


def _layer_backward(config: DecoderConfig, rows: int, length: int) -> int:
    """Bytes that one layer's backward pass adds to what was kept: the larger of attention and MLP."""
    qkv, gate_up = _widths(config)
    column = rows * length * _itemsize(config)  # one channel of every token
    logits = _logits_of_attention(config, rows, length, length)
    # probabilities, their cotangents, and one of the logits; then those of q, k, v
    attention = 3 * logits + column * qkv
    # gate and up apart; their cotangents apart and side by side; the cotangent of their product
    mlp = column * (3 * gate_up + gate_up // 2)
    if config.remat != "none":  # what attention computes again for itself is shared with the layer's doing so
        mlp += logits
    return 2 * column * config.hidden_size + max(attention, mlp)


def _head(config: DecoderConfig, rows: int, positions: int, computation: Computation) -> int:
    """Bytes of the logits that are held at once."""
    return rows * _width(config, rows, positions, computation) * config.vocab_size * FLOAT


def _head_with_gradient(config: DecoderConfig, rows: int, positions: int, computation: Computation) -> int:
    """Bytes of the logits that are held at once and of their cotangents, or of slices and what is made of them."""
    logits = _head(config, rows, positions, computation)
    slices = _slices(config, rows, positions, computation)
    if not slices:  # cotangents are cast as they are made, in one pass
        return 2 * logits
    return logits + logits // FLOAT * computation.cotangent_bytes + slices


def _width(config: DecoderConfig, rows: int, positions: int, computation: Computation) -> int:
    """Positions of each row whose logits are held at once. Slices are cut by the whole vocabulary."""
    return positions_at_once(rows, positions, config.vocab_size * computation.tensor)


def _slices(config: DecoderConfig, rows: int, positions: int, computation: Computation) -> int:
    """Bytes of the hidden states cut into slices, and of what is made of each; 0 where logits are taken all at once."""
    if _width(config, rows, positions, computation) == positions:
        return 0
    return 2 * rows * positions * config.hidden_size * _itemsize(config)


def _kernels(config: DecoderConfig, fsdp: int) -> int:
    """Bytes of a layer's largest kernel, out of its stack (or dequantised, in float32) and as the product wants it.

    With `fsdp` the rows of that kernel are gathered, and so are those of the unembedding.
    """
    largest = max(fan_in(config, kernel) * sum(outputs(config, kernel).values()) for kernel in FUSED)
    wanted = _itemsize(config)
    taken_out = _itemsize(config) if config.quantize == "none" else 4
    layer = largest * (taken_out + wanted)
    if fsdp == 1:
        return layer
    unembedding = config.vocab_size * config.hidden_size * _itemsize(config)
    return max(layer, unembedding)
