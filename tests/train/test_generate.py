"""Decoding against the plain thing: whole sequences through the uncached forward pass, one token at a time."""

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from fedjax_rai.data.examples import Prompts, pad_left
from fedjax_rai.model.decoder import LM, Decoder, forward, unembed
from fedjax_rai.model.lora import paired
from fedjax_rai.train import queue
from fedjax_rai.train.generate import Decoding, Sampling, append, generate, pick, sample, start, truncated
from tests import small

END, NEW = 0, 7
ENDS = jnp.array([END])
COLD = jnp.float32(0.0)
FIRM = Sampling(COLD)
FIRMLY = Decoding(FIRM, ENDS, NEW)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9, 3]]


@partial(jax.jit, static_argnames="new")
def decode(tokens, valid, keys, temperature, new=NEW):
    decoding = Decoding(Sampling(temperature), ENDS, new)
    return generate(small.LM, small.adapter(), Prompts(tokens, valid), keys, decoding)


draw = jax.jit(pick)


@jax.jit
def next_logits(tokens, valid):
    hidden = forward(small.LM, small.adapter(), tokens, valid)
    return unembed(small.LM, hidden[:, -1])[0]


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


@pytest.mark.parametrize("close", [True, small.slow(False)])
def test_any_of_several_ends_stops_and_the_first_closes(close):
    """Stopping at more tokens cuts the same speech earlier; `close` puts the end-of-turn token in the other's place."""
    plain = [naive(prompt) for prompt in PROMPTS]
    other = next(said[1] for said in plain if len(said) > 2)  # said before its end by one row at least
    ends = jnp.array([END, other, small.VOCAB - 1])

    @jax.jit
    def talk(tokens, valid):
        state = start(small.MODEL, 3, tokens.shape[1] + NEW)
        state = append(small.LM, small.adapter(), state, tokens, valid)
        return sample(small.LM, small.adapter(), state, keys(3), Decoding(FIRM, ends, NEW), close=close)[1]

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
    share = np.bincount(np.asarray(draw(logits, keys(4000), Sampling(jnp.float32(1.0)))), minlength=3) / 4000
    np.testing.assert_allclose(share, [0.1, 0.2, 0.7], atol=0.03)
    squared = np.bincount(np.asarray(draw(logits, keys(4000), Sampling(jnp.float32(0.5)))), minlength=3) / 4000
    np.testing.assert_allclose(squared, np.array([0.01, 0.04, 0.49]) / 0.54, atol=0.03)
    assert set(np.asarray(draw(logits, keys(4000), Sampling(COLD))).tolist()) == {2}


@pytest.mark.parametrize("close", [True, small.slow(False)])
def test_a_conversation_goes_on_in_its_cache_as_if_read_afresh(close):
    """prompt -> answer -> request -> answer, ragged, equals reading all of it at once."""
    requests = [[2, 2, 7], [11], [5, 6]]

    @jax.jit
    def talk(tokens, valid, more, more_valid):
        state = start(small.MODEL, 3, tokens.shape[1] + more.shape[1] + 2 * NEW)
        state = append(small.LM, small.adapter(), state, tokens, valid)
        state, first = sample(small.LM, small.adapter(), state, keys(3), FIRMLY, close=close)
        state = append(small.LM, small.adapter(), state, more, more_valid)
        return first, sample(small.LM, small.adapter(), state, keys(3), FIRMLY)[1]

    first, second = talk(*batch_of(PROMPTS), *batch_of(requests))
    for prompt, said, request, reply in zip(PROMPTS, spoken(first), requests, spoken(second), strict=True):
        plain = naive(prompt)
        closed = plain if not close or END in plain else [*plain[:-1], END]
        assert said == closed
        assert reply == naive(prompt + said + request)


def bounds(temperature=1.0, top_p=None, top_k=None, min_p=None) -> Sampling:
    """Numbers as arrays, so that they are traced."""
    return Sampling(
        jnp.float32(temperature),
        top_p=None if top_p is None else jnp.float32(top_p),
        top_k=None if top_k is None else jnp.int32(top_k),
        min_p=None if min_p is None else jnp.float32(min_p),
    )


