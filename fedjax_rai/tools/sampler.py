"""Answers with a setting each, in one batch, some tokens at a time; and log p of texts. What `serve` and lm-eval ask.

Programs depend on shapes alone, which are bucketed: rows on powers of two, prompts and answers on `examples.bucket`.
End tokens are padded to one width. Temperatures, bounds, limits and seeds are traced, so other ones compile nothing. In
float32 an answer is what `fedjax-rai generate` gives for its prompt alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.aliases import Adapter, Array, Bool, Float, Int, Key
from fedjax_rai.data.examples import Prompts, bucket, pad_left
from fedjax_rai.mesh import ROWS, lay, mesh_of, split_rows, ways
from fedjax_rai.model.decoder import LM, forward, tell_apart, unembed, with_gathered_head
from fedjax_rai.tools.detokenize import Written
from fedjax_rai.tools.generate import key_of
from fedjax_rai.train.generate import DecodingState, Sampling, append, pick, start
from fedjax_rai.train.losses import positions_at_once

STEPS = 8
"""Tokens between two looks of the host: at stop strings, at who went away, and to send on what there is."""
TOPS = 20
"""Likeliest tokens that are given with log p, at most."""
NO_TOKEN = -1
ENDS = 32
"""End tokens of a row, filled up with none: a stop string that is one compiles nothing."""
CHUNK_TEXTS = 16  # texts whose log p are computed at once


class Settings(NamedTuple):
    """How one answer is drawn."""

    limit: int  # the most tokens, the end included
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int = 0
    row: int = 0  # of the random key: the first answer by a seed is that of `generate`'s first prompt
    stop: tuple[str, ...] = ()  # texts that end the answer, and are not part of it
    end_ids: tuple[int, ...] = ()  # tokens that end it
    logprobs: bool = False  # log p of its tokens are wanted


class Token(NamedTuple):
    """A token, with log p under the model (not under temperature or bounds), natural."""

    id: int
    logp: float | None = None
    """None: not computed, or nothing comes before it."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place with log p, the likeliest first."""


class Piece(NamedTuple):
    """What came to an answer."""

    text: str
    tokens: tuple[Token, ...]
    """Those of the answer since the piece before, ends and stop strings left out."""
    finish: str | None = None
    """`stop`: an end or a stop string; `length`: as long as allowed; `lost`: logits are no numbers; None: goes on."""
    count: int = 0
    """With `finish`: tokens that were generated, the end included."""
    end: Token | None = None
    """The token that ended it, which is not among `tokens`; None: a stop string or the limit did."""


class Row(NamedTuple):
    """A prompt, how it is answered, and who takes what comes."""

    ids: Sequence[int]
    settings: Settings
    give: Callable[[Piece], object]
    gone: Callable[[], bool] = lambda: False
    """Whether nobody waits for the answer any more."""


class _Rows(NamedTuple):
    """The settings of a batch, as arrays, and how far its answers are."""

    keys: Key[Array, "b"]
    length: Int[Array, "b"]
    limit: Int[Array, "b"]
    active: Bool[Array, "b"]
    end_ids: Int[Array, "b ends"]
    sampling: Sampling  # an entry a row


class _Made(NamedTuple):
    """Tokens that were generated; of `logps` and `tops` nothing where they were not asked for."""

    tokens: Int[Array, "b t"]
    valid: Bool[Array, "b t"]
    lost: Bool[Array, "b"]
    logps: Float[Array, "b t"]
    top_ids: Int[Array, "b t tops"]
    top_logps: Float[Array, "b t tops"]


def draw(logits: Float[Array, "b v"], keys: Key[Array, "b"], sampling: Sampling) -> Int[Array, "b"]:
    """The next token of each row by its own settings: what `pick` gives for the row alone."""

    def of_row(logits: Array, key: Array, of_row: Sampling) -> Array:
        return pick(logits[None], key[None], of_row)[0]

    def drawn() -> Array:
        return jax.vmap(of_row)(logits, keys, sampling)

    def likeliest() -> Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return jax.lax.cond(jnp.any(sampling.temperature > 0), drawn, likeliest)


@partial(jax.jit, static_argnames="slots")
def begin(lm: LM, adapter: Adapter | None, prompts: Prompts, slots: int) -> DecodingState:
    """Left-padded prompts, read; with room for `slots` tokens."""
    prompts = split_rows(prompts, lm.base)
    state = start(lm.model, prompts.tokens.shape[0], slots)
    return _laid(append(lm, adapter, state, prompts.tokens, prompts.valid), lm)


