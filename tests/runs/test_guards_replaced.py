"""The state of a guard's fit is kept in the place of an earlier one: at every moment one of them is whole, or none."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedjax_rai.experiment.keeping import FITTED, Origin
from fedjax_rai.runs import guards as kept
from fedjax_rai.runs.guards import KeptGuards

FIT = Origin(FITTED, {"keys": {"seed": 0}, "base": "sha256:ab"}, base="models/base")
LIKE = {"count": np.int32(0)}
RENAME = os.rename


def keep(study: Path, steps: int) -> None:
    KeptGuards(study).keep_fitting(FIT, steps, {"count": np.int32(10 * steps)})


def found(study: Path) -> tuple[int, int] | None:
    """(steps, count) that another process finds."""
    state = KeptGuards(study).fitting(FIT, LIKE)
    return None if state is None else (state[0], int(state[1]["count"]))


def names(study: Path) -> list[str]:
    return sorted(path.name for path in (study / "guards").iterdir())


class Renames:
    """Each renaming, as (what it was, what it becomes), and what is found when it is about to happen."""

    def __init__(self, study: Path, monkeypatch: pytest.MonkeyPatch, fails: int | None = None, error: Any = None):
        self.study = study
        self.fails = fails
        self.error = error
        self.made: list[tuple[str, str]] = []
        self.seen: list[Any] = []
        monkeypatch.setattr(kept.os, "rename", self)

    def __call__(self, source: Path, target: Path) -> None:
        self.made.append((Path(source).suffix, Path(target).suffix))
        self.seen.append(found(self.study))
        if len(self.made) == self.fails:
            raise self.error
        RENAME(source, target)


def test_the_old_one_is_moved_away_whole_before_the_new_one_comes(tmp_path, monkeypatch) -> None:
    """Nobody reads a half of either: at the first renaming the old one is found, at the second none."""
    keep(tmp_path, 25)
    (entry,) = [name for name in names(tmp_path) if name.startswith("fitting-")]
    renames = Renames(tmp_path, monkeypatch)
    keep(tmp_path, 50)
    assert renames.made == [("", ".old"), (".part", "")]
    assert renames.seen == [(25, 250), None]
    assert found(tmp_path) == (50, 500) and names(tmp_path) == ["README.md", entry]


@pytest.mark.parametrize(("fails", "expected"), [(1, (25, 250)), (2, (25, 250))])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space")], ids=["interrupt", "refused"])
def test_what_stops_it_on_the_way_leaves_the_old_one(tmp_path, monkeypatch, fails, expected, error) -> None:
    keep(tmp_path, 25)
    with monkeypatch.context() as patch:
        Renames(tmp_path, patch, fails, error)
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                keep(tmp_path, 50)
        else:
            keep(tmp_path, 50)
    assert found(tmp_path) == expected and len(names(tmp_path)) == 2
    keep(tmp_path, 75)
    assert found(tmp_path) == (75, 750)


def test_killed_between_the_two_it_is_made_again(tmp_path) -> None:
    """As a kill leaves it: the old one moved away, the new one not yet there."""
    keep(tmp_path, 25)
    (entry,) = (tmp_path / "guards").glob("fitting-*")
    entry.rename(entry.with_name(f".{entry.name}.1.old"))
    entry.with_name(f".{entry.name}.1.part").mkdir()
    assert found(tmp_path) is None
    keep(tmp_path, 50)
    assert found(tmp_path) == (50, 500)
