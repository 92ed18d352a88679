"""What a sweep shows: cells, comparisons and the picture, from summaries alone."""

from typing import Any

from matplotlib.figure import Figure

from fedjax_rai.runs import files, rows
from fedjax_rai.runs.rows import Probe
from fedjax_rai.studies import plots, sweep
from fedjax_rai.studies.cells import Cell
from fedjax_rai.studies.results import cells_of, shown_rates
from tests.tiny_runs import ROUND


def summary(harmless: float | None, cost: dict[str, Any] | None = None, seed: int = 0) -> dict[str, Any]:
    rate = None if harmless is None else {"mean": harmless, "low": 0.0, "high": 100.0, "prompts": 4}
    cai = {"local": {"seconds": 2.0}, "cai": cost}
    return {
        "rates": {"harmless": rate}, "seconds": {"training": 3.0}, "cost": cai, "critique": None, "synthetic": [],
        "seed": seed,
    }  # fmt: skip


def test_what_no_run_measured_is_left_out_and_no_cai_costs_nothing() -> None:
    cost = {"seconds": 1.0, "generated_tokens": 12345, "trained_tokens": 500, "share_saved": 0.755}
    none, some = (sweep.Row({"k": "v"}, [], [summary(50.0, own)]) for own in (None, cost))
    titles = shown_rates(none.summaries)
    found = sweep.table_columns([none, some], titles, cells_of(titles, [none.summaries, some.summaries]))
    assert found["k"] == ["v", "v"] and found["harmless"] == ["50.0 [0.0, 100.0] n=4"] * 2
    assert "utility" not in found and found["seconds"] == ["3.0", "3.0"]
    assert (found["CAI s"], found["generated"]) == (["0.0", "1.0"], ["0.0k", "12.3k"])
    assert (found["trained"], found["saved"], found["made safe"]) == (["0.0k", "0.5k"], ["", "76 %"], ["", ""])


def test_rows_are_compared_with_the_first_seed_by_seed() -> None:
    first = sweep.Row({"k": "0"}, [], [summary(50.0 + 10 * s, seed=s) for s in range(3)])
    other = sweep.Row({"k": "5"}, [], [summary(60.0 + 10 * s, seed=s) for s in range(3)])
    absent = sweep.Row({"k": "7"}, [], [summary(None, seed=s) for s in range(3)])
    (line,) = sweep.comparisons([first, other, absent], "harmless (rule)")
    assert line == "harmless (rule), 5 minus 0: +10.0 points [+10.0, +10.0]; by seed +10.0, +10.0, +10.0"
    single = [first._replace(summaries=[summary(1.0)]), other._replace(summaries=[summary(2.0)])]
    assert not sweep.comparisons(single, "harmless (rule)")


def test_a_cost_is_the_mean_over_seeds_and_missing_where_one_has_none() -> None:
    """Half of all FLOPs saved by one seed, nothing by the other; and a third that trained on nothing."""
    given = {"seconds": 1.0, "generated_tokens": 1000, "trained_tokens": 10}
    runs: list[Any] = [
        summary(50.0, given | {"share_saved": share}, seed) for seed, share in enumerate([0.5, 0.0, None])
    ]
    assert sweep.mean_cost(sweep.Row({}, [], runs[:2]), "saved") == 0.25
    assert sweep.mean_cost(sweep.Row({}, [], runs), "saved") is None
    without = sweep.Row({}, [], [runs[0], summary(50.0)])
    assert sweep.mean_cost(without, "generated") == 500, "a run without phases generated nothing"


def test_probes_are_percent_by_round_over_seeds(tmp_path) -> None:
    """25 and 75 % of the first round's answers are safe, all of the third's; the second had no probe."""
    for seed, shares in enumerate([(0.25, None, 1.0), (0.75, None, 1.0)]):
        written = [
            ROUND._replace(round=t + 1, probe=None if share is None else Probe(share, 0.5))
            for t, share in enumerate(shares)
        ]
        (tmp_path / f"{seed}").mkdir()
        files.write_rows(tmp_path / f"{seed}" / "metrics.jsonl", [rows.flat(row) for row in written])
    row = sweep.Row({}, [tmp_path / "0", tmp_path / "1"], [])
    assert sweep.probed(row) == {1: 50.0, 3: 100.0}


def picture(tmp_path, monkeypatch, labels: list[str], **given: Any) -> list[Any]:
    """The axes of a picture of these points."""
    drawn: list[Figure] = []
    make = plots.new_figure
    monkeypatch.setattr(plots, "new_figure", lambda *size: drawn.append(make(*size)) or drawn[-1])
    measured = [Cell(50.0 + i / 4, 40.0, 60.0 + i) for i in range(len(labels))]
    cells = {rate: [None] * len(labels) if rate == "utility" else measured for rate in plots.MAIN}
    probes = given.get("probes", [{}] * len(labels))
    seconds = given.get("seconds", [0.0] * len(labels))
    points = plots.SweptPoints("k", labels, seconds, probes)
    plots.plot_sweep(tmp_path / "a.png", points, cells, dict.fromkeys(cells, "x (rule)"), synthetic=True)
    return drawn[0].axes


def test_a_picture_has_a_panel_for_probes_where_there_are_some(tmp_path, monkeypatch) -> None:
    rates, costs = picture(tmp_path, monkeypatch, ["0", "10"])
    assert [text.get_text() for text in costs.texts] == ["0", "10"]
    assert costs.get_ylabel() == "x (rule), percent", "the rate is named with its judge"
    assert [label.get_text() for label in rates.get_xticklabels()] == ["0", "10"]
    assert len(rates.containers) == len(plots.MAIN) - 1, "a rate that was not measured is left out"
    *_, probes = picture(tmp_path, monkeypatch, ["0", "10"], probes=[{1: 40.0, 2: 50.0}, {1: 40.0, 2: 80.0}])
    assert [list(line.get_ydata()) for line in probes.lines] == [[40.0, 50.0], [40.0, 80.0]]
    *_, probes = picture(tmp_path, monkeypatch, ["0", "10"], probes=[{1: 40.0}, {1: 50.0}])
    assert [tick for tick in probes.get_xticks() if 0 <= tick <= 2] == [0, 1, 2], "whole rounds alone"


def test_labels_of_points_lie_apart(tmp_path, monkeypatch) -> None:
    _, costs = picture(tmp_path, monkeypatch, [f"point {i}" for i in range(6)], seconds=[1.0, 1.0, 1.01, 5.0, 1.0, 5.0])
    boxes = [text.get_window_extent() for text in costs.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
