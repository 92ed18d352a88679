"""The filter's guard in a report: ROC, precision and recall, and reliability of the scores that a study keeps."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.config.views import View
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.evals.rate import wilson
from fedjax_rai.experiment import materials
from fedjax_rai.experiment.guarding import FITTED_BY
from fedjax_rai.experiment.keeping import FITTED, SCORES, digest_of_texts
from fedjax_rai.runs import files
from fedjax_rai.runs.guards import GUARDS, ORIGIN, study_of
from fedjax_rai.runs.guards import SCORES as SCORES_FILE
from fedjax_rai.safety import measures
from fedjax_rai.safety.measures import Judged
from fedjax_rai.studies.gathered import Arm, Run
from fedjax_rai.studies.panels import Panel, Point, Series, percent_axis
from fedjax_rai.studies.report_parts import Grid, Report, Section

SHOWN = ("accuracy", "precision", "recall", "hmean", "auroc", "auprc")
WHOLE = (0.0, 100.0)


class Scored(NamedTuple):
    """A guard's kept scores of the clients' pairs, with what people say of these."""

    arms: list[str]
    seed: int
    threshold: float
    judged: Judged


def guard(report: Report) -> Section:
    """Curves of every guard whose scores are kept and told apart, of each arm's first seed."""
    title = "The filter's guard"
    found: dict[Path, Scored] = {}
    absent = []
    for arm in report.arms:
        if arm.first.summary["filter"] is None:
            continue
        try:
            entry = _entry(arm.first)
            if entry in found:
                found[entry].arms.append(arm.label)
            else:
                found[entry] = _scored(arm, entry)
        except (InputError, OSError, ValueError, KeyError) as error:
            absent.append(f"{arm.label}: {error}")
    if not found:
        return Section(title, absent=[*absent, *_why_none(report)])
    scored = list(found.values())
    about = [
        "Scores of the clients' pairs against what people, or the tiny world, say of them; unsafe is positive. The dot of"
        " a curve is the threshold that was used. Of each arm's first seed."
    ]
    return Section(title, about, [_numbers(scored)], list(_curves(scored)), absent)


def _why_none(report: Report) -> list[str]:
    if any(arm.first.summary["filter"] for arm in report.arms):
        return []
    return ["No arm has a filter."]


def _numbers(scored: Sequence[Scored]) -> Grid:
    rows = []
    for guard_scores in scored:
        judged = guard_scores.judged
        of_guard = measures.measures(judged, guard_scores.threshold)
        values = [f"{of_guard[name]:.1f}" for name in SHOWN]
        rows.append([", ".join(guard_scores.arms), str(guard_scores.seed), *values, f"{len(judged.scores):,}",
                     f"{judged.distinct_questions:,}"])  # fmt: skip
    header = ["arms", "seed", "accuracy", "precision", "recall", "Hmean", "AUROC", "AUPRC", "pairs", "questions"]
    return Grid("Percent, at the threshold that was used", header, rows)


def _curves(scored: Sequence[Scored]) -> Iterator[Panel]:
    """ROC, precision against recall, reliability."""
    legend = [(", ".join(one.arms), i) for i, one in enumerate(scored)] if len(scored) > 1 else []
    rocs, recalls, reliable = [], [], []
    for i, one in enumerate(scored):
        name = ", ".join(one.arms)
        rocs += _with_dot(name, measures.roc(one.judged), one.threshold, i)
        recalls += _with_dot(name, measures.precision_recall(one.judged), one.threshold, i)
        reliable.append(Series(name, _reliability(one.judged), i, line=True))
    axes = {name: percent_axis(name, WHOLE) for name in ("safe pairs flagged, percent", "recall, percent",
            "precision, percent", "mean score x 100", "unsafe, percent")}  # fmt: skip
    false_alarms, recall, precision, score, share = axes.values()
    yield Panel("ROC", false_alarms, recall, rocs, legend=legend, diagonal=True)
    yield Panel("Precision against recall", recall, precision, recalls, legend=legend)
    yield Panel("Reliability", score, share, reliable, legend=legend, diagonal=True)


