"""Constitutional AI: the chain equals the naive one; iterations are a prefix of more iterations, and compile once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.cai.align import align, pool
from fedjax_rai.cai.revise import Requests, chain, equal, examples
from fedjax_rai.data.examples import Prompts, pad_left
from fedjax_rai.train.generate import Answers, Sampling, generate
from tests import small

END, NEW = 0, 6
ENDS = jnp.array([END])
COLD, HOT = jnp.float32(0.0), jnp.float32(1.0)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
CRITIQUE, REVISION = [[2, 2, 7], [11]], [[13, 4], [5, 6, 1]]
PRINCIPLE = [0, 1, 0]


def on_device(rows) -> Prompts:
    return Prompts(*map(jnp.asarray, pad_left(rows, END)))


@partial(jax.jit, static_argnames=("same",))
def talk(policy, critic, temperature, same):
    requests = Requests(on_device(CRITIQUE), on_device(REVISION))
    key, principle = jax.random.key(0), jnp.array(PRINCIPLE)
    prompts = on_device(PROMPTS)
    return chain(
        small.MODEL, small.BASE, policy, critic, prompts, requests, principle, key, temperature, ENDS, NEW, same
    )  # fmt: skip


def spoken(answers: Answers) -> list[list[int]]:
    return [np.asarray(t)[np.asarray(v)].tolist() for t, v in zip(answers.tokens, answers.valid, strict=True)]


@jax.jit
def answer(adapter, batch: Prompts) -> Answers:
    keys = jax.random.split(jax.random.key(0), 1)
    return generate(small.MODEL, small.BASE, adapter, *batch, keys, Sampling(COLD), ENDS, NEW)


def naive(adapter, conversation: list[int]) -> list[int]:
    """One greedy answer, read afresh; closed as the chain closes what is cut off."""
    said = spoken(answer(adapter, on_device([conversation])))[0]
    return said if said[-1] == END or len(said) < NEW else [*said[:-1], END]


@pytest.mark.parametrize("critic", ["policy", "base"])
def test_the_chain_equals_the_naive_one_token_for_token(critic):
    policy, judge = small.adapter(), small.adapter() if critic == "policy" else None
    said = talk(policy, judge, COLD, critic == "policy")
    rows = zip(PROMPTS, PRINCIPLE, *map(spoken, said), strict=True)
    for prompt, principle, response, critique, revision in rows:
        assert response == naive(policy, prompt)
        so_far = prompt + response + CRITIQUE[principle]
        assert critique == naive(judge, so_far)
        assert revision == naive(judge, so_far + critique + REVISION[principle])


def test_the_response_is_sampled_and_the_critique_is_not():
    cold, hot = talk(small.adapter(), None, COLD, False), talk(small.adapter(), None, HOT, False)
    assert spoken(cold.response) != spoken(hot.response)


def test_examples_train_on_the_answer_alone_and_skip_the_unusable():
    answers = Answers(
        tokens=jnp.array([[5, 6, 0], [0, 0, 0], [5, 6, 0]]),
        valid=jnp.array([[True, True, True], [True, False, False], [True, True, True]]),
        ended=jnp.array([True, True, False]),
    )
    pairs = examples(on_device([[1, 2], [3], [4]]), answers)
    assert pairs.tokens[0, -5:].tolist() == [1, 2, 5, 6, 0]
    assert pairs.loss_mask.sum(axis=1).tolist() == [3, 0, 0], "an empty answer, and one that was cut off, weigh nothing"


def test_equal_compares_what_was_said_and_not_what_lies_behind_it():
    valid = jnp.array([[True, True, False]])
    a, b = (Answers(jnp.array([[5, 0, junk]]), valid, jnp.array([True])) for junk in (1, 2))
    assert bool(equal(a, b)[0])
    assert not bool(equal(a, b._replace(tokens=jnp.array([[6, 0, 2]])))[0])
    assert not bool(equal(a, b._replace(valid=jnp.array([[True, True, True]])))[0])


@pytest.fixture(scope="module")
def aligned():
    key, rate = jax.random.key(1), jnp.float32(1e-2)
    return jax.jit(lambda adapter, n: align(small.MODEL, small.BASE, adapter, small.corpus(), n, rate, key, 4))


def test_zero_iterations_are_none(aligned):
    assert small.distance(aligned(small.adapter(), jnp.int32(0))[0], small.adapter()) == 0


def test_iteration_counts_compile_once_and_do_something(aligned):
    ends = [aligned(small.adapter(), jnp.int32(n))[0] for n in (1, 3, 0)]
    assert small.compilations(aligned) == 1
    assert small.distance(ends[0], ends[1]) > 1e-3 and small.distance(ends[0], ends[2]) > 1e-3


def test_batches_of_an_iteration_do_not_depend_on_how_many_follow(aligned):
    """Three steps at once equal three steps seen one by one: the loss of the third is that of a run of three."""
    losses = [float(aligned(small.adapter(), jnp.int32(n))[1]) for n in (1, 2, 3)]
    assert len(set(losses)) == 3
    assert losses == [float(aligned(small.adapter(), jnp.int32(n))[1]) for n in (1, 2, 3)]


def test_pool_pads_the_shorter_set():
    a, b = small.corpus(3), small.corpus(2)
    wide = type(a)(*(jnp.pad(c, ((0, 0), (0, 4))) for c in a))
    both = pool(wide, b)
    assert both.tokens.shape == (5, small.LENGTH + 4) and not both.valid[3:, small.LENGTH :].any()
