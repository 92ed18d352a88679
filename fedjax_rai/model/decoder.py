"""The decoder: a Llama-family transformer in Flax linen, functional, with its LoRA in a collection of its own.

    model.apply({"params": base, "lora": adapter}, ...)

`base` is frozen and shared; everything that differs between clients, policy, reference and guard is in
`adapter`, so `vmap(in_axes=(None, 0))` maps over adapters and keeps one base. Layers run under `nn.scan`
(parameters have a leading layer axis). Names are Hugging Face's, except that projections sharing an input are
one kernel (`qkv_proj`, `gate_up_proj`; fused when weights are loaded); their LoRA pairs keep their own names.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_rai.aliases import Adapter, Array, Base, Bool, Float, Int

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's scaling of low rotary frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder. `dtype` is that of activations; parameters keep their own."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    dtype: str = "float32"
    remat: bool = False


class KVCache(NamedTuple):
    """Keys and values of every slot, all layers: `[L, b, s, kv_heads, head_dim]`, written in place."""

    k: Float[Array, "L b s g e"]
    v: Float[Array, "L b s g e"]


def empty_cache(config: DecoderConfig, batch: int, slots: int) -> KVCache:
    shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
    return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


def rope_frequencies(config: DecoderConfig) -> Float[Array, "e"]:
    """Inverse rotary frequencies, `[head_dim / 2]`, llama3 scaling applied."""
    inverse = config.rope_theta ** (-jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    turns = scaling.original_max_position_embeddings * inverse / (2 * jnp.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)
    return smooth * inverse + (1 - smooth) * inverse / scaling.factor


def rotate(x: Float[Array, "b t h e"], cos: Float[Array, "b t 1 f"], sin: Float[Array, "b t 1 f"]) -> Array:
    """Rotary embedding, the halves convention of Hugging Face's Llama."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


# What is cheap to compute again is not kept for the backward pass: attention's probabilities, SwiGLU, norms.
_recomputed = partial(jax.checkpoint, prevent_cse=False)


