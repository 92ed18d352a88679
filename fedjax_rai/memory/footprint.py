"""What programs hold at once on one device, in bytes: one formula a part, from the shapes of a decoder alone.

What a local step keeps for its backward pass is read off the traced loss. The rest, which only the compiler decides,
follows the arrays that XLA's CPU programs hold at once; `tests/run/test_memory.py` compares the sums with what XLA
reports. Not measured on GPU or TPU, which fuse more, so that some of it is smaller there.
"""

import dataclasses
from functools import lru_cache
from math import ceil, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AbstractMesh

from fedjax_rai import mesh as meshes
from fedjax_rai.aliases import PyTree
from fedjax_rai.data.examples import Examples
from fedjax_rai.model.architecture import FUSED, DecoderConfig, fan_in, outputs
from fedjax_rai.model.attention import CHUNK
from fedjax_rai.model.decoder import LM, Decoder, abstract_base
from fedjax_rai.model.lora import Lora, abstract_adapter
from fedjax_rai.model.quantize import Quantized
from fedjax_rai.train.generate import start as start_decoding
from fedjax_rai.train.losses import sft


class How(NamedTuple):
    """What programs depend on besides the shapes."""

    fsdp: int
    logit: int  # bytes of one while the loss is computed: float32, and the config's dtype that it is cast from


def nbytes(tree: PyTree) -> int:
    """Of all leaves: arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def loaded(config: DecoderConfig) -> PyTree:
    """Shapes of the base as `weights.load_base` gives it: what is not quantised has the config's dtype."""

    def cast(shape: Any) -> Any:
        return shape if isinstance(shape, Quantized) else jax.ShapeDtypeStruct(shape.shape, config.dtype)

    return jax.tree.map(cast, nn.unbox(abstract_base(config)), is_leaf=lambda leaf: isinstance(leaf, Quantized))


@lru_cache(maxsize=64)
def base_bytes(config: DecoderConfig, mesh: AbstractMesh) -> int:
    """Of one device's part of the base."""
    shardings = meshes.base_shardings(mesh, abstract_base(config))

    def part(leaf: Any, sharding: Any) -> int:
        return prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(part, loaded(config), shardings)))


def training(model: Decoder, rows: int, length: int, how: How, clients: int = 1) -> dict[str, int]:
    """Steps of that many clients at once, each on `rows` sequences."""
    config, lora = model.config, model.lora
    adapter = nbytes(abstract_adapter(config, lora))
    kept, again = _saved(config, lora, rows, length), 0
    if config.remat != "none":  # one layer is computed again: it then keeps what it would have kept at first
        whole = _saved(dataclasses.replace(config, remat="none"), lora, rows, length)
        again = max(0, whole - kept) // config.num_hidden_layers
    transient = max(again + _layer_backward(config, rows, length), 2 * _head(config, rows * length, how))
    return {
        "clients' adapters": 2 * clients * adapter,  # while training, and the delta that is made of it
        "optimizer and gradient": 3 * clients * adapter,  # Adam's two moments
        "activations": clients * (kept + transient),
        "kernels in use": _kernels(config, how.fsdp),
    }


def decoding(
    config: DecoderConfig, rows: int, length: int, slots: int, how: How, further: int = 0, sorts: bool = False
) -> dict[str, int]:
    """Texts of at most `length` into a cache of `slots`, and token by token, beside another cache of `further` slots.

    `sorts`: tokens are drawn by top-k or top-p.
    """
    state = jax.eval_shape(lambda: start_decoding(Decoder(config), rows, slots))
    prefill = _layer_forward(config, rows, length, slots, cached=True)
    # the logits that come next, those before, the noise of sampling, its bits, their sum; sorted, and what is left
    drawing = (8 if sorts else 5) * nbytes(state.logits)
    return {
        "KV cache": nbytes(state.cache) * (slots + further) // slots,
        "activations": max(prefill, drawing),
        "kernels in use": _kernels(config, how.fsdp),
    }


def whole_sequences(config: DecoderConfig, rows: int, length: int, scored: int, how: How) -> dict[str, int]:
    """A forward pass without a cache, and the logits of `scored` tokens a row."""
    layer, head = _layer_forward(config, rows, length, length), _head(config, rows * scored, how)
    return {"activations": max(layer, head), "kernels in use": _kernels(config, how.fsdp)}


