"""Answers out of a queue are those of each prompt alone, and take the steps that are counted."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.data.examples import Prompts, pad_left
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.train import queue
from fedjax_rai.train.generate import Decoding, Sampling, generate
from fedjax_rai.train.queue import answer_all, read, refilled_at_once, steps_in_batches, steps_in_queue
from fedjax_rai.train.speaker import Speaker
from tests import small
from tests.processes import succeed

NEW, ROWS = 12, 6
ENDS = np.array([0, 3], np.int32)


@pytest.mark.parametrize(
    ("lengths", "rows", "at_once", "in_batches", "in_queue"),
    [
        # Two rows: 9 beside 1, then 1 beside 1; or 9 beside 1, 1, 1 in turn.
        ([9, 1, 1, 1], 2, 1, 10, 9),
        # 4 2 | 4 2: the batches take 4 each; in the queue the third begins at step 2 and ends at 6, the fourth at 4.
        ([4, 2, 4, 2], 2, 1, 8, 6),
        # The same, where both rows must be free: as in batches.
        ([4, 2, 4, 2], 2, 2, 8, 8),
        # All equal: nothing is gained.
        ([5, 5, 5, 5, 5], 2, 1, 15, 15),
        # Four rows, two at once: 8 1 1 8, two more (1 1) at step 1, two more (3 3) at step 2.
        ([8, 1, 1, 8, 1, 1, 3, 3], 4, 2, 11, 8),
        # Two at once of three rows: the third waits until the first has ended at 2, and these two take 6 and 1; the
        # last prompt takes a row at 4, beside the 6, which end at 8. Batches need 6 + 1.
        ([2, 4, 6, 1, 1], 3, 2, 7, 8),
        ([3], 4, 1, 3, 3),
        ([], 4, 1, 0, 0),
    ],
)
def test_steps_by_hand(lengths, rows, at_once, in_batches, in_queue):
    assert steps_in_batches(lengths, rows) == in_batches
    assert steps_in_queue(lengths, rows, at_once) == in_queue


@pytest.mark.parametrize(
    ("most", "rows", "in_batches", "in_queue", "least"),
    [(256, 16, 8102, 3099, 2876), (256, 64, 2304, 928, 719), (32, 64, 288, 261, 236)],
)
def test_what_is_saved_where_refusals_stand_among_long_answers(most, rows, in_batches, in_queue, least):
    """520 answers of log-normal lengths, around 30 tokens (six in ten) or 150; never less than all tokens over rows.

    These numbers stand in the module's docstring and in docs/performance.md.
    """
    g = np.random.default_rng(0)
    refusals = g.random(520) < 0.6
    lengths = np.where(refusals, g.lognormal(np.log(30), 0.5, 520), g.lognormal(np.log(150), 0.7, 520))
    lengths = np.clip(np.ceil(lengths), 2, most).astype(int).tolist()
    assert steps_in_batches(lengths, rows) == in_batches
    assert steps_in_queue(lengths, rows, refilled_at_once(rows)) == in_queue
    assert -(-sum(lengths) // rows) == least


def test_an_eighth_of_each_part_begins_anew():
    shapes = ((1, 1), (7, 1), (16, 1), (17, 1), (64, 1), (100, 1), (64, 8), (128, 4), (8, 8))
    assert [refilled_at_once(*shape) for shape in shapes] == [1, 1, 2, 1, 8, 10, 8, 16, 8]


def texts_of(lengths: Sequence[int]) -> list[list[int]]:
    g = np.random.default_rng(0)
    return [g.integers(1, small.VOCAB, length).tolist() for length in lengths]


def answered(texts: list[list[int]], keys, decoding: Decoding, rows: int) -> dict[int, tuple[list[int], bool]]:
    """(tokens, ended) of each answer out of the queue, by the place of its text; none comes twice."""
    found = {}
    for finished in answer_all(small.LM, small.adapter(), texts, keys, decoding, rows):
        numbers, answers = read(finished)
        for number, tokens, valid, ended in zip(numbers.tolist(), *answers, strict=True):
            assert number not in found
            found[number] = (tokens[valid].tolist(), bool(ended))
    return found


@pytest.mark.slow
def test_an_answer_is_that_of_its_prompt_alone_whatever_shares_the_rows():
    """Greedy and sampled; rows that do not divide the prompts; prompts of three buckets, so that the ring grows twice.

    One program a bucket, whatever is sampled and however many prompts there are.
    """
    before = small.compilations(queue.serve)
    g = np.random.default_rng(1)
    texts = texts_of(g.integers(1, 48, 37).tolist())
    keys = jax.random.split(jax.random.key(5), len(texts))
    by_length = np.argsort([len(ids) for ids in texts], kind="stable")
    for temperature in (0.0, 1.5):
        decoding = Decoding(Sampling(np.float32(temperature)), ENDS, NEW)
        alone = {}
        for number, ids in enumerate(texts):
            answer = generate(small.LM, small.adapter(), pad_left([ids], 0), keys[number : number + 1], decoding)
            tokens = np.asarray(answer.tokens[0])[np.asarray(answer.valid[0])]
            alone[number] = (tokens.tolist(), bool(answer.ended[0]))
        assert answered(texts, keys, decoding, ROWS) == alone
        fewer = answered(texts[5:], keys[5:], decoding, ROWS)
        assert fewer == {number - 5: answer for number, answer in alone.items() if number >= 5}
    assert small.compilations(queue.serve) == before + 3
    # The ring of the first bucket is gone round once in 16 + NEW steps; its 12 shortest prompts are two queues.
    lengths = [len(alone[number][0]) for number in by_length[:12]]
    assert len(set(lengths)) > 4
    steps = steps_in_queue(lengths, ROWS, 1)
    assert steps < steps_in_batches(lengths, ROWS)
    rows = queue.begin(small.LM, ROWS, 16 + NEW, decoding)
    for part in np.split(by_length[:12], 2):
        prompts, last = pad_left([texts[number] for number in part], 0), np.bool_(part[-1] == by_length[11])
        waiting = queue.Queue(prompts, keys[part], part, np.int32(ROWS), last)
        rows, _ = queue.serve(small.LM, small.adapter(), rows, waiting, decoding)
    assert rows.state.slot == steps % (16 + NEW) and steps < 2 * (16 + NEW)


@pytest.mark.slow
def test_a_ring_that_grows_begins_with_its_oldest_slot():
    """Of five slots the third was written longest ago; of seven, the two that are new come next."""
    rows = queue.begin(small.LM, 1, 5, Decoding(Sampling(np.float32(0)), ENDS, 3))
    ages = jnp.array([[3, 4, 0, 1, 2]])
    cache = jax.tree.map(lambda leaf: leaf + ages[None, :, :, None, None], rows.state.cache)
    state = rows.state._replace(cache=cache, key_position=ages, valid=ages > 0, slot=jnp.int32(2))
    found = queue.with_slots(small.LM, rows._replace(state=state), 7).state
    assert found.key_position.tolist() == [[0, 1, 2, 3, 4, 0, 0]] and found.slot == 5
    assert found.valid.tolist() == [[False, True, True, True, True, False, False]]
    for leaf in found.cache:
        assert (leaf[1, 0, :, 0] == jnp.array([0, 1, 2, 3, 4, 0, 0])[:, None]).all()


@pytest.mark.slow
def test_a_row_without_numbers_is_finished_and_its_successor_answers():
    """A prompt whose token has an embedding of NaN, in a single row: the next prompt reads nothing of it."""
    config = dataclasses.replace(small.CONFIG, tie_word_embeddings=False)
    embedding = small.BASE["embed_tokens"]
    base = {**small.BASE, "embed_tokens": embedding.at[7].set(jnp.nan), "lm_head": embedding.T}
    decoding = Decoding(Sampling(np.float32(0)), np.array([small.VOCAB]), 4)
    keys = jax.random.split(jax.random.key(0), 3)
    found = {}
    for finished in answer_all(LM(Decoder(config), base), None, [[5, 5], [7, 5], [6, 5]], keys, decoding, 1):
        numbers, answers = read(finished)
        found |= dict(zip(numbers.tolist(), answers.valid.sum(axis=1).tolist(), strict=True))
    assert found == {0: 4, 1: 0, 2: 4}


NEVER = Decoding(Sampling(np.float32(0)), np.array([small.VOCAB]), NEW)
REQUESTS = Prompts(*map(jnp.asarray, pad_left([[3, 4], [5]], 0)))


def waiting(*idle: int) -> queue.Rows:
    """Sixteen rows, two of which are given what comes next together; the first ones have waited for requests."""
    rows = queue.begin(small.LM, 16, queue.slots_of(16, REQUESTS.tokens.shape[1], 1, NEW), NEVER, 1)
    waits = jnp.arange(16) < len(idle)
    return rows._replace(
        state=rows.state._replace(logits=rows.state.logits + jnp.arange(small.VOCAB)[None]),
        number=jnp.where(waits, jnp.arange(16), queue.NONE),
        ended=waits,
        written=waits | False,  # two arrays, as both are donated
        idle=jnp.zeros(16, jnp.int32).at[: len(idle)].set(jnp.array(idle)),
    )


def test_requests_are_read_for_those_who_waited_longest():
    rows = waiting(1, 5, 0, 7)
    goes_on = queue._goes_on(rows, NEVER)
    given = partial(queue._next_requests, small.LM, None, texts=REQUESTS, goes_on=goes_on, shape=(1, 2))
    fresh, target, _ = jax.jit(given)(rows, jnp.int32(0))
    assert target.tolist() == [[3, 1]] and fresh.number.tolist() == [3, 1] and fresh.turn.tolist() == [1, 1]


@pytest.mark.parametrize(("idle", "steps"), [(8, 4 + NEW), (3, 9 + NEW)])
def test_a_conversation_goes_on_before_its_slots_are_written_over(idle, steps):
    """Of three that wait two are given their requests. The third waits for a second one, but for NEW steps at most."""
    rows = waiting(9, 9, idle)
    prompts = Prompts(jnp.zeros((16, 16), jnp.int32), jnp.zeros((16, 16), bool))
    follow_ups = queue.FollowUps(REQUESTS, np.zeros((16, 1), np.int32))
    keys, numbers = jax.random.split(jax.random.key(0), 16), np.arange(16, dtype=np.int32)
    nobody = queue.Queue(prompts, keys, numbers, np.int32(0), np.bool_(True), follow_ups)
    slots = rows.state.valid.shape[1]
    rows, finished = queue.serve(small.LM, None, rows, nobody, NEVER)
    assert rows.state.slot == steps < slots
    number, turn, answers = queue.read_turns(finished)
    assert list(zip(number.tolist(), turn.tolist(), strict=True)) == [(0, 1), (1, 1), (2, 1)]
    assert answers.valid.all()


@pytest.mark.parametrize(("limit", "length"), [(None, 32), (20, 20)])
def test_conversations_are_padded_no_further_than_leaves_room_for_their_ends(monkeypatch, limit, length):
    """A text of 17 tokens, to a bucket of 32, or to what the model's limit leaves before all that follows."""
    behind = queue.slots_of(0, REQUESTS.tokens.shape[1], 1, NEW)
    monkeypatch.setattr(DecoderConfig, "longest", limit and limit + behind)
    slots = []

    def seen(lm, adapter, rows, *_):
        slots.append(rows.state.valid.shape[1])
        return rows, None

    monkeypatch.setattr(queue, "serve", seen)
    follow_ups, keys = queue.FollowUps(REQUESTS, np.zeros((2, 1), np.int32)), jax.random.split(jax.random.key(0), 2)
    list(queue.answer_in_turns(Speaker(small.LM, None), texts_of([17, 3]), keys, follow_ups, NEVER, 2))
    assert slots == [length + behind]


def test_the_slots_of_a_conversation_by_hand():
    """A prompt of 10, an answer of 8, then twice a request of 4 and an answer of 8; before the last answer but one
    22 tokens stand there at most, so that 2 * 8 steps are behind them and 4 slots more."""
    assert queue.slots_of(10, 4, 2, 8) == 10 + 8 + 12 + 12
    assert queue.slots_of(10, 4, 0, 8) == 18


@pytest.mark.slow
def test_eight_devices_answer_as_one():
    succeed("queue_on_eight_devices", devices=8)
