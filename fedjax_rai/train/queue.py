"""Answers to more prompts than there are rows: a row whose answer has ended takes the next prompt that waits.

The slots of the KV cache are a ring: every row writes the same slot at the same time, the slot behind the last is the
first, and the prompt of a row that begins anew is written to the slots just before the present one, where only what
that row has done with is overwritten. So the rows stay as they are for all prompts, and no cache is gathered.

`answer_all` dispatches one program for each batch of prompts. A program ends when its prompts have found rows and
further rows are free; what is unfinished goes on in the next one, and the last one ends with all answers. The host
waits for none of them.

`answer_in_turns` does the same where each text begins a conversation of several answers. A row whose answer has ended
is given what comes next: its cache is moved so that it ends just before the present slot, with room for the request,
which alone is read. A cache that waits for that is not written over: see `slots_of`.

What it saves depends on how much answers differ in length. Of 520 answers to harmful requests, six in ten refusals of
about 30 tokens and the others of about 150 (log-normal, deviations 0.5 and 0.7), cut off at 256, 16 rows take 8,102
steps in batches and 3,099 here; no order could take less than 2,876. Where most answers are cut off, as two of three
are at 32 tokens, it is 288 and 261 steps of 64 rows. `steps_in_batches` and `steps_in_queue` count them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_rai.aliases import Adapter, Array, Bool, Int, Key
from fedjax_rai.data.examples import Prompts, length_batches
from fedjax_rai.mesh import ROWS, mesh_of, split_rows, ways
from fedjax_rai.model.decoder import LM, tell_apart
from fedjax_rai.model.lora import Pairs
from fedjax_rai.train.generate import Answers, Decoding, DecodingState, append, as_computed, generate, pick, start
from fedjax_rai.train.speaker import Speaker

NONE = -1
"""The number of no prompt."""
PAD = 0
"""What a prompt is padded with: any token, as none of them is seen."""


class FollowUps(NamedTuple):
    """What conversations go on with after each of their answers but the last."""

    texts: Prompts  # [k, l], left-padded: all that any of them goes on with
    chosen: Int[Array, "n further"] | np.ndarray  # of these texts, by conversation and turn


class Queue(NamedTuple):
    """Prompts that wait. Numbers are traced: however many there are, and whether others follow, compiles nothing."""

    prompts: Prompts  # [n, l], left-padded
    keys: Key[Array, "n"] | np.ndarray
    numbers: Int[Array, "n"] | np.ndarray  # by which the answers are known, from 0 on
    count: Int[Array, ""] | np.integer  # prompts; rows behind them only fill the arrays
    last: Bool[Array, ""] | np.bool_  # no other queue follows, so all rows are decoded to their ends
    follow_ups: FollowUps | None = None  # None: each prompt is answered once


class Rows(NamedTuple):
    """Answers under way, each in a row of its own."""

    state: DecodingState  # its slots are a ring: `slot` is the one that was written longest ago
    number: Int[Array, "b"]  # of the prompt that is answered; NONE: the row waits for one
    keys: Key[Array, "b"]
    tokens: Int[Array, "b t"]  # of the answer
    length: Int[Array, "b"]  # of the answer so far
    ended: Bool[Array, "b"]
    lost: Bool[Array, "b"]  # the row's logits were once no numbers, or all one
    written: Bool[Array, "b"]  # the answer, which has ended, is in a `Finished`
    turn: Int[Array, "b"]  # answers that the conversation had before this one
    chosen: Int[Array, "b further"] | None  # what the conversation goes on with, in turn; None: each has one answer
    idle: Int[Array, "b"]  # steps since the answer ended

    @property
    def further(self) -> int:
        """Answers of a conversation after its first one."""
        return 0 if self.chosen is None else self.chosen.shape[1]


class Finished(NamedTuple):
    """Answers in the order in which they ended. `number` is NONE in rows that hold no answer."""

    number: Int[Array, "m"]
    turn: Int[Array, "m"]  # answers that the conversation had before
    answers: Answers  # [m, t]


def steps_in_batches(lengths: Sequence[int], rows: int) -> int:
    """Decode steps, each of `rows` rows, where each batch of consecutive answers goes on until its longest ends.

    `lengths`: tokens of each answer, its end included.
    """
    return sum(max(lengths[begin : begin + rows]) for begin in range(0, len(lengths), rows))


def steps_in_queue(lengths: Sequence[int], rows: int, at_once: int) -> int:
    """Decode steps, each of `rows` rows, where rows take the next prompts whenever `at_once` of them are free.

    `lengths`: tokens of each answer in the order of its prompt, its end included.
    """
    left = np.zeros(rows, int)  # tokens that each row has yet to decode
    waiting = list(lengths)
    steps = 0
    while waiting or left.any():
        free = np.flatnonzero(left == 0)[:at_once]
        for row in free[: len(waiting)]:
            left[row] = waiting.pop(0)
        # until enough rows are free or, where nobody waits, all are
        needed = at_once if waiting else rows
        until = np.sort(left)[needed - 1]
        steps += int(until)
        left = np.maximum(left - until, 0)
    return steps


def refilled_at_once(rows: int, parts: int = 1) -> int:
    """How many rows begin anew together: about an eighth of those of each of `parts` devices; half as many wait idle.

    Prompts are read by so many; by fewer, a kernel would be read for a few tokens. It divides the rows, which so are
    all given prompts at first.
    """
    each = rows // parts
    divisors = [size for size in range(1, max(1, each // 8) + 1) if each % size == 0]
    return parts * divisors[-1]


def answer_all(
    lm: LM,
    adapter: Adapter | None,
    texts: Sequence[Sequence[int]],
    keys: Key[Array, "n"],
    decoding: Decoding,
    rows: int,
) -> Iterator[Finished]:
    """Dispatches programs that answer texts (token ids), one key each, shortest first, in at least `rows` rows at once.

    Each item is what one program finishes; together they have the answer to every text, by its place among `texts`.
    An answer is what `generate` gives for its text alone (in float32; in bfloat16 but for rounding).
    """
    rows = _on_every_device(rows, lm)
    if len(texts) > rows:
        yield from _dispatch(Speaker(lm, adapter), texts, keys, None, decoding, rows)
        return
    yield from answer_in_batches(lm, adapter, texts, keys, decoding, rows)  # nobody waits, so nothing is to be refilled


def answer_in_batches(
    lm: LM,
    adapter: Adapter | None,
    texts: Sequence[Sequence[int]],
    keys: Key[Array, "n"],
    decoding: Decoding,
    rows: int,
) -> Iterator[Finished]:
    """What `answer_all` gives, by one batch after another, each decoded until its longest answer has ended."""
    for places, prompts in length_batches(texts, rows, PAD, _most_padding(lm, texts, decoding.max_new)):
        filled = np.resize(places, rows)
        numbers = np.where(np.arange(rows) < len(places), filled, NONE)
        answers = generate(lm, adapter, prompts, keys[filled], decoding)
        yield Finished(numbers, np.zeros(rows, np.int32), answers)  # pyright: ignore


def answer_in_turns(
    speaker: Speaker,
    texts: Sequence[Sequence[int]],
    keys: Key[Array, "n"],
    follow_ups: FollowUps,
    decoding: Decoding,
    rows: int,
) -> Iterator[Finished]:
    """Dispatches programs that answer texts (token ids), each of which then goes on: text, answer, text, answer.

    As `answer_all`, but that every answer ends with `decoding.end_ids[0]`, whether it was cut off or ended by another:
    the last token is that one's in its place, as where `generate.sample` closes answers.
    """
    yield from _dispatch(speaker, texts, keys, follow_ups, decoding, _on_every_device(rows, speaker.lm))


def _on_every_device(rows: int, lm: LM) -> int:
    """The least number of rows, at least so many, that is the same on every device."""
    parts = ways(mesh_of(lm.base))
    return parts * -(-rows // parts)


def _dispatch(
    speaker: Speaker,
    texts: Sequence[Sequence[int]],
    keys: Key[Array, "n"],
    follow_ups: FollowUps | None,
    decoding: Decoding,
    rows: int,
) -> Iterator[Finished]:
    lm, adapter = speaker
    further = 0 if follow_ups is None else follow_ups.chosen.shape[1]
    request = 0 if follow_ups is None else follow_ups.texts.tokens.shape[1]
    behind = slots_of(0, request, further, decoding.max_new)
    batches = -(-len(texts) // rows)
    under_way: Rows | None = None
    padded = length_batches(texts, rows, PAD, _most_padding(lm, texts, behind))
    for turn, (places, prompts) in enumerate(padded, 1):
        filled = np.resize(places, rows)
        slots = prompts.tokens.shape[1] + behind
        under_way = begin(lm, rows, slots, decoding, further) if under_way is None else with_slots(lm, under_way, slots)
        follow = None if follow_ups is None else follow_ups._replace(chosen=follow_ups.chosen[filled])
        queue = Queue(prompts, keys[filled], filled, np.int32(len(places)), np.bool_(turn == batches), follow)
        under_way, finished = serve(lm, adapter, under_way, queue, decoding)
        yield finished


def slots_of(prompt: int, request: int, further: int, max_new: int) -> int:
    """Slots of a ring for conversations of a prompt and an answer, then `further` times a request and an answer.

    They are those of the longest one. An answer and the wait for a request take 2 * `max_new` steps at most, each of
    which writes a slot of every row. Before each answer but the last the conversation is `max_new + request` shorter
    than the longest, so that these steps end before its first slot.
    """
    return prompt + max_new + further * (request + max_new)


def _most_padding(lm: LM, texts: Sequence[Sequence[int]], behind: int) -> int | None:
    """The length that a prompt is padded to at most, so that with `behind` more tokens it is in the model's limit."""
    longest = lm.model.config.longest
    if longest is None:
        return None
    given = max((len(ids) for ids in texts), default=0)
    return max(longest - behind, given)


