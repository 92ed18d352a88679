"""Models of random weights, and random tokens, as the works read them."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rai.aliases import Array, Base, Key
from fedjax_rai.bench.prompts import prompt_ids
from fedjax_rai.bench.shapes import DecodingShape, has_weights, model_json
from fedjax_rai.data.examples import Examples, Prompts
from fedjax_rai.experiment.models import check_attention
from fedjax_rai.mesh import base_shardings, make_mesh
from fedjax_rai.model.architecture import FUSED, DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder, abstract_base, init_base
from fedjax_rai.model.families import decoder_config
from fedjax_rai.model.lora import Lora
from fedjax_rai.model.quantize import Quantized, quantize
from fedjax_rai.model.weights import load_base

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = Lora(TARGETS, rank=16, alpha=32.0)


def random_lm(model: str, mesh: Mesh | None = None, lora: Lora = LORA, **computed: Any) -> LM:
    """A decoder of a named shape, or of a folder, with its weights or, where it has none, random ones.

    `computed`: dtype, attention, remat, quantize. Raises InputError for what this machine cannot compute.
    """
    mesh = mesh or make_mesh()
    config = decoder_config(model_json(model), model, **computed, parts=mesh.shape["tensor"])
    check_attention(config)
    shardings = base_shardings(mesh, abstract_base(config))
    if has_weights(model):
        base = load_base(Path(model), config, shardings)
    else:
        base = jax.jit(partial(random_base, config), out_shardings=shardings)(jax.random.key(0))
    return LM(Decoder(config, lora), base)


def random_base(config: DecoderConfig, key: Key[Array, ""]) -> Base:
    """A random base as one that is loaded: of the config's dtype, its kernels quantised where the config says so."""
    base = init_base(dataclasses.replace(config, quantize="none"), key)
    layers = dict(base["layers"])
    if config.quantize != "none":
        for kernel in FUSED:
            layers[kernel] = quantize(layers[kernel], config.quantize)

    def stored(leaf: Any) -> Any:
        return leaf if isinstance(leaf, Quantized) else leaf.astype(config.dtype)

    return jax.tree.map(stored, {**base, "layers": layers}, is_leaf=lambda leaf: isinstance(leaf, Quantized))


def random_examples(vocabulary: int, rows: int, length: int) -> Examples:
    """[rows, length] random tokens, all trained on."""
    tokens: Any = np.random.default_rng(0).integers(0, vocabulary, (rows, length), np.int32)
    ones = jnp.ones(tokens.shape, jnp.int32)
    return Examples(jnp.asarray(tokens), ones.astype(bool), ones)


def random_prompts(vocabulary: int, shape: DecodingShape) -> Prompts:
    """[rows, prompt] random tokens, none of them padding."""
    return random_tokens(vocabulary, shape.rows, shape.prompt)


def random_tokens(vocabulary: int, rows: int, length: int) -> Prompts:
    """[rows, length] random tokens, none of them padding."""
    tokens = prompt_ids(vocabulary, rows, length)
    return Prompts(jnp.asarray(tokens), jnp.ones(tokens.shape, bool))


def random_texts(vocabulary: int, lengths: list[int]) -> list[list[int]]:
    """Random tokens, a text for each of the lengths."""
    g = np.random.default_rng(3)
    return [g.integers(0, vocabulary, length).tolist() for length in lengths]
