"""The guard's curves in a report: the scores that a filter went by are found among those that are kept."""

import math
from copy import copy

import numpy as np
import pytest

from fedjax_rai.config.load import dump_config
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import materials
from fedjax_rai.experiment.keeping import digest_of_texts
from fedjax_rai.model.weights import save_safetensors
from fedjax_rai.runs import files
from fedjax_rai.runs.rows import Filtered, GuardQuality, Quality
from fedjax_rai.safety.measures import judged, measures, roc
from fedjax_rai.studies import report_filter
from fedjax_rai.studies.gathered import gather
from fedjax_rai.studies.panels import Point
from fedjax_rai.studies.report_parts import report_of
from fedjax_rai.text.prompts import Turn
from tests.studies.report_folders import some_rows, write_run
from tests.tiny_runs import vary


def keep(folder, name: str, scores: np.ndarray, texts: str) -> None:
    """Scores in a run's own store."""
    entry = folder / "guards" / f"scores-{name}"
    entry.mkdir(parents=True)
    save_safetensors(entry / "scores.safetensors", {"scores": scores.astype(np.float32)})
    files.write_json(entry / "origin.json", {"made_of": {"pairs": texts, "guard": {"model": name}}})


@pytest.fixture
def filtered(tmp_path, config):
    """A run whose guard finds two thirds of its harmful pairs, and the scores of two other guards beside its own."""
    config = vary(config, filter={"enabled": True})
    pairs = materials.gather(config).pairs
    harmful = np.array([bool(pair.harmful) for pair in pairs])
    good = np.where(harmful & (np.arange(len(pairs)) % 3 != 0), 0.9, 0.1)
    of_good = measures(judged(good, harmful.tolist(), [pair.query for pair in pairs]), 0.5)
    quality = Quality(**{name: of_good[name] for name in Quality._fields})
    left = Filtered(int((good < 0.5).sum()), int((good >= 0.5).sum()), 0, None)
    folder = write_run(tmp_path / "run", config, some_rows(4), guard=GuardQuality(quality, quality), filter=left)
    texts = digest_of_texts([exchange for pair in pairs for exchange in pair.exchanges])
    keep(folder, "a-blind", np.full(len(pairs), 0.3), texts)
    keep(folder, "b-good", np.stack([good, np.ones_like(good)]), texts)  # scores, and what stands beside them
    keep(folder, "c-elsewhere", good, "of other pairs")
    return folder, of_good


def test_the_scores_are_those_that_have_the_summarys_quality(filtered):
    folder, of_good = filtered
    section = report_filter.guard(report_of(gather([folder]), None, None))
    (row,) = section.grids[0].rows
    assert row[:4] == ["run", "0", f"{of_good['accuracy']:.1f}", "100.0"] and row[-2] == "40"
    assert [panel.title for panel in section.panels] == ["ROC", "Precision against recall", "Reliability"]
    curve, dot = section.panels[0].series
    assert (curve.points[0][:2], curve.points[-1][:2]) == ((0.0, 0.0), (100.0, 100.0)) and curve.line
    assert dot.points[0][:2] == pytest.approx((0.0, of_good["recall"]))
    assert not section.absent and len(section.about) == 1


def test_the_threshold_is_the_guards_that_was_noted(filtered):
    """Between 0.1 and 0.9 all thresholds have this quality; clients' own limits are said to be no part of it."""
    folder, _ = filtered
    (run,) = gather([folder]).arms[0].runs
    noted = copy(run)
    noted.__dict__["summary"] = {**run.summary, "guard": run.summary["guard"] | {"threshold": 0.7}}
    assert report_filter._thresholds(noted, np.array([0.1, 0.9])) == [0.7]
    unlabelled = copy(run)
    unlabelled.__dict__["summary"] = {**run.summary, "guard": None}
    with pytest.raises(InputError, match="no pair of its clients has a label"):
        report_filter._scored(unlabelled)
    keeping = copy(run)
    keeping.config = vary(run.config, filter={"action": "keep"})
    with pytest.raises(InputError, match="threshold is not noted"):
        report_filter._thresholds(keeping, np.array([0.1, 0.9]))
    own = vary(run.config, filter={"thresholds": [{"drop_rate": 0.5}]})
    (folder / "config.yaml").write_text(dump_config(own))
    changed = files.read_object(folder / "summary.json")
    changed["guard"]["threshold"] = 0.7
    files.write_json(folder / "summary.json", changed)
    section = report_filter.guard(report_of(gather([folder]), None, None))
    assert section.panels[0].series[1].points[0].note == "run, threshold 0.7"
    assert section.about[1].startswith("run: clients have limits of their own")


def test_scores_that_are_gone_are_said_to_be(filtered):
    folder, _ = filtered
    (folder / "guards" / "scores-b-good" / "origin.json").unlink()
    section = report_filter.guard(report_of(gather([folder]), None, None))
    assert not section.panels and section.absent[0].startswith("run: the scores that its filter went by are not among")


def test_without_a_filter_there_is_nothing_to_draw(tmp_path, config):
    folder = write_run(tmp_path / "run", config, some_rows(4))
    assert report_filter.guard(report_of(gather([folder]), None, None)).absent == ["No arm has a filter."]