# The base, of which nothing is read, says where rows are to lie: what is not kept is not seen.
@partial(jax.jit, static_argnames=("rows", "slots", "further"), keep_unused=True)
def begin(lm: LM, rows: int, slots: int, decoding: Decoding, further: int = 0) -> Rows:
    """Rows that all wait, with a ring of so many slots; see `slots_of`."""
    empty = jnp.zeros(rows, bool)
    nothing = jnp.zeros(rows, jnp.int32)
    tokens = jnp.zeros((rows, decoding.max_new), jnp.int32)
    keys = jax.random.split(jax.random.key(0), rows)  # of no row: each gets its key with its prompt
    state = start(lm.model, rows, slots)
    chosen = jnp.zeros((rows, further), jnp.int32) if further else None
    fresh = Rows(state, nothing + NONE, keys, tokens, nothing, empty, empty, empty, nothing, chosen, nothing)
    return _laid(fresh, mesh_of(lm.base))


def with_slots(lm: LM, rows: Rows, slots: int) -> Rows:
    """The same rows with a ring of `slots`, where it has fewer."""
    missing = slots - rows.state.valid.shape[1]
    return rows if missing <= 0 else _with_further_slots(lm, rows, missing)


@partial(jax.jit, static_argnames="further")
def _with_further_slots(lm: LM, rows: Rows, further: int) -> Rows:
    state = rows.state
    slots = state.valid.shape[1]
    by_age = (state.slot + jnp.arange(slots)) % slots  # the oldest first, so that the new ones come next

    def longer(leaf: Array, axis: int) -> Array:
        widths = [(0, 0)] * leaf.ndim
        widths[axis] = (0, further)
        return jnp.pad(jnp.take(leaf, by_age, axis), widths)

    cache = jax.tree.map(lambda leaf: longer(leaf, 2), state.cache)
    state = state._replace(
        cache=cache,
        valid=longer(state.valid, 1),
        key_position=longer(state.key_position, 1),
        slot=jnp.full((), slots, jnp.int32),
    )
    return _laid(rows._replace(state=state), mesh_of(lm.base))