@_recomputed
def attend(q: Array, k: Array, v: Array, mask: Bool[Array, "b t s"]) -> Array:
    """Grouped-query attention, `[b, t, h, e]`; a row whose mask is empty returns finite values of no meaning."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])


@_recomputed
def swiglu(gate_up: Array) -> Array:
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return nn.silu(gate) * up


@partial(_recomputed, static_argnums=2)
def rms_norm(x: Array, weight: Float[Array, "d"], eps: float) -> Array:
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return weight.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)) * normed.astype(x.dtype)


class RMSNorm(nn.Module):
    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        weight = self.param("weight", init, (x.shape[-1],), jnp.float32)
        return rms_norm(x, jnp.asarray(weight), self.config.rms_norm_eps)


def _kernel(module: nn.Module, name: str, shape: tuple[int, int], axes: tuple[str, str]) -> Array:
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
    return jnp.asarray(nn.unbox(module.param(name, init, shape, jnp.float32)))


class Block(nn.Module):
    """One pre-norm layer: attention, then SwiGLU. Carries the whole cache, so that it is written in place."""

    config: DecoderConfig
    lora_targets: tuple[str, ...]
    lora_rank: int
    lora_scale: float

    def project(self, x: Float[Array, "t i"], name: str, outputs: dict[str, int], axes: tuple[str, str]) -> list[Array]:
        """x @ kernel + scale * x @ a @ b for projections that share the input: one wide product, one thin one."""
        sizes = list(outputs.values())
        kernel = _kernel(self, name, (x.shape[-1], sum(sizes)), axes)
        wide = x @ kernel.astype(x.dtype)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        parts = [wide[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]
        pairs = {target: pair for target in outputs if (pair := self.lora_pair(target, x.shape[-1], outputs[target]))}
        if not pairs:
            return parts
        thin = x @ jnp.concatenate([a for a, _ in pairs.values()], axis=1).astype(x.dtype) * self.lora_scale
        for i, (target, (_, b)) in enumerate(pairs.items()):
            own = thin[:, i * self.lora_rank : (i + 1) * self.lora_rank]
            index = list(outputs).index(target)
            parts[index] = parts[index] + own @ b.astype(x.dtype)
        return parts

    def lora_pair(self, target: str, fan_in: int, fan_out: int) -> tuple[Array, Array] | None:
        """(a [in, r], b [r, out]) of a target, or None: not a target, or no adapter was given."""
        if target not in self.lora_targets or not (self.is_initializing() or self.has_variable("lora", target)):
            return None
        rank = self.lora_rank
        pair = self.variable("lora", target, lambda: {"a": jnp.zeros((fan_in, rank)), "b": jnp.zeros((rank, fan_out))})
        return pair.value["a"], pair.value["b"]

    @nn.compact
    def __call__(self, carry, layer, rope, mask, slot):
        config, (x, cache) = self.config, carry
        batch, length, width = x.shape
        heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        flat = (batch * length, -1)  # one token axis: one contracting dimension in the weight gradients

        y = RMSNorm(config, name="input_layernorm")(x).reshape(flat)
        outputs = {"q_proj": heads * size, "k_proj": groups * size, "v_proj": groups * size}
        q, k, v = self.project(y, "qkv_proj", outputs, ("embed", "heads"))
        q = rotate(q.reshape(batch, length, heads, size), *rope)
        k = rotate(k.reshape(batch, length, groups, size), *rope)
        v = v.reshape(batch, length, groups, size)
        if cache is not None:
            at = (layer, 0, slot, 0, 0)
            cache = KVCache(
                *(jax.lax.dynamic_update_slice(old, new[None], at) for old, new in zip(cache, (k, v), strict=True))
            )
            k, v = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in cache)
        y = attend(q, k, v, mask).reshape(flat)
        (y,) = self.project(y, "o_proj", {"o_proj": width}, ("heads", "embed"))
        x = x + y.reshape(x.shape)

        y = RMSNorm(config, name="post_attention_layernorm")(x).reshape(flat)
        outputs = {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
        y = swiglu(jnp.concatenate(self.project(y, "gate_up_proj", outputs, ("embed", "mlp")), axis=-1))
        (y,) = self.project(y, "down_proj", {"down_proj": width}, ("mlp", "embed"))
        return (x + y.reshape(x.shape), cache), None


class Decoder(nn.Module):
    """Tokens to final hidden states; `unembed` turns the positions that matter into logits.

    `lora_*` describe the adapters this model accepts; a base without adapter needs none of them.
    """

    config: DecoderConfig
    lora_targets: tuple[str, ...] = ()
    lora_rank: int = 0
    lora_scale: float = 1.0

    def setup(self) -> None:
        config = self.config
        shape = (config.vocab_size, config.hidden_size)
        self.embed_tokens = _kernel(self, "embed_tokens", shape, ("vocab", "embed"))
        block = nn.remat(Block, prevent_cse=False) if config.remat else Block
        scanned = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=config.num_hidden_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.layers = scanned(config, self.lora_targets, self.lora_rank, self.lora_scale)
        self.norm = RMSNorm(config)
        if not config.tie_word_embeddings:
            self.lm_head = _kernel(self, "lm_head", (shape[1], shape[0]), ("embed", "vocab"))

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t s"],
        cache: KVCache | None = None,
        slot: int | Array = 0,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """Hidden states after the last norm.

        `mask[b, t, s]`: token t sees key s. Without a cache the keys are the tokens themselves (s = t); with one,
        they are its slots, and the tokens are written to slots `slot .. slot + t` first.
        """
        config = self.config
        x = self.embed_tokens.astype(config.dtype)[tokens]
        angles = positions[..., None, None] * rope_frequencies(config).reshape(1, 1, 1, -1)
        rope = (jnp.cos(angles), jnp.sin(angles))
        layer = jnp.arange(config.num_hidden_layers)
        (x, cache), _ = self.layers((x, cache), layer, rope, mask, jnp.asarray(slot))
        return self.norm(x), cache

    def unembed(self, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
        """Logits, float32."""
        head = self.embed_tokens.T if self.config.tie_word_embeddings else self.lm_head
        return (hidden @ head.astype(hidden.dtype)).astype(jnp.float32)


def _variables(base: Base, adapter: Adapter | None) -> dict:
    return {"params": base} if adapter is None else {"params": base, "lora": adapter}


def forward(
    model: Decoder, base: Base, adapter: Adapter | None, tokens: Int[Array, "b l"], valid: Bool[Array, "b l"]
) -> Float[Array, "b l d"]:
    """Causal hidden states of whole sequences. `valid` is False on padding, on either side; its rows mean nothing."""
    length = tokens.shape[1]
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    causal = jnp.tril(jnp.ones((length, length), bool))
    mask = causal[None] & valid[:, None, :]
    return model.apply(_variables(base, adapter), tokens, positions, mask)[0]  # pyright: ignore


def forward_cached(
    model: Decoder,
    base: Base,
    adapter: Adapter | None,
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    mask: Bool[Array, "b t s"],
    cache: KVCache,
    slot: Int[Array, ""],
) -> tuple[Float[Array, "b t d"], KVCache]:
    """Hidden states of `tokens` written into the cache from `slot` on; `mask` says which slots each one sees."""
    return model.apply(_variables(base, adapter), tokens, positions, mask, cache, slot)  # pyright: ignore


def unembed(model: Decoder, base: Base, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
    return model.apply({"params": base}, hidden, method="unembed")  # pyright: ignore


def abstract_params(model: Decoder) -> dict:
    """Boxed shapes of all variables, {"params": ..., "lora": ...}, with logical axis names; nothing is allocated."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1, 1), jnp.bool_)
    return dict(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens, mask))
