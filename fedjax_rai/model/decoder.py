"""The decoder: transformers of the Llama kind in Flax linen, functional, with LoRA in a collection of its own.

    model.apply({"params": base, "lora": adapter}, ...)

`base` is frozen and shared; everything that differs between clients, policy, reference and guard is in
`adapter`, so `vmap(in_axes=(None, 0))` maps over adapters and keeps one base. Layers run under `nn.scan`
(parameters have a leading layer axis). Names are Hugging Face's, except that projections sharing an input are
one kernel (`qkv_proj`, `gate_up_proj`; fused when weights are loaded); their LoRA pairs keep their own names.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Base, Bool, Float, Int, Key, PyTree
from fedjax_rai.errors import InputError
from fedjax_rai.model import quantize
from fedjax_rai.model.architecture import ACTIVATIONS, DecoderConfig, Rope, modules, outputs
from fedjax_rai.model.attention import Attention, Sight, attend
from fedjax_rai.model.lora import NO_LORA, Lora, abstract_adapter


class KVCache(NamedTuple):
    """Keys and values of every slot, all layers: `[L, b, s, kv_heads, head_dim]`, written in place."""

    k: Float[Array, "L b s g e"]
    v: Float[Array, "L b s g e"]


def empty_cache(config: DecoderConfig, batch: int, slots: int) -> KVCache:
    shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
    return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


class Turn(NamedTuple):
    """Cosine and sine of every token's angles, for one kind of layer."""

    cos: Float[Array, "b t 1 f"]
    sin: Float[Array, "b t 1 f"]


def turns(kinds: tuple[Rope | None, ...], positions: Int[Array, "b t"]) -> Turn:
    """Those of each kind, stacked in front. A layer without positions turns by nothing, as far as the others do."""
    pairs = max((len(rope.frequencies) for rope in kinds if rope), default=0)

    def one(rope: Rope | None) -> Turn:
        if rope is None:
            flat = jnp.zeros((*positions.shape, 1, pairs))
            return Turn(flat + 1, flat)
        angles = positions[..., None, None] * jnp.array(rope.frequencies, jnp.float32).reshape(1, 1, 1, -1)
        return Turn(rope.magnitude * jnp.cos(angles), rope.magnitude * jnp.sin(angles))

    return jax.tree.map(lambda *parts: jnp.stack(parts), *map(one, kinds))


def rotate(x: Float[Array, "b t h e"], turn: Turn) -> Float[Array, "b t h e"]:
    """Rotary embedding, the halves convention of Hugging Face; channels beyond the angles pass."""
    width = 2 * turn.cos.shape[-1]
    first, second = jnp.split(x[..., :width].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * turn.cos - second * turn.sin, second * turn.cos + first * turn.sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., width:]], axis=-1)


# What is cheap to compute again is not kept for the backward pass: attention's probabilities, the gate, norms.
_recomputed = partial(jax.checkpoint, prevent_cse=False)


@partial(_recomputed, static_argnums=1)
def gated(gate_up: Array, activation: str) -> Array:
    """SwiGLU, or GeGLU (arXiv 2002.05202)."""
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return ACTIVATIONS[activation](gate) * up


