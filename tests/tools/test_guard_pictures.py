"""The pictures of a guard's scores: the tiny world's say so themselves, and others do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedjax_rai.safety.measures import Judged, judged
from fedjax_rai.tools import guard_pictures
from fedjax_rai.tools.guard_pictures import PRECISION_RECALL, RELIABILITY, ROC, draw


def four_answers() -> Judged:
    return judged(np.array([0.1, 0.4, 0.6, 0.9], np.float32), [False, True, False, True], list("abcd"))


@pytest.mark.parametrize(("synthetic", "title"), [(True, "synthetic tiny world"), (False, "")])
def test_every_picture_says_where_numbers_are_synthetic(tmp_path: Path, monkeypatch, synthetic, title):
    made: list[Any] = []
    new = guard_pictures.figure
    monkeypatch.setattr(guard_pictures, "figure", lambda *size: made.append(new(*size)) or made[-1])
    draw(tmp_path, {"fitted": four_answers()}, {"fitted": 0.5}, 2.0, synthetic)
    assert [figure.get_suptitle() for figure in made] == [title] * 3
    assert {path.name for path in tmp_path.iterdir()} == {ROC, PRECISION_RECALL, RELIABILITY}


def test_a_marker_lies_at_the_threshold(tmp_path: Path, monkeypatch):
    """At 0.5 two answers are flagged, one of the two harmful ones and one of the two others: 50 and 50 percent."""
    made: list[Any] = []
    new = guard_pictures.figure
    monkeypatch.setattr(guard_pictures, "figure", lambda *size: made.append(new(*size)) or made[-1])
    draw(tmp_path, {"fitted": four_answers()}, {"fitted": 0.5}, None, False)
    for figure in made[:2]:
        _, marker = figure.axes[0].lines
        assert marker.get_xydata().tolist() == [[50, 50]]
