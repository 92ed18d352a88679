"""Answers to more prompts than there are rows: a row whose answer has ended takes the next prompt that waits.

The slots of the KV cache are a ring: every row writes the same slot at the same time, the slot behind the last is the
first, and the prompt of a row that begins anew is written to the slots just before the present one, where only what
that row has done with is overwritten. So the rows stay as they are for all prompts, and no cache is gathered.

`answer_all` dispatches one program for each batch of prompts. A program ends when its prompts have found rows and
further rows are free; what is unfinished goes on in the next one, and the last one ends with all answers. The host
waits for none of them.

What it saves depends on how much answers differ in length. Of 520 answers to harmful requests, six in ten refusals of
about 30 tokens and the others of about 150 (log-normal, deviations 0.5 and 0.7), cut off at 256, 16 rows take 8,102
steps in batches and 3,099 here; no order could take less than 2,876. Where most answers are cut off, as two of three
are at 32 tokens, it is 288 and 261 steps of 64 rows. `steps_in_batches` and `steps_in_queue` count them.
"""

from collections.abc import Iterator, Sequence
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

NONE = -1
"""The number of no prompt."""
PAD = 0
"""What a prompt is padded with: any token, as none of them is seen."""


class Queue(NamedTuple):
    """Prompts that wait. Numbers are traced: however many there are, and whether others follow, compiles nothing."""

    prompts: Prompts  # [n, l], left-padded
    keys: Key[Array, "n"] | np.ndarray
    numbers: Int[Array, "n"] | np.ndarray  # by which the answers are known, from 0 on
    count: Int[Array, ""] | np.integer  # prompts; rows behind them only fill the arrays
    last: Bool[Array, ""] | np.bool_  # no other queue follows, so all rows are decoded to their ends


class Rows(NamedTuple):
    """Answers under way, each in a row of its own."""

    state: DecodingState  # its slots are a ring: `slot` is the one that was written longest ago
    number: Int[Array, "b"]  # of the prompt that is answered; NONE: the row waits for one
    keys: Key[Array, "b"]
    tokens: Int[Array, "b t"]  # of the answer
    length: Int[Array, "b"]  # of the answer so far
    ended: Bool[Array, "b"]
    lost: Bool[Array, "b"]  # the row's logits were once no numbers, or all one


