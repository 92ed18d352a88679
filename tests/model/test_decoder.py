"""The decoder computes what transformers computes, cached or not, and its adapters obey the laws of LoRA."""

import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_rai.model import decoder, lora, weights
from fedjax_rai.model.decoder import TARGETS, Decoder, DecoderConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
LLAMAS = ("llama3_tied_sharded", "plain_untied")
CONFIG = DecoderConfig(
    vocab_size=23,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
)
MODEL = Decoder(CONFIG, TARGETS, lora_rank=2, lora_scale=1.5)
VALID = jnp.array([[1] * 7, [0] * 6 + [1], [0] * 3 + [1] * 4], bool)
TOKENS = jax.random.randint(jax.random.key(9), VALID.shape, 0, CONFIG.vocab_size)


@pytest.fixture(autouse=True)
def exact_products():
    """GPUs multiply float32 in TF32 unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield


def random_base(model: Decoder, seed: int = 0):
    """Larger than a fresh base, so that attention is not uniform and every weight matters."""
    base = jax.tree.map(lambda leaf: 10 * leaf, lora.init_base(model, jax.random.key(seed)))
    return jax.tree.map(lambda leaf: leaf / 10 if leaf.ndim == 1 else leaf, base)


def random_adapter(model: Decoder, seed: int = 1):
    """Both matrices random: a fresh adapter, whose b is zero, would prove little."""
    keys = jax.random.key(seed)
    adapter = lora.init_adapter(model, keys)
    leaves, tree = jax.tree.flatten(adapter)
    own = jax.random.split(keys, len(leaves))
    return jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) * 0.3 for k, x in zip(own, leaves, strict=True)])


@partial(jax.jit, static_argnums=0)
def logits(model, base, adapter, tokens, valid):
    return decoder.unembed(model, base, decoder.forward(model, base, adapter, tokens, valid))


def left_padded(lengths: np.ndarray, longest: int) -> np.ndarray:
    return np.arange(longest)[None] >= longest - lengths[:, None]


def check_reference(folder: Path, expected) -> None:
    """Logits within 1e-4 and the same greedy tokens as transformers, on left-padded ragged rows."""
    config = weights.read_config(folder)
    base, model = weights.load_base(folder, config), Decoder(config)
    tokens, greedy = expected["tokens"], expected["greedy"]
    batch, longest = tokens.shape
    valid = left_padded(expected["lengths"], longest)
    steps = greedy.shape[1]
    tokens = np.pad(tokens, ((0, 0), (0, steps)))
    valid = np.pad(valid, ((0, 0), (0, steps)))
    ours = np.asarray(logits(model, base, None, tokens, valid))[:, :longest]
    asked = valid[:, :longest]
    np.testing.assert_allclose(ours[asked], expected["logits"][asked], atol=1e-4, rtol=0)
    for i in range(longest, longest + steps):
        tokens[:, i] = np.asarray(logits(model, base, None, tokens, valid))[:, i - 1].argmax(-1)
        valid[:, i] = True
    np.testing.assert_array_equal(tokens[:, longest:], greedy)


@pytest.mark.parametrize("name", LLAMAS)
def test_matches_transformers_on_the_fixtures(name):
    folder = FIXTURES / "llama" / name
    check_reference(folder, np.load(folder / "reference.npz"))


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(4))
def test_matches_transformers_on_random_models(seed, tmp_path):
    pytest.importorskip("torch", reason="the parity extra (torch) is not installed")
    make = runpy.run_path(str(FIXTURES / "make_llama.py"))
    torch_model, expected = make["build_clear"](make["random_config"](seed), seed)
    torch_model.save_pretrained(tmp_path)
    check_reference(tmp_path, expected)


def test_the_rotary_frequencies_of_llama_3_1():
    """The three bands of the published rule, from the wavelengths; the smooth one is between the two others."""
    scaling = decoder.RopeScaling(8.0, 1.0, 4.0, 8192)
    config = replace(CONFIG, head_dim=128, rope_theta=500_000.0)
    plain = np.asarray(decoder.rope_frequencies(config))
    scaled = np.asarray(decoder.rope_frequencies(replace(config, rope_scaling=scaling)))
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192 / 1
    assert short.any() and long.any() and (~short & ~long).any()
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    middle = ~short & ~long
    assert np.all((scaled[middle] < plain[middle]) & (scaled[middle] > plain[middle] / 8))


@pytest.mark.parametrize("adapted", [False, True])
def test_cached_equals_uncached(adapted):
    """Prefill of left-padded ragged rows, then one token at a time, against whole sequences."""
    base, adapter = random_base(MODEL), random_adapter(MODEL) if adapted else None
    prompt, slots = 4, VALID.shape[1]
    valid = np.asarray(VALID).copy()
    valid[:, prompt:] = True
    valid[1, :prompt] = [0, 0, 0, 1]
    valid[2, :prompt] = [0, 1, 1, 1]
    expected = np.asarray(logits(MODEL, base, adapter, TOKENS, jnp.asarray(valid)))

    positions = np.maximum(valid.cumsum(1) - 1, 0)
    sees = np.tril(np.ones((slots, slots), bool))[None] & valid[:, None]

    @jax.jit
    def step(*args):
        hidden, cache = decoder.forward_cached(MODEL, base, adapter, *args)
        return decoder.unembed(MODEL, base, hidden), cache

    cache, start, got = decoder.empty_cache(CONFIG, len(valid), slots), 0, []
    for end in [prompt, *range(prompt + 1, slots + 1)]:
        part = slice(start, end)
        out, cache = step(TOKENS[:, part], positions[:, part], sees[:, part], cache, jnp.asarray(start))
        got.append(out)
        start = end
    np.testing.assert_allclose(np.concatenate(got, axis=1)[valid], expected[valid], atol=1e-5, rtol=1e-5)


def test_a_cache_slot_that_is_not_seen_does_not_matter():
    base = random_base(MODEL)
    mask = jnp.array([True, False, True])[None, None]
    outputs = []
    for junk in (0.0, 1e3):
        cache = jax.tree.map(lambda leaf, junk=junk: leaf.at[:, :, 1].set(junk), decoder.empty_cache(CONFIG, 1, 3))
        args = (TOKENS[:1, :1], jnp.array([[1]]), mask, cache, jnp.array(2))
        outputs.append(decoder.forward_cached(MODEL, base, None, *args)[0])
    np.testing.assert_array_equal(*outputs)


def test_a_ragged_batch_equals_one_by_one():
    base, adapter = random_base(MODEL), random_adapter(MODEL)
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
    base = random_base(MODEL)
    before = np.asarray(logits(MODEL, base, None, TOKENS, VALID))
    changed = jnp.where(VALID, TOKENS, (TOKENS + 5) % CONFIG.vocab_size).at[:, -1].add(1) % CONFIG.vocab_size
    after = np.asarray(logits(MODEL, base, None, changed, VALID))
    seen = np.asarray(VALID)
    np.testing.assert_allclose(before[:, :-1][seen[:, :-1]], after[:, :-1][seen[:, :-1]], atol=1e-6)
    assert np.abs(before[:, -1] - after[:, -1]).max() > 1e-2


def test_padding_gives_finite_values_and_gradients():
    base, adapter = random_base(MODEL), random_adapter(MODEL)

    def loss(adapter):
        hidden = decoder.forward(MODEL, base, adapter, TOKENS, VALID)
        return jnp.sum(jnp.where(VALID[..., None], hidden, 0) ** 2), hidden

    grads, hidden = jax.grad(loss, has_aux=True)(adapter)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, hidden)))


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "v_proj"), ("k_proj",), ("up_proj", "down_proj", "o_proj")])
def test_merged_equals_adapted(targets):
    model = Decoder(CONFIG, targets, lora_rank=2, lora_scale=1.5)
    base, adapter = random_base(model), random_adapter(model)
    assert set(adapter["layers"]) == set(targets)
    adapted = logits(model, base, adapter, TOKENS, VALID)
    merged = logits(model, lora.merge(model, base, adapter), None, TOKENS, VALID)
    np.testing.assert_allclose(merged, adapted, atol=2e-5, rtol=1e-5)
    assert np.abs(adapted - logits(model, base, None, TOKENS, VALID)).max() > 1e-2


def test_a_fresh_adapter_equals_the_base():
    base, fresh = random_base(MODEL), lora.init_adapter(MODEL, jax.random.key(3))
    np.testing.assert_array_equal(logits(MODEL, base, fresh, TOKENS, VALID), logits(MODEL, base, None, TOKENS, VALID))
    assert all(np.any(pair["a"]) and not np.any(pair["b"]) for pair in fresh["layers"].values())


def test_every_matrix_of_the_adapter_matters():
    """Zeroing any one b changes the output, and every leaf has a gradient in every layer."""
    base, adapter = random_base(MODEL), random_adapter(MODEL)
    whole = logits(MODEL, base, adapter, TOKENS, VALID)
    for target in TARGETS:
        layers = {**adapter["layers"], target: jax.tree.map(jnp.zeros_like, adapter["layers"][target])}
        assert np.abs(whole - logits(MODEL, base, {"layers": layers}, TOKENS, VALID)).max() > 1e-3, target
    grads = jax.grad(lambda own: jnp.sum(logits(MODEL, base, own, TOKENS, VALID)[:, -1] ** 2))(adapter)
    for leaf in jax.tree.leaves(grads):
        assert np.all(np.abs(leaf).max(axis=(1, 2)) > 0)


def test_vmapped_adapters_equal_looped():
    base, adapters = random_base(MODEL), [random_adapter(MODEL, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
    run = jax.vmap(lambda adapter: logits(MODEL, base, adapter, TOKENS, VALID))
    looped = [logits(MODEL, base, adapter, TOKENS, VALID) for adapter in adapters]
    np.testing.assert_allclose(run(stacked), np.stack(looped), atol=1e-5, rtol=1e-5)


def test_remat_equals_no_remat():
    """Same values and gradients, from another program: the option does something."""
    base, adapter = random_base(MODEL), random_adapter(MODEL)

    def loss_of(model):
        def loss(variables):
            return jnp.mean(logits(model, *variables, TOKENS, VALID)[:, -1] ** 2)

        return jax.value_and_grad(loss)

    plain, saving = loss_of(MODEL), loss_of(MODEL.copy(config=replace(CONFIG, remat=True)))
    expected, got = plain((base, adapter)), saving((base, adapter))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-4), got, expected)
    assert str(jax.make_jaxpr(plain)((base, adapter))) != str(jax.make_jaxpr(saving)((base, adapter)))


def test_bfloat16_activations_come_close():
    base = random_base(MODEL)
    exact = logits(MODEL, base, None, TOKENS, VALID)
    half = MODEL.copy(config=replace(CONFIG, dtype="bfloat16"))
    assert decoder.forward(half, base, None, TOKENS, VALID).dtype == jnp.bfloat16
    rough = logits(half, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base), None, TOKENS, VALID)
    assert rough.dtype == jnp.float32
    error = (rough - exact)[VALID]
    assert jnp.linalg.norm(error) < 0.05 * jnp.linalg.norm(exact[VALID])


def test_layers_are_scanned():
    """The program does not grow with the depth; every leaf of a layer is stacked."""

    def lines(layers: int) -> int:
        model = MODEL.copy(config=replace(CONFIG, num_hidden_layers=layers))
        shapes = nn.unbox(decoder.abstract_params(model))
        assert all(leaf.shape[0] == layers for leaf in jax.tree.leaves((shapes["params"]["layers"], shapes["lora"])))
        return logits.lower(model, shapes["params"], shapes["lora"], TOKENS, VALID).as_text().count("\n")

    assert lines(2) == lines(6)


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_logical_axes(tied):
    params = decoder.abstract_params(Decoder(replace(CONFIG, tie_word_embeddings=tied)))["params"]
    boxes = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
    known = {"layers", "embed", "heads", "mlp", "vocab"}
    assert all(len(box.names) == box.value.ndim and set(box.names) <= known for box in boxes)
    assert ("lm_head" in params) != tied
    stacked = jax.tree.leaves(params["layers"], is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert all(box.names[0] == "layers" for box in stacked)
