"""Segments to arrays: token ids, loss masks, masks of padding, lengths padded to buckets."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.aliases import Array, Bool, Int
from fedjax_rai.text.prompts import Segment, Turn, answered, chat, prompt, request
from fedjax_rai.text.tokenizer import Tokenizer

BUCKET = 16


class Examples(NamedTuple):
    """Right-padded sequences, one to a row unless they are packed."""

    tokens: Int[Array, "n l"]
    loss_mask: Bool[Array, "n l"]  # the token is a target
    segments: Int[Array, "n l"]  # which of its row's sequences, from 1 on, a token belongs to; 0: padding

    @property
    def valid(self) -> Any:
        """bool `[n, l]`, False on padding; NumPy's where the segments are."""
        return self.segments > 0


class Prompts(NamedTuple):
    """Left-padded sequences, so that every row's next token comes at the same slot."""

    tokens: Int[Array, "n l"]
    valid: Bool[Array, "n l"]


def take(examples: Examples, rows: Int[Array, "..."] | np.ndarray) -> Examples:
    """Rows of a set, in whatever shape they are asked for."""
    return Examples(*(column[rows] for column in examples))


def with_rows(examples: Examples, rows: np.ndarray, others: Examples, pad_id: int) -> Examples:
    """The examples with others in some of their rows, all padded to the longer of the two lengths; NumPy's."""
    length = max(examples.tokens.shape[1], others.tokens.shape[1])
    columns = []
    for column, other, fill in zip(examples, others, (pad_id, False, 0), strict=True):
        padded: Any = np.full((len(column), length), fill, column.dtype)
        padded[:, : column.shape[1]] = column
        padded[rows] = fill
        padded[rows, : other.shape[1]] = other
        columns.append(padded)
    return Examples(*columns)


def bucket(length: int, step: int = BUCKET) -> int:
    """The padded length of a sequence: few distinct ones, so few compilations.

    Multiples of `step` up to eight of them, then eight to each power of two: at most an eighth is padding.
    """
    while length > 8 * step:
        step *= 2
    return max(step, step * math.ceil(length / step))


def encode(
    tokenizer: Tokenizer, texts: Sequence[Sequence[Segment]], max_length: int, keep_end: bool = False
) -> tuple[Examples, np.ndarray]:
    """Examples in one bucket, and bool[n]: was it cut to `max_length` tokens, at its end or (`keep_end`) its beginning?

    Guarantees: order and number kept; an empty list gives arrays of no rows. A row whose answer was cut off
    altogether has an empty loss mask and so weighs nothing.
    """
    encoded = [tokenizer.encode_segments(segments) for segments in texts]
    cut = np.array([len(ids) > max_length for ids, _ in encoded], bool)
    part = slice(-max_length, None) if keep_end else slice(max_length)
    encoded = [(ids[part], mask[part]) for ids, mask in encoded]
    return encode_ids(encoded, tokenizer.pad_id), cut


def encode_ids(encoded: Sequence[tuple[Sequence[int], Sequence[bool]]], pad_id: int) -> Examples:
    """Examples in one bucket, of token ids and which of these are trained on; an empty list gives arrays of no rows."""
    length = bucket(max((len(ids) for ids, _ in encoded), default=1))
    tokens: Any = np.full((len(encoded), length), pad_id, np.int32)  # NumPy's until they are placed
    loss_mask: Any = np.zeros(tokens.shape, bool)
    segments: Any = np.zeros(tokens.shape, np.int32)
    for row, (ids, mask) in enumerate(encoded):
        tokens[row, : len(ids)] = ids
        loss_mask[row, : len(ids)] = mask
        segments[row, : len(ids)] = 1
    return Examples(tokens, loss_mask, segments)


def encode_chats(
    tokenizer: Tokenizer, chats: Sequence[Sequence[Turn]], max_length: int, keep_end: bool = False
) -> tuple[Examples, np.ndarray]:
    """Examples of conversations in the tokenizer's chat form, and which of these were cut; see `encode`."""
    return encode(tokenizer, [chat(tokenizer, turns) for turns in chats], max_length, keep_end)


def pad_left(texts: Sequence[Sequence[int]], pad_id: int, most: int | None = None) -> Prompts:
    """Token ids as one left-padded batch, padded to a bucket, or to `most` where that is less; no text is longer."""
    length = bucket(max((len(ids) for ids in texts), default=1))
    length = length if most is None else min(length, most)
    tokens: Any = np.full((len(texts), length), pad_id, np.int32)
    valid: Any = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(texts):
        begin = length - len(ids)
        tokens[row, begin:] = ids
        valid[row, begin:] = True
    return Prompts(tokens, valid)


def encode_questions(tokenizer: Tokenizer, conversations: Sequence[Sequence[Turn]], max_length: int) -> list[list[int]]:
    """Token ids of conversations that end where the assistant is to speak; too long ones keep their end."""
    return [tokenizer.encode(prompt(tokenizer, turns))[-max_length:] for turns in conversations]


def encode_request(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids that put a further request after an assistant's end-of-turn token, as they are in one whole text."""
    before = "".join(segment.text for segment in chat(tokenizer, answered("q", "a")))
    return tokenizer.encode_after(before, request(tokenizer, text))


def length_batches(
    texts: Sequence[Sequence[int]], rows: int, pad_id: int, most: int | None = None
) -> Iterator[tuple[np.ndarray, Prompts]]:
    """(indices, left-padded batch) of all texts, shortest first, each batch padded to the bucket of its longest text.

    Every batch has `rows` rows, so that shapes are few; the last one is filled up with copies, whose indices are
    left out: take the first `len(indices)` rows.
    """
    order: Any = np.argsort([len(ids) for ids in texts], kind="stable")
    for begin in range(0, len(order), rows):
        indices = order[begin : begin + rows]
        filled = np.resize(indices, rows)  # repeats them
        yield indices, pad_left([texts[i] for i in filled], pad_id, most)
