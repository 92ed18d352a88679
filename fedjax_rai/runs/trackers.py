"""Trackers: where the rows of a run go besides `metrics.jsonl`, which stays the truth."""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from fedjax_rai import terminal
from fedjax_rai.config.names import look_up
from fedjax_rai.errors import InputError

Sink: TypeAlias = Callable[[Mapping[str, Any]], object]
"""Takes a row of `metrics.jsonl` once its round is written down."""

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""What a tracker of ours imports, from the extra `track`."""


def nowhere(folder: Path) -> Sink:
    """Rows stand in `metrics.jsonl` alone."""
    return lambda row: None


def tensorboard(folder: Path) -> Sink:
    """Rows also go to `tensorboard/` in the run folder, for TensorBoard to show; a number by the name of its key."""
    opened: list[Any] = []  # with the first row: a run that does not start leaves nothing

    def sink(row: Mapping[str, Any]) -> None:
        if not opened:
            opened.append(_package("tensorboard").SummaryWriter(logdir=str(folder / "tensorboard")))
        for name, number in numbers(row).items():
            opened[0].add_scalar(name, number, row["round"])
        opened[0].flush()

    return sink


def wandb(folder: Path) -> Sink:
    """Rows also go to Weights & Biases, a run by the folder's name; where to is told by its variables (`WANDB_MODE`,
    `WANDB_PROJECT`). A run that is gone on with goes on there.
    """
    opened: list[Any] = []

    def sink(row: Mapping[str, Any]) -> None:
        if not opened:
            name = sha256(str(folder.resolve()).encode()).hexdigest()[:16]
            opened.append(_package("wandb").init(name=folder.name, id=name, resume="allow", dir=str(folder)))
        opened[0].log(numbers(row), step=row["round"])

    return sink


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by their keys, but for the round; what is none (null, NaN) is left out."""
    found = {}
    for name, value in row.items():
        if name != "round" and isinstance(value, int | float) and math.isfinite(value):
            found[name] = float(value)
    return found


TRACKERS: dict[str, Callable[[Path], Sink]] = {"none": nowhere, "tensorboard": tensorboard, "wandb": wandb}
"""By name: run folder -> what takes its rows."""
FORM = "a function of the run folder that gives a function of a row"


def _package(tracker: str) -> Any:
    """What a tracker of ours imports; raises InputError, with the extra that brings it."""
    name = PACKAGES[tracker]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"tracker = {tracker}: needs the package {name} ({error}); install it by: pip install 'fedjax-rai[track]'"
        ) from error


def check_tracker(name: str) -> None:
    """Raises InputError for a name that is none, for one whose package is missing, and for a function that does not
    take a folder alone.

    It is not called: a tracker may write to the folder, or tell others of the run.
    """
    tracker = look_up(TRACKERS, name, "tracker")
    if name in PACKAGES:
        _package(name)
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
