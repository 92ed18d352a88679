"""Decoding with a KV cache: prefill, sample, append fixed text, sample again, in one program.

Slots and positions are two things. Every row writes the same slot at the same time, so the cache is updated in
place; a row that has no token there (left padding, a finished answer) leaves the slot invalid, and its
positions count valid tokens only. So a ragged batch equals its rows one by one, and a conversation goes on
without computing any prefix again.
"""

from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.custom_batching import custom_vmap

from fedjax_rai.aliases import Adapter, Array, Bool, Float, Int, Key
from fedjax_rai.data.examples import Prompts
from fedjax_rai.mesh import split_rows
from fedjax_rai.model.attention import Sight
from fedjax_rai.model.cache import KVCache, empty_cache
from fedjax_rai.model.decoder import LM, Decoder, forward_cached, tell_apart, unembed
from fedjax_rai.model.lora import Pairs, paired


class DecodingState(NamedTuple):
    """Conversations under way."""

    cache: KVCache
    valid: Bool[Array, "b s"]  # the slot holds a token of this row
    key_position: Int[Array, "b s"]  # of the token in the slot, among those of its row
    position: Int[Array, "b"]  # of this row's next token
    slot: Int[Array, ""]  # next slot to write, the same for all rows
    logits: Float[Array, "b v"]  # of each row's next token


class Answers(NamedTuple):
    """What was sampled. `valid` is True up to and including the end-of-turn token.

    A row whose logits were once no numbers (NaN, an infinity), or all one number, has no answer: nothing of it is
    valid, not even an end.
    """

    tokens: Int[Array, "b t"]
    valid: Bool[Array, "b t"]
    ended: Bool[Array, "b"]  # False: cut off by the length limit


def start(model: Decoder, batch: int, slots: int) -> DecodingState:
    """Empty conversations with room for `slots` tokens; a prompt comes first, by `append`."""
    config = model.config
    return DecodingState(
        cache=empty_cache(config, batch, slots),
        valid=jnp.zeros((batch, slots), bool),
        key_position=jnp.zeros((batch, slots), jnp.int32),
        position=jnp.zeros(batch, jnp.int32),
        slot=jnp.zeros((), jnp.int32),
        logits=jnp.zeros((batch, config.vocab_size), jnp.float32),
    )


def append(
    lm: LM,
    adapter: Adapter | Pairs | None,
    state: DecodingState,
    tokens: Int[Array, "b t"],
    valid: Bool[Array, "b t"],
) -> DecodingState:
    """Feed tokens to every row. Left-padded: the last column is each row's last token, whose logits come next.

    A row whose last column is invalid adds nothing, and keeps the logits it had.
    """
    seen = jax.lax.dynamic_update_slice(state.valid, valid, (0, state.slot))
    positions = jnp.maximum(state.position[:, None] + jnp.cumsum(valid, axis=1) - 1, 0)
    key_positions = jax.lax.dynamic_update_slice(state.key_position, positions, (0, state.slot))
    sight = Sight(valid.astype(jnp.int32), positions, seen.astype(jnp.int32), key_positions)
    hidden, cache = forward_cached(lm, adapter, tokens, sight, state.cache, state.slot)
    logits = jnp.where(valid[:, -1:], unembed(lm, hidden[:, -1]), state.logits)
    position = state.position + valid.sum(axis=1)
    return DecodingState(cache, seen, key_positions, position, state.slot + tokens.shape[1], logits)


class Sampling(NamedTuple):
    """How the next token is drawn: at a temperature, from the tokens that every bound in use keeps.

    The numbers are traced: changing one compiles nothing; a bound that is None is not compiled in. Top-k comes first,
    then top-p, then min-p, each over the probabilities of what the one before left, as in transformers. The likeliest
    token is always kept, and so are all that tie with the least likely one kept.
    """

    temperature: Float[Array, ""] | np.floating  # 0: the likeliest token
    # the fewest likeliest tokens that have this probability together (arXiv 1904.09751)
    top_p: Float[Array, ""] | np.floating | None = None
    top_k: Int[Array, ""] | np.integer | None = None  # this many likeliest tokens, at least 1
    min_p: Float[Array, ""] | np.floating | None = None  # at least this times the likeliest's (arXiv 2407.01082)


def pick(logits: Float[Array, "b v"], keys: Key[Array, "b"], sampling: Sampling) -> Int[Array, "b"]:
    """Next tokens: the likeliest at temperature 0, else a sample; one key a row, so neighbours change nothing."""

    def drawn(logits: Array) -> Array:
        kept = truncated(logits / sampling.temperature, sampling)
        return kept + jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)

    # the noise of a whole vocabulary is dear where nothing is sampled
    return jnp.argmax(jax.lax.cond(sampling.temperature > 0, drawn, lambda x: x, logits), axis=-1).astype(jnp.int32)


def truncated(logits: Float[Array, "b v"], sampling: Sampling) -> Float[Array, "b v"]:
    """-inf for the tokens that top-k, top-p or min-p leaves out; the temperature is in the logits already."""
    if all(bound is None for bound in sampling[1:]):
        return logits
    likeliest = jnp.max(logits, axis=-1, keepdims=True)
    least = jnp.full_like(likeliest, -jnp.inf)
    if sampling.top_k is not None or sampling.top_p is not None:
        falling = -jnp.sort(-logits, axis=-1)
        falling = falling if sampling.top_k is None else _first(falling, sampling.top_k)
        falling = falling if sampling.top_p is None else _nucleus(falling, sampling.top_p)
        least = jnp.min(jnp.where(falling > -jnp.inf, falling, likeliest), axis=-1, keepdims=True)
    if sampling.min_p is not None:
        # a ratio of probabilities is the same whatever was left out before, so this needs no softmax
        least = jnp.maximum(least, likeliest + jnp.log(sampling.min_p))
    return jnp.where((logits >= least) | (logits == likeliest), logits, -jnp.inf)


