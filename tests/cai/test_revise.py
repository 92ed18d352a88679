"""Respond, critique, revise: the chain says what naive decoding says, row by row, however it is batched."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter
from fedjax_rai.cai import programs
from fedjax_rai.cai.align import METHODS
from fedjax_rai.cai.revise import Chain, Requests, Talk, chain, degenerate, equal, examples
from fedjax_rai.data.examples import Prompts, pad_left
from fedjax_rai.mesh import make_mesh
from fedjax_rai.model.decoder import LM, Decoder, forward, init_base, unembed
from fedjax_rai.train.generate import Answers, Decoding, Sampling
from tests import small

# With embeddings of its own for what it says: a random decoder whose embeddings are tied repeats what it read last.
MODEL = Decoder(replace(small.CONFIG, tie_word_embeddings=False), small.LORA)
BASE = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, init_base(MODEL.config, jax.random.key(0)))
END, NEW = 0, 6
ENDS = (END, 2, 18)  # such that some answers end, others are cut off
GREEDY, HOT = Sampling(jnp.float32(0)), Sampling(jnp.float32(1))
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [1], [20, 11, 4, 4]]
FEW_SHOT = [8, 2, 2, 10]
CRITIQUE, REVISION = [[2, 2, 7], [11], [9, 9]], [[13, 4], [5, 6, 1], [3]]
PRINCIPLES = [[0, 1, 2], [2, 2, 0], [1, 0, 1], [0, 0, 2], [1, 2, 0]]
ROOM = 96  # of the longest conversation


def on_device(rows: list[list[int]]) -> Prompts:
    return Prompts(*map(jnp.asarray, pad_left(rows, END)))


REQUESTS = Requests(on_device(CRITIQUE), on_device(REVISION))


def talk_about(prompts: list[list[int]] = PROMPTS, revisions: int = 3, before: list[int] | None = None) -> Talk:
    """One conversation a prompt, its key and principles by its place; the critic reads `before` first."""
    keys = jax.random.split(jax.random.key(0), len(prompts))
    principles = jnp.asarray(PRINCIPLES, jnp.int32)[: len(prompts), :revisions]
    return Talk(on_device(prompts), on_device([[*(before or []), *own] for own in prompts]), principles, keys)


@partial(jax.jit, static_argnums=(4, 5))
def _converse(policy, critic, talk: Talk, sampling: Sampling, same: bool, chunk: int | None) -> Chain:
    def some(own: Talk) -> Chain:
        decoding = Decoding(sampling, jnp.array(ENDS), NEW)
        return chain(LM(MODEL, BASE), policy, critic, own, REQUESTS, decoding, same)

    return some(talk) if chunk is None else trees.in_chunks(some, talk, chunk)


def converse(policy, critic, talk: Talk, sampling: Sampling, same: bool, chunk: int | None = None) -> Chain:
    return _converse(policy, critic, talk, sampling, same, chunk)


def spoken(answers: Answers) -> list[Any]:
    """The ids said, by row; of leaves [b, n, t] by row and revision."""
    if answers.tokens.ndim == 3:
        return [spoken(Answers(*own)) for own in zip(*answers, strict=True)]
    return [np.asarray(t)[np.asarray(v)].tolist() for t, v in zip(answers.tokens, answers.valid, strict=True)]


def words(said: Chain) -> list[Any]:
    """All that was said, and how it ended, by row."""
    parts = [(spoken(answers), np.asarray(answers.ended).tolist()) for answers in said]
    return [tuple(side[row] for part in parts for side in part) for row in range(len(parts[0][0]))]


@jax.jit
def likeliest(adapter: Adapter | None, tokens, length):
    """What comes after the first `length` tokens, by the uncached forward pass."""
    hidden = forward(LM(MODEL, BASE), adapter, tokens[None], jnp.arange(ROOM)[None] < length)
    return jnp.argmax(unembed(LM(MODEL, BASE), hidden[:, length - 1])[0])


def naive(adapter: Adapter | None, conversation: list[int]) -> tuple[list[int], bool]:
    """(one greedy answer, did it end?), the whole sequence read again for every token; closed as the chain does."""
    said: list[int] = []
    while len(said) < NEW:
        whole = [*conversation, *said]
        token = int(likeliest(adapter, jnp.array(whole + [END] * (ROOM - len(whole))), len(whole)))
        if token in ENDS:
            return [*said, END], True
        said.append(token)
    return [*said[:-1], END], False


def naive_words(policy, critic, prompt: list[int], opening: list[int], principles: list[int], first=None):
    """One row of `words`: each answer from the whole of what was said before it. `first`: a response already given."""
    response, ended = first or naive(policy, prompt)
    so_far, critiques, revisions = opening + response, [], []
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
def test_the_chain_equals_the_naive_one_token_for_token(critic, before, same, revisions):
    policy = small.adapter()
    judge = policy if critic == "policy" else None
    said = words(converse(policy, judge, talk_about(PROMPTS, revisions, before), GREEDY, same=same))
    for row, prompt, principles in zip(said, PROMPTS, PRINCIPLES, strict=True):
        assert row == naive_words(policy, judge, prompt, before + prompt, principles[:revisions])


def test_the_rows_compared_stop_at_different_times():
    """So that the law above is about ragged conversations, of which some are cut off."""
    said = converse(small.adapter(), None, talk_about(), GREEDY, same=False)
    for answers in said:
        assert 0 < answers.ended.sum() < answers.ended.size
        assert len(set(np.asarray(answers.valid.sum(axis=-1)).ravel().tolist())) > 2
    assert spoken(said.last) == [row[-1] for row in spoken(said.revision)]


@pytest.mark.parametrize("same", [True, False])
def test_responses_are_sampled_and_critiques_and_revisions_are_not(same):
    policy = small.adapter()
    judge, before = (policy, []) if same else (None, FEW_SHOT)
    talk = talk_about(before=before)
    cold, hot = (words(converse(policy, judge, talk, sampling, same=same)) for sampling in (GREEDY, HOT))
    assert sum(a[0] != b[0] for a, b in zip(cold, hot, strict=True)) > 2
    for row, prompt, principles in zip(hot, PROMPTS, PRINCIPLES, strict=True):
        assert row == naive_words(policy, judge, prompt, before + prompt, principles, first=row[:2])


def test_the_likeliest_token_alone_is_the_greedy_one():
    talk, narrow = talk_about(), Sampling(jnp.float32(1), top_k=jnp.int32(1))
    said = [words(converse(small.adapter(), None, talk, sampling, same=False)) for sampling in (GREEDY, narrow)]
    assert said[0] == said[1]


# ---- batches


@pytest.mark.parametrize("chunk", [2, small.slow(1), small.slow(5)])
def test_chunks_say_what_all_rows_say_at_once(chunk):
    """Two do not divide the five rows."""
    talk = talk_about(revisions=1)
    for sampling in (GREEDY, HOT):
        whole, parts = (
            converse(small.adapter(), small.adapter(), talk, sampling, True, size) for size in (None, chunk)
        )
        assert words(whole) == words(parts)


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
def test_a_row_says_the_same_wherever_it_stands_and_whoever_else_is_there(sampling):

    def say(talk: Talk) -> Chain:
        return converse(small.adapter(), None, talk, sampling, same=False)

    talk = talk_about()
    expected, order = words(say(talk)), np.array([3, 1, 4, 0, 2])
    assert words(say(jax.tree.map(lambda leaf: leaf[order], talk))) == [expected[row] for row in order]
    others = talk_about([[5, 5], [7, 1, 3], [17, 4, 2, 9, 9, 6], [12], [15, 8, 1]])
    among = jax.tree.map(lambda own, other: other.at[2].set(own[2]), talk, others)
    said = words(say(among))
    assert said[2] == expected[2]
    assert all(said[row] != expected[row] for row in (0, 1, 3, 4))


# ---- what a chain is good for


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


def test_equal_compares_what_was_said_and_not_what_lies_behind_it():
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


def said_of_pairs() -> Chain:
    """The pairs above, as a chain of two revisions, the first of which is another."""
    response, last, first = (
        answers_of(rows) for rows in ([a for a, _, _ in PAIRS.values()], [b for _, b, _ in PAIRS.values()], FIRST)
    )
    revision = Answers(*(jnp.stack(leaves, axis=1) for leaves in zip(first, last, strict=True)))
    return Chain(response, revision, revision)


def test_degenerate_pairs_are_told_by_every_cause_that_holds():
    causes = degenerate(said_of_pairs())
    assert list(causes) == ["cut_off", "empty", "equal"]
    for row, (name, (response, revision, _)) in enumerate(PAIRS.items()):
        holds = {
            "cut_off": END not in (response[-1], revision[-1]) or END != response[-1] or END != revision[-1],
            "empty": [END] in (response, revision),
            "equal": response == revision,
        }
        assert {cause: bool(found[row]) for cause, found in causes.items()} == holds, name


def options(**changes) -> programs.Options:
    """Of the programs of a phase, for the small decoder."""
    own: dict[str, Any] = {
        "end_ids": ENDS, "max_new": NEW, "chunk": 5, "batch_size": 4, "critic_is_policy": True, "same_cache": True,
        "train_on_revisions": True, "objective": METHODS["sft"]("sigmoid"), "reference_is_base": False,
        "mesh": make_mesh(),
    }  # fmt: skip
    return programs.Options(**(own | changes))


@pytest.mark.parametrize("method", METHODS)
def test_every_prompt_is_a_pair_or_counts_for_one_cause(method):
    count, causes = len(PAIRS), [cause for _, _, cause in PAIRS.values()]
    prompts, keys = on_device([[3, 1]] * count), jax.random.split(jax.random.key(0), count)
    talk = Talk(prompts, prompts, jnp.zeros((count, 2), jnp.int32), keys)
    replay = small.corpus(2)
    own, metrics = programs.collect(
        MODEL, options(objective=METHODS[method]("sigmoid")), BASE, small.adapter(), talk, REQUESTS, said_of_pairs(),
        replay,
    )  # fmt: skip
    counted = {name: int(metrics[f"cai_{name}"]) for name in ("cut_off", "empty", "equal", "pairs")}
    assert counted == {cause or "pairs": causes.count(cause) for cause in set(causes)}
    assert sum(counted.values()) == count
    assert own.paired.tolist() == [cause is None for cause in causes]
    revised = [END == revision[-1] and revision != [END] for _, revision, _ in PAIRS.values()]
    assert own.usable.tolist() == (own.paired.tolist() if method == "dpo" else revised)
    assert (own.reference is None) == (method == "sft")
    for row, (response, revision, cause) in enumerate(PAIRS.values()):
        for part, answer in ((own.answers, revision), (own.responses, response)):
            trained = part.tokens[row][part.loss_mask[row]].tolist()
            assert trained in ([answer] if cause is None else [answer, []])
    assert own.answers.tokens.shape[0] == count + len(replay.tokens)
