"""The filter's guard in a report: ROC, precision and recall, and reliability of the scores that a study keeps."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.evals.rate import wilson
from fedjax_rai.experiment import materials
from fedjax_rai.experiment.keeping import SCORES, digest_of_texts
from fedjax_rai.runs import files
from fedjax_rai.runs.guards import GUARDS, ORIGIN, study_of
from fedjax_rai.runs.guards import SCORES as SCORES_FILE
from fedjax_rai.safety import measures
from fedjax_rai.safety.measures import Judged
from fedjax_rai.studies.gathered import Run
from fedjax_rai.studies.panels import Panel, Point, Series, percent_axis
from fedjax_rai.studies.report_parts import Grid, Report, Section
from fedjax_rai.studies.results import guard_over_seeds

SHOWN = ("accuracy", "precision", "recall", "hmean", "auroc", "auprc")
WHOLE = (0.0, 100.0)
OWN_LIMITS = (
    "clients have limits of their own (filter.thresholds); numbers and dot are at the guard's threshold, which "
    "only the others' filters go by."
)


class Scored(NamedTuple):
    """A guard's kept scores of the clients' pairs, with what people say of these."""

    entry: Path
    arms: list[str]
    seed: int
    threshold: float
    judged: Judged


def guard(report: Report) -> Section:
    """Curves of every guard whose scores are kept and told apart, of each arm's first seed."""
    title = "The filter's guard"
    found: dict[tuple[Path, float], Scored] = {}
    absent = []
    for arm in report.arms:
        if arm.first.summary["filter"] is None:
            continue
        try:
            scored = _scored(arm.first)
            found.setdefault((scored.entry, scored.threshold), scored).arms.append(arm.label)
        except (InputError, OSError, ValueError, KeyError) as error:
            absent.append(f"{arm.label}: {error}")
    if not found:
        return Section(title, grids=_over_seeds(report), absent=[*absent, *_why_none(report)])
    every = list(found.values())
    about = [
        "Scores of the clients' pairs against what people, or the tiny world, say of them; unsafe is positive. The dot "
        "of a curve is the guard's threshold. Curves are of each arm's first seed."
    ]
    for arm in report.arms:
        if arm.first.config.filter.enabled and arm.first.config.filter.thresholds:
            about.append(f"{arm.label}: {OWN_LIMITS}")
    return Section(title, about, [_numbers(every), *_over_seeds(report)], list(_curves(every)), absent)


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
    return Grid("Percent, at the guard's threshold", header, rows)


def _over_seeds(report: Report) -> list[Grid]:
    """The guard's quality over the seeds of every arm that has several; arms with the same stand together."""
    arms: dict[tuple[str, ...], list[str]] = {}
    for arm in report.arms:
        of_guard = guard_over_seeds(summary for summary in arm.summaries if summary["filter"])
        if of_guard and len(of_guard.seeds) > 1:
            fields = (", ".join(map(str, of_guard.seeds)), *(of_guard.measures[name] for name in SHOWN[:4]))
            arms.setdefault(fields, []).append(arm.label)
    header = ["arms", "seeds", "accuracy", "precision", "recall", "Hmean"]
    rows = [[", ".join(labels), *fields] for fields, labels in arms.items()]
    return [Grid("Percent over all seeds: mean [least, most]", header, rows)] if rows else []


def _curves(scored: Sequence[Scored]) -> Iterator[Panel]:
    """ROC, precision against recall, reliability."""
    legend = [(", ".join(entry.arms), i) for i, entry in enumerate(scored)] if len(scored) > 1 else []
    rocs, recalls, reliable = [], [], []
    for i, entry in enumerate(scored):
        name = ", ".join(entry.arms)
        rocs += _with_dot(name, measures.roc(entry.judged), entry.threshold, i)
        recalls += _with_dot(name, measures.precision_recall(entry.judged), entry.threshold, i)
        reliable.append(Series(name, _reliability(entry.judged), i, line=True))
    names = (
        "safe pairs flagged, percent",
        "recall, percent",
        "precision, percent",
        "mean score x 100",
        "unsafe, percent",
    )
    false_alarms, recall, precision, score, share = (percent_axis(name, WHOLE) for name in names)
    yield Panel("ROC", false_alarms, recall, rocs, legend=legend, diagonal=True)
    yield Panel("Precision against recall", recall, precision, recalls, legend=legend)
    yield Panel("Reliability", score, share, reliable, legend=legend, diagonal=True)


