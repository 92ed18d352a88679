"""Conversations in any number: the rollout of `revise` by queues of rows.

`revise.rollout` is one program, in which every row waits for the longest answer of its kind. Here a row whose answer
has ended goes on at once, or takes the next conversation (`train.queue`). First all responses are written, by the
policy; then the critic reads prompt and response, and criticises and revises in its cache.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fedjax_rai.cai.revise import Requests, Rollout, RolloutBatch
from fedjax_rai.data.examples import Prompts, pad_left
from fedjax_rai.train.dispatch import read_late
from fedjax_rai.train.generate import Answers, Decoding, Sampling
from fedjax_rai.train.queue import PAD, Finished, FollowUps, answer_all, answer_in_turns, read_turns
from fedjax_rai.train.speaker import Speaker

Texts = list[list[int]]
"""Token ids of texts."""


def programs_of(conversations: int, rows: int) -> int:
    """How many programs `queued_rollout` dispatches, and how often it calls `advance`."""
    return 2 * -(-conversations // rows)


def queued_rollout(
    policy: Speaker,
    critic: Speaker,
    batch: RolloutBatch,
    requests: Requests,
    decoding: Decoding,
    rows: int,
    advance: Callable[[str], object],
) -> Rollout:
    """What `revise.rollout` gives, on the host, with `rows` answers under way at once, not a row for each conversation.

    The same tokens in float32; in bfloat16 but for rounding. `advance` is called once for each program that has ended,
    with what it wrote: `responses` or `revisions`. It has the parameters of `rollout` and two of its own.
    """
    prompts = _texts(batch.prompts)
    responding = answer_all(*policy, prompts, batch.keys, decoding, rows)
    (response,) = _answers(responding, (len(prompts), 1), decoding, lambda: advance("responses"))
    response = _closed(response, decoding)

    principles = np.asarray(batch.principles)
    critiques, revisions = map(_texts, requests)
    # both requests of each principle, in turn
    asked = np.stack([principles, principles + len(critiques)], axis=-1).reshape(len(principles), -1)
    before = prompts if batch.critic_prompts is None else _texts(batch.critic_prompts)
    texts = [
        [*prompt, *answer, *critiques[request]]
        for prompt, answer, request in zip(before, _texts(response), asked[:, 0], strict=True)
    ]
    follow_ups = FollowUps(pad_left([*critiques, *revisions], PAD), asked[:, 1:])
    greedy = dataclasses.replace(decoding, sampling=Sampling(np.float32(0)))
    revising = answer_in_turns(critic, texts, batch.keys, follow_ups, greedy, rows)
    written = _answers(revising, asked.shape, decoding, lambda: advance("revisions"))
    written = [_if_there(response, answers) for answers in written]
    return Rollout(np.asarray(batch.rows), principles, response, _stacked(written[0::2]), _stacked(written[1::2]))  # pyright: ignore


def _texts(padded: Prompts | Answers) -> Texts:
    """The token ids of each row, without what only fills it."""
    rows = zip(np.asarray(padded.tokens), np.asarray(padded.valid), strict=True)
    return [tokens[valid].tolist() for tokens, valid in rows]


def _answers(
    programs: Iterable[Finished], shape: tuple[int, int], decoding: Decoding, advance: Callable[[], object]
) -> list[Answers]:
    """The answers of each turn on the host, by the place of their texts; `shape` is texts and turns."""
    tokens = np.zeros((*shape, decoding.max_new), np.int32)
    valid, ended, there = np.zeros(tokens.shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
    for finished in read_late(programs):
        place, turn, answers = read_turns(finished)
        tokens[place, turn], valid[place, turn], ended[place, turn] = answers
        there[place, turn] = True
        advance()
    assert there.all(), "a queue has answered every text"
    return [Answers(tokens[:, turn], valid[:, turn], ended[:, turn]) for turn in range(shape[1])]  # pyright: ignore


def _stacked(answers: Sequence[Answers]) -> Answers:
    """Leaves [b, n, ...] of n answers a row."""
    return Answers(*(np.stack(leaves, axis=1) for leaves in zip(*answers, strict=True)))  # pyright: ignore


def _if_there(response: Answers, answers: Answers) -> Answers:
    """The answers, of which none is one where there was no response: nothing can be said of it."""
    there: Any = np.asarray(response.valid).any(axis=1)
    return answers._replace(valid=answers.valid & there[:, None], ended=answers.ended | ~there)


def _closed(answers: Answers, decoding: Decoding) -> Answers:
    """With the end-of-turn token as each one's last, whether it was cut off or ended by another; see `sample`."""
    last = np.cumsum(answers.valid, axis=1) == np.sum(answers.valid, axis=1, keepdims=True)
    return answers._replace(tokens=np.where(last, decoding.end_ids[0], answers.tokens))
