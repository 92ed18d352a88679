"""Segments to arrays: token ids, loss masks, padding with a mask of its own, lengths padded to buckets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_rai.aliases import Array, Bool, Int
from fedjax_rai.text.prompts import Segment, Turn, chat, prompt
from fedjax_rai.text.tokenizer import Tokenizer

BUCKET = 16


class Examples(NamedTuple):
    """Right-padded sequences. `loss_mask[n, l]`: token l is a target; `valid`: it is there at all."""

    tokens: Int[Array, "n l"]
    loss_mask: Bool[Array, "n l"]
    valid: Bool[Array, "n l"]


class Prompts(NamedTuple):
    """Left-padded sequences, so that every row's next token comes at the same slot."""

    tokens: Int[Array, "n l"]
    valid: Bool[Array, "n l"]


def bucket(length: int, step: int = BUCKET) -> int:
    """The padded length of a sequence: few distinct ones, so few compilations."""
    return max(step, -(-length // step) * step)


def encode(tokenizer: Tokenizer, texts: Sequence[Sequence[Segment]], max_length: int) -> tuple[Examples, int]:
    """Examples in one bucket, and how many were truncated to `max_length` tokens.

    Guarantees: order and number kept; an empty list gives arrays of no rows. A row whose answer was cut off
    altogether has an empty loss mask and so weighs nothing.
    """
    encoded = [tokenizer.encode_segments(segments) for segments in texts]
    truncated = sum(len(ids) > max_length for ids, _ in encoded)
    length = bucket(min(max_length, max((len(ids) for ids, _ in encoded), default=1)))
    tokens = np.full((len(encoded), length), tokenizer.pad_id, np.int32)
    loss_mask, valid = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    for row, (ids, mask) in enumerate(encoded):
        n = min(len(ids), max_length)
        tokens[row, :n], loss_mask[row, :n], valid[row, :n] = ids[:n], mask[:n], True
    return Examples(tokens, loss_mask, valid), truncated


def encode_chats(tokenizer: Tokenizer, chats: Sequence[Sequence[Turn]], max_length: int) -> tuple[Examples, int]:
    """The same, of conversations in the tokenizer's chat form."""
    return encode(tokenizer, [chat(tokenizer, turns) for turns in chats], max_length)


def encode_prompts(tokenizer: Tokenizer, texts: Sequence[str], max_length: int | None = None) -> Prompts:
    """Left-padded prompts in one bucket; of those over `max_length` tokens the end is kept."""
    encoded = [tokenizer.encode(text) for text in texts]
    if max_length is not None:
        encoded = [ids[-max_length:] for ids in encoded]
    length = bucket(max((len(ids) for ids in encoded), default=1))
    tokens = np.full((len(encoded), length), tokenizer.pad_id, np.int32)
    valid = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(encoded):
        tokens[row, length - len(ids) :], valid[row, length - len(ids) :] = ids, True
    return Prompts(tokens, valid)


def encode_questions(tokenizer: Tokenizer, conversations: Sequence[Sequence[Turn]], max_length: int | None = None) -> Prompts:
    """The same, of conversations that end where the assistant is to speak."""
    return encode_prompts(tokenizer, [prompt(tokenizer, turns) for turns in conversations], max_length)


__all__ = ["BUCKET", "Examples", "Prompts", "bucket", "encode", "encode_chats", "encode_prompts", "encode_questions"]
