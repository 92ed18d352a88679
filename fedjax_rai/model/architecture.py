"""What a decoder looks like: sizes, and every point in which one family differs from another, as plain values."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
from flax import linen as nn

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
}
"""The MLP's activations, by their names in `config.json`."""

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
"""Our kernels -> the projections whose outputs lie side by side in them, because they share their input."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: the angle, per position, of each pair of a head's first `2 * len(frequencies)` channels."""

    frequencies: tuple[float, ...]
    magnitude: float = 1.0  # of cosine and sine
    limit: int | None = None  # the longest sequence that these frequencies are meant for


def plain_rope(head_dim: int, theta: float = 10_000.0) -> Rope:
    """The rotary embedding of arXiv 2104.09864, over whole heads."""
    return Rope(tuple(theta ** (-i / head_dim) for i in range(0, head_dim, 2)))


@dataclass(frozen=True)
class LayerKind:
    """What may alternate between layers."""

    rope: Rope | None  # None: the layer knows no positions
    window: int | None = None  # a token sees itself and the `window - 1` before it; None: all


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder, and how it is computed. `layer_kinds[i]` indexes `kinds`; if empty, all are `kinds[0]`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    kinds: tuple[LayerKind, ...]
    layer_kinds: tuple[int, ...] = ()
    max_position_embeddings: int | None = None  # the longest sequence that the model was made for, if it names one
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    activation: str = "silu"
    biases: tuple[str, ...] = ()  # the kernels (keys of FUSED) that have one
    modules_fused: bool = False  # q|k|v and gate|up are one module each, on disk and to LoRA (Phi-3)
    qk_norm: bool = False  # RMSNorm of every query and key head
    post_norms: bool = False  # RMSNorm of what attention and MLP give, too
    unit_offset: bool = False  # a norm's weight is 1 + what is stored
    embed_scale: float = 1.0
    query_scale: float | None = None  # of attention's logits; None: head_dim ** -0.5
    residual_scale: float = 1.0  # of what attention and MLP add
    logit_divisor: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    # how it is computed
    dtype: str = "float32"  # of activations and base
    attention: str = "xla"  # a key of attention.ATTENTIONS
    quantize: str = "none"  # or a key of quantize.QUANTIZATIONS: of the base's kernels
    kv_cache: str = "model"  # a key of cache.CACHES: what keys and values are stored as
    remat: str = "none"  # or "full": the backward pass computes each layer again
    unroll: str = "none"  # or "full": the layers one after another in the program, not in a loop
    answering: str = "apart"  # or "merged": answers are written by a copy of the base with the adapter in it
    parts: int = 1  # into how many the mesh splits columns; see `parts_of`

    @property
    def longest(self) -> int | None:
        """The longest sequence that the model, and its rotary embeddings, are meant for; None: they name no limit."""
        limits = (self.max_position_embeddings, self.rotary_limit)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def rotary_limit(self) -> int | None:
        """The longest sequence that the rotary embeddings are computed for; None: they name no limit."""
        limits = [kind.rope.limit for kind in self.kinds if kind.rope and kind.rope.limit]
        return min(limits, default=None)

    @property
    def targets(self) -> tuple[str, ...]:
        """The projections that LoRA may adapt, by their module names in a checkpoint."""
        if self.modules_fused:
            return tuple(FUSED)
        return tuple(projection for projections in FUSED.values() for projection in projections)


def outputs(config: DecoderConfig, kernel: str) -> dict[str, int]:
    """Widths of the projections that lie side by side in a kernel."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return {
        "qkv_proj": {"q_proj": queries, "k_proj": keys, "v_proj": keys},
        "o_proj": {"o_proj": config.hidden_size},
        "gate_up_proj": {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size},
        "down_proj": {"down_proj": config.hidden_size},
    }[kernel]


def modules(config: DecoderConfig, kernel: str) -> dict[str, int]:
    """Widths of the modules of a checkpoint that a kernel holds: its projections, or all of them as one."""
    parts = outputs(config, kernel)
    return {kernel: sum(parts.values())} if config.modules_fused else parts


def parts_of(config: DecoderConfig, kernel: str) -> int:
    """Into how many parts a kernel's columns are sorted, each with its share of every projection that lies there.

    A device that holds one part of q|k|v, then, has whole heads with their queries, keys and values; one with a part of
    gate|up has both of the same channels. 1, the order of the projections, where heads or channels do not divide.
    """
    if kernel == "qkv_proj":
        shared = (config.num_attention_heads, config.num_key_value_heads)
    elif kernel == "gate_up_proj":
        shared = (config.intermediate_size,)
    else:
        return 1
    return config.parts if all(size % config.parts == 0 for size in shared) else 1


def in_parts(columns: jax.Array, parts: int) -> jax.Array:
    """The last axis as two: [..., parts, columns of each]."""
    return columns.reshape(*columns.shape[:-1], parts, -1)


def fan_in(config: DecoderConfig, kernel: str) -> int:
    """Width of a kernel's input."""
    if kernel == "o_proj":
        return config.num_attention_heads * config.head_dim
    if kernel == "down_proj":
        return config.intermediate_size
    return config.hidden_size


def module_name(layer: int, module: str) -> str:
    """Where Hugging Face's decoders keep a projection."""
    part = "mlp" if module in ("gate_proj", "up_proj", "down_proj", "gate_up_proj") else "self_attn"
    return f"model.layers.{layer}.{part}.{module}"
