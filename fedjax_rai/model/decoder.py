"""The decoder: transformers of the Llama kind in Flax linen, functional, with LoRA in a collection of its own.

    lm = LM(Decoder(config, lora), base)
    logits = unembed(lm, forward(lm, adapter, tokens, segments))

`base` is frozen and shared; everything that differs between clients, policy, reference and guard is in
`adapter`, so `vmap(in_axes=(None, 0))` maps over adapters and keeps one base. Layers run under `nn.scan`
(parameters have a leading layer axis). Names are Hugging Face's, except that projections sharing an input are
one kernel (`qkv_proj`, `gate_up_proj`; fused when weights are loaded); adapters keep the names of projections, and are
made one pair for each kernel (`lora.paired`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Base, Bool, Float, Int, Key, PyTree
from fedjax_rai.errors import InputError
from fedjax_rai.mesh import gathered, is_sharded, with_whole_channels, worth_gathering
from fedjax_rai.model import quantize
from fedjax_rai.model.architecture import ACTIVATIONS, DecoderConfig, Rope, in_parts, outputs, parts_of
from fedjax_rai.model.attention import Attention, Sight, attend, without_single_row
from fedjax_rai.model.cache import KVCache, of_layer, written
from fedjax_rai.model.lora import NO_LORA, Dropout, Lora, Pairs, paired, rank_of_each


class Rotation(NamedTuple):
    """Cosine and sine of every token's rotary angles; one kind of layer's, or a leading axis of all kinds'."""

    cos: Float[Array, "*kinds b t 1 f"]
    sin: Float[Array, "*kinds b t 1 f"]


def rotations(kinds: tuple[Rope | None, ...], positions: Int[Array, "b t"]) -> Rotation:
    """The rotation of each kind of layer, stacked in front; a kind without positions has the identity."""
    pairs = max((len(rope.frequencies) for rope in kinds if rope), default=0)

    def rotation(rope: Rope | None) -> Rotation:
        if rope is None:
            zeros = jnp.zeros((*positions.shape, 1, pairs))
            return Rotation(zeros + 1, zeros)
        angles = positions[..., None, None] * jnp.array(rope.frequencies, jnp.float32).reshape(1, 1, 1, -1)
        return Rotation(rope.magnitude * jnp.cos(angles), rope.magnitude * jnp.sin(angles))

    return jax.tree.map(lambda *parts: jnp.stack(parts), *map(rotation, kinds))


def rotate(x: Float[Array, "b t h e"], rotation: Rotation) -> Float[Array, "b t h e"]:
    """Rotary embedding, the halves convention of Hugging Face; channels beyond the angles pass."""
    cos, sin = rotation
    width = 2 * cos.shape[-1]
    first, second = jnp.split(x[..., :width].astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., width:]], axis=-1)


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
    x32 = without_single_row(x).astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    weight = weight.reshape((1,) * (x32.ndim - 1) + (-1,))
    if unit_offset:
        return (normed * (1.0 + weight.astype(jnp.float32))).astype(x.dtype).reshape(x.shape)
    return (weight.astype(x.dtype) * normed.astype(x.dtype)).reshape(x.shape)


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


class Layer(NamedTuple):
    """What differs from layer to layer besides its parameters; the leaves lead with the layer axis before the scan."""

    index: Int[Array, "*L"]
    kind: Int[Array, "*L"]  # which of the config's kinds it is
    dropout: Dropout | None  # of their inputs


class Context(NamedTuple):
    """What all layers share."""

    rotations: Rotation  # of every kind of layer
    sight: Sight
    slot: Int[Array, ""]  # of the cache, where the tokens are written