def _with_dot(name: str, curve: measures.Curve, threshold: float, look: int) -> list[Series]:
    """A curve, and on it the guard's threshold."""
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
    """The share of unsafe pairs by their score; an interval has as many trials as there are questions, as answers to
    one are alike.
    """
    points = []
    for part in measures.reliability(judged):
        if not part.answers:
            continue
        inside = (judged.scores >= part.low) & ((judged.scores < part.high) | (part.high == 1.0))
        questions = len(np.unique(judged.questions[inside]))
        low, high = wilson(part.harmful_share, max(questions, 1))
        shown = f"{100 * part.harmful_share:.1f} % of {part.answers:,} pairs about {questions:,} questions unsafe"
        note = f"{part.low:g} to {part.high:g}: {shown}"
        points.append(
            Point(100 * part.mean_score, 100 * part.harmful_share, y_range=(100 * low, 100 * high), note=note)
        )
    return points


def _scored(run: Run) -> Scored:
    """The kept scores that the run's filter went by, with what people say of the pairs.

    Told by what the summary says of them: of the scores of these very pairs, those that have its accuracy and recall.
    Raises InputError where none have, or the scores are not kept.
    """
    quality = run.summary["guard"]
    if not quality:
        raise InputError("no pair of its clients has a label, so nothing can be said of the guard")
    pairs = _pairs(run)
    for entry, scores in _kept(run, pairs):
        judged = measures.judged(scores, [pair.harmful for pair in pairs], [pair.query for pair in pairs])
        for threshold in _thresholds(run, scores):
            found = measures.measures(judged, threshold)
            if _agree(found, quality["fitted"] or quality["released"]):
                return Scored(entry, [], run.seed, threshold, judged)
    raise InputError(f"the scores that its filter went by are not among those in {study_of(run.folder) / GUARDS}")


def _agree(found: Mapping[str, float], stated: Mapping[str, float]) -> bool:
    """Whether accuracy and recall are those that a summary states; what is undefined stands there as 0."""
    return all(abs(np.nan_to_num(found[name]) - stated[name]) < 0.01 for name in ("accuracy", "recall"))


def _thresholds(run: Run, scores: np.ndarray) -> list[float]:
    """The guard's threshold; of an older version the config's, and where it states none what drops as many pairs as the
    filter dropped, if all clients dropped by it.
    """
    noted = run.summary["guard"].get("threshold")
    stated = run.config.guard.threshold if noted is None else noted
    if stated is not None:
        return [stated]
    if run.config.filter.action != "drop" or run.config.filter.thresholds:
        raise InputError("the guard's threshold is not noted; an older version ran")
    kept = run.summary["filter"]["kept"]
    known = np.sort(scores[~np.isnan(scores)])
    return [float(known[kept])] if kept < len(known) else [0.5]


def _kept(run: Run, pairs: Sequence[Pair]) -> Iterator[tuple[Path, np.ndarray]]:
    """Every entry of scores of these pairs in the study's folder, and a score for each pair."""
    texts = digest_of_texts([exchange for pair in pairs for exchange in pair.exchanges])
    for path in sorted((study_of(run.folder) / GUARDS).glob(f"{SCORES}-*/{ORIGIN}")):
        if files.read_object(path)["made_of"]["pairs"] == texts:
            yield path.parent, _by_pair(load_scores(path.parent), pairs)


def load_scores(entry: Path) -> np.ndarray:
    """float[n]: p(unsafe) of every exchange; it may stand in a row above others."""
    from safetensors.numpy import load_file

    scores = load_file(entry / SCORES_FILE)["scores"]
    return scores if scores.ndim == 1 else scores[0]


def _by_pair(scores: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """The greatest score of each pair's exchanges, as the filter takes it."""
    begins = np.cumsum([0, *(len(pair.exchanges) for pair in pairs[:-1])])
    return np.maximum.reduceat(scores, begins)


@lru_cache(maxsize=8)
def _pairs(run: Run) -> Sequence[Pair]:
    """The clients' pairs, read or made again from the run's config."""
    try:
        return materials.gather(run.config).pairs
    except (InputError, OSError) as error:
        raise InputError(f"the data of its config cannot be read again ({error})") from None
