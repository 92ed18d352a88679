"""What is said to a person: lines and progress with time left, on standard error; stdout is for results."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

CONSOLE = Console(stderr=True)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Any]:
    """A bar with time left on stderr; yields `advance(note)`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # steps may take minutes, and a speed needs two of them
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=CONSOLE, speed_estimate_period=3600) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")
        yield lambda note="": bar.update(task, advance=1, note=note)


def say(text: str) -> None:
    """A line on stderr; stdout is for results."""
    CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)
