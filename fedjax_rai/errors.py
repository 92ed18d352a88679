"""The one error that is the user's to mend, and the nearest right spelling to put into it."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """Bad input of a user: the message says what is wrong, where, and what is allowed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest other spelling, or nothing where none is near."""
    others = [name for name in known if name != word]
    close = difflib.get_close_matches(word, others, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def did_you_mean_file(path: str | Path, pattern: str = "*") -> str:
    """`; did you mean ...?` with the nearest other path, among what lies beside this one and fits the pattern."""
    folder = Path(path).parent
    there = sorted(str(other) for other in folder.glob(pattern)) if folder.is_dir() else []
    return did_you_mean(str(path), there)