def _first(falling: Float[Array, "b v"], top_k: Int[Array, ""] | np.integer) -> Float[Array, "b v"]:
    """-inf for falling logits below the `top_k`-th; all are kept where there are no more."""
    last = jnp.clip(top_k, 1, falling.shape[-1]) - 1
    return jnp.where(falling >= jax.lax.dynamic_slice_in_dim(falling, last, 1, axis=-1), falling, -jnp.inf)


def _nucleus(falling: Float[Array, "b v"], top_p: Float[Array, ""] | np.floating) -> Float[Array, "b v"]:
    """-inf for falling logits whose likelier ones already have probability `top_p`."""
    probability = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # the sum of a long vocabulary may round to 1 before its end
    return jnp.where((before < top_p) | (top_p >= 1), falling, -jnp.inf)


@struct.dataclass
@no_type_check  # at run time: as a pytree it may hold shapes in place of arrays
class Decoding:
    """The settings of decoding. Numbers and tokens are traced; another `max_new`, or other bounds, compile anew."""

    sampling: Sampling
    end_ids: Int[Array, "ends"] | np.ndarray  # an answer ends with any of these; the first is the end-of-turn token
    max_new: int = struct.field(pytree_node=False)  # the most tokens of an answer, its end included


@custom_vmap
def _any_active(active: Bool[Array, "b"]) -> Bool[Array, ""]:
    """Whether any row is: of all batches, under `vmap`, so that one loop drives them all.

    A condition for each of them would have XLA select, so copy, every cache whole at every token.
    """
    return active.any()


@_any_active.def_vmap
def _any_active_of_all(size: int, batched: list[bool], active: Array) -> tuple[Array, bool]:
    return _any_active(active.any(axis=0) if batched[0] else active), False


def as_computed(lm: LM, adapter: Adapter | None) -> Pairs | None:
    """The adapter as the decoder multiplies by it: made once, and not in every step of a loop."""
    return None if adapter is None else paired(lm.model.config, lm.model.lora, adapter)


class _Loop(NamedTuple):
    step: Int[Array, ""]
    state: DecodingState
    answers: Answers
    lost: Bool[Array, "b"]  # the row's logits were once no numbers, or all one


def sample(
    lm: LM,
    adapter: Adapter | None,
    state: DecodingState,
    keys: Key[Array, "b"],
    decoding: Decoding,
    close: bool = False,
) -> tuple[DecodingState, Answers]:
    """Answers of every row until one of `end_ids`, or `max_new` tokens; stops when all rows have ended.

    `close`: every answer's last token becomes `end_ids[0]`, the end-of-turn token, whether it was cut off or ended by
    another, so that a conversation can go on. A row whose logits are no numbers, or all one number, ends there, and has
    no answer.
    """
    end_ids = decoding.end_ids
    max_new = decoding.max_new
    adapter = as_computed(lm, adapter)

    def unfinished(loop: _Loop) -> Array:
        return (loop.step < max_new) & _any_active(~loop.answers.ended)

    def advance(loop: _Loop) -> _Loop:
        step, state, answers, lost = loop
        token = pick(state.logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step), decoding.sampling)
        ends = jnp.isin(token, end_ids)
        if close:
            token = jnp.where(ends | (step == max_new - 1), end_ids[0], token)
        active = ~answers.ended
        lost = lost | (active & ~tell_apart(state.logits))
        state = append(lm, adapter, state, token[:, None], active[:, None])
        tokens = answers.tokens.at[:, step].set(jnp.where(active, token, end_ids[0]))
        next_step = step + 1
        valid = answers.valid.at[:, step].set(active)
        return _Loop(next_step, state, Answers(tokens, valid, answers.ended | ends | lost), lost)

    nothing = _no_answers(len(keys), decoding)
    first = _Loop(jnp.zeros((), jnp.int32), state, nothing, jnp.zeros(len(keys), bool))
    loop = jax.lax.while_loop(unfinished, advance, first)
    answers = loop.answers
    return loop.state, answers._replace(valid=answers.valid & ~loop.lost[:, None])


def _no_answers(batch: int, decoding: Decoding) -> Answers:
    shape = (batch, decoding.max_new)
    return Answers(jnp.full(shape, decoding.end_ids[0]), jnp.zeros(shape, bool), jnp.zeros(batch, bool))


@jax.jit
def generate(lm: LM, adapter: Adapter | None, prompts: Prompts, keys: Key[Array, "b"], decoding: Decoding) -> Answers:
    """Answers to left-padded prompts, one key a row; jitted, so one program a shape for all who ask.

    The rows are split over the devices that the base lies on.
    """
    prompts, keys = split_rows((prompts, keys), lm.base)
    batch, length = prompts.tokens.shape
    state = start(lm.model, batch, length + decoding.max_new)
    state = append(lm, adapter, state, prompts.tokens, prompts.valid)
    _, answers = sample(lm, adapter, state, keys, decoding)
    return answers
