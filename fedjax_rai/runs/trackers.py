"""Trackers: where the rows of a run go besides `metrics.jsonl`, which stays the truth."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fedjax_rai import terminal
from fedjax_rai.config.names import look_up
from fedjax_rai.errors import InputError

Sink: TypeAlias = Callable[[Mapping[str, Any]], object]
"""Takes a row of `metrics.jsonl` once its round is written down."""


def nowhere(folder: Path) -> Sink:
    """Rows stand in `metrics.jsonl` alone."""
    return lambda row: None


TRACKERS: dict[str, Callable[[Path], Sink]] = {"none": nowhere}
"""By name: run folder -> what takes its rows."""
FORM = "a function of the run folder that gives a function of a row"


def check_tracker(name: str) -> None:
    """Raises InputError for a name that is none, and for a function that does not take a folder alone.

    It is not called: a tracker may write to the folder, or tell others of the run.
    """
    tracker = look_up(TRACKERS, name, "tracker")
    try:
        signature = inspect.signature(tracker)
    except (TypeError, ValueError):  # some that are built in do not tell
        return
    try:
        signature.bind(Path())
    except TypeError as error:
        raise InputError(f"tracker = {name}: cannot be called with a folder ({error}); must be {FORM}") from error


def track(name: str, folder: Path) -> Sink:
    """What takes the rows of the run in a folder, by `tracker`.

    Raises InputError as `check_tracker` does, and for a tracker that gives nothing that takes rows.
    A tracker that fails is named on standard error and not asked again: a run does not end for want of it.
    """
    check_tracker(name)
    sink = look_up(TRACKERS, name, "tracker")(folder)
    if not callable(sink):
        raise InputError(f"tracker = {name}: gives a value of the type {type(sink).__name__}; must be {FORM}")
    failed = False

    def take(row: Mapping[str, Any]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            sink(row)
        except Exception as error:  # whatever the user's own raises
            failed = True
            terminal.say(f"tracker = {name}: failed and is left out from now on ({type(error).__name__}: {error})")

    return take
