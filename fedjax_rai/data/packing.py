"""Short examples side by side in one row, so that fewer tokens of a batch are padding.

The host decides which examples share a row (`plan`), the device lays them out (`pack`). Examples of a row are segments
that do not see each other, so that a packed batch gives the loss and the gradient of the batch unpacked.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.aliases import Array, Int
from fedjax_rai.data.examples import Examples, take


def plan(rows: np.ndarray, lengths: np.ndarray, room: int) -> np.ndarray:
    """Examples `[..., b]` of a corpus, whose lengths are `lengths`, shared out to rows of `room` tokens: int32
    `[..., R, m]`, -1 where a row has no further example.

    First fit, longest first. All batches get as many rows as the fullest one needs, and a row as many places as the
    most crowded one has, both rounded up to quarters of b: few shapes, so few compilations.
    """
    *front, b = rows.shape
    batches = rows.reshape(-1, b)
    packed = [_first_fit(lengths[batch], room) for batch in batches]
    most_rows = max(len(packed_rows) for packed_rows in packed)
    most_places = max(len(row) for packed_rows in packed for row in packed_rows)
    height = _rounded(most_rows, b)
    places = _rounded(most_places, b)
    planned = np.full((len(batches), height, places), -1, np.int32)
    for i, (batch, packed_rows) in enumerate(zip(batches, packed, strict=True)):
        for j, row in enumerate(packed_rows):
            planned[i, j, : len(row)] = batch[row]
    return planned.reshape(*front, height, places)


def _first_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Rows of indices of examples, longest first, each in the first row that has room left for it."""
    rows: list[list[int]] = []
    left: list[int] = []
    for i in np.argsort(-lengths, kind="stable"):
        fitting = [j for j, space in enumerate(left) if space >= lengths[i]]
        if fitting:
            row = fitting[0]
        else:
            row = len(rows)
            rows.append([])
            left.append(room)
        rows[row].append(int(i))
        left[row] -= int(lengths[i])
    return rows


def _rounded(count: int, whole: int) -> int:
    """`count` rounded up to quarters of `whole`, which it does not exceed."""
    quarter = math.ceil(whole / 4)
    return min(quarter * math.ceil(count / quarter), whole)


def batches(corpus: Examples, rows: Int[Array, "k ..."]) -> Examples:
    """The batches of k local steps: rows of the corpus as they are (`rows[k, b]`), or packed (`rows[k, R, m]`)."""
    if rows.ndim == 2:
        return take(corpus, rows)
    return jax.vmap(lambda step_rows: pack(corpus, step_rows))(rows)


def pack(corpus: Examples, rows: Int[Array, "R m"]) -> Examples:
    """`[R, l]`: the right-padded examples that each row names (-1: none) one after another; l is the corpus' length."""
    length = corpus.tokens.shape[1]
    places = rows.shape[1]
    lengths = jnp.where(rows >= 0, corpus.valid.sum(axis=1)[rows], 0)
    ends = jnp.cumsum(lengths, axis=1)
    slot = jnp.arange(length)
    place = jnp.sum(slot[None, :, None] >= ends[:, None, :], axis=2)  # of the example that a slot belongs to
    filled = place < places
    index = jnp.minimum(place, places - 1)  # of an example that is there, be the slot filled or not
    example = jnp.take_along_axis(rows, index, axis=1)
    offset = slot[None] - jnp.take_along_axis(ends - lengths, index, axis=1)
    return Examples(
        tokens=jnp.where(filled, corpus.tokens[example, offset], 0),
        loss_mask=filled & corpus.loss_mask[example, offset],
        segments=jnp.where(filled, place + 1, 0),
    )