@partial(_recomputed, static_argnums=(2, 3))
def rms_norm(x: Array, weight: Float[Array, "d"], eps: float, unit_offset: bool) -> Array:
    """Over the last axis. Llama's weight multiplies after the cast to x's dtype, Gemma's 1 + weight before it."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    weight = weight.reshape((1,) * (x.ndim - 1) + (-1,))
    if unit_offset:
        return (normed * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
    return weight.astype(x.dtype) * normed.astype(x.dtype)


class RMSNorm(nn.Module):
    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.ones, (None,))
        weight = self.param("weight", init, (x.shape[-1],), jnp.float32)
        return rms_norm(x, jnp.asarray(weight), self.config.rms_norm_eps, self.config.unit_offset)


def _param(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Array:
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
    return jnp.asarray(nn.unbox(module.param(name, init, shape, jnp.float32)))


def _kernel(module: nn.Module, name: str, shape: tuple[int, int], axes: tuple[str, str], kind: str):
    """A kernel, or what it was quantised to: its codes and scales lie where its rows and columns would."""
    if kind == "none":
        return _param(module, name, shape, axes)

    def init(_) -> PyTree:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), quantize.abstract(shape, kind))
        return jax.tree.map(lambda leaf: nn.LogicallyPartitioned(leaf, axes), zeros)  # pyright: ignore

    return nn.unbox(module.param(name, init))


class Block(nn.Module):
    """One pre-norm layer: attention, then a gated MLP. Carries the whole cache, so that it is written in place."""

    config: DecoderConfig
    lora: Lora

    def project(self, x: Float[Array, "t i"], name: str, axes: tuple[str, str], scales: PyTree) -> list[Array]:
        """x @ kernel + (x @ a * scale) @ b of the projections in a kernel: one wide product, one thin one."""
        config, sizes = self.config, outputs(self.config, name)
        kernel = _kernel(self, name, (x.shape[-1], sum(sizes.values())), axes, config.quantize)
        wide = quantize.matmul(x, kernel) if config.quantize != "none" else x @ kernel.astype(x.dtype)
        if name in config.biases:
            wide = wide + _param(self, f"{name}_bias", wide.shape[-1:], axes[1:]).astype(x.dtype)[None]
        parts = _split(wide, list(modules(config, name).values()))
        pairs = {target: pair for target in modules(config, name) if (pair := self.lora_pair(target))}
        if pairs:
            thin = x @ jnp.concatenate([a for a, _ in pairs.values()], axis=1).astype(x.dtype)
            own = jnp.concatenate([jnp.broadcast_to(scales[target], a.shape[1]) for target, (a, _) in pairs.items()])
            thin = _split(thin * own.astype(x.dtype)[None], [a.shape[1] for a, _ in pairs.values()])
            for (target, (_, b)), low in zip(pairs.items(), thin, strict=True):
                index = list(modules(config, name)).index(target)
                parts[index] = parts[index] + low @ b.astype(x.dtype)
        return _split(parts[0], list(sizes.values())) if config.modules_fused else parts

    def lora_pair(self, target: str) -> tuple[Array, Array] | None:
        """(a [in, r], b [r, out]) of a target, or None: not a target, or no adapter was given."""
        if target not in self.lora.targets:
            return None
        if not (self.is_initializing() or self.has_variable("lora", target)):
            return None
        shapes = abstract_adapter(self.config, self.lora)["layers"][target]
        pair = self.variable("lora", target, lambda: {name: jnp.zeros(own.shape[1:]) for name, own in shapes.items()})
        return pair.value["a"], pair.value["b"]

    def norm(self, name: str, x: Array) -> Array:
        return RMSNorm(self.config, name=name)(x)

    @nn.compact
    def __call__(self, carry, layer, kind, scales, turn, sight, slot):
        config, (x, cache) = self.config, carry
        flat = (x.shape[0] * x.shape[1], -1)  # one token axis: one contracting dimension in the weight gradients
        # With norms after each half, too, Hugging Face's name for the one before the MLP is another.
        before_mlp = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"

        y, cache = self.attention(self.norm("input_layernorm", x), cache, layer, kind, scales, turn, sight, slot)
        x = x + (self.norm("post_attention_layernorm", y) if config.post_norms else y)

        y = self.norm(before_mlp, x).reshape(flat)
        y = gated(jnp.concatenate(self.project(y, "gate_up_proj", ("embed", "mlp"), scales), -1), config.activation)
        (y,) = self.project(y, "down_proj", ("mlp", "embed"), scales)
        y = y.reshape(x.shape)
        return (x + (self.norm("post_feedforward_layernorm", y) if config.post_norms else y), cache), None

    def attention(self, x, cache, layer, kind, scales, turn, sight, slot):
        config, (batch, length, _) = self.config, x.shape
        q, k, v = self.project(x.reshape(batch * length, -1), "qkv_proj", ("embed", "heads"), scales)
        q, k, v = (part.reshape(batch, length, -1, config.head_dim) for part in (q, k, v))
        if config.qk_norm:
            q, k = self.norm("q_norm", q), self.norm("k_norm", k)
        turn = jax.tree.map(lambda kinds: kinds[0] if len(kinds) == 1 else kinds[kind], turn)
        q, k = rotate(q, turn), rotate(k, turn)
        implementation = config.attention
        if cache is not None:
            at = (layer, 0, slot, 0, 0)
            cache = KVCache(
                *(jax.lax.dynamic_update_slice(old, new[None], at) for old, new in zip(cache, (k, v), strict=True))
            )
            k, v = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in cache)
            # the fused kernels are for whole sequences; against a cache there is little to fuse
            implementation = "xla" if implementation == "xla" else "chunked"

        def attended(window: int | None):
            options = Attention(config.query_scale, config.attention_softcap, window)
            return lambda q, k, v, sight: attend(implementation, q, k, v, sight, options)

        ways = [attended(own.window) for own in config.kinds]
        alike = len({own.window for own in config.kinds}) == 1
        seen = (q, k, v, sight)
        y = ways[0](*seen) if alike else jax.lax.switch(kind, ways, *seen)
        (y,) = self.project(y.reshape(batch * length, -1), "o_proj", ("heads", "embed"), scales)
        return y.reshape(x.shape), cache


def _split(x: Array, sizes: list[int]) -> list[Array]:
    ends = np.cumsum(sizes).tolist()
    return [x[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]


class Decoder(nn.Module):
    """Tokens to final hidden states; `unembed` turns the positions that matter into logits.

    `lora` describes the adapters that this model accepts; a base without adapter needs none.
    """

    config: DecoderConfig
    lora: Lora = NO_LORA

    def setup(self) -> None:
        config = self.config
        shape = (config.vocab_size, config.hidden_size)
        self.embed_tokens = _param(self, "embed_tokens", shape, ("vocab", "embed"))
        # Nothing between the two: what a layer keeps is little more than its products already.
        block = nn.remat(Block, prevent_cse=False) if config.remat == "full" else Block
        scanned = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, 0, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=config.num_hidden_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.layers = scanned(config, self.lora)
        self.norm = RMSNorm(config)
        if not config.tie_word_embeddings:
            self.lm_head = _param(self, "lm_head", (shape[1], shape[0]), ("embed", "vocab"))

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        sight: Sight,
        cache: KVCache | None = None,
        slot: int | Array = 0,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """Hidden states after the last norm.

        Without a cache the keys of `sight` are the tokens themselves; with one, they are its slots, and the tokens are
        written to slots `slot .. slot + t` first.
        """
        config = self.config
        depth, slots = config.num_hidden_layers, sight.key_segment.shape[1]
        if config.longest and slots > config.longest:
            raise InputError(f"{slots} tokens: this model's rotary embedding is supported up to {config.longest}")
        x = self.embed_tokens.astype(config.dtype)[tokens] * jnp.asarray(config.embed_scale, config.dtype)
        turn = turns(tuple(kind.rope for kind in config.kinds), sight.query_position)
        kind = jnp.array(config.layer_kinds or (0,) * depth)
        scales = {own: jnp.array(self.lora.scales(own, depth), jnp.float32) for own in self.lora.targets}
        layer, slot = jnp.arange(depth), jnp.asarray(slot)
        (x, cache), _ = self.layers((x, cache), layer, kind, scales, turn, sight, slot)
        return self.norm(x), cache

    def unembed(self, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
        """Logits, float32."""
        head = self.embed_tokens.T if self.config.tie_word_embeddings else self.lm_head
        logits, cap = (hidden @ head.astype(hidden.dtype)).astype(jnp.float32), self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


def _variables(model: Decoder, base: Base, adapter: Adapter | None) -> dict:
    if adapter is None:
        return {"params": base}
    given, targets = sorted(adapter["layers"]), sorted(model.lora.targets)
    if given != targets:
        raise ValueError(f"an adapter of {given} for a model whose targets are {targets}")
    return {"params": base, "lora": adapter}


def segment_positions(segments: Int[Array, "b l"]) -> Int[Array, "b l"]:
    """Each token's place in its segment, counting valid tokens; the numbers of a row's segments rise."""
    valid = segments > 0
    count = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    begins = segments > jax.lax.cummax(jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1], axis=1)
    return count - jax.lax.cummax(jnp.where(begins, count, 0), axis=1)


def forward(
    model: Decoder,
    base: Base,
    adapter: Adapter | None,
    tokens: Int[Array, "b l"],
    segments: Int[Array, "b l"] | Bool[Array, "b l"],
) -> Float[Array, "b l d"]:
    """Causal hidden states of whole sequences.

    `segments` is 0 (or False) on padding, on either side, whose rows mean nothing; a row that holds several sequences,
    one after another, numbers them 1, 2, ..., and none of them sees another.
    """
    segments = segments.astype(jnp.int32)
    positions = segment_positions(segments)
    sight = Sight(segments, positions, segments, positions)
    return model.apply(_variables(model, base, adapter), tokens, sight)[0]  # pyright: ignore


def forward_cached(
    model: Decoder,
    base: Base,
    adapter: Adapter | None,
    tokens: Int[Array, "b t"],
    sight: Sight,
    cache: KVCache,
    slot: Int[Array, ""],
) -> tuple[Float[Array, "b t d"], KVCache]:
    """Hidden states of `tokens` written into the cache from `slot` on; the keys of `sight` are all of its slots."""
    return model.apply(_variables(model, base, adapter), tokens, sight, cache, slot)  # pyright: ignore


def unembed(model: Decoder, base: Base, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
    return model.apply({"params": base}, hidden, method="unembed")  # pyright: ignore


def abstract_base(config: DecoderConfig) -> PyTree:
    """Boxed shapes of a base, with logical axis names; nothing is allocated."""
    row: Any = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return dict(jax.eval_shape(Decoder(config).init, jax.random.key(0), row, Sight(row, row, row, row)))["params"]


def init_base(config: DecoderConfig, key: Key[Array, ""]) -> Base:
    """A random base: normal(0.02) matrices, those that write to the residual stream smaller by sqrt(2 L); norms one."""
    layers = config.num_hidden_layers

    def leaf(path, shape: jax.ShapeDtypeStruct) -> Array:
        name = path[-1].key
        if name == "weight":
            return jnp.full(shape.shape, 0.0 if config.unit_offset else 1.0, shape.dtype)
        deviation = 0.02 / (2 * layers) ** 0.5 if name in ("o_proj", "down_proj") else 0.02
        own = rng.stream(key, jax.tree_util.keystr(path))
        return deviation * jax.random.normal(own, shape.shape, shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, nn.unbox(abstract_base(config)))
