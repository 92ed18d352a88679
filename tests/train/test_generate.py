"""Decoding against the plain thing: whole sequences through the uncached forward pass, one token at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.data.examples import pad_left
from fedjax_rai.model.decoder import forward, unembed
from fedjax_rai.train.generate import append, generate, pick, sample, start
from tests import small

END, NEW = 0, 7
COLD = jnp.float32(0.0)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9, 3]]


@partial(jax.jit, static_argnames="new")
def decode(tokens, valid, keys, temperature, new=NEW):
    return generate(small.MODEL, small.BASE, small.adapter(), tokens, valid, keys, temperature, END, new)


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


def test_a_row_samples_the_same_whatever_its_neighbours():
    hot = jnp.float32(1.0)
    together = spoken(decode(*batch_of(PROMPTS), keys(3), hot))
    tokens, valid = batch_of(PROMPTS)
    for i in range(3):
        alone = spoken(decode(tokens[i : i + 1], valid[i : i + 1], keys(3)[i : i + 1], hot))
        assert alone[0] == together[i]


def test_sampling_follows_the_distribution():
    logits = jnp.log(jnp.array([[0.1, 0.2, 0.7]])).repeat(4000, axis=0)
    share = np.bincount(np.asarray(pick(logits, keys(4000), jnp.float32(1.0))), minlength=3) / 4000
    np.testing.assert_allclose(share, [0.1, 0.2, 0.7], atol=0.03)
    squared = np.bincount(np.asarray(pick(logits, keys(4000), jnp.float32(0.5))), minlength=3) / 4000
    np.testing.assert_allclose(squared, np.array([0.01, 0.04, 0.49]) / 0.54, atol=0.03)
    assert set(np.asarray(pick(logits, keys(4000), COLD)).tolist()) == {2}


@pytest.mark.parametrize("close", [True, False])
def test_a_conversation_goes_on_in_its_cache_as_if_read_afresh(close):
    """prompt -> answer -> request -> answer, ragged, equals reading all of it at once."""
    requests = [[2, 2, 7], [11], [5, 6]]

    @jax.jit
    def talk(tokens, valid, more, more_valid):
        state = start(small.MODEL, 3, tokens.shape[1] + more.shape[1] + 2 * NEW)
        state = append(small.MODEL, small.BASE, small.adapter(), state, tokens, valid)
        state, first = sample(small.MODEL, small.BASE, small.adapter(), state, keys(3), COLD, END, NEW, close=close)
        state = append(small.MODEL, small.BASE, small.adapter(), state, more, more_valid)
        return first, sample(small.MODEL, small.BASE, small.adapter(), state, keys(3), COLD, END, NEW)[1]

    first, second = talk(*batch_of(PROMPTS), *batch_of(requests))
    for prompt, said, request, reply in zip(PROMPTS, spoken(first), requests, spoken(second), strict=True):
        plain = naive(prompt)
        closed = plain if not close or END in plain else [*plain[:-1], END]
        assert said == closed
        assert reply == naive(prompt + said + request)


def test_temperature_and_keys_compile_once():
    tokens, valid = batch_of(PROMPTS)
    compiled = jax.jit(lambda t, k: generate(small.MODEL, small.BASE, None, tokens, valid, k, t, END, NEW))
    for temperature in (0.0, 0.5, 1.0):
        compiled(jnp.float32(temperature), keys(3, seed=int(10 * temperature)))
    assert small.compilations(compiled) == 1
