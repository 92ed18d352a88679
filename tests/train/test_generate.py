"""Decoding against the plain thing: whole sequences through the uncached forward pass, one token at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.data.examples import pad_left
from fedjax_rai.model.decoder import forward, unembed
from fedjax_rai.train.generate import Sampling, append, generate, pick, sample, start
from tests import small

END, NEW = 0, 7
ENDS = jnp.array([END])
COLD = jnp.float32(0.0)
FIRM = Sampling(COLD)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9, 3]]


@partial(jax.jit, static_argnames="new")
def decode(tokens, valid, keys, temperature, new=NEW):
    return generate(small.MODEL, small.BASE, small.adapter(), tokens, valid, keys, Sampling(temperature), ENDS, new)


@jax.jit
def next_logits(tokens, valid):
    hidden = forward(small.MODEL, small.BASE, small.adapter(), tokens, valid)
    return unembed(small.MODEL, small.BASE, hidden[:, -1])[0]


def naive(prompt: list[int], new: int = NEW) -> list[int]:
    """Greedy, by running the whole sequence again for every token."""
    said: list[int] = []
    while len(said) < new and END not in said:
        batch = pad_left([prompt + said], END)
        said.append(int(jnp.argmax(next_logits(jnp.asarray(batch.tokens), jnp.asarray(batch.valid)))))
    return said


def spoken(answers) -> list[list[int]]:
    return [np.asarray(t)[np.asarray(v)].tolist() for t, v in zip(answers.tokens, answers.valid, strict=True)]


def batch_of(prompts):
    batch = pad_left(prompts, END)
    return jnp.asarray(batch.tokens), jnp.asarray(batch.valid)


def keys(n, seed=0):
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(n))


def test_ragged_greedy_equals_uncached_one_by_one():
    said = spoken(decode(*batch_of(PROMPTS), keys(3), COLD))
    assert said == [naive(prompt) for prompt in PROMPTS]
    assert len({tuple(s) for s in said}) > 1


def test_rows_stop_at_their_own_end_and_say_so():
    answers = decode(*batch_of(PROMPTS), keys(3), jnp.float32(3.0), new=40)
    for tokens, ended in zip(spoken(answers), answers.ended, strict=True):
        assert (END in tokens) == bool(ended)
        assert END not in tokens[:-1]


@pytest.mark.parametrize("close", [True, False])
def test_any_of_several_ends_stops_and_the_first_closes(close):
    """Stopping at more tokens cuts the same speech earlier; `close` puts the end-of-turn token in the other's place."""
    plain = [naive(prompt) for prompt in PROMPTS]
    other = next(said[1] for said in plain if len(said) > 2)  # said before its end by one row at least
    ends = jnp.array([END, other, small.VOCAB - 1])

    @jax.jit
    def talk(tokens, valid):
        state = start(small.MODEL, 3, tokens.shape[1] + NEW)
        state = append(small.MODEL, small.BASE, small.adapter(), state, tokens, valid)
        return sample(small.MODEL, small.BASE, small.adapter(), state, keys(3), FIRM, ends, NEW, close=close)[1]

    answers = talk(*batch_of(PROMPTS))
    for said, ended, row in zip(spoken(answers), answers.ended, plain, strict=True):
        stops = [i for i, token in enumerate(row) if token in ends.tolist()]
        expected = row[: stops[0] + 1] if stops else row
        assert bool(ended) == bool(stops)
        assert said == ([*expected[:-1], END] if close else expected)


def test_a_row_samples_the_same_whatever_its_neighbours():
    hot = jnp.float32(1.0)
    together = spoken(decode(*batch_of(PROMPTS), keys(3), hot))
    tokens, valid = batch_of(PROMPTS)
    for i in range(3):
        alone = spoken(decode(tokens[i : i + 1], valid[i : i + 1], keys(3)[i : i + 1], hot))
        assert alone[0] == together[i]


def test_sampling_follows_the_distribution():
    logits = jnp.log(jnp.array([[0.1, 0.2, 0.7]])).repeat(4000, axis=0)
    share = np.bincount(np.asarray(pick(logits, keys(4000), Sampling(jnp.float32(1.0)))), minlength=3) / 4000
    np.testing.assert_allclose(share, [0.1, 0.2, 0.7], atol=0.03)
    squared = np.bincount(np.asarray(pick(logits, keys(4000), Sampling(jnp.float32(0.5)))), minlength=3) / 4000
    np.testing.assert_allclose(squared, np.array([0.01, 0.04, 0.49]) / 0.54, atol=0.03)
    assert set(np.asarray(pick(logits, keys(4000), Sampling(COLD))).tolist()) == {2}


@pytest.mark.parametrize("close", [True, False])
def test_a_conversation_goes_on_in_its_cache_as_if_read_afresh(close):
    """prompt -> answer -> request -> answer, ragged, equals reading all of it at once."""
    requests = [[2, 2, 7], [11], [5, 6]]

    @jax.jit
    def talk(tokens, valid, more, more_valid):
        state = start(small.MODEL, 3, tokens.shape[1] + more.shape[1] + 2 * NEW)
        state = append(small.MODEL, small.BASE, small.adapter(), state, tokens, valid)
        state, first = sample(small.MODEL, small.BASE, small.adapter(), state, keys(3), FIRM, ENDS, NEW, close=close)
        state = append(small.MODEL, small.BASE, small.adapter(), state, more, more_valid)
        return first, sample(small.MODEL, small.BASE, small.adapter(), state, keys(3), FIRM, ENDS, NEW)[1]

    first, second = talk(*batch_of(PROMPTS), *batch_of(requests))
    for prompt, said, request, reply in zip(PROMPTS, spoken(first), requests, spoken(second), strict=True):
        plain = naive(prompt)
        closed = plain if not close or END in plain else [*plain[:-1], END]
        assert said == closed
        assert reply == naive(prompt + said + request)


def test_temperature_and_keys_compile_once():
    tokens, valid = batch_of(PROMPTS)
    compiled = jax.jit(lambda t, k: generate(small.MODEL, small.BASE, None, tokens, valid, k, Sampling(t), ENDS, NEW))
    for temperature in (0.0, 0.5, 1.0):
        compiled(jnp.float32(temperature), keys(3, seed=int(10 * temperature)))
    assert small.compilations(compiled) == 1


def test_a_nucleus_is_the_fewest_likeliest_tokens_of_that_probability():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]])) + 3.0
    many = jnp.tile(logits, (2000, 1))
    for top_p, kept in ((0.01, {1}), (0.5, {1}), (0.51, {1, 3}), (0.75, {1, 3}), (0.8, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        drawn = np.asarray(pick(many, keys(2000), Sampling(jnp.float32(1.0), jnp.float32(top_p))))
        assert set(drawn.tolist()) == kept, top_p
    share = np.bincount(np.asarray(pick(many, keys(2000), Sampling(jnp.float32(1.0), jnp.float32(0.6)))), minlength=4)
    np.testing.assert_allclose(share / 2000, [0, 2 / 3, 0, 1 / 3], atol=0.04)


def test_top_p_of_one_draws_what_no_top_p_does():
    logits = jax.random.normal(jax.random.key(0), (64, 30))
    some, none = (pick(logits, keys(64), Sampling(jnp.float32(0.7), p)) for p in (jnp.float32(1.0), None))
    np.testing.assert_array_equal(some, none)
