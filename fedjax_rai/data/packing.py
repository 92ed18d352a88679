"""Short examples side by side in one row, so that fewer tokens of a batch are padding.

The host decides which examples share a row (`plan`), the device lays them out (`pack`). Examples of a row are segments
that do not see each other, so that a packed batch gives the loss and the gradient of the batch unpacked.
"""

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
    batches = [(own, _first_fit(lengths[own], room)) for own in rows.reshape(-1, b)]
    height = _rounded(max(len(packed) for _, packed in batches), b)
    places = _rounded(max(len(row) for _, packed in batches for row in packed), b)
    planned = np.full((len(batches), height, places), -1, np.int32)
    for i, (own, packed) in enumerate(batches):
        for j, row in enumerate(packed):
            planned[i, j, : len(row)] = own[row]
    return planned.reshape(*front, height, places)


def _first_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    rows: list[list[int]] = []
    left: list[int] = []
    for i in np.argsort(-lengths, kind="stable"):
        at = next((j for j, space in enumerate(left) if space >= lengths[i]), len(rows))
        if at == len(rows):
            rows.append([])
            left.append(room)
        rows[at].append(int(i))
        left[at] -= int(lengths[i])
    return rows


def _rounded(count: int, whole: int) -> int:
    step = -(-whole // 4)
    return min(-(-count // step) * step, whole)


def batches(corpus: Examples, rows: Int[Array, "k ..."]) -> Examples:
    """The batches of k local steps: rows of the corpus as they are (`rows[k, b]`), or packed (`rows[k, R, m]`)."""
    return take(corpus, rows) if rows.ndim == 2 else jax.vmap(lambda own: pack(corpus, own))(rows)


def pack(corpus: Examples, rows: Int[Array, "R m"]) -> Examples:
    """`[R, l]`: the right-padded examples that each row names (-1: none) one after another; l is the corpus' length."""
    length = corpus.tokens.shape[1]
    own = jnp.where(rows >= 0, corpus.valid.sum(axis=1)[rows], 0)
    ends = jnp.cumsum(own, axis=1)
    slot = jnp.arange(length)
    place = jnp.sum(slot[None, :, None] >= ends[:, None, :], axis=2)  # of the example that a slot belongs to
    there, at = place < rows.shape[1], jnp.minimum(place, rows.shape[1] - 1)
    example = jnp.take_along_axis(rows, at, axis=1)
    offset = slot[None] - jnp.take_along_axis(ends - own, at, axis=1)
    return Examples(
        jnp.where(there, corpus.tokens[example, offset], 0),
        there & corpus.loss_mask[example, offset],
        jnp.where(there, place + 1, 0),
    )
