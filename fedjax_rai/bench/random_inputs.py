"""Models of random weights, and random tokens, as the works read them."""

import dataclasses
from functools import partial
from math import gcd
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from fedjax_rai import rng
from fedjax_rai.aliases import Array, Base, Key
from fedjax_rai.bench.prompts import prompt_ids
from fedjax_rai.bench.shapes import DecodingShape, has_weights, model_json
from fedjax_rai.data.examples import Examples, Prompts
from fedjax_rai.experiment.models import check_computed
from fedjax_rai.mesh import base_shardings, make_mesh
from fedjax_rai.model.architecture import FUSED, DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder, abstract_base, init_leaf
from fedjax_rai.model.families import decoder_config
from fedjax_rai.model.lora import Lora
from fedjax_rai.model.quantize import quantize
from fedjax_rai.model.weights import load_base

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = Lora(TARGETS, rank=16, alpha=32.0)
PARTS = 64  # of a vocabulary's rows, one made after another


def random_lm(model: str, mesh: Mesh | None = None, lora: Lora = LORA, **computed: Any) -> LM:
    """A decoder of a named shape, or of a folder, with its weights or, where it has none, random ones.

    `computed`: dtype, attention, remat, unroll, quantize. Raises InputError for what this machine cannot compute.
    """
    mesh = mesh or make_mesh()
    config = decoder_config(model_json(model), model, **computed, parts=mesh.shape["tensor"])
    check_computed(config)
    shardings = base_shardings(mesh, abstract_base(config))
    if has_weights(model):
        base = load_base(Path(model), config, shardings)
    else:
        base = jax.jit(partial(random_base, config), out_shardings=shardings)(jax.random.key(0))
    return LM(Decoder(config, lora), base)


def random_base(config: DecoderConfig, key: Key[Array, ""]) -> Base:
    """A random base as one that is loaded: of the config's dtype, its kernels quantised where the config says so.

    It is made a layer, or a part of the vocabulary, at a time, so that a process that is measured has hardly held more
    for its weights than they take.
    """

    def stored(name: str, shape: jax.ShapeDtypeStruct, leaf_key: Key[Array, ""]) -> Any:
        leaf = init_leaf(config, name, shape, leaf_key)
        if name in FUSED and config.quantize != "none":
            return quantize(leaf, config.quantize)
        return leaf.astype(config.dtype)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> Any:
        name = path[-1].key
        leaf_key = rng.stream(key, jax.tree_util.keystr(path))
        rows, *rest = shape.shape
        in_layers = path[0].key == "layers"
        count = rows if in_layers else gcd(rows, PARTS)
        part = jax.ShapeDtypeStruct(tuple(rest) if in_layers else (rows // count, *rest), shape.dtype)
        made = jax.lax.map(partial(stored, name, part), jax.random.split(leaf_key, count))
        return made if in_layers else made.reshape(shape.shape)

    plain = dataclasses.replace(config, quantize="none")
    return jax.tree_util.tree_map_with_path(leaf, nn.unbox(abstract_base(plain)))


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
