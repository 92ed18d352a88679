"""One thread that computes: what several requests ask for at the same time is put together into one batch."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple, TypeAlias

from fedjax_rai import terminal
from fedjax_rai.reading import one_line
from fedjax_rai.tools.sampler import Model, Piece, Row, Token, answer, fitting, score

GATHERED = 0.01  # seconds in which requests that come together are waited for
LOOK = 0.5  # seconds between two looks at whether somebody waits still


class _Texts(NamedTuple):
    """Texts whose log p somebody waits for."""

    texts: Sequence[Sequence[int]]
    tops: int
    found: Future[list[list[Token]]]


class _Stop:
    """The last that is asked for."""


_Asked: TypeAlias = Row | _Texts | _Stop
FAILED = "failed"
"""How an answer finishes that could not be computed; its text says why."""


class Batcher:
    """Answers rows and scores texts by one thread; a batch goes on until its last answer has ended.

    Rows that come while a batch is computed are the next one. What fails is said, given to those that wait for it, and
    ends nothing else.
    """

    def __init__(self, model: Model, most: int):
        """`most`: answers of a batch, at most."""
        self._model = model
        self._most = most
        self._asked: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self._thread.start()

    def answer(self, rows: Sequence[Row]) -> None:
        """Has prompts answered; what comes is given to each row by the sampler's thread."""
        for row in rows:
            self._asked.put(row)

    def score(
        self, texts: Sequence[Sequence[int]], tops: int, look: Callable[[], object] = lambda: None
    ) -> list[list[Token]]:
        """The tokens of texts with log p (`sampler.score`); waits for them.

        `look` is called now and then: what it raises ends the wait, and texts that are not begun are not scored.
        """
        found: Future[list[list[Token]]] = Future()
        self._asked.put(_Texts(texts, tops, found))
        try:
            while not wait([found], LOOK).done:
                look()
        finally:
            found.cancel()
        return found.result()

    def stop(self) -> None:
        """Ends the thread; answers under way are left after the tokens that are being computed."""
        self.stopping.set()
        self._asked.put(_Stop())
        self._thread.join()

    def _work(self) -> None:
        waiting: list[Row] = []
        while not self.stopping.is_set():
            texts = []
            for asked in self._gathered(block=not waiting):
                if isinstance(asked, Row):
                    waiting.append(asked)
                elif isinstance(asked, _Texts) and asked.found.set_running_or_notify_cancel():
                    texts.append(asked)
            waiting = [row for row in waiting if not row.gone()]
            if texts:
                self._score(texts)
            if waiting and not self.stopping.is_set():
                count = fitting(waiting, self._most, self._model.longest)
                batch = waiting[:count]
                waiting = waiting[count:]
                self._answer(batch)

    def _gathered(self, block: bool) -> list[_Asked]:
        """All that is asked for now, and what comes within a moment; `block`: something at least."""
        found: list[_Asked] = [self._asked.get()] if block else []
        until = time.monotonic() + GATHERED
        while len(found) < self._most:
            try:
                found.append(self._asked.get(timeout=max(until - time.monotonic(), 0.0001)))
            except queue.Empty:
                return found
        return found

    def _answer(self, rows: Sequence[Row]) -> None:
        try:
            answer(self._model, rows)
        except Exception as error:  # memory that was not enough, or a fault of ours: others are still served
            terminal.say(f"an answer failed: {one_line(error)}")
            for row in rows:
                row.give(Piece(one_line(error), (), FAILED))

    def _score(self, asked: Sequence[_Texts]) -> None:
        together = [text for each in asked for text in each.texts]
        try:
            found = score(self._model, together, max(each.tops for each in asked))
            for each in asked:
                scored = [next(found) for _ in each.texts]
                each.found.set_result(
                    [[token._replace(top=token.top[: each.tops]) for token in text] for text in scored]
                )
        except Exception as error:
            terminal.say(f"a text was not scored: {one_line(error)}")
            for each in asked:
                if not each.found.done():
                    each.found.set_exception(error)
