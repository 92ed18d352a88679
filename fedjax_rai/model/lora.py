"""LoRA adapters: their shape, fresh ones, their sizes, and merging one into the base (arXiv 2106.09685).

An adapter is the decoder's `lora` collection: for every target `{"a": [L, in, r], "b": [L, r, out]}`; the layer
computes `x W + scale (x a) b`. Where layers have different ranks, `r` is the largest and the rest is zero: a column of
`a` and the row of `b` that are both zero have no gradient, so they stay what they are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Base, Float, Key, PyTree
from fedjax_rai.errors import InputError
from fedjax_rai.model.architecture import FUSED, DecoderConfig, fan_in, module_name, modules
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
        names = [module_name(layer, target) for layer in range(depth)]
        adapted = range(depth) if self.layers is None else self.layers
        return tuple(_match(self.rank_pattern, name, self.rank) if i in adapted else 0 for i, name in enumerate(names))

    def scales(self, target: str, depth: int) -> tuple[float, ...]:
        """What each layer's (x a) b is multiplied by; 0 where a layer is not adapted."""
        alphas = [_match(self.alpha_pattern, module_name(layer, target), self.alpha) for layer in range(depth)]
        ranks = self.ranks(target, depth)
        return tuple(
            alpha / (r**0.5 if self.rslora else r) if r else 0.0 for alpha, r in zip(alphas, ranks, strict=True)
        )


class Dropout(NamedTuple):
    """Dropout on the input of every `a`, as PEFT places it: y = x W + scale (drop(x) a) b, each target its own mask.

    Both are traced: another rate compiles nothing; without dropout there is no such value, and nothing is compiled in.
    """

    key: Key[Array, "*L"]
    rate: Float[Array, "*L"]  # the share of inputs that are zeroed; the others are divided by 1 - rate

    def at(self, **ids: int | Array) -> "Dropout":
        """That of one client, local step or layer, by name."""
        return self._replace(key=rng.stream(self.key, "dropout", **ids))

    def each(self, name: str, count: int) -> "Dropout":
        """That of each of `count` layers or local steps, stacked in front."""
        return jax.vmap(lambda place: self.at(**{name: place}))(jnp.arange(count))

    def drop(self, x: Array, target: str) -> Array:
        """The input of one target's `a` in one layer."""
        kept = jax.random.bernoulli(rng.stream(self.key, target), 1.0 - self.rate, x.shape)
        return jnp.where(kept, x * (1.0 / (1.0 - self.rate)).astype(x.dtype), jnp.zeros_like(x))


NO_LORA = Lora((), 1, 1.0)
"""Of a base that takes no adapter."""


def _match(patterns: Sequence[tuple[str, Number]], name: str, default: Number) -> Number:
    return next((value for pattern, value in patterns if matches(pattern, name)), default)


def matches(pattern: str, module: str) -> bool:
    """PEFT's rule: the regular expression is the whole end of the module's name, from some dot on."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def abstract_adapter(config: DecoderConfig, lora: Lora) -> PyTree:
    """Shapes of an adapter's leaves."""
    depth, layers = config.num_hidden_layers, {}
    for kernel in FUSED:
        for target, width in modules(config, kernel).items():
            if target in lora.targets:
                rank = max(lora.ranks(target, depth))
                shapes = {"a": (depth, fan_in(config, kernel), rank), "b": (depth, rank, width)}
                layers[target] = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return {"layers": layers}


def init_adapter(config: DecoderConfig, lora: Lora, key: Key[Array, ""]) -> Adapter:
    """A fresh adapter: `a` uniform in +-1/sqrt(in) (PEFT's Kaiming uniform), `b` zero, so it changes nothing yet."""

    def leaf(path, shape: jax.ShapeDtypeStruct) -> Array:
        if path[-1].key == "b":
            return jnp.zeros(shape.shape, shape.dtype)
        bound = shape.shape[-2] ** -0.5
        own = rng.stream(key, jax.tree_util.keystr(path))
        drawn = jax.random.uniform(own, shape.shape, shape.dtype, -bound, bound)
        ranks = np.array(lora.ranks(path[-2].key, shape.shape[0]))
        return jnp.where(np.arange(shape.shape[-1]) < ranks[:, None, None], drawn, 0.0)

    return jax.tree_util.tree_map_with_path(leaf, abstract_adapter(config, lora))


def size(config: DecoderConfig, lora: Lora) -> int:
    """Number of parameters that one client sends."""
    depth = config.num_hidden_layers
    return sum(
        sum(lora.ranks(target, depth)) * (fan_in(config, kernel) + width)
        for kernel in FUSED
        for target, width in modules(config, kernel).items()
        if target in lora.targets
    )


def merge(config: DecoderConfig, lora: Lora, base: Base, adapter: Adapter) -> Base:
    """The base with the adapter added to its kernels: `forward(merged, None) == forward(base, adapter)`.

    It is not quantised, whatever the base was: it belongs to the model whose config says "none".
    """
    pairs, layers = adapter["layers"], dict(base["layers"])
    dtype = jnp.dtype(config.dtype)
    for fused in FUSED:
        column = 0
        if isinstance(kernel := layers[fused], Quantized):
            layers[fused] = dequantize(kernel, dtype)
        for target, width in modules(config, fused).items():
            if target in pairs:
                scales = np.array(lora.scales(target, config.num_hidden_layers), np.float32)[:, None, None]
                product = jnp.einsum("lir,lro->lio", pairs[target]["a"], pairs[target]["b"]) * scales
                kernel = layers[fused]
                layers[fused] = kernel.at[:, :, column : column + width].add(product.astype(kernel.dtype))
            column += width
    return {**base, "layers": layers}


def lora_shape(section: Any, config: DecoderConfig) -> Lora:
    """The adapters that a config's section `lora` asks for; any object with its keys will do.

    Raises InputError where the model has no such projection or layer.
    """
    if wrong := set(section.targets or ()) - set(config.targets):
        known = ", ".join(config.targets)
        raise InputError(f"lora.targets: this model has no {', '.join(sorted(wrong))}; must be some of {known}")
    if wrong := [layer for layer in section.layers or () if layer >= config.num_hidden_layers]:
        raise InputError(f"lora.layers: this model has no layer {wrong[0]}; must be below {config.num_hidden_layers}")
    targets = tuple(target for target in config.targets if section.targets is None or target in section.targets)
    adapted = range(config.num_hidden_layers) if section.layers is None else section.layers
    modules = [module_name(layer, target) for layer in adapted for target in targets]
    for key, patterns in (("rank_pattern", section.rank_pattern), ("alpha_pattern", section.alpha_pattern)):
        for pattern in patterns:
            if not any(matches(pattern, module) for module in modules):
                raise InputError(
                    f"lora.{key}: {pattern!r} matches no adapted module; must match the end of a name like {modules[0]}"
                )
    patterns = tuple(section.rank_pattern.items()), tuple(section.alpha_pattern.items())
    return Lora(targets, section.rank, section.alpha, section.rslora, section.layers, *patterns)
