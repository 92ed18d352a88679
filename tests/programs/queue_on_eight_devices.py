"""Answers out of a queue on eight devices are those on one; no cache is sent from device to device."""

import re
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.data.examples import pad_left
from fedjax_rai.mesh import base_shardings, replicated
from fedjax_rai.model.decoder import LM, abstract_base
from fedjax_rai.train import queue
from fedjax_rai.train.generate import Decoding, Sampling
from fedjax_rai.train.speaker import Speaker
from tests import small

jax.config.update("jax_numpy_rank_promotion", "raise")
SENT = re.compile(r"= (\(?[a-z0-9]+\[.*?) (all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
SHAPE = re.compile(r"[a-z0-9]+\[([0-9,]+)\]")
FURTHER = 3
REQUESTS = pad_left([[2, 2, 7], [11], [9, 9]], 0)
NEW, ROWS = 9, 14  # rows that eight devices share alike are 16
DECODING = Decoding(Sampling(jnp.float32(1.0)), jnp.array([0, 3]), NEW)


def texts() -> list[list[int]]:
    g = np.random.default_rng(0)
    return [g.integers(1, small.VOCAB, length).tolist() for length in g.integers(1, 30, 40)]


def placed_base(mesh: Any) -> LM:
    return LM(small.MODEL, jax.device_put(small.BASE, base_shardings(mesh, abstract_base(small.CONFIG))))


def answered(mesh: Any) -> dict[int, tuple[list[int], bool]]:
    """(tokens, ended) of each answer, by its number."""
    lm = placed_base(mesh)
    adapter = jax.device_put(small.adapter(), replicated(mesh))
    keys = jax.random.split(jax.random.key(0), 40)
    found = {}
    for finished in queue.answer_all(lm, adapter, texts(), keys, DECODING, ROWS):
        numbers, answers = queue.read(finished)
        for number, tokens, valid, ended in zip(numbers.tolist(), *answers, strict=True):
            found[number] = (tokens[valid].tolist(), bool(ended))
    return found


def conversed(mesh: Any) -> dict[tuple[int, int], tuple[list[int], bool]]:
    """(tokens, ended) of each answer of conversations, by its number and turn."""
    speaker = Speaker(placed_base(mesh), jax.device_put(small.adapter(), replicated(mesh)))
    keys = jax.random.split(jax.random.key(0), 40)
    chosen = np.random.default_rng(1).integers(0, 3, (40, FURTHER))
    found = {}
    for finished in queue.answer_in_turns(speaker, texts(), keys, queue.FollowUps(REQUESTS, chosen), DECODING, ROWS):
        numbers, turns, answers = queue.read_turns(finished)
        for number, turn, tokens, valid, ended in zip(numbers.tolist(), turns.tolist(), *answers, strict=True):
            found[number, turn] = (tokens[valid].tolist(), bool(ended))
    return found


def most_sent(mesh: Any, further: int) -> int:
    """The most numbers that a device gets at once, sums left out."""
    lm = placed_base(mesh)
    adapter = jax.device_put(small.adapter(), replicated(mesh))
    prompts = pad_left(texts()[:16], 0)
    keys = jax.random.split(jax.random.key(0), 16)
    follow_ups = queue.FollowUps(REQUESTS, np.zeros((16, further), np.int32)) if further else None
    numbers = np.arange(16, dtype=np.int32)
    waiting = queue.Queue(prompts, keys, numbers, np.int32(16), np.bool_(True), follow_ups)
    slots = queue.slots_of(prompts.tokens.shape[1], REQUESTS.tokens.shape[1], further, NEW)
    rows = queue.begin(lm, 16, slots, DECODING, further)
    text: Any = queue.serve.lower(lm, adapter, rows, waiting, DECODING).compile().as_text()
    found = [0]
    for result, kind in SENT.findall(text):
        print(kind, result)
        found.append(sum(prod(map(int, sizes.split(","))) for sizes in SHAPE.findall(result)))
    return max(found)


if __name__ == "__main__":
    assert jax.device_count() == 8
    expected = answered(small.mesh(1))
    assert len(expected) == 40
    before = small.compilations(queue.serve)
    for shape in ((1, 1), (4, 1), (2, 2)):
        assert answered(small.mesh(8, *shape)) == expected, shape
    assert small.compilations(queue.serve) == before + 3 * 2, "one program a bucket and mesh"
    expected = conversed(small.mesh(1))
    assert len(expected) == 40 * (1 + FURTHER)
    assert conversed(small.mesh(8, 2, 2)) == expected
    for further in (0, FURTHER):
        sent = most_sent(small.mesh(8), further)
        assert sent <= 16 * NEW, sent  # the tokens of all rows' answers; a row's cache is eight times that
