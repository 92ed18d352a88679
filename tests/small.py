"""The small fake: a two-layer decoder over a few tokens, random but trained by nothing, and data to feed it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.data.examples import Examples
from fedjax_rai.fed.aggregate import weighted_mean
from fedjax_rai.fed.algorithm import ALGORITHMS, construct
from fedjax_rai.fed.base import FedAlgorithm
from fedjax_rai.fed.client import Cohort, Mapper
from fedjax_rai.mesh import AXES
from fedjax_rai.model import decoder
from fedjax_rai.model.architecture import DecoderConfig, LayerKind, plain_rope
from fedjax_rai.model.decoder import Decoder, init_base
from fedjax_rai.model.lora import Lora, init_adapter
from fedjax_rai.train.optimizers import sgd
from fedjax_rai.train.step import Trainer

VOCAB, LENGTH = 23, 9
CONFIG = DecoderConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    kinds=(LayerKind(plain_rope(8)),),
    tie_word_embeddings=True,
)
LORA = Lora(CONFIG.targets, rank=2, alpha=4.0)
MODEL = Decoder(CONFIG, LORA)
BASE = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, init_base(CONFIG, jax.random.key(0)))
LM = decoder.LM(MODEL, BASE)


# Adam divides by the gradient's size and so blows rounding up; under plain SGD the laws hold to rounding.
SGD = Trainer(sgd())


def slow(*values: Any, **options: Any) -> Any:
    """A case that only the slow tests try."""
    return pytest.param(*values, **options, marks=pytest.mark.slow)


def adapter(seed: int = 1, strength: float = 0.1):
    """An adapter that does something: `b` is not zero."""
    fresh = init_adapter(CONFIG, LORA, jax.random.key(seed))
    noise = [
        strength * jax.random.normal(jax.random.key(seed + i), x.shape) for i, x in enumerate(jax.tree.leaves(fresh))
    ]
    return jax.tree.unflatten(jax.tree.structure(fresh), noise)


def corpus(rows: int = 40, seed: int = 0) -> Examples:
    """Ragged random sequences, right-padded."""
    g = np.random.default_rng(seed)
    lengths = g.integers(4, LENGTH + 1, rows)
    valid = np.arange(LENGTH) < lengths[:, None]
    tokens = np.where(valid, g.integers(1, VOCAB, (rows, LENGTH)), 0)
    loss_mask, segments = valid & (np.arange(LENGTH) >= 2), valid.astype(np.int32)
    return Examples(jnp.asarray(tokens, jnp.int32), jnp.asarray(loss_mask), jnp.asarray(segments))


def cohort(
    clients: list[int], steps: int = 3, batch: int = 2, seed: int = 0, weight: list[float] | None = None
) -> Cohort:
    """A client's rows depend on who it is alone."""
    rows = [np.random.default_rng([seed, c]).integers(0, 40, (steps, batch)) for c in clients]
    weights = weight if weight is not None else [1.0 + c for c in clients]
    return Cohort(
        jnp.asarray(clients, jnp.int32), jnp.asarray(np.stack(rows), jnp.int32), jnp.asarray(weights, jnp.float32)
    )


def algorithm(
    name: str, mapper: Mapper, local: Trainer = SGD, numbers: Mapping[str, float] | None = None
) -> FedAlgorithm:
    """The algorithm of that name with the weighted mean; its numbers are the config's defaults, if none are given."""
    sections = dict(ExperimentConfig())
    if numbers:
        sections[name] = numbers
    return construct(ALGORITHMS[name], sections)(local, weighted_mean(), mapper)


def assert_trees_close(x, y, atol: float = 1e-6) -> None:
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol, rtol=1e-5)


def distance(x, y) -> float:
    return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def compilations(jitted: Any) -> int:
    """How many programs a jitted function holds."""
    return jitted._cache_size()


def mesh(devices: int, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """The first so many devices as (clients, fsdp, tensor)."""
    shape = (devices // (fsdp * tensor), fsdp, tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:devices])