def _laid(state: DecodingState, lm: LM) -> DecodingState:
    """The state with its rows dealt out to the devices, the same from one program to the next."""
    mesh = mesh_of(lm.base)
    others = split_rows(state._replace(cache=(), slot=()), lm.base)
    return others._replace(cache=lay(state.cache, mesh, {1: ROWS}), slot=state.slot)


class _Loop(NamedTuple):
    step: Int[Array, ""]
    state: DecodingState
    rows: _Rows
    made: _Made


@partial(jax.jit, static_argnames="tops", donate_argnames="state")
def go_on(
    lm: LM, adapter: Adapter | None, state: DecodingState, rows: _Rows, tops: int | None
) -> tuple[DecodingState, _Rows, _Made]:
    """At most `STEPS` tokens more of every active row; `tops`: likeliest tokens with log p, None: no log p at all."""
    batch = len(rows.length)
    width = tops or 0
    nothing = _Made(
        tokens=jnp.zeros((batch, STEPS), jnp.int32),
        valid=jnp.zeros((batch, STEPS), bool),
        lost=jnp.zeros(batch, bool),
        logps=jnp.zeros((batch, STEPS), jnp.float32),
        top_ids=jnp.zeros((batch, STEPS, width), jnp.int32),
        top_logps=jnp.zeros((batch, STEPS, width), jnp.float32),
    )

    def unfinished(loop: _Loop) -> Array:
        return (loop.step < STEPS) & loop.rows.active.any()

    def advance(loop: _Loop) -> _Loop:
        step, state, rows, made = loop
        keys = jax.vmap(jax.random.fold_in)(rows.keys, rows.length)
        token = draw(state.logits, keys, rows.sampling)
        lost = rows.active & ~tell_apart(state.logits)
        made = made._replace(
            tokens=made.tokens.at[:, step].set(token),
            valid=made.valid.at[:, step].set(rows.active),
            lost=made.lost | lost,
        )
        if tops is not None:
            made = _with_logps(made, step, state.logits, token)
        ends = (token[:, None] == rows.end_ids).any(axis=1)
        length = rows.length + rows.active
        state = append(lm, adapter, state, token[:, None], rows.active[:, None])
        active = rows.active & ~ends & ~lost & (length < rows.limit)
        return _Loop(step + 1, state, rows._replace(length=length, active=active), made)

    first = _Loop(jnp.zeros((), jnp.int32), state, rows, nothing)
    loop = jax.lax.while_loop(unfinished, advance, first)
    return _laid(loop.state, lm), loop.rows, loop.made


def _with_logps(made: _Made, step: Int[Array, ""], logits: Float[Array, "b v"], token: Int[Array, "b"]) -> _Made:
    logps = jax.nn.log_softmax(logits, axis=-1)
    top_logps, top_ids = jax.lax.top_k(logps, made.top_ids.shape[2])
    return made._replace(
        logps=made.logps.at[:, step].set(jnp.take_along_axis(logps, token[:, None], axis=1)[:, 0]),
        top_ids=made.top_ids.at[:, step].set(top_ids.astype(jnp.int32)),
        top_logps=made.top_logps.at[:, step].set(top_logps),
    )


class Scores(NamedTuple):
    """Log p of what follows each token, float32, and the likeliest tokens there."""

    logps: Float[Array, "b l"]
    top_ids: Int[Array, "b l tops"]
    top_logps: Float[Array, "b l tops"]


@partial(jax.jit, static_argnames="tops")
def scored(
    lm: LM,
    adapter: Adapter | None,
    tokens: Int[Array, "b l"],
    targets: Int[Array, "b l"],
    valid: Bool[Array, "b l"],
    tops: int,
) -> Scores:
    """Log p of each target after the tokens up to its place, and the `tops` likeliest; logits are held in slices."""
    tokens, targets, valid = split_rows((tokens, targets, valid), lm.base)
    rows, positions = tokens.shape
    hidden = forward(lm, adapter, tokens, valid)
    lm = with_gathered_head(lm, tokens.size)
    width = positions_at_once(rows, positions, lm.model.config.vocab_size, ways(mesh_of(lm.base)))
    missing = -positions % width

    def sliced(array: Array) -> Array:
        filled = jnp.pad(array, ((0, 0), (0, missing)) + ((0, 0),) * (array.ndim - 2))
        return jnp.moveaxis(filled.reshape(rows, -1, width, *array.shape[2:]), 1, 0)

    def of_slice(arrays: tuple[Array, Array]) -> Scores:
        hidden, targets = arrays
        logps = jax.nn.log_softmax(unembed(lm, hidden), axis=-1)
        top_logps, top_ids = jax.lax.top_k(logps, tops)
        chosen = jnp.take_along_axis(logps, targets[..., None], axis=-1)[..., 0]
        return Scores(chosen, top_ids.astype(jnp.int32), top_logps)

    found = jax.lax.map(of_slice, (sliced(hidden), sliced(targets)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, -1, *x.shape[3:])[:, :positions], found)