class Finished(NamedTuple):
    """Answers in the order in which they ended. `number` is NONE in rows that hold no answer."""

    number: Int[Array, "m"]
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
    parts = ways(mesh_of(lm.base))
    rows = parts * -(-rows // parts)  # the same number on every device
    batches = -(-len(texts) // rows)
    under_way: Rows | None = None
    padded = length_batches(texts, rows, PAD, _most_padding(lm, texts, decoding))
    for turn, (places, prompts) in enumerate(padded, 1):
        filled = np.resize(places, rows)
        if batches == 1:  # nobody waits, so nothing is to be refilled
            numbers = np.where(np.arange(rows) < len(places), filled, NONE)
            yield Finished(numbers, generate(lm, adapter, prompts, keys[filled], decoding))  # pyright: ignore
            return
        slots = prompts.tokens.shape[1] + decoding.max_new
        under_way = begin(lm, rows, slots, decoding) if under_way is None else with_slots(lm, under_way, slots)
        queue = Queue(prompts, keys[filled], filled, np.int32(len(places)), np.bool_(turn == batches))
        under_way, finished = serve(lm, adapter, under_way, queue, decoding)
        yield finished


def _most_padding(lm: LM, texts: Sequence[Sequence[int]], decoding: Decoding) -> int | None:
    """The length that a prompt is padded to at most, so that prompt and answer are within the model's limit."""
    longest = lm.model.config.longest
    if longest is None:
        return None
    given = max((len(ids) for ids in texts), default=0)
    return max(longest - decoding.max_new, given)


@partial(jax.jit, static_argnames=("rows", "slots"))
def begin(lm: LM, rows: int, slots: int, decoding: Decoding) -> Rows:
    """Rows that all wait, with a ring of `slots`: of the longest prompt, padded, and `decoding.max_new`."""
    empty = jnp.zeros(rows, bool)
    nothing = jnp.zeros(rows, jnp.int32)
    tokens = jnp.zeros((rows, decoding.max_new), jnp.int32)
    keys = jax.random.split(jax.random.key(0), rows)  # of no row: each gets its key with its prompt
    state = start(lm.model, rows, slots)
    return _laid(Rows(state, nothing + NONE, keys, tokens, nothing, empty, empty), mesh_of(lm.base))


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
    """Rows dealt out to the devices, the same from one program to the next; heads and vocabulary over `tensor`."""
    if mesh.size <= 1:
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

    `Finished` has a place for each row and each prompt; after the last queue all rows have ended.
    """
    mesh = mesh_of(lm.base)
    parts = ways(mesh)
    at_once = refilled_at_once(len(rows.number), parts)
    adapter = as_computed(lm, adapter)

    def to_do(loop: _Loop) -> Array:
        return (loop.taken < queue.count) | (queue.last & _active(loop.rows, decoding).any())

    def refill_and_decode(loop: _Loop) -> _Loop:
        loop = _finish(loop, decoding)
        rows, taken = _refill(lm, adapter, loop.rows, loop.taken, queue, (parts, at_once // parts))
        nobody_waits = queue.last & (taken >= queue.count)

        def unfinished(rows: Rows) -> Array:
            active = _active(rows, decoding)
            free = jnp.sum(~active)
            return active.any() & (nobody_waits | (free < at_once))

        rows = jax.lax.while_loop(unfinished, partial(_advance, lm, adapter, decoding), rows)
        return loop._replace(rows=rows, taken=taken)

    zero = jnp.zeros((), jnp.int32)
    loop = _Loop(_laid(rows, mesh), zero, _nothing_finished(len(queue.numbers) + len(rows.number), decoding), zero)
    loop = _finish(jax.lax.while_loop(to_do, refill_and_decode, loop), decoding)
    return _laid(loop.rows, mesh), loop.finished


def _active(rows: Rows, decoding: Decoding) -> Bool[Array, "b"]:
    return (rows.number != NONE) & ~rows.ended & (rows.length < decoding.max_new)


def _nothing_finished(size: int, decoding: Decoding) -> Finished:
    tokens = jnp.full((size, decoding.max_new), decoding.end_ids[0], jnp.int32)
    answers = Answers(tokens, jnp.zeros(tokens.shape, bool), jnp.zeros(size, bool))
    return Finished(jnp.full(size, NONE, jnp.int32), answers)


def _finish(loop: _Loop, decoding: Decoding) -> _Loop:
    """Writes down the answers that have ended, or are as long as they may be; their rows wait for prompts."""
    rows = loop.rows
    done = (rows.number != NONE) & ~_active(rows, decoding)
    nowhere = len(loop.finished.number)
    place = jnp.where(done, loop.written + jnp.cumsum(done) - 1, nowhere)
    valid = (jnp.arange(decoding.max_new)[None, :] < rows.length[:, None]) & ~rows.lost[:, None]
    tokens = jnp.where(valid, rows.tokens, decoding.end_ids[0])
    found = Finished(rows.number, Answers(tokens, valid, rows.ended))
    finished = jax.tree.map(lambda old, new: old.at[place].set(new, mode="drop"), loop.finished, found)
    rows = rows._replace(number=jnp.where(done, NONE, rows.number))
    return loop._replace(rows=rows, finished=finished, written=loop.written + jnp.sum(done))


def _refill(
    lm: LM, adapter: Pairs | None, rows: Rows, taken: Int[Array, ""], queue: Queue, shape: tuple[int, int]
) -> tuple[Rows, Int[Array, ""]]:
    """The next prompts, read into rows that wait: at most `shape` = (parts of the rows, prompts for each part).

    Each part, which lies on a device, fills rows of its own, so that no cache travels.
    """
    parts, each = shape
    waits = (rows.number == NONE).reshape(parts, -1)
    chosen = jnp.argsort(~waits, axis=1, stable=True)[:, :each]
    free = jnp.take_along_axis(waits, chosen, axis=1)
    ticket = taken + jnp.cumsum(free.reshape(-1)) - 1
    used = free.reshape(-1) & (ticket < queue.count)
    target = jnp.where(used.reshape(parts, each), chosen, waits.shape[1])  # beyond the last: dropped
    ticket = jnp.where(used, ticket, 0)

    tokens, valid = split_rows((queue.prompts.tokens[ticket], queue.prompts.valid[ticket] & used[:, None]), lm.base)
    length = tokens.shape[1]
    fresh = append(lm, adapter, start(lm.model, parts * each, length), tokens, valid)
    state = rows.state
    slots = state.valid.shape[1]
    ring = (state.slot - length + jnp.arange(length)) % slots

    def around(leaf: Array, axis: int) -> Array:
        """On the ring, all of which is written: a row that was lost leaves no NaN behind, which 0 * NaN would be."""
        whole = jnp.zeros((*leaf.shape[:axis], slots, *leaf.shape[axis + 1 :]), leaf.dtype)
        return whole.at[(slice(None),) * axis + (ring,)].set(leaf)

    put = partial(_put, target=target)
    fresh_cache = jax.tree.map(partial(around, axis=2), fresh.cache)
    state = state._replace(
        cache=jax.tree.map(partial(put, axis=1), state.cache, fresh_cache),
        valid=put(state.valid, around(fresh.valid, 1)),
        key_position=put(state.key_position, around(fresh.key_position, 1)),
        position=put(state.position, fresh.position),
        logits=put(state.logits, fresh.logits),
    )
    nothing = jnp.zeros(parts * each, jnp.int32)
    refilled = rows._replace(
        state=state,
        number=put(rows.number, queue.numbers[ticket]),
        keys=put(rows.keys, queue.keys[ticket]),
        length=put(rows.length, nothing),
        ended=put(rows.ended, nothing.astype(bool)),
        lost=put(rows.lost, nothing.astype(bool)),
    )
    return refilled, taken + jnp.sum(used)


def _put(old: Array, new: Array, target: Int[Array, "parts each"], axis: int = 0) -> Array:
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
    lost = rows.lost | (active & ~tell_apart(state.logits))
    state = append(lm, adapter, state, token[:, None], active[:, None])
    state = state._replace(slot=state.slot % state.valid.shape[1])
    place = jnp.where(active, rows.length, decoding.max_new)  # beyond the last: dropped
    tokens = rows.tokens.at[jnp.arange(len(place)), place].set(token, mode="drop")
    ended = rows.ended | (active & (ends | lost))
    return rows._replace(state=state, tokens=tokens, length=rows.length + active, ended=ended, lost=lost)


def read(finished: Finished) -> tuple[np.ndarray, Answers]:
    """(numbers, their answers) on the host; waits for the device."""
    number = np.asarray(finished.number)
    there = number != NONE
    tokens, valid, ended = (np.asarray(leaf)[there] for leaf in finished.answers)
    return number[there], Answers(tokens, valid, ended)  # pyright: ignore
