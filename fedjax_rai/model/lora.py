"""LoRA adapters: their shape, fresh ones, their sizes, and merging one into the base (arXiv 2106.09685).

An adapter has for every target `{"a": [L, in, r], "b": [L, r, out]}`; the layer computes `x W + scale (x a) b`. Where
layers have different ranks, `r` is the largest and the rest is zero: a column of `a` and the row of `b` that are both
zero have no gradient, so they stay what they are. The decoder multiplies by `Pairs`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Base, Float, Key, PyTree
from fedjax_rai.errors import InputError
from fedjax_rai.model.architecture import (
    FUSED,
    DecoderConfig,
    fan_in,
    in_parts,
    module_name,
    modules,
    outputs,
    parts_of,
)
from fedjax_rai.model.quantize import Quantized, dequantize

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Lora:
    """The shape of adapters, in PEFT's terms: `layers` None is all of them; patterns are (regular expression, value),
    the first one that matches the end of a module's name winning."""

    targets: tuple[str, ...]
    rank: int
    alpha: float
    rslora: bool = False  # scale alpha / sqrt(rank) (arXiv 2312.03732), not alpha / rank
    layers: tuple[int, ...] | None = None
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()

    def ranks(self, target: str, depth: int) -> tuple[int, ...]:
        """The rank of each of `depth` layers; 0 where a layer is not adapted."""
        ranks = [0] * depth
        adapted = range(depth) if self.layers is None else self.layers
        for layer in range(depth):
            if layer in adapted:
                ranks[layer] = _match(self.rank_pattern, module_name(layer, target), self.rank)
        return tuple(ranks)

    def scales(self, target: str, depth: int) -> tuple[float, ...]:
        """What each layer's (x a) b is multiplied by; 0 where a layer is not adapted."""
        scales = []
        for layer, rank in enumerate(self.ranks(target, depth)):
            if rank == 0:
                scales.append(0.0)
                continue
            alpha = _match(self.alpha_pattern, module_name(layer, target), self.alpha)
            scales.append(alpha / rank**0.5 if self.rslora else alpha / rank)
        return tuple(scales)


class Dropout(NamedTuple):
    """Dropout on the input of every `a`, as PEFT places it: y = x W + scale (drop(x) a) b, another mask each target.

    Key and rate are traced: another rate compiles nothing. Without dropout there is no such value, and nothing is
    compiled in.
    """

    key: Key[Array, "*L"]
    rate: Float[Array, "*L"]  # the share of inputs that are zeroed; the others are divided by 1 - rate

    def at(self, **ids: int | Array) -> "Dropout":
        """The dropout of one client, local step or layer, by name."""
        return self._replace(key=rng.stream(self.key, "dropout", **ids))

    def each(self, name: str, count: int) -> "Dropout":
        """The dropout of each of `count` layers or local steps, stacked in front."""
        return jax.vmap(lambda place: self.at(**{name: place}))(jnp.arange(count))

    def drop(self, x: Array, target: str) -> Array:
        """The input of one target's `a` in one layer, with a share of its channels zeroed."""
        kept = jax.random.bernoulli(rng.stream(self.key, target), 1.0 - self.rate, x.shape)
        return jnp.where(kept, x * (1.0 / (1.0 - self.rate)).astype(x.dtype), jnp.zeros_like(x))


NO_LORA = Lora((), 1, 1.0)
"""The shape of adapters of a base that takes none."""


def _match(patterns: Sequence[tuple[str, Number]], name: str, default: Number) -> Number:
    """The value of the first pattern that matches a module's name."""
    return next((value for pattern, value in patterns if matches(pattern, name)), default)


def matches(pattern: str, module: str) -> bool:
    """PEFT's rule: the regular expression is the whole end of the module's name, from some dot on."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def abstract_adapter(config: DecoderConfig, lora: Lora) -> PyTree:
    """Shapes of an adapter's leaves."""
    depth = config.num_hidden_layers
    layers = {}
    for kernel in FUSED:
        for target, width in modules(config, kernel).items():
            if target in lora.targets:
                rank = max(lora.ranks(target, depth))
                a = jax.ShapeDtypeStruct((depth, fan_in(config, kernel), rank), jnp.float32)
                b = jax.ShapeDtypeStruct((depth, rank, width), jnp.float32)
                layers[target] = {"a": a, "b": b}
    return {"layers": layers}


def init_adapter(config: DecoderConfig, lora: Lora, key: Key[Array, ""]) -> Adapter:
    """A fresh adapter: `a` uniform in +-1/sqrt(in) (PEFT's Kaiming uniform), `b` zero, so it changes nothing yet."""

    def leaf(path, shape: jax.ShapeDtypeStruct) -> Array:
        if path[-1].key == "b":
            return jnp.zeros(shape.shape, shape.dtype)
        bound = shape.shape[-2] ** -0.5
        leaf_key = rng.stream(key, jax.tree_util.keystr(path))
        drawn = jax.random.uniform(leaf_key, shape.shape, shape.dtype, -bound, bound)
        depth, _, largest_rank = shape.shape
        ranks = np.array(lora.ranks(path[-2].key, depth))
        within_rank = np.arange(largest_rank) < ranks[:, None, None]
        return jnp.where(within_rank, drawn, 0.0)

    return jax.tree_util.tree_map_with_path(leaf, abstract_adapter(config, lora))


class Pairs(NamedTuple):
    """An adapter as the decoder multiplies by it: of each kernel one pair, `a` [L, in, r] and `b` [L, r, out].

    The a of all targets in a kernel lie side by side. Their b, times their scales, stand in rows and columns of their
    own, among zeros: so two thin products and one sum do for a kernel, whatever lies in it.
    """

    kernels: dict[str, tuple[Array, Array]]


