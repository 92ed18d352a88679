"""What keys and values are stored as: how far from what they were, in how many bytes, and what that does to answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.data.examples import Prompts, pad_left
from fedjax_rai.mesh import base_shardings, make_mesh
from fedjax_rai.model.cache import CACHES, KVCache, empty_cache, of_layer, written
from fedjax_rai.model.decoder import LM, Decoder, abstract_base
from fedjax_rai.model.weights import load_base
from fedjax_rai.text.hub import resolve
from fedjax_rai.text.prompts import prompt, question
from fedjax_rai.tools.generate import Request, read_model
from fedjax_rai.train.generate import Decoding, Sampling, append, generate, start
from tests import small


def test_heads_in_codes_by_hand():
    """Scales 0.01, 0 and 2: the nearest multiples, and a head of zeros."""
    heads = jnp.array([[1.27, -0.644, 0.004], [0.0, 0.0, 0.0], [-254.0, 1.1, 3.0]])
    codes = CACHES["int8"].store(heads)
    assert codes.values.dtype == jnp.int8
    assert codes.values.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 1, 2]]
    np.testing.assert_allclose(codes.scales, [[0.01], [0.0], [2.0]], rtol=1e-6)
    restored = CACHES["int8"].restore(codes, jnp.float32)
    np.testing.assert_allclose(restored, [[1.27, -0.64, 0.0], [0.0, 0.0, 0.0], [-254.0, 2.0, 4.0]], rtol=1e-6)


def test_what_is_stored_is_within_its_bound():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((50, 3, 16)), jnp.float32)
    x = x * jnp.logspace(-3, 3, 50)[:, None, None]
    half_scales = jnp.abs(x).max(axis=-1, keepdims=True) / 254
    bounds = {"model": 0 * x, "bfloat16": jnp.abs(x) / 256, "int8": jnp.broadcast_to(half_scales, x.shape)}
    assert bounds.keys() == CACHES.keys()
    for kind, bound in bounds.items():
        error = jnp.abs(CACHES[kind].restore(CACHES[kind].store(x), jnp.float32) - x)
        assert (error <= 1.0001 * bound).all(), kind
        assert kind == "model" or error.max() > 0


@pytest.mark.parametrize(("kind", "number", "head"), [("model", 4, 0), ("bfloat16", 2, 0), ("int8", 1, 4)])
def test_bytes_by_hand(kind, number, head):
    """Two layers, 3 rows, 5 slots, one head of 8 channels, keys and values."""
    config = dataclasses.replace(small.CONFIG, kv_cache=kind)
    leaves = jax.tree.leaves(jax.eval_shape(lambda: empty_cache(config, 3, 5)))
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) == 2 * (2 * 3 * 5 * 1) * (8 * number + head)


@pytest.mark.parametrize("kind", CACHES)
def test_a_layer_s_tokens_are_read_where_they_were_written(kind):
    """Powers of two times 127, which every form holds exactly."""
    config = dataclasses.replace(small.CONFIG, kv_cache=kind)
    keys = 127 * 2.0 ** jnp.arange(6).repeat(8).reshape(3, 2, 1, 8)
    new = KVCache(keys, -127.0 * jnp.ones_like(keys))
    cache = written(empty_cache(config, 3, 5), config, new, jnp.int32(1), jnp.int32(2))
    for found, expected in zip(of_layer(cache, config, jnp.int32(1)), new, strict=True):
        np.testing.assert_array_equal(found[:, 2:4], expected)
        assert not found[:, :2].any() and not found[:, 4:].any()
    assert not any(leaf.any() for leaf in of_layer(cache, config, jnp.int32(0)))


@pytest.mark.slow
def test_the_tiny_model_answers_as_with_its_full_cache():
    """16 greedy answers of 16 tokens, and the logits behind every token of them, which differ by 2 (bfloat16) and 5
    (int8) percent of their standard deviation at most, so that no answer becomes another.
    """
    files = read_model(Request("tiny", dtype="float32"))
    weights = resolve("tiny", None, weights=True)
    base = load_base(weights, files.config, base_shardings(make_mesh(), abstract_base(files.config)))
    assert files.tokenizer is not None
    texts = [f"What is {number} plus {7 * number % 10}?" for number in range(16)]
    encoded = [files.tokenizer.encode(prompt(files.tokenizer, question(text))) for text in texts]
    prompts = Prompts(*map(jnp.asarray, pad_left(encoded, 0)))
    keys = jax.random.split(jax.random.key(0), 16)
    decoding = Decoding(Sampling(np.float32(0)), np.array(files.tokenizer.end_ids, np.int32), 16)
    answers = generate(LM(Decoder(files.config), base), None, prompts, keys, decoding)

    @jax.jit
    def logits_behind(lm):
        state = start(lm.model, 16, prompts.tokens.shape[1] + 16)
        state = append(lm, None, state, prompts.tokens, prompts.valid)

        def further(state, column):
            tokens, valid = column
            return append(lm, None, state, tokens[:, None], valid[:, None]), state.logits

        return jax.lax.scan(further, state, (answers.tokens.T, answers.valid.T))[1]

    valid = np.asarray(answers.valid.T)
    expected = logits_behind(LM(Decoder(files.config), base))[valid]
    assert (expected.argmax(axis=-1) == np.asarray(answers.tokens.T)[valid]).all()
    for kind, percent in (("bfloat16", 2), ("int8", 5)):
        config = dataclasses.replace(files.config, kv_cache=kind)
        found = logits_behind(LM(Decoder(config), base))[valid]
        assert 0 < np.abs(found - expected).max() < percent / 100 * expected.std(), kind
        assert (found.argmax(axis=-1) == expected.argmax(axis=-1)).all(), kind