def test_no_number_of_the_sampling_compiles_anew():
    prompts = Prompts(*batch_of(PROMPTS))
    before = small.compilations(generate)
    for i, numbers in enumerate(((0.0, 0.5, 3, 0.0), (0.5, 1.0, 3, 0.1), (1.0, 0.9, 40, 0.9))):
        generate(small.LM, None, prompts, keys(3, seed=i), Decoding(bounds(*numbers), ENDS + i, NEW))
    assert small.compilations(generate) == before + 1


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"top_p": 0.01}, {1}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.51}, {1, 3}),
        ({"top_p": 0.75}, {1, 3}),
        ({"top_p": 0.8}, {1, 2, 3}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"min_p": 0.51}, {1}),
        ({"min_p": 0.49}, {1, 3}),
        ({"min_p": 0.21}, {1, 2, 3}),
        ({"min_p": 0.0}, {0, 1, 2, 3}),
        # of the two likeliest the first has 2/3 of what is left, of the three 5/9
        ({"top_k": 2, "top_p": 0.6}, {1}),
        ({"top_k": 3, "top_p": 0.6}, {1, 3}),
        ({"top_k": 2, "min_p": 0.2}, {1, 3}),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.49}, {1, 3}),
    ],
)
def test_what_is_kept_by_hand(given, kept):
    """Probabilities 0.1, 0.5, 0.15, 0.25, drawn from: each kept token, and as often as it is likely among them."""
    probability = np.array([0.1, 0.5, 0.15, 0.25])
    logits = jnp.log(jnp.asarray(probability)) + 3.0
    drawn = np.asarray(draw(jnp.tile(logits[None], (2000, 1)), keys(2000), bounds(**given)))
    assert set(drawn.tolist()) == kept
    left = np.where(np.isin(np.arange(4), list(kept)), probability, 0)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 2000, left / left.sum(), atol=0.04)


def test_the_bounds_see_the_probabilities_at_the_temperature():
    """At temperature 1/2 probabilities are squared: 0.64, 0.16, 0.04 over their sum of 0.84."""
    logits = jnp.log(jnp.array([[0.8, 0.4, 0.2]])).repeat(500, axis=0)
    for given, kept in (({"top_p": 0.7}, {0}), ({"min_p": 0.3}, {0}), ({"min_p": 0.2}, {0, 1}), ({"top_k": 2}, {0, 1})):
        assert set(np.asarray(draw(logits, keys(500), bounds(0.5, **given))).tolist()) == kept


def test_tokens_as_likely_as_the_last_kept_one_are_kept():
    logits = jnp.log(jnp.array([[0.1, 0.2, 0.4, 0.2, 0.1]]))
    for given, kept in (({"top_k": 2}, [1, 2, 3]), ({"top_p": 0.5}, [1, 2, 3]), ({"top_k": 4}, [0, 1, 2, 3, 4])):
        assert np.flatnonzero(jnp.isfinite(truncated(logits, bounds(**given)))).tolist() == kept


def test_bounds_that_leave_nothing_out_draw_what_none_do():
    """Over a vocabulary so long that the probabilities of its likelier tokens sum to 1 by rounding."""
    logits = 4 * jax.random.normal(jax.random.key(0), (64, 3000))
    plain = draw(logits, keys(64), bounds(0.7))
    for given in ({"top_p": 1.0}, {"top_k": 3000}, {"min_p": 0.0}, {"top_p": 1.0, "top_k": 3000, "min_p": 0.0}):
        np.testing.assert_array_equal(draw(logits, keys(64), bounds(0.7, **given)), plain)
        np.testing.assert_array_equal(truncated(logits, bounds(**given)), logits)


def test_the_likeliest_alone_is_greedy_at_any_temperature():
    logits = jax.random.normal(jax.random.key(1), (64, 30))
    greedy = draw(logits, keys(64), bounds(0.0))
    for temperature in (0.1, 1.0, 50.0):
        for given in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1, "top_p": 0.5, "min_p": 0.5}):
            np.testing.assert_array_equal(draw(logits, keys(64), bounds(temperature, **given)), greedy)


def test_the_likeliest_is_kept_whatever_the_numbers():
    """Out of range numbers, and a temperature that makes the logits infinite."""
    logits = jax.random.normal(jax.random.key(2), (16, 9)) + 2.0
    greedy = jnp.argmax(logits, axis=-1)
    for given in ({"top_k": 0}, {"top_p": -1.0}, {"min_p": 2.0}, {"top_k": 0, "top_p": 0.0, "min_p": 1.5}):
        np.testing.assert_array_equal(draw(logits, keys(16), bounds(**given)), greedy)
    blown = logits.at[:, 4].set(jnp.inf)
    for given in ({"min_p": 0.0}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.5, "min_p": 0.1}):
        np.testing.assert_array_equal(draw(blown, keys(16), bounds(**given)), np.full(16, 4))