def _saved(config: DecoderConfig, lora: Lora, rows: int, length: int) -> int:
    """Bytes that a local step keeps from its forward for its backward pass, the base and the adapter left out.

    So much for every token, and so much for none: copies of the adapter in another dtype.
    """
    one, two = (_residuals(config, lora, n, CHUNK) for n in (1, 2))
    return 2 * one - two + (two - one) * rows * length // CHUNK


@lru_cache(maxsize=64)
def _residuals(config: DecoderConfig, lora: Lora, rows: int, length: int) -> int:
    """What the linearised loss takes and is none of its own arguments.

    So it follows remat, attention and quantisation as they are, whatever the layer saves.
    """
    model, base, adapter = Decoder(config, lora), loaded(config), abstract_adapter(config, lora)
    tokens, mask = (jax.ShapeDtypeStruct((rows, length), dtype) for dtype in (jnp.int32, jnp.bool_))

    def residuals(base: PyTree, adapter: PyTree, tokens: Any, mask: Any) -> list[Any]:
        examples = Examples(tokens, mask, tokens)
        return jax.tree.leaves(jax.vjp(lambda own: sft(LM(model, base), own, examples).mean(), adapter)[1])

    traced = jax.make_jaxpr(residuals)(base, adapter, tokens, mask).jaxpr
    given = {id(own) for own in (*traced.invars, *traced.constvars)}
    kept = {id(own): own.aval for own in traced.outvars if id(own) not in given and not hasattr(own, "val")}
    return nbytes([jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in kept.values()])


def _item(config: DecoderConfig) -> int:
    return jnp.dtype(config.dtype).itemsize


def _widths(config: DecoderConfig) -> tuple[int, int]:
    """Columns of q|k|v and of gate|up."""
    return sum(outputs(config, "qkv_proj").values()), sum(outputs(config, "gate_up_proj").values())


def _logits_of_attention(config: DecoderConfig, rows: int, queries: int, keys: int, cached: bool = False) -> int:
    """Bytes of attention's float32 logits at any one time; fused kernels hold none."""
    if config.attention in ("cudnn", "splash") and not cached:
        return 0
    if config.attention != "xla":
        queries = ceil(queries / max(1, ceil(queries / CHUNK)))
    return 4 * rows * config.num_attention_heads * queries * keys


def _layer_forward(config: DecoderConfig, rows: int, length: int, keys: int, cached: bool = False) -> int:
    """One layer: the residual stream, and the larger of attention and MLP."""
    qkv, gate_up = _widths(config)
    token = rows * length * _item(config)
    own_keys = 2 * rows * keys * config.num_key_value_heads * config.head_dim * _item(config)
    # logits, probabilities, and one of the two in the layout of the next product
    attention = 3 * _logits_of_attention(config, rows, length, keys, cached) + own_keys + token * qkv
    mlp = token * (2 * gate_up + config.hidden_size)  # the product, its halves apart, and the normed input
    return token * config.hidden_size + max(attention, mlp)


def _layer_backward(config: DecoderConfig, rows: int, length: int) -> int:
    """What one layer's backward pass adds to what was kept: the larger of attention and MLP."""
    qkv, gate_up = _widths(config)
    token = rows * length * _item(config)
    # logits and probabilities again, and the cotangents of both; then those of q, k, v
    attention = 4 * _logits_of_attention(config, rows, length, length) + token * qkv
    # gate and up apart; their cotangents apart and side by side; the cotangent of their product
    mlp = token * (3 * gate_up + gate_up // 2)
    if config.remat != "none":  # what attention computes again for itself is shared with the layer's doing so
        mlp += 3 * _logits_of_attention(config, rows, length, length)
    return 2 * token * config.hidden_size + max(attention, mlp)


def _head(config: DecoderConfig, tokens: int, how: How) -> int:
    """Logits; the backward pass holds their cotangents, too."""
    return tokens * config.vocab_size * how.logit


def _kernels(config: DecoderConfig, fsdp: int) -> int:
    """A layer's largest kernel, out of its stack (or dequantised, in float32) and as the product wants it.

    With `fsdp` its rows are gathered, and so are those of the unembedding.
    """
    largest = max(fan_in(config, kernel) * sum(outputs(config, kernel).values()) for kernel in FUSED)
    held = largest * (_item(config) + (4 if config.quantize != "none" else _item(config)))
    return max(held, config.vocab_size * config.hidden_size * _item(config)) if fsdp > 1 else held
