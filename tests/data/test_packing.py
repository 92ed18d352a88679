"""Packed training is the training of the same examples unpacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_rai.data.examples import Examples, take
from fedjax_rai.data.packing import batches, pack, plan
from fedjax_rai.fed.algorithm import ALGORITHMS
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Mapper
from fedjax_rai.model.decoder import forward, unembed
from fedjax_rai.train.losses import sft
from fedjax_rai.train.step import PLAIN
from tests import small


def short_corpus(room: int = 24) -> Examples:
    """The small corpus, whose rows have room for several of its examples."""
    own = small.corpus()
    return Examples(*(jnp.pad(column, ((0, 0), (0, room - small.LENGTH))) for column in own))


LENGTHS = np.asarray(short_corpus().valid.sum(axis=1))


@given(st.lists(st.integers(1, 10), min_size=1, max_size=12), st.integers(10, 30))
@settings(max_examples=60, deadline=None)
def test_a_plan_holds_every_example_once_and_no_row_too_many(lengths, room):
    count = len(lengths)
    rows = np.random.default_rng(0).permutation(count).reshape(1, count)
    planned = plan(rows, np.array(lengths), room)
    assert sorted(planned[planned >= 0].tolist()) == list(range(count))
    own = np.where(planned >= 0, np.array(lengths)[planned], 0).sum(axis=-1)
    assert own.max() <= room
    height, places = planned.shape[-2:]
    assert height <= count and places <= count
    assert all(size % -(-count // 4) == 0 or size == count for size in (height, places)), "few shapes"


def test_examples_lie_one_after_another():
    corpus = short_corpus()
    rows = jnp.array([[3, 5, -1], [7, -1, -1]])
    packed = pack(corpus, rows)
    for row, wanted in enumerate(([3, 5], [7])):
        tokens = np.concatenate([np.asarray(corpus.tokens[i, : LENGTHS[i]]) for i in wanted])
        mask = np.concatenate([np.asarray(corpus.loss_mask[i, : LENGTHS[i]]) for i in wanted])
        segments = np.repeat(np.arange(len(wanted)) + 1, LENGTHS[wanted])
        pad = (0, corpus.tokens.shape[1] - len(tokens))
        np.testing.assert_array_equal(packed.tokens[row], np.pad(tokens, pad))
        np.testing.assert_array_equal(packed.loss_mask[row], np.pad(mask, pad))
        np.testing.assert_array_equal(packed.segments[row], np.pad(segments, pad))


def test_packed_examples_do_not_see_each_other():
    corpus, adapter = short_corpus(), small.adapter()
    packed = pack(corpus, jnp.array([[3, 5, 9]]))
    assert LENGTHS[[3, 5, 9]].sum() <= corpus.tokens.shape[1]

    def logits(examples):
        hidden = forward(small.LM, adapter, examples.tokens, examples.segments)
        return np.asarray(unembed(small.LM, hidden))

    together, begin = logits(packed)[0], 0
    for i in (3, 5, 9):
        alone = logits(take(corpus, jnp.array([i])))[0, : LENGTHS[i]]
        np.testing.assert_allclose(together[begin : begin + LENGTHS[i]], alone, atol=1e-5, rtol=1e-5)
        begin += LENGTHS[i]


@pytest.mark.slow
def test_the_loss_and_its_gradient_are_those_of_the_batch_unpacked():
    corpus, adapter = short_corpus(), small.adapter()
    rows = jnp.arange(12)
    planned = jnp.asarray(plan(np.arange(12)[None], LENGTHS, corpus.tokens.shape[1]))
    assert planned.shape[1] < len(rows), "fewer rows"

    def loss(adapter, examples):
        terms = sft(small.LM, adapter, examples)
        return terms.total, terms.weight

    both = [
        jax.value_and_grad(loss, has_aux=True)(adapter, own)
        for own in (take(corpus, rows), jax.tree.map(lambda x: x[0], batches(corpus, planned)))
    ]
    (plain, weight), (packed, packed_weight) = both[0][0], both[1][0]
    assert weight == packed_weight > 0
    np.testing.assert_allclose(packed, plain, rtol=1e-6)
    small.assert_trees_close(both[1][1], both[0][1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_packed_round_is_the_round_unpacked(name):
    corpus, cohort = short_corpus(), small.cohort([0, 1, 2], steps=3, batch=6)
    packed = cohort._replace(rows=jnp.asarray(plan(np.asarray(cohort.rows), LENGTHS, corpus.tokens.shape[1])))
    assert packed.rows.ndim == 4 and packed.rows.shape[2] < 6
    algorithm = small.algorithm(name, Mapper(4), PLAIN)
    state = algorithm.init(small.adapter())
    results = [algorithm.round(state, small.LM, RoundBatch(corpus, own, jnp.float32(1e-2))) for own in (cohort, packed)]
    small.assert_trees_close(results[1][0], results[0][0], atol=1e-5)
    assert small.distance(results[0][0].adapter, state.adapter) > 1e-3
    np.testing.assert_allclose(results[1][1]["train_loss"], results[0][1]["train_loss"], rtol=1e-5)
    assert results[1][1]["trained_tokens"] == results[0][1]["trained_tokens"]


def test_a_segments_first_token_is_never_a_target():
    """Nothing of its own predicts it; the last token of its neighbour in the row must not."""
    corpus, adapter = short_corpus(), small.adapter()
    corpus = corpus._replace(loss_mask=corpus.valid)
    packed = sft(small.LM, adapter, pack(corpus, jnp.array([[3, 5, 9]])))
    alone = sft(small.LM, adapter, take(corpus, jnp.array([3, 5, 9])))
    assert packed.weight == alone.weight == LENGTHS[[3, 5, 9]].sum() - 3
    np.testing.assert_allclose(packed.total, alone.total, rtol=1e-6)