def _laid(rows: Rows, mesh: Mesh | AbstractMesh) -> Rows:
    """Rows dealt out to the devices, the same from one program to the next; heads and vocabulary over `tensor`.

    Also where there is one device: what a program gives lies on the mesh, and is no other input for the next.
    """
    if not mesh.shape:
        return rows

    def lay(leaf: Array, *axes: tuple[str, ...] | str | None) -> Array:
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*axes)))

    state = rows.state
    heads = "tensor" if jax.tree.leaves(state.cache)[0].shape[3] % mesh.shape["tensor"] == 0 else None
    cache = jax.tree.map(lambda leaf: lay(leaf, None, ROWS, None, heads), state.cache)
    slot = lay(state.slot)
    vocabulary = "tensor" if state.logits.shape[1] % mesh.shape["tensor"] == 0 else None  # as the unembedding lies
    logits = lay(state.logits, ROWS, vocabulary)
    rest = state._replace(cache=(), slot=(), logits=())
    others = jax.tree.map(lambda leaf: lay(leaf, ROWS), rows._replace(state=rest))
    return others._replace(state=others.state._replace(cache=cache, slot=slot, logits=logits))


class _Loop(NamedTuple):
    rows: Rows
    taken: Int[Array, ""]  # prompts of the queue that have a row, or had one
    finished: Finished
    written: Int[Array, ""]  # answers in `finished`