class Model(NamedTuple):
    """A model that answers: as `generate.load` gives it."""

    lm: LM
    adapter: Adapter | None
    tokenizer: Any
    """`text.tokenizer.Tokenizer`."""
    dtype: str
    longest: int | None
    """The most tokens of prompt and answer together; None: no limit is known."""

    @property
    def vocabulary(self) -> int:
        return self.lm.model.config.vocab_size

    @property
    def precision(self) -> Any:
        """float32 is asked for to compare, so no TF32 in its products."""
        return jax.default_matmul_precision("highest" if self.dtype == "float32" else "default")


def padded_rows(count: int, parts: int) -> int:
    """The rows of a batch of so many answers: a power of two, and as many on each of `parts` devices."""
    rows = 1
    while rows < count:
        rows *= 2
    return parts * -(-rows // parts)


def fitting(rows: Sequence[Row], most: int, longest: int | None) -> int:
    """How many of these rows, from the first on, go into one batch: `most`, and the longest prompt and limit fit."""
    prompt = 0
    limit = 0
    for i, row in enumerate(rows[:most]):
        prompt = max(prompt, len(row.ids))
        limit = max(limit, row.settings.limit)
        if i and longest is not None and prompt + limit > longest:
            return i
    return min(len(rows), most)


def answer(model: Model, rows: Sequence[Row]) -> None:
    """Answers the prompts of one batch (`fitting`), and gives each row the pieces of its answer as they come."""
    count = padded_rows(len(rows), ways(mesh_of(model.lm.base)))
    filled = [rows[i % len(rows)] for i in range(count)]
    limit = max(row.settings.limit for row in rows)
    length = max(len(row.ids) for row in rows)
    most = None if model.longest is None else max(model.longest - limit, length)
    prompts = pad_left([row.ids for row in filled], 0, most)
    slots = prompts.tokens.shape[1] + bucket(limit)
    if model.longest is not None:
        slots = min(slots, max(model.longest, prompts.tokens.shape[1] + limit))
    settings = _as_arrays([row.settings for row in filled], len(rows), model.vocabulary)
    tops = min(TOPS, model.vocabulary) if any(row.settings.logprobs for row in rows) else None
    answers = [_Answer(row, model.tokenizer.decode) for row in rows]
    with model.precision:
        state = begin(model.lm, model.adapter, prompts, slots)
        while True:
            state, after, made = go_on(model.lm, model.adapter, state, settings, tops)
            host, length, going = jax.tree.map(np.array, (made, after.length, after.active))
            for i, under_way in enumerate(answers):
                going[i] &= under_way.take(host, i)
            if not going.any():
                return
            # from the host, as the first time: what a program gives may lie elsewhere, and would compile it again
            settings = settings._replace(length=jnp.asarray(length), active=jnp.asarray(going))


def padded_ends(each: Sequence[Sequence[int]]) -> np.ndarray:
    """The end tokens of each row, in one width whatever is asked for."""
    filled = np.full((len(each), bucket(max(map(len, each)), ENDS)), NO_TOKEN, np.int32)
    for row, ends in zip(filled, each, strict=True):
        row[: len(ends)] = ends
    return filled


def _as_arrays(each: Sequence[Settings], count: int, vocabulary: int) -> _Rows:
    """The settings of a batch; rows from `count` on only fill it up. A bound that no row has is not computed."""
    seeds = np.array([settings.seed for settings in each], np.uint32)
    numbers = np.array([settings.row for settings in each], np.int32)
    top_k = [min(settings.top_k or vocabulary, vocabulary) for settings in each]
    bounded = any(settings[2:5] != (None, None, None) for settings in each)
    temperature = np.array([settings.temperature for settings in each], np.float32)
    sampling = Sampling(jnp.asarray(temperature))
    if bounded:
        sampling = sampling._replace(
            top_p=np.array([1.0 if settings.top_p is None else settings.top_p for settings in each], np.float32),
            top_k=np.array(top_k, np.int32),
            min_p=np.array([settings.min_p or 0.0 for settings in each], np.float32),
        )
    rows = _Rows(
        keys=(),  # pyright: ignore[reportArgumentType]
        length=np.zeros(len(each), np.int32),  # pyright: ignore[reportArgumentType]
        limit=np.array([settings.limit for settings in each], np.int32),  # pyright: ignore[reportArgumentType]
        active=np.arange(len(each)) < count,  # pyright: ignore[reportArgumentType]
        end_ids=padded_ends([settings.end_ids for settings in each]),  # pyright: ignore[reportArgumentType]
        sampling=sampling,
    )
    return jax.tree.map(jnp.asarray, rows)._replace(keys=_keys(jnp.asarray(seeds), jnp.asarray(numbers)))


@jax.jit
def _keys(seeds: Array, numbers: Array) -> Array:
    """The random key of each answer: `generate`'s for the prompt of that number."""
    return jax.vmap(key_of)(seeds, numbers)


class _Answer:
    """An answer under way, on the host."""

    def __init__(self, row: Row, decode: Callable[[Sequence[int]], str]):
        self._row = row
        self._written = Written(decode, row.settings.stop)
        self._count = 0

    def take(self, made: _Made, place: int) -> bool:
        """Gives on what came to the answer in this row of a batch; whether it goes on."""
        if not made.valid[place].any():
            return False
        if self._row.gone():
            return False
        settings = self._row.settings
        tokens = []
        finish = None
        end = None
        for step in np.flatnonzero(made.valid[place]).tolist():
            token = int(made.tokens[place, step])
            self._count += 1
            if token in settings.end_ids:
                finish = "stop"
                end = _token(made, place, step, settings.logprobs)
                break
            before = self._written.is_stopped
            self._written.add(token)
            if self._written.is_stopped and not before:
                finish = "stop"
                if self._written.holds_last:
                    tokens.append(_token(made, place, step, settings.logprobs))
                break
            tokens.append(_token(made, place, step, settings.logprobs))
            if self._count == settings.limit:
                finish = "length"
        if made.lost[place]:
            finish = "lost"
        text = self._written.rest() if finish else self._written.ready()
        if text or tokens or finish:
            self._row.give(Piece(text, tuple(tokens), finish, self._count if finish else 0, end))
        return finish is None


def _token(made: _Made, place: int, step: int, logprobs: bool) -> Token:
    token = int(made.tokens[place, step])
    if not logprobs:
        return Token(token)
    return Token(token, float(made.logps[place, step]), _tops(made.top_ids[place, step], made.top_logps[place, step]))


def _tops(ids: Any, logps: Any) -> tuple[tuple[int, float], ...]:
    return tuple(zip(ids.tolist(), logps.tolist(), strict=True))


def score(model: Model, texts: Sequence[Sequence[int]], tops: int = 1) -> Iterator[list[Token]]:
    """The tokens of each text with log p, given those before, in order; the first one has none.

    `tops`: how many likeliest tokens are given with each. A text of one token costs nothing.
    """
    width = 1 if tops <= 1 else min(TOPS, model.vocabulary)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: dict[int, list[Token]] = {}
    count = padded_rows(min(CHUNK_TEXTS, len(texts)), ways(mesh_of(model.lm.base)))
    for first in range(0, len(order), count):
        chunk = order[first : first + count]
        for i, tokens in zip(chunk, _score_batch(model, [texts[i] for i in chunk], width, count), strict=True):
            found[i] = [token._replace(top=token.top[:tops]) for token in tokens]
    for i in range(len(texts)):
        yield found.pop(i)


def has_numbers(tokens: Sequence[Token]) -> bool:
    """Whether log p of these tokens are numbers; log 0 is one, NaN is not."""
    return not any(token.logp is not None and math.isnan(token.logp) for token in tokens)


def _score_batch(model: Model, texts: Sequence[Sequence[int]], tops: int, rows: int) -> Iterator[list[Token]]:
    longest = max(len(ids) for ids in texts)
    if longest < 2:
        yield from ([Token(token) for token in ids] for ids in texts)
        return
    length = bucket(longest - 1)
    if model.longest is not None:
        length = max(min(length, model.longest), longest - 1)
    tokens = np.zeros((rows, length), np.int32)
    targets = np.zeros((rows, length), np.int32)
    valid = np.zeros((rows, length), bool)
    for row in range(rows):
        ids = texts[row % len(texts)]
        tokens[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = ids[1:]
        valid[row, : len(ids) - 1] = True
    with model.precision:
        found = scored(model.lm, model.adapter, *map(jnp.asarray, (tokens, targets, valid)), tops)
    logps, top_ids, top_logps = map(np.asarray, found)
    for row, ids in enumerate(texts):
        read = [Token(ids[0])] if len(ids) else []
        for place, token in enumerate(ids[1:]):
            read.append(Token(token, float(logps[row, place]), _tops(top_ids[row, place], top_logps[row, place])))
        yield read
