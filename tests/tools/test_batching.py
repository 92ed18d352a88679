"""What is asked for at the same time is one batch; what fails is told to those that wait, and ends nothing else."""

import threading
from collections.abc import Iterator, Sequence

import pytest

from fedjax_rai.tools import batching
from fedjax_rai.tools.batching import FAILED, Batcher
from fedjax_rai.tools.sampler import Model, Piece, Row, Settings, Token

SECONDS = 20


class Sampler:
    """In place of a model: notes the batches, and computes one only when it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.batches: list[list[int]] = []
        self.may = threading.Event()
        self.began = threading.Event()
        monkeypatch.setattr(batching, "answer", self.answer)
        monkeypatch.setattr(batching, "score", self.score)
        monkeypatch.setattr(batching, "LOOK", 0.01)

    def answer(self, model: object, rows: Sequence[Row]) -> None:
        self.began.set()
        assert self.may.wait(SECONDS)
        self.batches.append([row.ids[0] for row in rows])
        for row in rows:
            if row.ids[0] == 13:
                raise ValueError("out of memory")
            row.give(Piece("", (), "stop", 1))

    def score(self, model: object, texts: Sequence[Sequence[int]], tops: int) -> Iterator[list[Token]]:
        self.batches.append([len(texts), tops])
        for ids in texts:
            if 13 in ids:
                raise ValueError("out of memory")
            yield [Token(token, -1.0, ((token, -1.0), (0, -2.0))) for token in ids]


@pytest.fixture
def sampler(monkeypatch) -> Sampler:
    return Sampler(monkeypatch)


@pytest.fixture
def batcher(sampler) -> Iterator[Batcher]:
    made = Batcher(Model(None, None, None, "float32", None), most=3)  # pyright: ignore[reportArgumentType]
    yield made
    sampler.may.set()
    made.stop()


class Waiting:
    """Rows that somebody waits for."""

    def __init__(self):
        self.came: dict[int, str | None] = {}
        self._changed = threading.Condition()

    def row(self, number: int) -> Row:
        def give(piece: Piece) -> None:
            with self._changed:
                self.came[number] = piece.finish
                self._changed.notify_all()

        return Row([number], Settings(1), give)

    def until(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.came) == count, SECONDS)


def test_what_comes_while_a_batch_is_computed_is_the_next_one(sampler, batcher):
    waiting = Waiting()
    batcher.answer([waiting.row(1)])
    assert sampler.began.wait(SECONDS)
    for number in (2, 3, 4, 5):
        batcher.answer([waiting.row(number)])
    sampler.may.set()
    waiting.until(5)
    assert sampler.batches == [[1], [2, 3, 4], [5]] and set(waiting.came.values()) == {"stop"}


def test_a_failure_is_told_and_others_are_served(sampler, batcher, capsys):
    waiting = Waiting()
    sampler.may.set()
    batcher.answer([waiting.row(13)])
    waiting.until(1)
    batcher.answer([waiting.row(2)])
    waiting.until(2)
    assert waiting.came == {13: FAILED, 2: "stop"} and "an answer failed: out of memory" in capsys.readouterr().err
    with pytest.raises(ValueError, match="out of memory"):
        batcher.score([[13]], 1)
    assert [token.id for token in batcher.score([[4, 5]], 1)[0]] == [4, 5]


def test_what_nobody_waits_for_is_not_computed(sampler, batcher):
    """A row whose asker has gone while others were computed, and texts that are not begun."""
    waiting = Waiting()
    batcher.answer([waiting.row(1)])
    assert sampler.began.wait(SECONDS)
    batcher.answer([waiting.row(2)._replace(gone=lambda: True), waiting.row(3)])
    with pytest.raises(ConnectionResetError):
        batcher.score([[4]], 1, look)
    sampler.may.set()
    waiting.until(2)
    assert sampler.batches == [[1], [3]]


def look() -> None:
    raise ConnectionResetError


def test_each_gets_as_many_likeliest_tokens_as_it_asked_for(sampler, batcher):
    (tokens,) = batcher.score([[4]], 1)
    assert tokens == [Token(4, -1.0, ((4, -1.0),))]