@partial(jax.jit, donate_argnames="rows")
def serve(lm: LM, adapter: Adapter | None, rows: Rows, queue: Queue, decoding: Decoding) -> tuple[Rows, Finished]:
    """Gives every prompt of a queue a row, and decodes until enough rows are free for the next queue.

    `Finished` has a place for each answer of each row and each prompt; after the last queue all rows have ended.
    """
    mesh = mesh_of(lm.base)
    parts = ways(mesh)
    at_once = refilled_at_once(len(rows.number), parts)
    adapter = as_computed(lm, adapter)
    shape = parts, at_once // parts

    def to_do(loop: _Loop) -> Array:
        busy = _active(loop.rows, decoding) | _goes_on(loop.rows, decoding)
        return (loop.taken < queue.count) | (queue.last & busy.any())

    def refill_and_decode(loop: _Loop) -> _Loop:
        loop = _finish(loop, decoding)
        rows, taken = _read_next(lm, adapter, loop, queue, decoding, shape)
        nobody_waits = queue.last & (taken >= queue.count)

        def unfinished(rows: Rows) -> Array:
            active, goes_on = _active(rows, decoding), _goes_on(rows, decoding)
            free = jnp.sum(jnp.where(nobody_waits, goes_on, ~active))
            return active.any() & (free < at_once) & ~_late(rows, goes_on, decoding)

        rows = jax.lax.while_loop(unfinished, partial(_advance, lm, adapter, decoding), rows)
        return loop._replace(rows=rows, taken=taken)

    zero = jnp.zeros((), jnp.int32)
    most = (len(queue.numbers) + len(rows.number)) * (1 + rows.further)
    loop = _Loop(_laid(rows, mesh), zero, _nothing_finished(most, decoding), zero)
    loop = _finish(jax.lax.while_loop(to_do, refill_and_decode, loop), decoding)
    return _laid(loop.rows, mesh), loop.finished


def _active(rows: Rows, decoding: Decoding) -> Bool[Array, "b"]:
    return (rows.number != NONE) & ~rows.ended & (rows.length < decoding.max_new)


def _goes_on(rows: Rows, decoding: Decoding) -> Bool[Array, "b"]:
    """Whether the row's answer has ended, and its conversation has not."""
    return (rows.number != NONE) & ~_active(rows, decoding) & (rows.turn < rows.further)


def _late(rows: Rows, goes_on: Bool[Array, "b"], decoding: Decoding) -> Bool[Array, ""]:
    """Whether some conversation must go on now, before steps of others come round to its first slot."""
    return (goes_on & (rows.idle >= decoding.max_new)).any()