class Block(nn.Module):
    """One pre-norm layer: attention, then a gated MLP. Carries the whole cache, so that it is written in place."""

    config: DecoderConfig
    lora: Lora

    @nn.compact
    def __call__(
        self, carry: tuple[Float[Array, "b t d"], KVCache | None], layer: Layer, context: Context
    ) -> tuple[tuple[Float[Array, "b t d"], KVCache | None], None]:
        config = self.config
        x, cache = carry
        # With norms after each half, too, Hugging Face's name for the one before the MLP is another.
        before_mlp = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"

        y, cache = self.attention(self.norm("input_layernorm", x), cache, layer, context)
        if config.post_norms:
            y = self.norm("post_attention_layernorm", y)
        x = x + self.scaled(y)

        y = self.mlp(self.norm(before_mlp, x), layer)
        if config.post_norms:
            y = self.norm("post_feedforward_layernorm", y)
        return (x + self.scaled(y), cache), None

    def scaled(self, y: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """What a half adds to the residual stream."""
        scale = self.config.residual_scale
        return y if scale == 1.0 else y * jnp.asarray(scale, y.dtype)

    def attention(
        self, x: Float[Array, "b t d"], cache: KVCache | None, layer: Layer, context: Context
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """Attention to the tokens themselves or, with a cache, to its slots once the tokens are written there."""
        config = self.config
        batch, length, _ = x.shape
        qkv = _once(self.project(_flat(x), "qkv_proj", ("embed", "heads"), layer))
        projections = _split(qkv, [*outputs(config, "qkv_proj").values()], parts_of(config, "qkv_proj"))
        q, k, v = (part.reshape(batch, length, -1, config.head_dim) for part in projections)
        if config.qk_norm:
            q = self.norm("q_norm", q)
            k = self.norm("k_norm", k)
        rotation = _of_kind(context.rotations, layer.kind)
        q = rotate(q, rotation)
        k = rotate(k, rotation)
        if cache is not None:
            cache = written(cache, config, KVCache(k, v), layer.index, context.slot)
            k, v = of_layer(cache, config, layer.index)
        y = _attended(config, (q, k, v, context.sight), layer.kind, cache is not None)
        y = self.project(_flat(y), "o_proj", ("heads", "embed"), layer)
        return y.reshape(x.shape), cache

    def mlp(self, x: Float[Array, "b t d"], layer: Layer) -> Float[Array, "b t d"]:
        """The gated MLP of every token: down(activation(gate) * up)."""
        gate_up = _once(self.project(_flat(x), "gate_up_proj", ("embed", "mlp"), layer))
        parts = parts_of(self.config, "gate_up_proj")
        y = gated(gate_up if parts == 1 else in_parts(gate_up, parts), self.config.activation)
        y = self.project(_channels(y), "down_proj", ("mlp", "embed"), layer)
        return y.reshape(x.shape)

    def norm(self, name: str, x: Array) -> Array:
        return RMSNorm(self.config, name=name)(x)

    def project(self, x: Float[Array, "t i"], name: str, axes: tuple[str, str], layer: Layer) -> Float[Array, "t o"]:
        """x @ kernel + (x @ a) @ b: one wide product, two thin ones."""
        config = self.config
        width = sum(outputs(config, name).values())
        kernel = _kernel(self, name, (x.shape[-1], width), axes, config.quantize)
        wide = _product(x, kernel, axes, kept=config.remat != "none")
        if name in config.biases:
            wide = wide + _param(self, f"{name}_bias", wide.shape[-1:], axes[1:]).astype(x.dtype)[None]
        if not self.has_variable("lora", name):
            return wide
        a, b = self.get_variable("lora", name)
        thin = _thin(x, a, rank_of_each(config, self.lora, name), layer.dropout)
        return wide + _once(thin) @ b


def _once(product: Array) -> Array:
    """The same product, behind a barrier: XLA computes it once, not anew for each of its users."""
    return jax.lax.optimization_barrier(product)


def _product(x: Float[Array, "t i"], kernel: PyTree, axes: tuple[str, str], kept: bool) -> Float[Array, "t o"]:
    """x @ kernel, for which a kernel that lies on several devices is gathered if that sends less than tokens would.

    Else, as where one token a row is decoded, each device multiplies by its part of all tokens. `kept`: the gathered
    kernel is there until the layer's backward pass, as suits layers that are computed again for theirs.
    """
    # Of a kernel whose rows are split, tokens * columns would be summed; of one whose columns are, tokens * rows would
    # be sent. So it is the tokens against the other axis, the one that is split, in all projections of a layer alike.
    if not is_sharded(kernel) or not worth_gathering(x.shape[0], _split_size(x, kernel, axes)):
        return _times(x, kernel)
    if kept:
        return _gathered_product(x, kernel, axes)
    # The backward pass gathers again: else the kernels of all layers would be kept whole.
    return _recomputed(_gathered_product, static_argnums=2)(x, kernel, axes)


def _split_size(x: Float[Array, "t i"], kernel: PyTree, axes: tuple[str, str]) -> int:
    """The size of the kernel's axis that `fsdp` splits."""
    return x.shape[1] if axes[0] == "embed" else jax.tree.leaves(kernel)[0].shape[-1]


def _gathered_product(x: Float[Array, "t i"], kernel: PyTree, axes: tuple[str, str]) -> Float[Array, "t o"]:
    return _times(x, gathered(kernel, axes))


def _times(x: Float[Array, "t i"], kernel: PyTree) -> Float[Array, "t o"]:
    if isinstance(kernel, quantize.Quantized):
        return quantize.matmul(x, kernel)
    return x @ kernel.astype(x.dtype)


def _flat(x: Array) -> Array:
    """All tokens on one axis, all channels on another: one contracting dimension in the weight gradients."""
    return x.reshape(x.shape[0] * x.shape[1], -1)


def _thin(x: Float[Array, "t i"], a: Float[Array, "i r"], ranks: dict[str, int], dropout: Dropout | None) -> Array:
    """x @ a of every target, side by side [t, r]: one product, unless each of them drops other inputs."""
    if dropout is None:
        return x @ a
    parts = _split(a, [*ranks.values()])
    return jnp.concatenate([dropout.drop(x, target) @ part for target, part in zip(ranks, parts, strict=True)], axis=1)


def _of_kind(rotations: Rotation, kind: Int[Array, ""]) -> Rotation:
    """The rotation of one kind of layer."""
    return jax.tree.map(lambda kinds: kinds[0] if len(kinds) == 1 else kinds[kind], rotations)


def _attended(
    config: DecoderConfig, operands: tuple[Array, Array, Array, Sight], kind: Int[Array, ""], cached: bool
) -> Float[Array, "b t h e"]:
    """`attend` of (q, k, v, sight), with the window of that kind of layer."""
    implementation = config.attention
    if cached:
        # the fused kernels are for whole sequences; against a cache there is little to fuse
        implementation = "xla" if implementation == "xla" else "chunked"

    def windowed(window: int | None) -> Callable[[Array, Array, Array, Sight], Array]:
        options = Attention(config.query_scale, config.attention_softcap, window)

        def attended(q: Array, k: Array, v: Array, sight: Sight) -> Array:
            return attend(implementation, q, k, v, sight, options)

        # Out of a loop XLA sees that both passes compute the same probabilities, and would keep them.
        return jax.checkpoint(attended) if config.unroll == "full" and implementation == "xla" else attended

    windows = [layer_kind.window for layer_kind in config.kinds]
    if len(set(windows)) == 1:
        return windowed(windows[0])(*operands)
    return jax.lax.switch(kind, [windowed(window) for window in windows], *operands)


def _in_float32(x: Float[Array, "... d"], kernel: Float[Array, "d v"]) -> Float[Array, "... v"]:
    """x @ kernel in float32, whatever the two are in: what matrix units add up in is not rounded."""
    if x.dtype == jnp.float32:
        return x @ kernel
    return _wide_product(x, kernel)


@jax.custom_vjp  # else both products of the backward pass would be of float32, which matrix units are slow at
def _wide_product(x: Float[Array, "... d"], kernel: Float[Array, "d v"]) -> Float[Array, "... v"]:
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _wide_product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _wide_product(x, kernel), (x, kernel)


def _wide_product_backward(operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    _, backward = jax.vjp(jnp.matmul, *operands)
    return backward(cotangent.astype(operands[0].dtype))


_wide_product.defvjp(_wide_product_forward, _wide_product_backward)


def _split(x: Array, sizes: list[int], parts: int = 1) -> list[Array]:
    """Projections that lie side by side on the last axis; `parts` times, each time as large a share of each."""
    ends = np.cumsum(sizes).tolist()
    if parts == 1:
        return [x[:, end - size : end] for size, end in zip(sizes, ends, strict=True)]
    by_part = in_parts(x, parts)
    found = []
    for size, end in zip(sizes, ends, strict=True):
        found.append(_channels(by_part[..., (end - size) // parts : end // parts]))
    return found


def _channels(x: Array) -> Array:
    """All channels of a token on one axis."""
    return x.reshape(x.shape[0], -1)


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
            in_axes=(0, nn.broadcast),  # of a Layer, of the Context  # pyright: ignore[reportArgumentType]
            length=config.num_hidden_layers,
            unroll=config.num_hidden_layers if config.unroll == "full" else 1,
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
        dropout: Dropout | None = None,
    ) -> tuple[Float[Array, "b t d"], KVCache | None]:
        """Hidden states after the last norm.

        Without a cache the keys of `sight` are the tokens themselves; with one, they are its slots, and the tokens are
        written to slots `slot .. slot + t` first.
        """
        config = self.config
        depth = config.num_hidden_layers
        slots = sight.key_segment.shape[1]
        if config.rotary_limit and slots > config.rotary_limit:
            raise InputError(f"{slots} tokens: this model's rotary embedding is supported up to {config.rotary_limit}")
        x = self.embed_tokens.astype(config.dtype)[tokens] * jnp.asarray(config.embed_scale, config.dtype)
        # Where kernels are gathered (see `_product`) a device has whole rows: else XLA may choose to split channels.
        by_rows = is_sharded(self.embed_tokens) and worth_gathering(tokens.size, x.shape[-1])
        if by_rows:
            x = with_whole_channels(x, self.embed_tokens, by_rows=cache is not None)
        rotation = rotations(tuple(kind.rope for kind in config.kinds), sight.query_position)
        kind = jnp.array(config.layer_kinds or (0,) * depth)
        drops = None if dropout is None else dropout.each("layer", depth)
        layers = Layer(jnp.arange(depth), kind, drops)
        (x, cache), _ = self.layers((x, cache), layers, Context(rotation, sight, jnp.asarray(slot)))
        if by_rows:
            x = with_whole_channels(x, self.embed_tokens, by_rows=cache is not None)
        return self.norm(x), cache

    def unembed(self, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
        """Logits, float32."""
        head = self.embed_tokens.T if self.config.tie_word_embeddings else self.lm_head
        logits = _in_float32(hidden, head.astype(hidden.dtype))
        if self.config.logit_divisor != 1.0:
            logits = logits / self.config.logit_divisor
        cap = self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


@struct.dataclass
@no_type_check  # at run time: as a pytree it may hold shapes or shardings in place of arrays
class LM:
    """A language model without its adapter, as every program takes it: a pytree of the base, whose model is static."""

    model: Decoder = struct.field(pytree_node=False)
    base: Base


def _variables(lm: LM, adapter: Adapter | Pairs | None) -> dict:
    if adapter is None:
        return {"params": lm.base}
    if isinstance(adapter, Pairs):
        return {"params": lm.base, "lora": {"layers": adapter.kernels}}
    return {"params": lm.base, "lora": {"layers": paired(lm.model.config, lm.model.lora, adapter).kernels}}


def segment_positions(segments: Int[Array, "b l"]) -> Int[Array, "b l"]:
    """Each token's place in its segment, counting valid tokens; the numbers of a row's segments rise."""
    valid = segments > 0
    count = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    begins = segments > jax.lax.cummax(jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1], axis=1)
    return count - jax.lax.cummax(jnp.where(begins, count, 0), axis=1)


def forward(
    lm: LM,
    adapter: Adapter | None,
    tokens: Int[Array, "b l"],
    segments: Int[Array, "b l"] | Bool[Array, "b l"],
    dropout: Dropout | None = None,
) -> Float[Array, "b l d"]:
    """Causal hidden states of whole sequences.

    `segments` is 0 (or False) on padding, on either side, whose rows mean nothing; a row that holds several sequences,
    one after another, numbers them 1, 2, ..., and none of them sees another. `dropout` is LoRA's, in training.
    """
    segments = segments.astype(jnp.int32)
    positions = segment_positions(segments)
    sight = Sight(segments, positions, segments, positions)
    return lm.model.apply(_variables(lm, adapter), tokens, sight, dropout=dropout)[0]  # pyright: ignore


def forward_cached(
    lm: LM,
    adapter: Adapter | Pairs | None,
    tokens: Int[Array, "b t"],
    sight: Sight,
    cache: KVCache,
    slot: Int[Array, ""],
) -> tuple[Float[Array, "b t d"], KVCache]:
    """Hidden states of `tokens` written into the cache from `slot` on; the keys of `sight` are all of its slots.

    `adapter` may be given as `lora.paired` has made it, once for all steps of a loop.
    """
    return lm.model.apply(_variables(lm, adapter), tokens, sight, cache, slot)  # pyright: ignore


def unembed(lm: LM, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
    """Logits of final hidden states, float32."""
    return lm.model.apply({"params": lm.base}, hidden, method="unembed")  # pyright: ignore


def with_gathered_head(lm: LM, tokens: int) -> LM:
    """The model with its unembedding whole on each device, for so many tokens at once or one slice after another.

    It is the same where nothing is split by `fsdp`, or where the tokens are few (see `worth_gathering`).
    """
    config = lm.model.config
    name, axes = ("embed_tokens", ("vocab", "embed")) if config.tie_word_embeddings else ("lm_head", ("embed", "vocab"))
    if not is_sharded(lm.base) or not worth_gathering(tokens, config.hidden_size):
        return lm
    return LM(lm.model, {**lm.base, name: gathered(lm.base[name], axes)})


@jax.jit
def gives_numbers(
    lm: LM, adapter: Adapter | None, tokens: Int[Array, "b t"], valid: Bool[Array, "b t"]
) -> Bool[Array, ""]:
    """Whether hidden states, and the logits of the last position, are finite and not all equal for left-padded texts.

    Weights that are numbers may still give none: a product overflows. Where the sum of squares in a norm does, the norm
    gives zeros, and every token is as likely as any other.
    """
    hidden = forward(lm, adapter, tokens, valid)
    return jnp.all(jnp.isfinite(hidden) | ~valid[..., None]) & jnp.all(tell_apart(unembed(lm, hidden[:, -1])))


def tell_apart(logits: Float[Array, "b v"]) -> Bool[Array, "b"]:
    """Whether a row's logits are numbers (the largest is finite) and not all one number."""
    likeliest = jnp.max(logits, axis=-1)
    return jnp.isfinite(likeliest) & (likeliest > jnp.min(logits, axis=-1))


def abstract_base(config: DecoderConfig) -> PyTree:
    """Boxed shapes of a base, with logical axis names; nothing is allocated."""
    row: Any = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return dict(jax.eval_shape(Decoder(config).init, jax.random.key(0), row, Sight(row, row, row, row)))["params"]


def init_base(config: DecoderConfig, key: Key[Array, ""]) -> Base:
    """A random base: normal(0.02) matrices, those that write to the residual stream smaller by sqrt(2 L); norms one."""

    def leaf(path, shape: jax.ShapeDtypeStruct) -> Array:
        return init_leaf(config, path[-1].key, shape, rng.stream(key, jax.tree_util.keystr(path)))

    return jax.tree_util.tree_map_with_path(leaf, nn.unbox(abstract_base(config)))


def init_leaf(config: DecoderConfig, name: str, shape: jax.ShapeDtypeStruct, key: Key[Array, ""]) -> Array:
    """One of `init_base`'s leaves, or a layer of one, by its name."""
    if name == "weight":
        return jnp.full(shape.shape, 0.0 if config.unit_offset else 1.0, shape.dtype)
    deviation = 0.02 / (2 * config.num_hidden_layers) ** 0.5 if name in ("o_proj", "down_proj") else 0.02
    return deviation * jax.random.normal(key, shape.shape, shape.dtype)
