"""What is said to a person, on standard error: lines, progress with time left, errors; stdout is for results.

On a terminal progress is a bar; anywhere else (a log file, a scheduler) it is plain lines, without colours.
"""

import errno
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fedjax_rai.errors import InputError

PROGRAM = "fedjax-rai"
ROUND = "round"
SECONDS_BETWEEN_LINES = 60.0  # of a phase's plain progress; every round has a line
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # what may be mended, and then the same command goes on
INTERRUPTED = 130  # what shells give for SIGINT

STARTED = time.perf_counter()  # of this process: it is among the first that commands import
_live: list[Any] = []  # the one progress that is shown: rich's bar, or None for plain lines


@runtime_checkable
class Advance(Protocol):
    """Called when `steps` more are done; `note` is what to show of them, like "loss 1.234".

    `seconds`: how long they took, where they ended before they are told of; else the time since the last call.
    """

    def __call__(self, note: str = "", steps: int = 1, seconds: float | None = None) -> None: ...


def say(text: str) -> None:
    """A line on stderr; above the bar where there is one."""
    bar = _live[-1] if _live else None
    if bar is not None:
        bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


def silent(note: str = "", steps: int = 1, seconds: float | None = None) -> None:
    """Progress that is not shown: what a function that takes an `Advance` may default to."""


@contextmanager
def progress(description: str, total: int | None, done: int = 0, unit: str = "step") -> Iterator[Advance]:
    """Progress over `total` steps, `done` of them before now, with time left; yields `advance(note, steps)`.

    `unit`: what a step is, in the singular. `total` None: what cannot be counted. Without a terminal there is a line a
    `round`; of anything else, one at the beginning and one a minute. Progress within progress is not shown: the outer
    one has the time left.
    """
    if _live or (total is not None and done >= total):
        yield silent
    elif _is_animated():
        with _bar() as bar, _shown(bar):
            task = bar.add_task(description, total=total, completed=done, note="")
            yield lambda note="", steps=1, seconds=None: bar.update(task, advance=steps, note=note)
    else:
        with _shown(None):
            if unit != ROUND or total is None:
                say(description if total is None else f"{description}: {plural(total - done, unit)}")
            yield silent if total is None else PlainProgress(description, total, done, unit)


class PlainProgress:
    """Progress as lines: `round 3/20  loss 1.234  12 s a round  about 3 min left`."""

    def __init__(self, description: str, total: int, done: int, unit: str, clock: Callable[[], float] = time.monotonic):
        self._description = description
        self._total = total
        self._done = done
        self._unit = unit
        self._clock = clock
        self._told = clock()
        self._printed = self._told
        self._counted: tuple[float, int] | None = None  # (seconds, steps) of all calls but the first

    def __call__(self, note: str = "", steps: int = 1, seconds: float | None = None) -> None:
        self._done += steps
        now = self._clock()
        took = now - self._told if seconds is None else seconds
        self._told = now
        if self._counted is not None:
            self._counted = (self._counted[0] + took, self._counted[1] + steps)
        is_round = self._unit == ROUND
        if is_round or now - self._printed >= SECONDS_BETWEEN_LINES:
            place = f"{self._unit} {self._done}/{self._total}" if is_round else f"{self._done}/{self._total}"
            parts = (f"{self._description}: {place}", note, *self._pace(took))
            say("  ".join(part for part in parts if part))
            self._printed = now
        self._counted = self._counted or (0.0, 0)

    def _pace(self, took: float) -> tuple[str, ...]:
        """(time a round, time left); the first step, which compiles, tells nothing about the others."""
        if self._counted is None or not self._counted[1]:
            whole = " for the whole round" if self._unit == ROUND else ""
            return (f"{duration(took)}{whole}, compiling included",)
        spent, counted = self._counted
        each = spent / counted
        left = each * (self._total - self._done)
        pace = (f"{duration(each)} a {ROUND}",) if self._unit == ROUND else ()
        return (*pace, f"about {duration(left)} left") if self._done < self._total else pace


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.4 s, 12 s, 3 min, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def plural(number: int, unit: str) -> str:
    """A number of things: 1 round, 2 rounds, 3 batches."""
    if number == 1:
        return f"{number} {unit}"
    ending = "es" if unit.endswith(("ch", "s", "x")) else "s"
    return f"{number:,} {unit}{ending}"


def verb(number: int, of_one: str, of_several: str) -> str:
    """The form of a verb that goes with a number of things: 1 was, 2 were."""
    return of_one if number == 1 else of_several


def quiet_libraries() -> None:
    """Silence what libraries say about themselves, unless the user asked otherwise; before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def program() -> list[str]:
    """The words that start this program where it was started: its name, its path if that is not found, or a module."""
    started = sys.argv[0]
    if Path(started).name == "__main__.py":
        return ["python", "-m", "fedjax_rai"]
    found = shutil.which(PROGRAM)
    is_other = Path(started).name == PROGRAM and (found is None or not os.path.samefile(found, started))
    return [started if is_other and Path(started).is_file() else PROGRAM]


@contextmanager
def answering(resumable: bool = False) -> Iterator[None]:
    """End a command as its user expects: bad input by its message and exit code 2, never by a traceback.

    So does a path that the file system refuses. An interrupt ends it by exit code 130 and, if it is `resumable`, by how
    to go on; so does a disk that is full, by exit code 1. Everything else is a fault of ours, and keeps its traceback.
    """
    further = f"; to go on: {shlex.join([*program(), *sys.argv[1:]])}" if resumable else ""
    try:
        yield
    except InputError as error:
        say(str(error))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        say(f"\ninterrupted{further}")
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:
        is_full = error.errno in FULL
        if error.errno is None or not (is_full or error.filename):
            raise
        named = f"{shown_path(error.filename)}: " if error.filename else ""
        say(f"{named}{os.strerror(error.errno)}{further if is_full else ''}")
        raise SystemExit(1 if is_full else 2) from None


def shown_path(path: Any) -> str:
    """A path as a line may hold it, whatever it is made of."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode() if not isinstance(path, int) else str(path)


def _is_animated() -> bool:
    """Whether a bar can move on standard error; no colours are forced on a file."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def _shown(bar: Any) -> Iterator[None]:
    _live.append(bar)
    try:
        yield
    finally:
        _live.pop()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    # steps may take minutes, and a speed needs two of them
    return Progress(*columns, console=Console(stderr=True), speed_estimate_period=3600)