def _nothing_finished(size: int, decoding: Decoding) -> Finished:
    tokens = jnp.full((size, decoding.max_new), decoding.end_ids[0], jnp.int32)
    answers = Answers(tokens, jnp.zeros(tokens.shape, bool), jnp.zeros(size, bool))
    return Finished(jnp.full(size, NONE, jnp.int32), jnp.zeros(size, jnp.int32), answers)


def _finish(loop: _Loop, decoding: Decoding) -> _Loop:
    """Writes down the answers that have ended, or are as long as they may be; their rows wait for what comes next."""
    rows = loop.rows
    done = (rows.number != NONE) & ~_active(rows, decoding) & ~rows.written
    nowhere = len(loop.finished.number)
    place = jnp.where(done, loop.written + jnp.cumsum(done) - 1, nowhere)
    valid = (jnp.arange(decoding.max_new)[None, :] < rows.length[:, None]) & ~rows.lost[:, None]
    tokens = jnp.where(valid, rows.tokens, decoding.end_ids[0])
    found = Finished(rows.number, rows.turn, Answers(tokens, valid, rows.ended))
    finished = jax.tree.map(lambda old, new: old.at[place].set(new, mode="drop"), loop.finished, found)
    over = done & ~_goes_on(rows, decoding)
    rows = rows._replace(number=jnp.where(over, NONE, rows.number), written=rows.written | done)
    return loop._replace(rows=rows, finished=finished, written=loop.written + jnp.sum(done))


def _read_next(
    lm: LM, adapter: Pairs | None, loop: _Loop, queue: Queue, decoding: Decoding, shape: tuple[int, int]
) -> tuple[Rows, Int[Array, ""]]:
    """(rows, prompts taken) after some rows have read what comes next: prompts or, where more wait for them, requests.

    At most `shape` = (parts of the rows, rows of each part). Each part, which lies on a device, fills rows of its own,
    so that no cache travels.
    """
    rows, taken = loop.rows, loop.taken
    next_prompts = partial(_next_prompts, lm, adapter, queue=queue, shape=shape)
    if queue.follow_ups is None:
        fresh, target, taken = next_prompts(rows, taken)
        return _with(rows, fresh, target), taken
    goes_on = _goes_on(rows, decoding)
    begins = jnp.where(taken < queue.count, jnp.sum(rows.number == NONE), 0)
    fresh, target, taken = jax.lax.cond(
        _late(rows, goes_on, decoding) | (jnp.sum(goes_on) > begins),
        partial(_next_requests, lm, adapter, texts=queue.follow_ups.texts, goes_on=goes_on, shape=shape),
        next_prompts,
        rows,
        taken,
    )
    # Outside of the condition, which would have XLA copy the cache of all rows.
    return _with(rows, fresh, target), taken


def _next_prompts(
    lm: LM, adapter: Pairs | None, rows: Rows, taken: Int[Array, ""], queue: Queue, shape: tuple[int, int]
) -> tuple[Rows, Int[Array, "parts each"], Int[Array, ""]]:
    """(rows that have read the next prompts, in place of which others, prompts taken)."""
    parts, each = shape
    waits = (rows.number == NONE).reshape(parts, -1)
    place = jnp.argsort(~waits, axis=1, stable=True)[:, :each]
    free = jnp.take_along_axis(waits, place, axis=1)
    ticket = taken + jnp.cumsum(free.reshape(-1)) - 1
    used = free.reshape(-1) & (ticket < queue.count)
    target = jnp.where(used.reshape(parts, each), place, waits.shape[1])  # beyond the last: dropped
    ticket = jnp.where(used, ticket, 0)

    tokens, valid = split_rows((queue.prompts.tokens[ticket], queue.prompts.valid[ticket] & used[:, None]), lm.base)
    state = append(lm, adapter, start(lm.model, parts * each, tokens.shape[1]), tokens, valid)
    number = jnp.asarray(queue.numbers, jnp.int32)[ticket]
    chosen = None if queue.follow_ups is None else jnp.asarray(queue.follow_ups.chosen, jnp.int32)[ticket]
    fresh = _about_to_answer(rows, state, number, queue.keys[ticket], jnp.zeros_like(number), chosen)
    return fresh, target, taken + jnp.sum(used)


