"""However a model is computed (attention, remat, quantised base), it computes the same, in the families that differ."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_rai.data.examples import Examples
from fedjax_rai.data.packing import plan
from fedjax_rai.experiment.round import federated_round
from fedjax_rai.fed.aggregate import weighted_mean
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Mapper
from fedjax_rai.fed.fedavg import fedavg
from fedjax_rai.model import attention, decoder, families, quantize, weights
from fedjax_rai.model.architecture import FUSED, LayerKind, plain_rope
from fedjax_rai.model.attention import Sight
from fedjax_rai.model.cache import empty_cache
from fedjax_rai.model.decoder import LM, Decoder, abstract_base, forward_cached, segment_positions
from fedjax_rai.model.lora import Lora
from fedjax_rai.train import speaker
from tests import small
from tests.model.common import MODELS, random_adapter, traced_logits

LENGTH = 14
SEGMENTS = np.array([[0] * 5 + [1] * 9, [1] * 11 + [0] * 3, [0] + [1] * 6 + [2] * 7])
VALID = SEGMENTS > 0
every_kind = pytest.mark.parametrize("kind", [small.slow("int8"), "nf4"])


@pytest.fixture(autouse=True, scope="module")
def several_chunks():
    """Of the short sequences here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "CHUNK", 5)
        yield


def models(quick: str, slow: str = ""):
    """Fixtures by name."""
    by_name = {folder.name: folder for folder in MODELS}
    own = [pytest.param(by_name[name], id=name) for name in quick.split()]
    own += [small.slow(by_name[name], id=name) for name in slow.split()]
    return pytest.mark.parametrize("folder", own)


def of(folder: Path, **how: str) -> Decoder:
    """The folder's model with an adapter on everything, computed so."""
    config = families.read_config(folder, **how)
    return Decoder(config, Lora(config.targets, rank=2, alpha=3.0))


@cache
def problem(folder: Path) -> tuple[Any, Any, np.ndarray]:
    """Base, adapter and tokens."""
    model = of(folder)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, SEGMENTS.shape)
    return weights.load_base(folder, model.config), random_adapter(model.config, model.lora), tokens


def logits(model: Decoder, base, adapter, tokens):
    return traced_logits(model, base, adapter, tokens, jnp.asarray(SEGMENTS))


@partial(jax.jit, static_argnums=0)
def outcome(model: Decoder, base, adapter, tokens):
    """Logits, and the adapter's gradient of a random function of those of valid tokens."""
    weight = jax.random.normal(jax.random.key(1), (*tokens.shape, model.config.vocab_size))

    def loss(adapter):
        out = logits(model, base, adapter, tokens)
        return jnp.sum(jnp.where(VALID[..., None], out * weight, 0)), out

    gradient, out = jax.grad(loss, has_aux=True)(adapter)
    return out, gradient


def assert_same(got, expected, atol: float = 1e-4) -> None:
    """Outcomes, each array to within `atol` of its own largest entry."""
    pairs = [(got[0][VALID], expected[0][VALID])]
    pairs += list(zip(jax.tree.leaves(got[1]), jax.tree.leaves(expected[1]), strict=True))
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine, theirs, atol=atol * np.abs(theirs).max(), rtol=0)


# ---- attention and remat


@pytest.mark.slow
@models("gemma2", slow="gemma3 phi3")
@pytest.mark.parametrize(("implementation", "remat"), [("chunked", "none"), small.slow("splash", "full")])
def test_every_attention_and_remat_is_xla_without(folder, implementation, remat):
    base, adapter, tokens = problem(folder)
    plain, other = of(folder), of(folder, attention=implementation, remat=remat)
    expected, got = outcome(plain, base, adapter, tokens), outcome(other, base, adapter, tokens)
    assert_same(got, expected)
    assert all(np.abs(leaf).max() > 1e-2 for leaf in jax.tree.leaves(expected[1]))


