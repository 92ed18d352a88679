"""Trackers: where the rows of a run go besides `metrics.jsonl`, which stays the truth."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fedjax_rai import terminal
from fedjax_rai.config.names import look_up

Sink: TypeAlias = Callable[[Mapping[str, Any]], object]
"""Takes a row of `metrics.jsonl` once its round is written down."""


def nowhere(folder: Path) -> Sink:
    """Rows stand in `metrics.jsonl` alone."""
    return lambda row: None


TRACKERS: dict[str, Callable[[Path], Sink]] = {"none": nowhere}
"""By name: run folder -> what takes its rows."""


def track(name: str, folder: Path) -> Sink:
    """What takes the rows of the run in a folder, by `tracker`; raises InputError for a name that is none.

    A tracker that fails is named on standard error and not asked again: a run does not end for want of it.
    """
    sink = look_up(TRACKERS, name, "tracker")(folder)
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
