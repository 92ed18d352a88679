"""Respond, critique, revise: a rollout is what naive decoding gives, row by row, however it is batched."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter
from fedjax_rai.cai.options import METHODS
from fedjax_rai.cai.programs import OnlineSource, pool_of_rollout
from fedjax_rai.cai.revise import Rollout, RolloutBatch, degenerate, equal, examples, rollout
from fedjax_rai.model.decoder import forward, unembed
from fedjax_rai.train.generate import Answers, Decoding, Sampling
from fedjax_rai.train.losses import sigmoid
from fedjax_rai.train.speaker import Speaker
from tests import small
from tests.cai.common import CRITIQUE, END, ENDS, NEW, REQUESTS, REVISION, SPEAKER, ids_of, on_device, options

GREEDY, HOT = Sampling(jnp.float32(0)), Sampling(jnp.float32(1))
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [1], [20, 11, 4, 4]]
FEW_SHOT = [8, 2, 2, 10]
PRINCIPLES = [[0, 1, 2], [2, 2, 0], [1, 0, 1], [0, 0, 2], [1, 2, 0]]
ROOM = 96  # of the longest conversation


def batch_of(
    prompts: list[list[int]] = PROMPTS, revisions: int = 3, before: list[int] | None = None, same: bool = False
) -> RolloutBatch:
    """One conversation a prompt, its key and principles by its place; the critic reads `before` first.

    `same`: the critic is the policy, and goes on in its cache.
    """
    keys = jax.random.split(jax.random.key(0), len(prompts))
    principles = jnp.asarray(PRINCIPLES, jnp.int32)[: len(prompts), :revisions]
    critic_prompts = None if same else on_device([[*(before or []), *prompt] for prompt in prompts])
    return RolloutBatch(jnp.arange(len(prompts)), on_device(prompts), critic_prompts, principles, keys)


@partial(jax.jit, static_argnames="chunk")
def roll_out(policy, critic, batch: RolloutBatch, sampling: Sampling, chunk: int | None = None) -> Rollout:
    def of_rows(rows: RolloutBatch) -> Rollout:
        decoding = Decoding(sampling, jnp.array(ENDS), NEW)
        return rollout(Speaker(SPEAKER, policy), Speaker(SPEAKER, critic), rows, REQUESTS, decoding)

    return of_rows(batch) if chunk is None else trees.in_chunks(of_rows, batch, chunk)


def conversations(of: Rollout) -> list[Any]:
    """All that was generated, and how it ended, by row."""
    parts = [(ids_of(answers), np.asarray(answers.ended).tolist()) for answers in of.answers]
    return [tuple(side[row] for part in parts for side in part) for row in range(len(parts[0][0]))]


@jax.jit
def likeliest(adapter: Adapter | None, tokens, length):
    """What comes after the first `length` tokens, by the uncached forward pass."""
    hidden = forward(SPEAKER, adapter, tokens[None], jnp.arange(ROOM)[None] < length)
    return jnp.argmax(unembed(SPEAKER, hidden[:, length - 1])[0])


def naive(adapter: Adapter | None, conversation: list[int]) -> tuple[list[int], bool]:
    """(one greedy answer, did it end?), the whole sequence read again for every token; closed as in a rollout."""
    ids: list[int] = []
    while len(ids) < NEW:
        whole = [*conversation, *ids]
        token = int(likeliest(adapter, jnp.array(whole + [END] * (ROOM - len(whole))), len(whole)))
        if token in ENDS:
            return [*ids, END], True
        ids.append(token)
    return [*ids[:-1], END], False


def naive_conversation(policy, critic, prompt: list[int], critic_prompt: list[int], principles: list[int], first=None):
    """One row of `conversations`: each answer from all that stands before it. `first`: the response, if given."""
    response, ended = first or naive(policy, prompt)
    so_far, critiques, revisions = critic_prompt + response, [], []
    for principle in principles:
        for request, answers in ((CRITIQUE, critiques), (REVISION, revisions)):
            so_far = so_far + request[principle]
            answers.append(naive(critic, so_far))
            so_far = so_far + answers[-1][0]
    sides = [list(side) for answers in (critiques, revisions) for side in zip(*answers, strict=True)]
    return (response, ended, *sides)


CASES = {
    "the policy in its cache": ("policy", [], True, 3),
    "the policy reading anew": ("policy", [], False, 3),
    "the policy behind few-shot turns": ("policy", FEW_SHOT, False, 3),
    "the base": ("base", [], False, 3),
    "the base behind few-shot turns": ("base", FEW_SHOT, False, 3),
    "the policy once": ("policy", [], True, 1),
}


QUICK = ("the policy in its cache", "the base behind few-shot turns")


@pytest.mark.parametrize(
    ("critic", "before", "same", "revisions"),
    [(pytest.param if name in QUICK else small.slow)(*case, id=name) for name, case in CASES.items()],
)
def test_a_rollout_equals_the_naive_one_token_for_token(critic, before, same, revisions):
    policy = small.adapter()
    judge = policy if critic == "policy" else None
    made = conversations(roll_out(policy, judge, batch_of(PROMPTS, revisions, before, same), GREEDY))
    for row, prompt, principles in zip(made, PROMPTS, PRINCIPLES, strict=True):
        assert row == naive_conversation(policy, judge, prompt, before + prompt, principles[:revisions])


def test_the_rows_compared_stop_at_different_times():
    """So that the law above is about ragged conversations, of which some are cut off."""
    made = roll_out(small.adapter(), None, batch_of(), GREEDY)
    for answers in made.answers:
        assert 0 < answers.ended.sum() < answers.ended.size
        assert len(set(np.asarray(answers.valid.sum(axis=-1)).ravel().tolist())) > 2
    assert ids_of(made.last) == [row[-1] for row in ids_of(made.revision)]


@pytest.mark.parametrize("same", [True, False])
def test_responses_are_sampled_and_critiques_and_revisions_are_not(same):
    policy = small.adapter()
    judge, before = (policy, []) if same else (None, FEW_SHOT)
    batch = batch_of(before=before, same=same)
    cold, hot = (conversations(roll_out(policy, judge, batch, sampling)) for sampling in (GREEDY, HOT))
    assert sum(a[0] != b[0] for a, b in zip(cold, hot, strict=True)) > 2
    for row, prompt, principles in zip(hot, PROMPTS, PRINCIPLES, strict=True):
        assert row == naive_conversation(policy, judge, prompt, before + prompt, principles, first=row[:2])


def test_the_likeliest_token_alone_is_the_greedy_one():
    narrow = Sampling(jnp.float32(1), top_k=jnp.int32(1))
    greedy, likeliest = (conversations(roll_out(small.adapter(), None, batch_of(), how)) for how in (GREEDY, narrow))
    assert greedy == likeliest


# ---- batches


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [2, small.slow(1), small.slow(5)])
def test_chunks_give_what_all_rows_give_at_once(chunk):
    """Two do not divide the five rows."""
    batch = batch_of(revisions=1, same=True)
    for sampling in (GREEDY, HOT):
        whole, parts = (roll_out(small.adapter(), small.adapter(), batch, sampling, size) for size in (None, chunk))
        assert conversations(whole) == conversations(parts)
        assert parts.rows.tolist() == batch.rows.tolist() and parts.principles.tolist() == batch.principles.tolist()


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
def test_a_row_is_the_same_wherever_it_stands_and_whatever_stands_beside_it(sampling):

    def made(batch: RolloutBatch) -> list[Any]:
        return conversations(roll_out(small.adapter(), None, batch, sampling))

    batch = batch_of()
    expected, order = made(batch), np.array([3, 1, 4, 0, 2])
    assert made(jax.tree.map(lambda leaf: leaf[order], batch)) == [expected[row] for row in order]
    others = batch_of([[5, 5], [7, 1, 3], [17, 4, 2, 9, 9, 6], [12], [15, 8, 1]])
    among = made(jax.tree.map(lambda leaf, other: other.at[2].set(leaf[2]), batch, others))
    assert among[2] == expected[2]
    assert all(among[row] != expected[row] for row in (0, 1, 3, 4))


# ---- what a rollout is good for


def test_examples_train_on_the_answer_alone_and_skip_the_unusable():
    answers = Answers(
        tokens=jnp.array([[5, 6, 0], [0, 0, 0], [5, 6, 0]]),
        valid=jnp.array([[True, True, True], [True, False, False], [True, True, True]]),
        ended=jnp.array([True, True, False]),
    )
    pairs = examples(on_device([[1, 2], [3], [4]]), answers)
    assert pairs.tokens[0, -5:].tolist() == [1, 2, 5, 6, 0]
    assert pairs.valid[0].tolist() == [False] * 14 + [True] * 5
    assert pairs.loss_mask[0].tolist() == [False] * 16 + [True] * 3
    assert pairs.loss_mask.sum(axis=1).tolist() == [3, 0, 0], "an empty answer, and one that was cut off, weigh nothing"


def test_equal_compares_answers_and_not_what_lies_behind_them():
    valid = jnp.array([[True, True, False]])
    a, b = (Answers(jnp.array([[5, 0, junk]]), valid, jnp.array([True])) for junk in (1, 2))
    assert bool(equal(a, b)[0])
    assert not bool(equal(a, b._replace(tokens=jnp.array([[6, 0, 2]])))[0])
    assert not bool(equal(a, b._replace(valid=jnp.array([[True, True, True]])))[0])


def answers_of(rows: list[list[int]]) -> Answers:
    """As they are sampled; a row that does not end with the end-of-turn token was cut off, and closed."""
    tokens, valid = np.full((len(rows), 4), END, np.int32), np.zeros((len(rows), 4), bool)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], valid[row, : len(ids)] = ids, True
    ended = jnp.array([ids[-1] == END for ids in rows])
    tokens[~ended, -1] = END
    return Answers(jnp.asarray(tokens), jnp.asarray(valid), ended)


# (response, last revision, the cause counted): causes that hold together count once, the first of them
PAIRS = {
    "better": ([5, 6, END], [7, END], None),
    "longer": ([5, END], [5, 6, END], None),
    "response cut off": ([5, 6, 7, 8], [7, END], "cut_off"),
    "revision cut off": ([7, END], [5, 6, 7, 8], "cut_off"),
    "both cut off, alike": ([5, 6, 7, 8], [5, 6, 7, 8], "cut_off"),
    "cut off and empty": ([5, 6, 7, 8], [END], "cut_off"),
    "empty response": ([END], [5, END], "empty"),
    "empty revision": ([5, END], [END], "empty"),
    "both empty, alike": ([END], [END], "empty"),
    "alike": ([5, 6, END], [5, 6, END], "equal"),
}


FIRST = [[9, END]] * len(PAIRS)  # revisions before the last


def rollout_of_pairs() -> Rollout:
    """The pairs above, as a rollout of two revisions, the first of which is another; critiques are as long."""
    response, last, first = (
        answers_of(rows) for rows in ([a for a, _, _ in PAIRS.values()], [b for _, b, _ in PAIRS.values()], FIRST)
    )
    revision = Answers(*(jnp.stack(leaves, axis=1) for leaves in zip(first, last, strict=True)))
    return Rollout(jnp.arange(len(PAIRS)), jnp.zeros((len(PAIRS), 2), jnp.int32), response, revision, revision)


def test_degenerate_pairs_are_told_by_every_cause_that_holds():
    causes = degenerate(rollout_of_pairs())
    assert list(causes) == ["cut_off", "empty", "equal"]
    for row, (name, (response, revision, _)) in enumerate(PAIRS.items()):
        holds = {
            "cut_off": END not in (response[-1], revision[-1]) or END != response[-1] or END != revision[-1],
            "empty": [END] in (response, revision),
            "equal": response == revision,
        }
        assert {cause: bool(found[row]) for cause, found in causes.items()} == holds, name


def test_of_a_rollout_that_was_fetched_the_host_tells_them_without_the_device():
    """Which has the next round before it, and would answer after that."""
    rollout = rollout_of_pairs()
    found, expected = degenerate(jax.device_get(rollout)), degenerate(rollout)
    for cause, holds in found.items():
        assert isinstance(holds, np.ndarray)
        np.testing.assert_array_equal(holds, expected[cause])


def collected(method: str, few_shot: list[int] | None = None, **changes: Any):
    """The pool and the metrics of the pairs above, each about the prompt 3, 1 by principle 0 twice."""
    count = len(PAIRS)
    prompts, keys = on_device([[3, 1]] * count), jax.random.split(jax.random.key(0), count)
    before = None if few_shot is None else on_device([[*few_shot, 3, 1]] * count)
    batch = RolloutBatch(jnp.arange(count), prompts, before, jnp.zeros((count, 2), jnp.int32), keys)
    source = OnlineSource(batch, REQUESTS, small.corpus(2))
    compiled = options(objective=METHODS[method](sigmoid), **changes)
    return pool_of_rollout(SPEAKER, compiled, small.adapter(), source, rollout_of_pairs())


@pytest.mark.parametrize("method", METHODS)
def test_every_prompt_is_a_pair_or_counts_for_one_cause(method):
    causes = [cause for _, _, cause in PAIRS.values()]
    pool, metrics = collected(method)
    counted = {name: int(metrics[f"cai_{name}"]) for name in ("pairs", "cut_off", "empty", "equal")}
    assert counted == {"pairs": 2, "cut_off": 4, "empty": 3, "equal": 1}
    assert pool.paired.tolist() == [cause is None for cause in causes]
    revised = [END == revision[-1] and revision != [END] for _, revision, _ in PAIRS.values()]
    assert pool.usable.tolist() == (pool.paired.tolist() if method == "dpo" else revised)
    assert int(metrics["cai_usable"]) == (2 if method == "dpo" else 5)
    assert (pool.reference_logps is None) == (method == "sft")
    for row, (response, revision, cause) in enumerate(PAIRS.values()):
        for part, answer in ((pool.answers, revision), (pool.rejected, response)):
            trained = part.tokens[row][part.loss_mask[row]].tolist()
            assert trained in ([answer] if cause is None else [answer, []])
    assert pool.answers.tokens.shape[0] == len(PAIRS) + 2


# By hand, of the table above: responses of 3 2 4 2 4 4 1 2 1 3 tokens, last revisions of 2 3 2 4 4 1 2 1 1 3, first
# ones of 2 each, and critiques as long as revisions.
RESPONSES, LAST, FIRSTS = 26, 23, 20
PROMPT_TOKENS = 10 * 2
REQUEST_TOKENS = 10 * 2 * (3 + 2)  # principle 0, critique and revision, twice


@pytest.mark.parametrize(
    ("method", "few_shot", "further"),
    [
        ("sft", None, 0),
        ("sft", [8, 2, 2, 10], 10 * (4 + 2) + RESPONSES),  # the critic reads prompt and response anew
        ("dpo", None, (PROMPT_TOKENS + LAST) + (PROMPT_TOKENS + RESPONSES)),  # the reference reads both sides
    ],
)
def test_what_a_rollout_costs_and_changes_counted_by_hand(method, few_shot, further):
    _, metrics = collected(method, few_shot)
    assert int(metrics["cai_generated_tokens"]) == RESPONSES + 2 * (FIRSTS + LAST)
    assert int(metrics["cai_read_tokens"]) == PROMPT_TOKENS + REQUEST_TOKENS + further
    np.testing.assert_allclose(metrics["cai_revised"], 0.7)  # three last revisions are their responses


def test_the_control_trains_on_responses():
    pool, _ = collected("sft", train_on_revisions=False)
    response = next(iter(PAIRS.values()))[0]
    assert pool.answers.tokens[0][pool.answers.loss_mask[0]].tolist() == response
    ended = [END == response[-1] and response != [END] for response, _, _ in PAIRS.values()]
    assert pool.usable.tolist() == ended