def rank_of_each(config: DecoderConfig, lora: Lora, kernel: str) -> dict[str, int]:
    """The rank of each target that lies in a kernel, the largest of its layers'."""
    targets = [target for target in modules(config, kernel) if target in lora.targets]
    return {target: max(lora.ranks(target, config.num_hidden_layers)) for target in targets}


def paired(config: DecoderConfig, lora: Lora, adapter: Adapter) -> Pairs:
    """The pairs of an adapter, in the type that is computed in: made once for all layers, or all steps of a loop.

    Raises ValueError for an adapter that has other targets than `lora`.
    """
    given, targets = sorted(adapter["layers"]), sorted(lora.targets)
    if given != targets:
        raise ValueError(f"an adapter of {given} for a model whose targets are {targets}")
    pairs = {}
    for kernel in FUSED:
        if rank_of_each(config, lora, kernel):
            pair = _pair(config, lora, adapter, kernel)
            pairs[kernel] = tuple(matrix.astype(config.dtype) for matrix in pair)
    return Pairs(pairs)


def _pair(config: DecoderConfig, lora: Lora, adapter: Adapter, kernel: str) -> tuple[Array, Array]:
    """A kernel's `a` and `b`, in the adapter's type: `a @ b` is what the adapter adds to it."""
    all_a, all_b = [], []
    for target in rank_of_each(config, lora, kernel):
        pair = adapter["layers"][target]
        scales = np.array(lora.scales(target, config.num_hidden_layers), np.float32)
        all_a.append(pair["a"])
        all_b.append(_in_columns(config, kernel, target, pair["b"] * scales[:, None, None]))
    return jnp.concatenate(all_a, axis=-1), jnp.concatenate(all_b, axis=-2)


def _in_columns(config: DecoderConfig, kernel: str, target: str, b: Float[Array, "L r t"]) -> Float[Array, "L r o"]:
    """A target's b in the columns that the target has in a kernel; zeros in all others."""
    parts = parts_of(config, kernel)
    widths = outputs(config, kernel)
    projections = list(widths) if config.modules_fused else [target]
    ends = np.cumsum([widths[name] for name in projections])
    pieces = [in_parts(piece, parts) for piece in jnp.split(b, ends[:-1], axis=-1)]
    names = list(widths)
    before = sum(widths[name] for name in names[: names.index(projections[0])])
    after = sum(widths.values()) - before - int(ends[-1])
    padding = ((0, 0),) * b.ndim + ((before // parts, after // parts),)
    return jnp.pad(jnp.concatenate(pieces, axis=-1), padding).reshape(*b.shape[:-1], -1)


def size(config: DecoderConfig, lora: Lora) -> int:
    """Number of parameters that one client sends."""
    parameters = 0
    for kernel in FUSED:
        for target, width in modules(config, kernel).items():
            if target in lora.targets:
                ranks = lora.ranks(target, config.num_hidden_layers)
                parameters += sum(ranks) * (fan_in(config, kernel) + width)
    return parameters


def merged_kernels(config: DecoderConfig, lora: Lora, layers: Base, adapter: Adapter) -> dict[str, Array]:
    """The kernels of a base's layers with the adapter added to them, by name; the adapter has all targets of `lora`.

    Those that it leaves alone are not among them, unless they are quantised: no kernel of a merged base is.
    """
    changed = {}
    for name in FUSED:
        kernel = layers[name]
        if isinstance(kernel, Quantized):
            changed[name] = kernel = dequantize(kernel, jnp.dtype(config.dtype))
        if rank_of_each(config, lora, name):
            changed[name] = _added(kernel, *_pair(config, lora, adapter, name))
    return changed


def _added(kernel: Float[Array, "L i o"], a: Float[Array, "L i r"], b: Float[Array, "L r o"]) -> Float[Array, "L i o"]:
    """The kernel of every layer with its a @ b, rounded once; one layer after another, as sums are in float32."""

    def with_layer(layer: int | Array, kernel: Array) -> Array:
        changed = kernel[layer].astype(a.dtype) + a[layer] @ b[layer]
        return jax.lax.dynamic_update_index_in_dim(kernel, changed.astype(kernel.dtype), layer, axis=0)

    return jax.lax.fori_loop(0, kernel.shape[0], with_layer, kernel)


def lora_shape(section: Any, config: DecoderConfig) -> Lora:
    """The adapters that a config's section `lora` asks for; any object with its keys will do.

    Raises InputError where the model has no such projection or layer.
    """
    depth = config.num_hidden_layers
    unknown = set(section.targets or ()) - set(config.targets)
    if unknown:
        known = ", ".join(config.targets)
        raise InputError(f"lora.targets: this model has no {', '.join(sorted(unknown))}; must be some of {known}")
    beyond = [layer for layer in section.layers or () if layer >= depth]
    if beyond:
        raise InputError(f"lora.layers: this model has no layer {beyond[0]}; must be below {depth}")
    targets = config.targets
    if section.targets is not None:
        targets = tuple(target for target in config.targets if target in section.targets)
    layers = range(depth) if section.layers is None else section.layers
    names = [module_name(layer, target) for layer in layers for target in targets]
    _check_patterns("rank_pattern", section.rank_pattern, names)
    _check_patterns("alpha_pattern", section.alpha_pattern, names)
    return Lora(
        targets=targets,
        rank=section.rank,
        alpha=section.alpha,
        rslora=section.rslora,
        layers=section.layers,
        rank_pattern=tuple(section.rank_pattern.items()),
        alpha_pattern=tuple(section.alpha_pattern.items()),
    )


def _check_patterns(key: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raises InputError for a pattern that matches none of the adapted modules' names."""
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            raise InputError(
                f"lora.{key}: {pattern!r} matches no adapted module; must match the end of a name like {names[0]}"
            )
