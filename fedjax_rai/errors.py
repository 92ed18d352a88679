"""The one error that is the user's to mend, and the nearest right spelling to put into it."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

NEAR_FILE = 0.75
"""How alike names of files must be, of 1: more than of other words, as files of one kind end alike."""


class InputError(ValueError):
    """Bad input of a user: the message says what is wrong, where, and what is allowed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest other spelling, or nothing where none is near."""
    others = [name for name in known if name != word]
    close = difflib.get_close_matches(word, others, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def did_you_mean_file(path: str | Path, pattern: str = "*", inside: Iterable[str] = ()) -> str:
    """`; did you mean ...?` with the nearest other path, among what lies beside this one and fits the pattern.

    Names alone are compared: the folder, which they have in common, makes no two alike. `inside`: of folders that hold
    these files, and nothing else.
    """
    folder, name = Path(path).parent, Path(path).name
    there = sorted(folder.glob(pattern)) if folder.is_dir() else []
    fitting = {other.name: other for other in there if all(os.path.exists(other / file) for file in inside)}
    close = difflib.get_close_matches(name, fitting.keys() - {name}, n=1, cutoff=NEAR_FILE)
    return f"; did you mean {fitting[close[0]]}?" if close else ""