def _next_requests(
    lm: LM,
    adapter: Pairs | None,
    rows: Rows,
    taken: Int[Array, ""],
    texts: Prompts,
    goes_on: Bool[Array, "b"],
    shape: tuple[int, int],
) -> tuple[Rows, Int[Array, "parts each"], Int[Array, ""]]:
    """The same of requests, read behind the conversations that have waited longest.

    It has the parameters of `_next_prompts`, of which it is the other branch, and who goes on.
    """
    parts, each = shape
    waited = jnp.where(goes_on, rows.idle + 1, 0).reshape(parts, -1)
    place = jnp.argsort(-waited, axis=1, stable=True)[:, :each]
    used = jnp.take_along_axis(waited, place, axis=1) > 0
    target = jnp.where(used, place, waited.shape[1])  # beyond the last: dropped

    old = _of(rows, place)
    request = jnp.take_along_axis(old.chosen, old.turn[:, None], axis=1)[:, 0]  # pyright: ignore
    tokens, valid = split_rows((texts.tokens[request], texts.valid[request] & used.reshape(-1, 1)), lm.base)
    state = append(lm, adapter, _before_request(old.state, tokens.shape[1]), tokens, valid)
    return _about_to_answer(rows, state, old.number, old.keys, old.turn + 1, old.chosen), target, taken


def _before_request(state: DecodingState, request: int) -> DecodingState:
    """The same conversations, in order, so that a request of that length is next and fills the last slots."""
    slots = state.valid.shape[1]
    by_age = (state.slot + jnp.arange(slots)) % slots
    packed = jnp.argsort(state.valid[:, by_age], axis=1, stable=True)  # what is no token comes first
    source = by_age[jnp.roll(packed, -request, axis=1)]
    take = jax.vmap(partial(jnp.take, axis=1), in_axes=(1, 0), out_axes=1)  # of [L, b, s, ...]
    return state._replace(
        cache=jax.tree.map(lambda leaf: take(leaf, source), state.cache),
        valid=jnp.take_along_axis(state.valid, source, axis=1),
        key_position=jnp.take_along_axis(state.key_position, source, axis=1),
        slot=jnp.full((), slots - request, jnp.int32),
    )


def _about_to_answer(
    among: Rows,
    state: DecodingState,
    number: Int[Array, "f"],
    keys: Key[Array, "f"],
    turn: Int[Array, "f"],
    chosen: Int[Array, "f further"] | None,
) -> Rows:
    """Rows that have read all of `state`, which now ends where those that they are to stand among go on."""
    slots = among.state.valid.shape[1]

    def around(leaf: Array, axis: int) -> Array:
        """On the ring, all of which is written: a row that was lost leaves no NaN behind, which 0 * NaN would be."""
        length = leaf.shape[axis]
        ring = (among.state.slot - length + jnp.arange(length)) % slots
        whole = jnp.zeros((*leaf.shape[:axis], slots, *leaf.shape[axis + 1 :]), leaf.dtype)
        return whole.at[(slice(None),) * axis + (ring,)].set(leaf)

    state = state._replace(
        cache=jax.tree.map(partial(around, axis=2), state.cache),
        valid=around(state.valid, 1),
        key_position=around(state.key_position, 1),
        slot=among.state.slot,
    )
    nothing, no = jnp.zeros_like(number), jnp.zeros(number.shape, bool)
    tokens = jnp.zeros((len(number), among.tokens.shape[1]), jnp.int32)
    return Rows(state, number, keys, tokens, nothing, no, no, no, turn, chosen, nothing)


