"""Respond, critique, revise (arXiv 2212.08073) as one program on the device, which computes no prefix twice."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai.aliases import Adapter, Array, Bool, Int, Key
from fedjax_rai.cai.constitution import Principle
from fedjax_rai.data.examples import Examples, Prompts, encode_request, pad_left
from fedjax_rai.model.decoder import LM
from fedjax_rai.text.tokenizer import Tokenizer
from fedjax_rai.train.generate import Answers, Decoding, Sampling, append, sample, start


class Requests(NamedTuple):
    """The fixed texts of every principle, as tokens [principle, l], left-padded."""

    critique: Prompts
    revision: Prompts


class Talk(NamedTuple):
    """Conversations to begin, a row each."""

    prompts: Prompts  # what the policy answers
    openings: Prompts  # what the critic reads in their place: few-shot turns before the prompt, or the prompt alone
    principles: Int[Array, "b n"]  # of each revision, in turn
    keys: Key[Array, "b"]  # a row's own, so that neither batch nor sharding changes what it says


class Chain(NamedTuple):
    """What was said: a response, then critiques and revisions, leaves [b, n, t]."""

    response: Answers
    critique: Answers
    revision: Answers

    @property
    def last(self) -> Answers:
        """The final revisions, leaves [b, t]."""
        return Answers(*(leaf[:, -1] for leaf in self.revision))


def encode_requests(tokenizer: Tokenizer, principles: Sequence[Principle]) -> Requests:
    def side(texts: list[str]) -> Prompts:
        return pad_left([encode_request(tokenizer, text) for text in texts], tokenizer.pad_id)

    return Requests(side([p.critique for p in principles]), side([p.revision for p in principles]))


def chain(
    lm: LM,
    policy: Adapter | None,
    critic: Adapter | None,
    talk: Talk,
    requests: Requests,
    decoding: Decoding,
    same: bool,
) -> Chain:
    """The policy answers each prompt by `decoding`; the critic criticises and revises, n times over, greedily.

    `same`: the critic is the policy and there are no few-shot turns, so it goes on in the policy's cache. Otherwise the
    critic (None: the base) reads opening and answer first.
    """
    batch, times = talk.principles.shape
    greedy = dataclasses.replace(decoding, sampling=Sampling(jnp.zeros(())))
    max_new = decoding.max_new
    room = times * (requests.critique.tokens.shape[1] + requests.revision.tokens.shape[1] + 2 * max_new) + max_new

    state = start(lm.model, batch, talk.prompts.tokens.shape[1] + (room if same else max_new))
    state = append(lm, policy, state, talk.prompts.tokens, talk.prompts.valid)
    state, response = sample(lm, policy, state, talk.keys, decoding, close=True)
    if not same:
        state = start(lm.model, batch, talk.openings.tokens.shape[1] + room)
        state = append(lm, critic, state, talk.openings.tokens, talk.openings.valid)
        state = append(lm, critic, state, response.tokens, response.valid)

    def ask(state, texts: Prompts, principle: Int[Array, "b"]):
        state = append(lm, critic, state, texts.tokens[principle], texts.valid[principle])
        return sample(lm, critic, state, talk.keys, greedy, close=True)

    def turn(state, principle: Int[Array, "b"]):
        state, critique = ask(state, requests.critique, principle)
        state, revision = ask(state, requests.revision, principle)
        return state, (critique, revision)

    _, said = jax.lax.scan(turn, state, talk.principles.T)
    return Chain(response, *jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), said))


def examples(prompts: Prompts, answers: Answers) -> Examples:
    """(prompt, answer) pairs to train on, still on the device. An answer cut off or empty weighs nothing."""
    usable = answers.ended & ~empty(answers)
    return Examples(
        tokens=jnp.concatenate([prompts.tokens, answers.tokens], axis=1),
        loss_mask=jnp.concatenate([jnp.zeros_like(prompts.valid), answers.valid & usable[:, None]], axis=1),
        segments=jnp.concatenate([prompts.valid, answers.valid], axis=1).astype(jnp.int32),
    )


def degenerate(said: Chain) -> dict[str, Bool[Array, "b"]]:
    """Why the last revision cannot be preferred to the response, by cause; a pair counts for the first that holds."""
    response, revision = said.response, said.last
    return {
        "cut_off": ~revision.ended | ~response.ended,
        "empty": empty(revision) | empty(response),
        "equal": equal(response, revision),
    }


def empty(answers: Answers) -> Bool[Array, "b"]:
    """Nothing was said but the end of the turn."""
    return answers.valid.sum(axis=1) <= 1


def equal(a: Answers, b: Answers) -> Bool[Array, "b"]:
    """The two say the same."""
    return jnp.all((a.valid == b.valid) & ((a.tokens == b.tokens) | ~a.valid), axis=1)