def test_a_row_is_bounded_the_same_whatever_its_neighbours():
    logits = jnp.arange(1.0, 6.0)[:, None] * jax.random.normal(jax.random.key(3), (5, 30))
    given = bounds(0.8, top_p=0.8, top_k=12, min_p=0.05)
    together = truncated(logits, given)
    assert len(set(jnp.isfinite(together).sum(axis=1).tolist())) > 2
    np.testing.assert_array_equal(together, jnp.concatenate([truncated(row[None], given) for row in logits]))


@pytest.mark.parametrize(("given", "sorts"), [((0.5, 3, 0.1), 1), ((0.5, None, None), 1), ((None, None, 0.1), 0)])
def test_the_vocabulary_is_sorted_once_at_most(given, sorts):
    assert str(jax.make_jaxpr(truncated)(jnp.ones((2, 9)), bounds(1.0, *given))).count(" sort[") == sorts


@pytest.mark.parity
def test_what_is_kept_is_what_transformers_keeps():
    """All combinations of none and two values of each bound, after a temperature, on random logits."""
    torch = pytest.importorskip("torch", reason="the parity extra (torch) is not installed")
    import transformers

    logits = 3 * np.random.default_rng(3).standard_normal((16, 200)).astype(np.float32)
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.6, 1.4), (None, 5, 60), (None, 0.3, 0.9), (None, 0.02, 0.2)
    ):
        scores = transformers.TemperatureLogitsWarper(temperature)(torch.zeros(0), torch.from_numpy(logits))
        for name, value in {"TopK": top_k, "TopP": top_p, "MinP": min_p}.items():
            if value is not None:
                scores = getattr(transformers, f"{name}LogitsWarper")(value)(torch.zeros(0), scores)
        ours = truncated(jnp.asarray(logits) / temperature, bounds(temperature, top_p, top_k, min_p))
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(scores.numpy()))


@pytest.mark.parity
def test_the_order_of_the_bounds_is_that_of_transformers():
    """The processors which its generate makes of a config, though the config names them in another order."""
    pytest.importorskip("torch", reason="the parity extra (torch) is not installed")
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, head_dim=4,
                                 num_attention_heads=2, num_key_value_heads=1)
    )  # fmt: skip
    asked = transformers.GenerationConfig(min_p=0.1, top_p=0.9, top_k=5, temperature=0.7, do_sample=True)
    names = [type(one).__name__ for one in model._get_logits_processor(asked)]
    assert names == [f"{name}LogitsWarper" for name in ("Temperature", "TopK", "TopP", "MinP")]


def within_loops(jaxpr: Any, in_loop: bool = False) -> Iterator[Any]:
    """All equations of each loop over tokens, those of its inner programs, too."""
    for equation in jaxpr.eqns:
        if in_loop:
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from within_loops(inner, in_loop or equation.primitive.name == "while")


@pytest.mark.parametrize("queued", [False, True])
def test_no_step_makes_the_pairs_of_the_adapter(queued):
    """Layers are given them, in the type that is computed in, by batches and out of a queue."""
    model = Decoder(dataclasses.replace(small.CONFIG, dtype="bfloat16"), small.LORA)
    lm, adapter = LM(model, small.BASE), small.adapter()
    prompts = Prompts(*batch_of(PROMPTS))
    if queued:
        rows = queue.begin(lm, 3, 9 + NEW, FIRMLY)
        waiting = queue.Queue(prompts, keys(3), np.arange(3), np.int32(3), np.bool_(True))
        traced = jax.make_jaxpr(queue.serve)(lm, adapter, rows, waiting, FIRMLY)
    else:
        traced = jax.make_jaxpr(generate)(lm, adapter, prompts, keys(3), FIRMLY)
    pairs = jax.tree.leaves(jax.eval_shape(lambda: paired(model.config, small.LORA, adapter)))
    shapes = {leaf.shape for leaf in pairs}
    steps = list(within_loops(traced.jaxpr))
    layers = [step for step in steps if step.primitive.name == "scan"]
    given = [value.aval for scan in layers for value in scan.invars if value.aval.shape in shapes]
    assert len(given) >= len(pairs) and {aval.dtype for aval in given} == {jnp.dtype(jnp.bfloat16)}
    made = {step.primitive.name for step in steps for value in step.outvars if value.aval.shape in shapes}
    assert made <= {"while"}, "they come from outside of the loop"
