"""The guard's curves in a report: the scores that a filter went by are found among those that are kept."""

from copy import copy

import numpy as np
import pytest

from fedjax_rai.config.load import dump_config
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import materials
from fedjax_rai.experiment.keeping import digest_of_texts
from fedjax_rai.model.weights import save_safetensors
from fedjax_rai.runs import files
from fedjax_rai.runs.rows import Filtered, GuardQuality, Quality
from fedjax_rai.safety.measures import judged, measures
from fedjax_rai.studies import report_filter
from fedjax_rai.studies.gathered import gather
from fedjax_rai.studies.report_parts import report_of
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
    assert not section.absent


def test_the_threshold_is_the_guards_that_was_noted(filtered):
    """Between 0.1 and 0.9 all thresholds have this quality; clients' own limits are said to be no part of it."""
    folder, _ = filtered
    (run,) = gather([folder]).arms[0].runs
    noted = copy(run)
    noted.__dict__["summary"] = {**run.summary, "guard": run.summary["guard"] | {"threshold": 0.7}}
    assert report_filter._thresholds(noted, np.array([0.1, 0.9])) == [0.7]
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
