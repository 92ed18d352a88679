"""Respond, critique, revise (arXiv 2212.08073) as one program on the device, which computes no prefix twice."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Base, Float, Int, Key
from fedjax_rai.cai.constitution import Principle
from fedjax_rai.data.examples import Examples, Prompts, encode_request, pad_left
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.text.tokenizer import Tokenizer
from fedjax_rai.train.generate import Answers, Sampling, append, sample, start


class Requests(NamedTuple):
    """The fixed texts of every principle, as tokens [principle, l], left-padded."""

    critique: Prompts
    revision: Prompts


class Chain(NamedTuple):
    """Conversations in three answers."""

    response: Answers
    critique: Answers
    revision: Answers


def encode_requests(tokenizer: Tokenizer, constitution: Sequence[Principle]) -> Requests:
    def side(texts: list[str]) -> Prompts:
        return pad_left([encode_request(tokenizer, text) for text in texts], tokenizer.pad_id)

    return Requests(side([p.critique for p in constitution]), side([p.revision for p in constitution]))


def chain(
    model: Decoder,
    base: Base,
    policy: Adapter | None,
    critic: Adapter | None,
    prompts: Prompts,
    requests: Requests,
    principle: Int[Array, "b"],
    key: Key[Array, ""],
    temperature: Float[Array, ""],
    end_ids: Int[Array, "e"],
    max_new: int,
    same: bool,
) -> Chain:
    """The policy answers each prompt at `temperature`; the critic critiques and revises, greedily.

    `same`: the critic is the policy, and goes on in its cache. Otherwise the critic (None: the base) reads the
    prompt and the answer first.
    """
    batch, length = prompts.tokens.shape
    room = requests.critique.tokens.shape[1] + requests.revision.tokens.shape[1]
    keys = jax.vmap(lambda row: rng.stream(key, "respond", row=row))(jnp.arange(batch))
    greedy = Sampling(jnp.zeros(()))

    state = start(model, batch, length + (room + 3 * max_new if same else max_new))
    state = append(model, base, policy, state, prompts.tokens, prompts.valid)
    state, response = sample(model, base, policy, state, keys, Sampling(temperature), end_ids, max_new, close=True)
    if not same:
        state = start(model, batch, length + room + 3 * max_new)
        state = append(model, base, critic, state, prompts.tokens, prompts.valid)
        state = append(model, base, critic, state, response.tokens, response.valid)

    def ask(state, texts: Prompts):
        state = append(model, base, critic, state, texts.tokens[principle], texts.valid[principle])
        return sample(model, base, critic, state, keys, greedy, end_ids, max_new, close=True)

    state, critique = ask(state, requests.critique)
    _, revision = ask(state, requests.revision)
    return Chain(response, critique, revision)


def examples(prompts: Prompts, answers: Answers) -> Examples:
    """(prompt, answer) pairs to train on, still on the device. An answer cut off or empty weighs nothing."""
    usable = answers.ended & (answers.valid.sum(axis=1) > 1)
    return Examples(
        tokens=jnp.concatenate([prompts.tokens, answers.tokens], axis=1),
        loss_mask=jnp.concatenate([jnp.zeros_like(prompts.valid), answers.valid & usable[:, None]], axis=1),
        segments=jnp.concatenate([prompts.valid, answers.valid], axis=1).astype(jnp.int32),
    )


def equal(a: Answers, b: Answers) -> Array:
    """bool[b]: the two say the same."""
    return jnp.all((a.valid == b.valid) & ((a.tokens == b.tokens) | ~a.valid), axis=1)