@models("gemma2", slow="gemma3 phi3")
@pytest.mark.parametrize("implementation", ["chunked", small.slow("splash")])
def test_cached_decoding_is_uncached_xla(folder, implementation):
    """A prompt of several chunks and longer than the windows, then one token at a time, on ragged rows."""
    base, adapter, tokens = problem(folder)
    prompt, (batch, slots) = 9, tokens.shape
    segments = np.array([[0] * 3 + [1] * 11, [1] * 14, [0] * 7 + [1] * 7])
    positions = np.asarray(segment_positions(jnp.asarray(segments)))
    plain, other = LM(of(folder), base), LM(of(folder, attention=implementation), base)
    expected = decoder.unembed(plain, decoder.forward(plain, adapter, jnp.asarray(tokens), jnp.asarray(segments)))

    @jax.jit
    def step(tokens, sight, cache, slot):
        hidden, cache = forward_cached(other, adapter, tokens, sight, cache, slot)
        return decoder.unembed(other, hidden), cache

    cache, start, got = empty_cache(other.model.config, batch, slots), 0, []
    for end in [prompt, *range(prompt + 1, slots + 1)]:
        part, written = slice(start, end), np.where(np.arange(slots) < end, segments, 0)
        sight = Sight(*map(jnp.asarray, (segments[:, part], positions[:, part], written, positions)))
        out, cache = step(jnp.asarray(tokens[:, part]), sight, cache, jnp.asarray(start))
        got.append(out)
        start = end
    valid = segments > 0
    np.testing.assert_allclose(np.concatenate(got, axis=1)[valid], expected[valid], atol=1e-4, rtol=0)


# ---- a quantised base


def quantised(base, kind: str):
    kernels = {name: quantize.quantize(base["layers"][name], kind) for name in FUSED}
    return {**base, "layers": {**base["layers"], **kernels}}


def dequantised(base):
    kernels = {name: quantize.dequantize(base["layers"][name], jnp.float32) for name in FUSED}
    return {**base, "layers": {**base["layers"], **kernels}}


@pytest.mark.slow
@every_kind
@models("phi3", slow="gemma2 qwen2")
def test_a_quantised_base_is_the_kernels_that_it_stands_for(folder, kind):
    """Under remat, too, whose backward pass makes the kernels again."""
    base, adapter, tokens = problem(folder)
    base = quantised(base, kind)
    got = outcome(of(folder, quantize=kind, remat="full"), base, adapter, tokens)
    assert_same(got, outcome(of(folder), dequantised(base), adapter, tokens))


@every_kind
@models("plain_untied", slow="gemma2 llama3_tied_sharded qwen3")
def test_quantising_moves_the_logits_little(folder, kind):
    """int8 below 1 %, nf4 below 18 %: up to twice what a kernel of normal numbers is off by, 0.6 % and 9 %.

    Widths are whole blocks; layers make half or three quarters of the logits, and the embedding, exact, the rest. Norms
    after each half make what a layer adds large whatever its kernels' size: two and a half times the bounds there.
    """
    config = replace(families.read_config(folder), hidden_size=64, intermediate_size=128)
    base = decoder.init_base(config, jax.random.key(0))
    base = jax.tree_util.tree_map_with_path(lambda path, x: x if path[-1].key == "weight" else 2 * x, base)
    tokens, rough = problem(folder)[2], quantised(base, kind)
    run = jax.jit(logits, static_argnums=0)
    exact = run(Decoder(config), base, None, tokens)[VALID]
    moved = run(Decoder(replace(config, quantize=kind)), rough, None, tokens)[VALID]
    error = jnp.linalg.norm(moved - exact) / jnp.linalg.norm(exact)
    bound = {"int8": 0.01, "nf4": 0.18}[kind] * (2.5 if config.post_norms else 1)
    assert bound / 5 < error < bound