def test_the_quality_of_all_seeds_stands_beside_the_first(tmp_path, config):
    """By hand: 60 and 70 have the mean 65; the arm without a filter, and seeds without a guard, are in no row."""
    config = vary(config, filter={"enabled": True})
    for seed, accuracy in ((0, 60.0), (1, 70.0)):
        quality = GuardQuality(Quality(accuracy, 90.0, 50.0, 64.2), Quality(0.0, 0.0, 0.0, 0.0))
        folder = tmp_path / f"run{seed}"
        write_run(folder, vary(config, seed=seed), some_rows(4), guard=quality, filter=Filtered(1, 1, 0, None))
    report = report_of(gather([tmp_path / "run0", tmp_path / "run1"]), None, None)
    (grid,) = report_filter._over_seeds(report)
    assert grid.rows == [["run0", "0, 1", "65.0 [60.0, 70.0]", "90.0 [90.0, 90.0]", "50.0 [50.0, 50.0]",
                          "64.2 [64.2, 64.2]"]]  # fmt: skip
    assert report_filter.guard(report).grids == [grid], "though no scores are kept"


# --- numbers by hand ---


def test_reliability_is_by_score_and_its_intervals_are_over_questions():
    """Two answers to one question at 0.65 in the mean, one of them unsafe; one of 1 trial each: Wilson's 0 to 79.3.

    Of one trial and a share of 1/2: 1/2 -+ 1.96 sqrt(1/4 + 3.8416/4) / 4.8416.
    """
    given = judged(np.array([0.62, 0.68, 0.2, 1.0]), [True, False, False, True], ["a", "a", "b", "c"])
    points = report_filter._reliability(given)
    assert [(point.x, point.y) for point in points] == [
        (pytest.approx(20), 0), (pytest.approx(65), 50), (pytest.approx(100), 100),
    ]  # fmt: skip
    assert [point.y_range for point in points] == [
        pytest.approx((0, 79.35), abs=0.01), pytest.approx((5.46, 94.54), abs=0.01),
        pytest.approx((20.65, 100), abs=0.01),
    ]  # fmt: skip
    assert points[1].note == "0.6 to 0.7: 50.0 % of 2 pairs about 1 questions unsafe"
    apart = judged(np.array([0.55, 0.6, 0.68, 1.0, 0.95]), [True, True, False, False, True], list("abcde"))
    first, *others = report_filter._reliability(apart)
    assert first.note == "0.5 to 0.6: 100.0 % of 1 pairs about 1 questions unsafe"
    for point in others:
        assert point.note.endswith(": 50.0 % of 2 pairs about 2 questions unsafe")
        assert point.y_range == pytest.approx((9.45, 90.55), abs=0.01)


def test_the_dot_of_a_curve_is_where_its_threshold_flags():
    """At 0.65 one of four others and two of three harmful answers; a score that is the threshold is flagged."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.3, 0.1, 0.05], np.float32)
    given = judged(scores, [True, False, True, False, True, False, False], list(range(7)))
    for threshold, at in ((0.65, (25, 200 / 3)), (0.7, (25, 200 / 3)), (0.71, (25, 100 / 3)), (0.95, (0, 0))):
        curve, dot = report_filter._with_dot("a", roc(given), threshold, 0)
        assert dot.points[0][:2] == pytest.approx(at) and len(curve.points) == 8, threshold
        assert curve.points[3][:2] == pytest.approx((25, 200 / 3)), "after 0.7"
    for kind in (True, False):
        assert report_filter._with_dot("a", roc(judged(scores, [kind] * 7, list(range(7)))), 0.5, 0) == []


def test_a_long_curve_keeps_its_ends_and_200_points():
    points = [Point(float(i), 0.0) for i in range(1000)]
    thin = report_filter._thinned(points)
    assert len(thin) == 200 and thin[0] is points[0] and thin[-1] is points[-1]
    assert report_filter._thinned(points[:200]) == points[:200]


def test_a_pair_scores_as_its_worst_answer():
    """Of two answers, of one, of three, of one; none where one has none."""
    turns = Turn("user", "q"), Turn("assistant", "r")
    pairs = [Pair("q", "r", None, before=turns * n) for n in (1, 0, 2, 0)]
    found = report_filter._by_pair(np.array([0.1, 0.4, 0.9, 0.2, np.nan, 0.3, 0.6]), pairs)
    np.testing.assert_array_equal(found, [0.4, 0.9, np.nan, 0.6])


def test_an_older_versions_threshold_is_the_least_score_that_was_dropped(filtered):
    """Two of four scores were kept; where all were, nothing tells and it is 0.5."""
    (run,) = gather([filtered[0]]).arms[0].runs
    for kept, threshold in ((2, 0.6), (3, 0.8), (4, 0.5)):
        older = copy(run)
        older.__dict__["summary"] = {**run.summary, "filter": run.summary["filter"] | {"kept": kept}}
        assert report_filter._thresholds(older, np.array([0.8, np.nan, 0.1, 0.6, 0.3])) == [threshold], kept
    stated = copy(run)
    stated.config = vary(run.config, guard={"threshold": 0.25})
    assert report_filter._thresholds(stated, np.array([0.8, 0.1])) == [0.25]


def test_scores_are_those_of_a_summary_to_a_hundredth_of_a_percent():
    found = {"accuracy": 50.0, "recall": math.nan}
    assert report_filter._agree(found, {"accuracy": 50.004, "recall": 0.0})
    assert not report_filter._agree(found, {"accuracy": 50.02, "recall": 0.0})
    assert not report_filter._agree(found, {"accuracy": 50.0, "recall": 50.0})
