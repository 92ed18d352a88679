"""LoRA adapters: fresh ones, their sizes, and merging one into the base (arXiv 2106.09685).

An adapter is the decoder's `lora` collection: for every target `{"a": [L, in, r], "b": [L, r, out]}`; the layer
computes `x W + (alpha / r) (x a) b`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_rai import rng, trees
from fedjax_rai.aliases import Adapter, Array, Base, Key, PyTree
from fedjax_rai.model.decoder import Decoder, abstract_params

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}


def abstract_adapter(model: Decoder) -> PyTree:
    """Shapes of an adapter's leaves."""
    return nn.unbox(abstract_params(model)).get("lora", {})


def init_adapter(model: Decoder, key: Key[Array, ""]) -> Adapter:
    """A fresh adapter: `a` uniform in +-1/sqrt(in) (PEFT's Kaiming uniform), `b` zero, so it changes nothing yet."""

    def leaf(path, shape: jax.ShapeDtypeStruct) -> Array:
        if path[-1].key == "b":
            return jnp.zeros(shape.shape, shape.dtype)
        bound = shape.shape[-2] ** -0.5
        own = rng.stream(key, jax.tree_util.keystr(path))
        return jax.random.uniform(own, shape.shape, shape.dtype, -bound, bound)

    return jax.tree_util.tree_map_with_path(leaf, abstract_adapter(model))


def init_base(model: Decoder, key: Key[Array, ""]) -> Base:
    """A random base: normal(0.02) matrices, those that write to the residual stream smaller by sqrt(2 L); norms one."""
    layers = model.config.num_hidden_layers

    def leaf(path, shape: jax.ShapeDtypeStruct) -> Array:
        name = path[-1].key
        if name == "weight":
            return jnp.ones(shape.shape, shape.dtype)
        deviation = 0.02 / (2 * layers) ** 0.5 if name in ("o_proj", "down_proj") else 0.02
        own = rng.stream(key, jax.tree_util.keystr(path))
        return deviation * jax.random.normal(own, shape.shape, shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, nn.unbox(abstract_params(model))["params"])


def size(adapter: Adapter) -> int:
    """Number of parameters that one client sends."""
    return sum(leaf.size for _, leaf in trees.paths(adapter))


def merge(model: Decoder, base: Base, adapter: Adapter) -> Base:
    """The base with the adapter added to its kernels: `forward(merged, None) == forward(base, adapter)`."""
    pairs, layers = adapter["layers"], dict(base["layers"])
    for fused, targets in FUSED.items():
        kernel, column = layers[fused], 0
        for target in targets:
            width = _width(model, target)
            if target in pairs:
                product = jnp.einsum("lir,lro->lio", pairs[target]["a"], pairs[target]["b"])
                kernel = kernel.at[:, :, column : column + width].add((model.lora_scale * product).astype(kernel.dtype))
            column += width
        layers[fused] = kernel
    return {**base, "layers": layers}


def _width(model: Decoder, target: str) -> int:
    config = model.config
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
        "v_proj": config.num_key_value_heads,
    }
    if target in heads:
        return heads[target] * config.head_dim
    return config.intermediate_size if target in ("gate_proj", "up_proj") else config.hidden_size
