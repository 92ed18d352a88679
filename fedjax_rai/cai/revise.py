"""Respond, critique, revise (arXiv 2212.08073) as one program on the device, which computes no prefix twice."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.aliases import Array, Bool, Int, Key
from fedjax_rai.cai.constitution import Principle
from fedjax_rai.data.examples import Examples, Prompts, encode_request, pad_left
from fedjax_rai.text.tokenizer import Tokenizer
from fedjax_rai.train.generate import Answers, Decoding, DecodingState, Sampling, append, sample, start
from fedjax_rai.train.speaker import Speaker


class Requests(NamedTuple):
    """The fixed texts of every principle, as tokens [principle, l], left-padded."""

    critique: Prompts
    revision: Prompts


class RolloutBatch(NamedTuple):
    """What a rollout is generated from, a row a conversation."""

    rows: Int[Array, "b"]  # which of the server's red prompts it is about
    prompts: Prompts  # [b, l]: what the policy answers
    # [b, l']: what the critic reads in their place, few-shot turns before them; None: the same, as the critic is the
    # policy, which need not read it again
    critic_prompts: Prompts | None
    principles: Int[Array, "b revisions"]  # of each revision, in turn
    keys: Key[Array, "b"]  # one a row, so that neither batch nor sharding changes what is sampled


class Rollout(NamedTuple):
    """What was generated from a batch: a response to each prompt, then n critiques and revisions in turn."""

    rows: Int[Array, "b"]  # which of the server's red prompts
    principles: Int[Array, "b revisions"]
    response: Answers  # [b, t]
    critique: Answers  # [b, revisions, t]
    revision: Answers  # [b, revisions, t]

    @property
    def answers(self) -> tuple[Answers, Answers, Answers]:
        """All that was generated: response, critique, revision."""
        return self.response, self.critique, self.revision

    @property
    def last(self) -> Answers:
        """The final revisions, leaves [b, t]."""
        return Answers(*(leaf[:, -1] for leaf in self.revision))


def encode_requests(tokenizer: Tokenizer, principles: Sequence[Principle]) -> Requests:
    """The requests of all principles, each side padded to its longest."""

    def side(texts: list[str]) -> Prompts:
        encoded = [encode_request(tokenizer, text) for text in texts]
        return pad_left(encoded, tokenizer.pad_id)

    critiques = [principle.critique for principle in principles]
    revisions = [principle.revision for principle in principles]
    return Requests(side(critiques), side(revisions))


def rollout(
    policy: Speaker,
    critic: Speaker,
    batch: RolloutBatch,
    requests: Requests,
    decoding: Decoding,
) -> Rollout:
    """The policy answers each prompt by `decoding`; the critic criticises and revises, n times over, greedily.

    Without `batch.critic_prompts` the critic must be the policy: it goes on in the policy's cache. With them it reads
    these and the response first.
    """
    count, times = batch.principles.shape
    greedy = dataclasses.replace(decoding, sampling=Sampling(jnp.zeros(())))
    max_new = decoding.max_new
    a_turn = requests.critique.tokens.shape[1] + requests.revision.tokens.shape[1] + 2 * max_new
    further = times * a_turn + max_new  # slots behind the prompt
    in_one_cache = batch.critic_prompts is None

    state = start(policy.lm.model, count, batch.prompts.tokens.shape[1] + (further if in_one_cache else max_new))
    state = append(*policy, state, batch.prompts.tokens, batch.prompts.valid)
    state, response = sample(*policy, state, batch.keys, decoding, close=True)
    if batch.critic_prompts is not None:
        state = start(critic.lm.model, count, batch.critic_prompts.tokens.shape[1] + further)
        state = append(*critic, state, batch.critic_prompts.tokens, batch.critic_prompts.valid)
        state = append(*critic, state, response.tokens, response.valid)

    def answer(state: DecodingState, texts: Prompts, principle: Int[Array, "b"]) -> tuple[DecodingState, Answers]:
        state = append(*critic, state, texts.tokens[principle], texts.valid[principle])
        return sample(*critic, state, batch.keys, greedy, close=True)

    def turn(state: DecodingState, principle: Int[Array, "b"]) -> tuple[DecodingState, tuple[Answers, Answers]]:
        state, critique = answer(state, requests.critique, principle)
        state, revision = answer(state, requests.revision, principle)
        return state, (critique, revision)

    _, by_turn = jax.lax.scan(turn, state, batch.principles.T)
    critique, revision = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), by_turn)
    return Rollout(batch.rows, batch.principles, response, critique, revision)


def examples(prompts: Prompts, answers: Answers) -> Examples:
    """(prompt, answer) pairs to train on, still on the device. An answer cut off or empty weighs nothing."""
    usable = answers.ended & ~empty(answers)
    return Examples(
        tokens=jnp.concatenate([prompts.tokens, answers.tokens], axis=1),
        loss_mask=jnp.concatenate([jnp.zeros_like(prompts.valid), answers.valid & usable[:, None]], axis=1),
        segments=jnp.concatenate([prompts.valid, answers.valid], axis=1).astype(jnp.int32),
    )


def degenerate(rollout: Rollout) -> dict[str, Bool[Array | np.ndarray, "b"]]:
    """Why the last revision cannot be preferred to the response, by cause; a pair counts for the first that holds.

    On the device or, of a rollout that was fetched, on the host.
    """
    response = rollout.response
    revision = rollout.last
    return {
        "cut_off": ~revision.ended | ~response.ended,
        "empty": empty(revision) | empty(response),
        "equal": equal(response, revision),
    }


def empty(answers: Answers) -> Bool[Array | np.ndarray, "b"]:
    """Whether an answer holds nothing but the end of its turn."""
    return answers.valid.sum(axis=1) <= 1


def equal(a: Answers, b: Answers) -> Bool[Array | np.ndarray, "b"]:
    """Whether two answers are the same, whatever lies behind their ends."""
    return ((a.valid == b.valid) & ((a.tokens == b.tokens) | ~a.valid)).all(axis=1)
