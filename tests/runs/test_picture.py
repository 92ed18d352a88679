"""The picture of a run shows what its files hold."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fedjax_rai.runs import picture

PLAIN = [
    {"round": 1, "train_loss": 3.5, "local_seconds": 9.0, "cai_seconds": 0.0},
    {"round": 2, "train_loss": None, "local_seconds": 1.5, "cai_seconds": 4.0},
    {"round": 3, "train_loss": 2.5, "local_seconds": 1.5, "cai_seconds": 5.5},
]
PROBES = [
    {"probe_harmless": 0.25, "probe_seconds": 2.0},
    {"probe_harmless": 0.5, "probe_seconds": 0.5},
    {"probe_harmless": 0.75, "probe_seconds": 0.5},
]
ROWS = [row | probe for row, probe in zip(PLAIN, PROBES, strict=True)]
HARMLESS = {"mean": 80.0, "low": 70.0, "high": 85.0, "prompts": 10, "judge": "refusal_phrases"}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`draw(rows, synthetic, harmless)`: the axes of the picture of a run that holds these."""

    def draw(
        rows: list[dict[str, Any]], synthetic: tuple[str, ...] = (), harmless: dict | None = HARMLESS
    ) -> tuple[Figure, list[Any]]:
        made: list[Figure] = []
        new = picture.figure
        monkeypatch.setattr(picture, "figure", lambda *size: made.append(new(*size)) or made[-1])
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = {
            "rounds": len(rows),
            "synthetic": list(synthetic),
            "rates": {"harmless": harmless},
            "seconds": {"evaluation": 7.25},
        }
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        picture.draw_run(tmp_path)
        assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
        return made[-1], made[-1].axes

    return draw


def points(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in line.get_xydata()]


def bars(axes: Any) -> dict[str, float]:
    names = [label.get_text() for label in axes.get_yticklabels()]
    return dict(zip(names, [float(bar.get_width()) for bar in axes.patches], strict=True))


def test_each_panel_holds_what_the_files_hold(drawn: Any) -> None:
    _, (loss, safety, seconds) = drawn(ROWS)
    (first, gap, last) = points(loss.lines[0])
    assert (first, last) == ((1, 3.5), (3, 2.5)) and gap[0] == 2 and math.isnan(gap[1])
    assert points(safety.lines[0]) == [(1, 25), (2, 50), (3, 75)]
    (rate,) = safety.containers
    assert points(rate[0]) == [(3, 80)]
    (interval,) = rate[2][0].get_segments()
    assert interval.tolist() == [[3, 70], [3, 85]]
    assert bars(seconds) == {"local training": 12, "probe": 3, "CAI": 9.5, "evaluation": 7.25}
    assert [axes.get_xlabel() for axes in (loss, safety)] == ["round", "round"]


def test_the_judge_of_the_evaluation_is_named_as_tables_name_it(drawn: Any) -> None:
    _, (_, safety, _) = drawn(ROWS)
    legend = [text.get_text() for text in safety.get_legend().get_texts()]
    assert legend == ["probe, by guard, before CAI", "evaluation, by phrases"]


def test_one_round_has_whole_rounds_along_its_axis(drawn: Any) -> None:
    _, (loss, safety, _) = drawn(ROWS[:1])
    for axes in (loss, safety):
        assert [tick for tick in axes.get_xticks() if 0 <= tick <= 2] == [0, 1, 2]


def test_what_a_run_has_not_is_not_drawn(drawn: Any) -> None:
    no_cai = [row | {"cai_seconds": 0.0} for row in PLAIN]
    _, (_, safety, seconds) = drawn(no_cai, harmless=None)
    assert not safety.lines and not safety.containers and safety.get_legend() is None
    assert list(bars(seconds)) == ["local training", "evaluation"]
    _, panels = drawn([])
    assert [axes.get_ylabel() for axes in panels] == ["harmless, percent", ""]
    assert bars(panels[1]) == {"evaluation": 7.25}


def test_the_tiny_world_is_called_synthetic(drawn: Any, tmp_path: Path) -> None:
    made, _ = drawn(PLAIN, ("model", "data"))
    assert made.get_suptitle() == f"{tmp_path.name}, synthetic tiny world"
    assert "synthetic" not in drawn(PLAIN)[0].get_suptitle()