@pytest.mark.slow
@every_kind
def test_adapters_of_a_quantised_base(kind):
    """Mapped over adapters it is looped; merged with one it is adapted."""
    folder = next(folder for folder in MODELS if folder.name == "qwen2")
    base, _, tokens = problem(folder)
    base, model = quantised(base, kind), of(folder, quantize=kind)
    adapters = [random_adapter(model.config, model.lora, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
    mapped = jax.jit(jax.vmap(partial(outcome, model), in_axes=(None, 0, None)))(base, stacked, tokens)
    looped = [outcome(model, base, adapter, tokens) for adapter in adapters]
    for i, alone in enumerate(looped):
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), alone)
        assert all(np.abs(leaf).max() > 1e-2 for leaf in jax.tree.leaves(alone[1]))
    merged = speaker.merged(LM(model, base), adapters[1]).base
    got = jax.jit(logits, static_argnums=0)(of(folder), merged, None, tokens)
    np.testing.assert_allclose(got[VALID], looped[1][0][VALID], atol=1e-4 * np.abs(got).max(), rtol=0)


def test_a_base_is_merged_whole():
    """With kernels that the adapter leaves alone, too: no model computes a base that is quantised in part."""
    folder = next(folder for folder in MODELS if folder.name == "phi3")
    base, _, tokens = problem(folder)
    model = of(folder, quantize="nf4").copy(lora=Lora(("o_proj",), rank=2, alpha=3.0))
    base, adapter = quantised(base, "nf4"), random_adapter(model.config, model.lora)
    run = jax.jit(logits, static_argnums=0)
    expected = run(model, base, adapter, tokens)
    got = run(of(folder), speaker.merged(LM(model, base), adapter).base, None, tokens)
    np.testing.assert_allclose(got[VALID], expected[VALID], atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["none", *quantize.QUANTIZATIONS])
def test_bytes_of_a_base_that_was_loaded(kind, dtype, tmp_path):
    """A kernel's parameter takes one byte or half of one, and a 64th of a float32; the rest is of the dtype."""
    raw = {
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    plain = families.decoder_config(raw, "raw")
    weights.save_base(tmp_path, raw, decoder.init_base(plain, jax.random.key(0)), "float32")
    shapes = nn.unbox(abstract_base(plain))
    kernels = sum(shapes["layers"][name].size for name in FUSED)
    rest = sum(leaf.size for leaf in jax.tree.leaves(shapes)) - kernels
    size = jnp.dtype(dtype).itemsize
    per = {"none": size, "int8": 1 + 4 / 64, "nf4": 0.5 + 4 / 64}[kind]
    base = weights.load_base(tmp_path, replace(plain, quantize=kind, dtype=dtype))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(base)) == per * kernels + size * rest


# ---- a round


@cache
def round_of(implementation: str, packed: bool):
    """State and metrics of a federated round of two chunks of vmapped clients, on a model of two kinds of layers."""
    kinds = (LayerKind(plain_rope(8), window=3), LayerKind(plain_rope(8, 100.0)))
    config = replace(small.CONFIG, kinds=kinds, layer_kinds=(0, 1), attention_softcap=2.0, attention=implementation)
    corpus = Examples(*(jnp.pad(column, ((0, 0), (0, 20 - small.LENGTH))) for column in small.corpus()))
    cohort = small.cohort([0, 1, 2], steps=2, batch=4)
    if packed:
        lengths = np.asarray(corpus.valid.sum(axis=1))
        cohort = cohort._replace(rows=jnp.asarray(plan(np.asarray(cohort.rows), lengths, 20)))
        assert cohort.rows.ndim == 4 and cohort.rows.shape[2] < 4, "fewer rows"
    algorithm = fedavg(small.SGD, weighted_mean(), Mapper(4, chunk=2))
    lm = LM(Decoder(config, small.MODEL.lora), small.BASE)
    state = algorithm.init(small.adapter())
    return federated_round(algorithm, state, lm, RoundBatch(corpus, cohort, jnp.float32(0.1)))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["chunked", "splash"])
def test_a_round_is_that_with_xla_packed_or_not(implementation):
    expected = round_of("xla", True)
    small.assert_trees_close(round_of(implementation, True), expected, atol=1e-6)
    small.assert_trees_close(round_of(implementation, False), expected, atol=1e-6)
    assert small.distance(expected[0].adapter, small.adapter()) > 1e-3
