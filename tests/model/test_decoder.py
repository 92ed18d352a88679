"""The decoder computes what transformers computes, cached or not, and its adapters obey the laws of LoRA."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_rai.model import decoder, lora
from fedjax_rai.model.architecture import DecoderConfig, LayerKind, plain_rope
from fedjax_rai.model.attention import Sight
from fedjax_rai.model.cache import empty_cache
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import Lora
from fedjax_rai.train import speaker
from tests import small
from tests.model.common import random_adapter, random_base
from tests.model.common import traced_logits as logits

CONFIG = DecoderConfig(
    vocab_size=23,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    kinds=(LayerKind(plain_rope(6)),),
)
TARGETS = CONFIG.targets
MODEL = Decoder(CONFIG, Lora(TARGETS, rank=2, alpha=3.0))
VALID = jnp.array([[1] * 7, [0] * 6 + [1], [0] * 3 + [1] * 4], bool)
TOKENS = jax.random.randint(jax.random.key(9), VALID.shape, 0, CONFIG.vocab_size)


def test_a_model_is_static_and_its_base_is_traced():
    """Another base, or the same model made again, compiles nothing; another model does."""
    first_token = jax.jit(lambda lm: decoder.unembed(lm, decoder.forward(lm, None, TOKENS, VALID)[:, -1]))
    again = Decoder(replace(CONFIG), MODEL.lora)
    outputs = [first_token(LM(model, random_base(model.config))) for model in (MODEL, again)]
    other_base = jax.tree.map(lambda leaf: 2 * leaf, random_base(CONFIG))
    assert np.abs(first_token(LM(MODEL, other_base)) - outputs[0]).max() > 1e-2
    np.testing.assert_array_equal(*outputs)
    assert small.compilations(first_token) == 1
    first_token(LM(MODEL.copy(config=replace(CONFIG, rms_norm_eps=0.1)), other_base))
    assert small.compilations(first_token) == 2


@pytest.mark.parametrize("adapted", [False, True])
def test_cached_equals_uncached(adapted):
    """Prefill of left-padded ragged rows, then one token at a time, against whole sequences."""
    base, adapter = random_base(CONFIG), random_adapter(CONFIG, MODEL.lora) if adapted else None
    prompt, slots = 4, VALID.shape[1]
    valid = np.asarray(VALID).copy()
    valid[:, prompt:] = True
    valid[1, :prompt] = [0, 0, 0, 1]
    valid[2, :prompt] = [0, 1, 1, 1]
    expected = np.asarray(logits(MODEL, base, adapter, TOKENS, jnp.asarray(valid)))

    positions = np.maximum(valid.cumsum(1) - 1, 0)
    segments = valid.astype(np.int32)

    @jax.jit
    def step(*args):
        hidden, cache = decoder.forward_cached(LM(MODEL, base), adapter, *args)
        return decoder.unembed(LM(MODEL, base), hidden), cache

    cache, start, got = empty_cache(CONFIG, len(valid), slots), 0, []
    for end in [prompt, *range(prompt + 1, slots + 1)]:
        part = slice(start, end)
        written = np.where(np.arange(slots) < end, segments, 0)
        sight = Sight(*map(jnp.asarray, (segments[:, part], positions[:, part], written, positions)))
        out, cache = step(TOKENS[:, part], sight, cache, jnp.asarray(start))
        got.append(out)
        start = end
    np.testing.assert_allclose(np.concatenate(got, axis=1)[valid], expected[valid], atol=1e-5, rtol=1e-5)


def test_a_cache_slot_that_is_not_seen_does_not_matter():
    base = random_base(CONFIG)
    one, sees = jnp.array([[1]]), jnp.array([[1, 0, 1]])
    sight = Sight(one, one, sees, jnp.array([[0, 0, 1]]))
    outputs = []
    for junk in (0.0, 1e3):
        cache = jax.tree.map(lambda leaf, junk=junk: leaf.at[:, :, 1].set(junk), empty_cache(CONFIG, 1, 3))
        args = (TOKENS[:1, :1], sight, cache, jnp.array(2))
        outputs.append(decoder.forward_cached(LM(MODEL, base), None, *args)[0])
    np.testing.assert_array_equal(*outputs)


def test_a_ragged_batch_equals_one_by_one():
    base, adapter = random_base(CONFIG), random_adapter(CONFIG, MODEL.lora)
    together = logits(MODEL, base, adapter, TOKENS, VALID)
    for row, valid in enumerate(np.asarray(VALID)):
        alone = logits(MODEL, base, adapter, TOKENS[row, valid][None], jnp.ones((1, valid.sum()), bool))
        np.testing.assert_allclose(together[row, valid], alone[0], atol=1e-5, rtol=1e-5)
    right = VALID[:, ::-1]  # the same law where padding is on the right
    flipped = logits(MODEL, base, adapter, TOKENS, right)
    for row, valid in enumerate(np.asarray(right)):
        alone = logits(MODEL, base, adapter, TOKENS[row, valid][None], jnp.ones((1, valid.sum()), bool))
        np.testing.assert_allclose(flipped[row, valid], alone[0], atol=1e-5, rtol=1e-5)


def test_the_future_and_the_padding_change_nothing():
    base = random_base(CONFIG)
    before = np.asarray(logits(MODEL, base, None, TOKENS, VALID))
    changed = jnp.where(VALID, TOKENS, (TOKENS + 5) % CONFIG.vocab_size).at[:, -1].add(1) % CONFIG.vocab_size
    after = np.asarray(logits(MODEL, base, None, changed, VALID))
    seen = np.asarray(VALID)
    np.testing.assert_allclose(before[:, :-1][seen[:, :-1]], after[:, :-1][seen[:, :-1]], atol=1e-6)
    assert np.abs(before[:, -1] - after[:, -1]).max() > 1e-2


def test_padding_gives_finite_values_and_gradients():
    base, adapter = random_base(CONFIG), random_adapter(CONFIG, MODEL.lora)

    def loss(adapter):
        hidden = decoder.forward(LM(MODEL, base), adapter, TOKENS, VALID)
        return jnp.sum(jnp.where(VALID[..., None], hidden, 0) ** 2), hidden

    grads, hidden = jax.grad(loss, has_aux=True)(adapter)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, hidden)))


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "v_proj"), ("k_proj",), ("up_proj", "down_proj", "o_proj")])
def test_merged_equals_adapted(targets):
    model = Decoder(CONFIG, Lora(targets, rank=2, alpha=3.0))
    base, adapter = random_base(model.config), random_adapter(model.config, model.lora)
    assert set(adapter["layers"]) == set(targets)
    adapted = logits(model, base, adapter, TOKENS, VALID)
    merged = logits(model, speaker.merged(LM(model, base), adapter).base, None, TOKENS, VALID)
    np.testing.assert_allclose(merged[VALID], adapted[VALID], atol=2e-5, rtol=1e-5)
    assert np.abs(adapted - logits(model, base, None, TOKENS, VALID)).max() > 1e-2


def test_a_fresh_adapter_equals_the_base():
    base, fresh = random_base(CONFIG), lora.init_adapter(CONFIG, MODEL.lora, jax.random.key(3))
    np.testing.assert_array_equal(logits(MODEL, base, fresh, TOKENS, VALID), logits(MODEL, base, None, TOKENS, VALID))
    assert all(np.any(pair["a"]) and not np.any(pair["b"]) for pair in fresh["layers"].values())


def test_every_matrix_of_the_adapter_matters():
    """Zeroing any one b changes the output, and every leaf has a gradient in every layer."""
    base, adapter = random_base(CONFIG), random_adapter(CONFIG, MODEL.lora)
    whole = logits(MODEL, base, adapter, TOKENS, VALID)
    for target in TARGETS:
        layers = {**adapter["layers"], target: jax.tree.map(jnp.zeros_like, adapter["layers"][target])}
        assert np.abs(whole - logits(MODEL, base, {"layers": layers}, TOKENS, VALID)).max() > 1e-3, target
    grads = jax.grad(lambda own: jnp.sum(logits(MODEL, base, own, TOKENS, VALID)[:, -1] ** 2))(adapter)
    for leaf in jax.tree.leaves(grads):
        assert np.all(np.abs(leaf).max(axis=(1, 2)) > 0)


def test_vmapped_adapters_equal_looped():
    base, adapters = random_base(CONFIG), [random_adapter(CONFIG, MODEL.lora, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
    run = jax.vmap(lambda adapter: logits(MODEL, base, adapter, TOKENS, VALID))
    looped = [logits(MODEL, base, adapter, TOKENS, VALID) for adapter in adapters]
    seen = np.asarray(VALID)
    np.testing.assert_allclose(run(stacked)[:, seen], np.stack(looped)[:, seen], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"remat": "full"}, {"unroll": "full"}])
def test_neither_remat_nor_unrolling_changes_anything(options):
    """Same values and gradients, from another program: the option does something."""
    base, adapter = random_base(CONFIG), random_adapter(CONFIG, MODEL.lora)

    def loss_of(model):
        def loss(variables):
            return jnp.mean(logits(model, *variables, TOKENS, VALID)[:, -1] ** 2)

        return jax.value_and_grad(loss)

    plain, saving = loss_of(MODEL), loss_of(MODEL.copy(config=replace(CONFIG, **options)))
    expected, got = plain((base, adapter)), saving((base, adapter))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-4), got, expected)
    assert str(jax.make_jaxpr(plain)((base, adapter))) != str(jax.make_jaxpr(saving)((base, adapter)))


def test_bfloat16_activations_come_close():
    base = random_base(CONFIG)
    exact = logits(MODEL, base, None, TOKENS, VALID)
    half = MODEL.copy(config=replace(CONFIG, dtype="bfloat16"))
    assert decoder.forward(LM(half, base), None, TOKENS, VALID).dtype == jnp.bfloat16
    rough = logits(half, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base), None, TOKENS, VALID)
    assert rough.dtype == jnp.float32
    error = (rough - exact)[VALID]
    assert jnp.linalg.norm(error) < 0.05 * jnp.linalg.norm(exact[VALID])


def test_layers_are_scanned():
    """The program does not grow with the depth; every leaf of a layer is stacked."""

    def lines(layers: int) -> int:
        model = MODEL.copy(config=replace(CONFIG, num_hidden_layers=layers))
        base, adapter = nn.unbox(decoder.abstract_base(model.config)), lora.abstract_adapter(model.config, model.lora)
        assert all(leaf.shape[0] == layers for leaf in jax.tree.leaves((base["layers"], adapter)))
        return logits.lower(model, base, adapter, TOKENS, VALID).as_text().count("\n")

    assert lines(2) == lines(6)


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_logical_axes(tied):
    params = decoder.abstract_base(replace(CONFIG, tie_word_embeddings=tied))
    boxes = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
    known = {"layers", "embed", "heads", "mlp", "vocab", None}
    assert all(len(box.names) == box.value.ndim and set(box.names) <= known for box in boxes)
    assert ("lm_head" in params) != tied
    stacked = jax.tree.leaves(params["layers"], is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert all(box.names[0] == "layers" for box in stacked)


def in_bfloat16() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states, the unembedding and the cotangent of logits; all of them are numbers of bfloat16."""
    g = np.random.default_rng(0)
    arrays = [g.normal(size=shape) for shape in ((3, 5, 64), (64, 41), (3, 5, 41))]
    hidden, head, cotangent = (jnp.asarray(array, jnp.bfloat16) for array in arrays)
    return hidden, head, cotangent