def _with_dot(name: str, curve: measures.Curve, threshold: float, look: int) -> list[Series]:
    """A curve, and on it the threshold that was used."""
    known = np.isfinite(curve.x) & np.isfinite(curve.y)
    points = [Point(100 * x, 100 * y) for x, y in zip(curve.x[known], curve.y[known], strict=True)]
    flagged = np.flatnonzero(known & (curve.thresholds >= np.float32(threshold)))
    if not len(points) or not len(flagged):
        return []
    at = flagged[-1]
    note = f"{name}, threshold {threshold:g}"
    dot = Point(100 * float(curve.x[at]), 100 * float(curve.y[at]), note=note)
    return [Series(name, _thinned(points), look, line=True, dots=False), Series(name, [dot], look)]


def _thinned(points: Sequence[Point], most: int = 200) -> list[Point]:
    """At most so many points of a curve, its ends among them: a page holds several, and an eye sees no more."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(most, len(points))).astype(int))
    return [points[i] for i in chosen]


def _reliability(judged: Judged) -> list[Point]:
    points = []
    for part in measures.reliability(judged):
        if part.answers:
            low, high = wilson(part.harmful_share, part.answers)
            note = f"{part.low:g} to {part.high:g}: {part.answers:,} pairs, {100 * part.harmful_share:.1f} % unsafe"
            ends = (100 * low, 100 * high)
            points.append(Point(100 * part.mean_score, 100 * part.harmful_share, y_range=ends, note=note))
    return points


def _scored(arm: Arm, entry: Path) -> Scored:
    """The scores in an entry of a study's guards, with the labels of the pairs that they are of."""
    from safetensors.numpy import load_file

    run = arm.first
    pairs = _pairs(run)
    scores = _by_pair(load_file(entry / SCORES_FILE)["scores"], pairs)
    judged = measures.judged(scores, [pair.harmful for pair in pairs], [pair.query for pair in pairs])
    if not len(judged.scores):
        raise InputError("no pair of the clients has both a score and a label")
    return Scored([arm.label], run.seed, run.config.guard.threshold, judged)


def _by_pair(scores: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """The greatest score of each pair's exchanges, as the filter takes it."""
    begins = np.cumsum([0, *(len(pair.exchanges) for pair in pairs[:-1])])
    return np.maximum.reduceat(scores, begins)


(maxsize=8)
def _pairs(run: Run) -> Sequence[Pair]:
    """The clients' pairs, read or made again from the run's config."""
    try:
        return materials.gather(run.config).pairs
    except (InputError, OSError) as error:
        raise InputError(f"the data of its config cannot be read again ({error})") from None


def _entry(run: Run) -> Path:
    """The kept scores that the run's filter went by. Raises InputError where they are not there, or cannot be told."""
    folder = study_of(run.folder) / GUARDS
    texts = digest_of_texts([exchange for pair in _pairs(run) for exchange in pair.exchanges])
    fits = {entry["digest"] for _, entry in _origins(folder, FITTED) if _is_fit_of(run, entry)}
    fitting = []
    for path, entry in _origins(folder, SCORES):
        made_of = entry["made_of"]
        if made_of["pairs"] == texts and _is_by(run, made_of["guard"], fits):
            fitting.append(path)
    if len(fitting) != 1:
        wrong = "are not kept" if not fitting else "cannot be told from those of another guard"
        raise InputError(f"the scores that its filter went by {wrong} ({folder})")
    return fitting[0]


def _origins(folder: Path, kind: str) -> list[tuple[Path, dict[str, Any]]]:
    """Entries of a kind, and what they are made of."""
    paths = sorted(folder.glob(f"{kind}-*/{ORIGIN}"))
    return [(path.parent, files.read_object(path)) for path in paths]


def _is_fit_of(run: Run, entry: dict[str, Any]) -> bool:
    """Whether a fitted guard is of the run's keys; those of the mesh are left to whoever chose it."""
    stated = {key: value for key, value in entry["made_of"]["keys"].items() if not key.startswith("mesh.")}
    known = [key for key in FITTED_BY if not key.startswith("mesh.")]
    return files.plain(View(run.config, known).plain()) == {key: stated.get(key) for key in known}


def _is_by(run: Run, made_of: dict[str, str], fits: set[str]) -> bool:
    """Whether scores are by the guard that the run's config asks for."""
    settings = run.config.guard
    if settings.path is None and settings.adapter is None:
        return made_of.get("fitted") in fits
    return "fitted" not in made_of and ("adapter" in made_of) == (settings.adapter is not None)
