"""Decoding with a KV cache: prefill, sample, append fixed text, sample again, in one program.

Slots and positions are two things. Every row writes the same slot at the same time, so the cache is updated in
place; a row that has nothing to say there (left padding, a finished answer) leaves the slot invalid, and its
positions count valid tokens only. So a ragged batch equals its rows one by one, and a conversation goes on
without computing any prefix again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.aliases import Adapter, Array, Base, Bool, Float, Int, Key
from fedjax_rai.model.attention import Sight
from fedjax_rai.model.decoder import Decoder, KVCache, empty_cache, forward_cached, unembed


class Decoding(NamedTuple):
    """Conversations under way."""

    cache: KVCache
    valid: Bool[Array, "b s"]  # the slot holds a token of this row
    position: Int[Array, "b"]  # of this row's next token
    slot: Int[Array, ""]  # next slot to write, the same for all rows
    logits: Float[Array, "b v"]  # of each row's next token


class Answers(NamedTuple):
    """What was sampled. `valid` is True up to and including the end-of-turn token."""

    tokens: Int[Array, "b t"]
    valid: Bool[Array, "b t"]
    ended: Bool[Array, "b"]  # False: cut off by the length limit


def start(model: Decoder, batch: int, slots: int) -> Decoding:
    """Empty conversations with room for `slots` tokens; a prompt comes first, by `append`."""
    config = model.config
    return Decoding(
        cache=empty_cache(config, batch, slots),
        valid=jnp.zeros((batch, slots), bool),
        position=jnp.zeros(batch, jnp.int32),
        slot=jnp.zeros((), jnp.int32),
        logits=jnp.zeros((batch, config.vocab_size), jnp.float32),
    )


def append(
    model: Decoder,
    base: Base,
    adapter: Adapter | None,
    state: Decoding,
    tokens: Int[Array, "b t"],
    valid: Bool[Array, "b t"],
) -> Decoding:
    """Feed tokens to every row. Left-padded: the last column is each row's last token, whose logits come next.

    A row whose last column is invalid adds nothing, and keeps the logits it had.
    """
    seen = jax.lax.dynamic_update_slice(state.valid, valid, (0, state.slot))
    positions = jnp.maximum(state.position[:, None] + jnp.cumsum(valid, axis=1) - 1, 0)
    key_positions = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
    sight = Sight(valid.astype(jnp.int32), positions, seen.astype(jnp.int32), key_positions)
    hidden, cache = forward_cached(model, base, adapter, tokens, sight, state.cache, state.slot)
    logits = jnp.where(valid[:, -1:], unembed(model, base, hidden[:, -1]), state.logits)
    return Decoding(cache, seen, state.position + valid.sum(axis=1), state.slot + tokens.shape[1], logits)


class Sampling(NamedTuple):
    """How the next token is drawn. The numbers are traced: changing one compiles nothing."""

    temperature: Float[Array, ""] | np.floating  # 0: the likeliest token
    # the fewest likeliest tokens that have this probability together (arXiv 1904.09751); None: all
    top_p: Float[Array, ""] | np.floating | None = None


def pick(logits: Float[Array, "b v"], keys: Key[Array, "b"], sampling: Sampling) -> Int[Array, "b"]:
    """Next tokens: the likeliest at temperature 0, else a sample; one key a row, so neighbours change nothing."""

    def drawn(logits: Array) -> Array:
        logits = logits / sampling.temperature
        logits = logits if sampling.top_p is None else _nucleus(logits, sampling.top_p)
        return logits + jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)

    # the noise of a whole vocabulary is dear where nothing is sampled
    return jnp.argmax(jax.lax.cond(sampling.temperature > 0, drawn, lambda x: x, logits), axis=-1).astype(jnp.int32)


def _nucleus(logits: Float[Array, "b v"], top_p: Float[Array, ""] | np.floating) -> Float[Array, "b v"]:
    """-inf for tokens whose likelier ones already have probability `top_p`; the likeliest is always kept."""
    falling = -jnp.sort(-logits, axis=-1)
    probability = jax.nn.softmax(falling, axis=-1)
    kept = (jnp.cumsum(probability, axis=-1) - probability < top_p).at[:, 0].set(True)
    least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def sample(
    model: Decoder,
    base: Base,
    adapter: Adapter | None,
    state: Decoding,
    keys: Key[Array, "b"],
    sampling: Sampling,
    end_ids: Int[Array, "e"],
    max_new: int,
    close: bool = False,
) -> tuple[Decoding, Answers]:
    """Let every row speak until one of `end_ids`, or `max_new` tokens; stops when all rows have.

    `close`: every answer's last token becomes `end_ids[0]`, the end-of-turn token, whether it was cut off or ended by
    another, so that a conversation can go on.
    """
    batch = state.position.shape[0]

    class Loop(NamedTuple):
        step: Array
        state: Decoding
        answers: Answers

    def going(loop: Loop) -> Array:
        return (loop.step < max_new) & ~jnp.all(loop.answers.ended)

    def speak(loop: Loop) -> Loop:
        step, now, said = loop
        token = pick(now.logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step), sampling)
        ends = jnp.isin(token, end_ids)
        if close:
            token = jnp.where(ends | (step == max_new - 1), end_ids[0], token)
        speaks = ~said.ended
        now = append(model, base, adapter, now, token[:, None], speaks[:, None])
        tokens = said.tokens.at[:, step].set(jnp.where(speaks, token, end_ids[0]))
        return Loop(step + 1, now, Answers(tokens, said.valid.at[:, step].set(speaks), said.ended | ends))

    nothing = Answers(jnp.full((batch, max_new), end_ids[0]), jnp.zeros((batch, max_new), bool), jnp.zeros(batch, bool))
    loop = jax.lax.while_loop(going, speak, Loop(jnp.zeros((), jnp.int32), state, nothing))
    return loop.state, loop.answers


def generate(
    model: Decoder,
    base: Base,
    adapter: Adapter | None,
    tokens: Int[Array, "b l"],
    valid: Bool[Array, "b l"],
    keys: Key[Array, "b"],
    sampling: Sampling,
    end_ids: Int[Array, "e"],
    max_new: int,
) -> Answers:
    """Answers to left-padded prompts."""
    state = start(model, tokens.shape[0], tokens.shape[1] + max_new)
    state = append(model, base, adapter, state, tokens, valid)
    return sample(model, base, adapter, state, keys, sampling, end_ids, max_new)[1]