def _each(fn: Callable[..., Array], rows: Rows, *others: Rows) -> Rows:
    """`fn(leaf, *leaves, axis=...)` of all arrays that have an axis of rows, and which one that is."""
    caches = [any_rows.state.cache for any_rows in (rows, *others)]
    rest = [any_rows._replace(state=any_rows.state._replace(cache=(), slot=())) for any_rows in (rows, *others)]
    cache = jax.tree.map(partial(fn, axis=1), *caches)
    made = jax.tree.map(partial(fn, axis=0), *rest)
    return made._replace(state=made.state._replace(cache=cache, slot=rows.state.slot))


def _with(rows: Rows, fresh: Rows, target: Int[Array, "parts each"]) -> Rows:
    """The rows with fresh ones in place of the targets."""
    return _each(partial(_put, target=target), rows, fresh)


def _of(rows: Rows, place: Int[Array, "parts each"]) -> Rows:
    """The rows in those places of each part."""
    return _each(partial(_take, chosen=place), rows)


def _take(leaf: Array, chosen: Int[Array, "parts each"], axis: int) -> Array:
    """The chosen rows of each part, one part after another; `axis` is that of the rows."""
    apart = leaf.reshape(*leaf.shape[:axis], len(chosen), -1, *leaf.shape[axis + 1 :])
    taken = jax.vmap(partial(jnp.take, axis=axis), in_axes=(axis, 0), out_axes=axis)(apart, chosen)
    return taken.reshape(*leaf.shape[:axis], chosen.size, *leaf.shape[axis + 1 :])


def _put(old: Array, new: Array, target: Int[Array, "parts each"], axis: int) -> Array:
    """`old` with the rows of `new` in it, part by part; `axis` is that of the rows."""

    def apart(leaf: Array) -> Array:
        return leaf.reshape(*leaf.shape[:axis], len(target), -1, *leaf.shape[axis + 1 :])

    def put(old: Array, new: Array, rows: Array) -> Array:
        return old.at[(slice(None),) * axis + (rows,)].set(new, mode="drop")

    mapped = jax.vmap(put, in_axes=(axis, axis, 0), out_axes=axis)
    return mapped(apart(old), apart(new), target).reshape(old.shape)


def _advance(lm: LM, adapter: Pairs | None, decoding: Decoding, rows: Rows) -> Rows:
    """A token more of every answer that is under way; see `generate.sample`."""
    state = rows.state
    active = _active(rows, decoding)
    token = pick(state.logits, jax.vmap(jax.random.fold_in)(rows.keys, rows.length), decoding.sampling)
    ends = jnp.isin(token, decoding.end_ids)
    if rows.further:  # closed, so that the conversation can go on
        token = jnp.where(ends | (rows.length == decoding.max_new - 1), decoding.end_ids[0], token)
    lost = rows.lost | (active & ~tell_apart(state.logits))
    state = append(lm, adapter, state, token[:, None], active[:, None])
    state = state._replace(slot=state.slot % state.valid.shape[1])
    place = jnp.where(active, rows.length, decoding.max_new)  # beyond the last: dropped
    tokens = rows.tokens.at[jnp.arange(len(place)), place].set(token, mode="drop")
    ended = rows.ended | (active & (ends | lost))
    rows = rows._replace(state=state, tokens=tokens, length=rows.length + active, ended=ended, lost=lost)
    return rows._replace(idle=jnp.where(active, 0, rows.idle + 1)) if rows.further else rows


def read(finished: Finished) -> tuple[np.ndarray, Answers]:
    """(numbers, their answers) on the host; waits for the device."""
    number, _, answers = read_turns(finished)
    return number, answers


def read_turns(finished: Finished) -> tuple[np.ndarray, np.ndarray, Answers]:
    """(numbers, turns, their answers) on the host; waits for the device."""
    number = np.asarray(finished.number)
    there = number != NONE
    tokens, valid, ended = (np.asarray(leaf)[there] for leaf in finished.answers)
    return number[there], np.asarray(finished.turn)[there], Answers(tokens, valid, ended)  # pyright: ignore