def test_logits_are_not_rounded_to_bfloat16():
    """They are sums of products in float64, to float32's accuracy; gradients are of activations, so of bfloat16."""
    hidden, head, cotangent = in_bfloat16()
    base = {"embed_tokens": head.T}
    config = replace(small.CONFIG, hidden_size=64, vocab_size=41, dtype="bfloat16")
    lm = LM(Decoder(config), base)
    found, backward = jax.vjp(lambda x: decoder.unembed(lm, x), hidden)
    assert found.dtype == jnp.float32
    h, w, c = (np.asarray(array, np.float64) for array in (hidden, head, cotangent))
    np.testing.assert_allclose(found, h @ w, atol=1e-5)
    assert np.mean(np.asarray(found) == np.asarray(found.astype(jnp.bfloat16), np.float32)) < 0.1
    (gradient,) = backward(jnp.asarray(cotangent, jnp.float32))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(gradient, np.float64), c @ w.T, rtol=2**-7, atol=2**-5)


def test_float32_logits_are_the_plain_product_bit_for_bit():
    hidden, head, _ = (array.astype(jnp.float32) for array in in_bfloat16())
    lm = LM(Decoder(replace(small.CONFIG, hidden_size=64, vocab_size=41)), {"embed_tokens": head.T})
    found = jax.jit(lambda x: decoder.unembed(lm, x))
    plain = jax.jit(lambda x: x @ lm.base["embed_tokens"].T)
    assert jnp.array_equal(found(hidden), plain(hidden))
    assert "custom_vjp" not in str(jax.make_jaxpr(found)(hidden))
