"""The one error that is the user's to mend, and the nearest right spelling to put into it."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

NEAR_FILE = 0.75  # how alike names are, of 1, that are nearly the same with their suffix


class InputError(ValueError):
    """Bad input of a user: the message says what is wrong, where, and what is allowed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest other spelling, or nothing where none is near."""
    others = [name for name in known if name != word]
    close = difflib.get_close_matches(word, others, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def did_you_mean_file(path: str | Path, pattern: str = "*", inside: Iterable[str] = ()) -> str:
    """`; did you mean ...?` with the nearest other path, among what lies beside this one and fits the pattern.

    Names must be alike without their folder and suffix, which files of one kind have in common, or nearly the same.
    `inside`: of folders that hold these files, and nothing else.
    """
    folder, name = Path(path).parent, Path(path).name
    there = sorted(folder.glob(pattern)) if folder.is_dir() else []
    fitting = {other.name: other for other in there if all(os.path.exists(other / file) for file in inside)}
    others = [other for other in fitting if other != name]
    near_stems = difflib.get_close_matches(Path(name).stem, {Path(other).stem for other in others})
    near = difflib.get_close_matches(name, others, cutoff=NEAR_FILE)
    alike = [other for other in others if other in near or Path(other).stem in near_stems]
    close = difflib.get_close_matches(name, alike, n=1, cutoff=0)
    return f"; did you mean {fitting[close[0]]}?" if close else ""
