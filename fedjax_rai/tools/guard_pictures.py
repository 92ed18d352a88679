"""Pictures of a guard's scores: ROC, precision against recall, and reliability, before and after its fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rai.runs.palette import COLOURS
from fedjax_rai.runs.picture import SYNTHETIC, figure
from fedjax_rai.safety import measures
from fedjax_rai.safety.measures import Judged

STYLES = ("-", "--", ":")  # told apart without colours, too
MARKERS = "osD"
ROC, PRECISION_RECALL, RELIABILITY = "roc.png", "precision_recall.png", "reliability.png"


def draw(
    folder: Path,
    given: Mapping[str, Judged],
    thresholds: Mapping[str, float],
    temperature: float | None,
    synthetic: bool,
) -> None:
    """Write the three pictures of each guard's scores, by the guard's name; a dot is where its threshold lies.

    `temperature`: of the first guard, whose reliability is drawn at it, too; None: not known. `synthetic`: numbers are
    the tiny world's, which every picture says above.
    """
    title = SYNTHETIC if synthetic else ""
    curves = {name: _percent(measures.roc(scored)) for name, scored in given.items()}
    labels = ("acceptable answers that are flagged, percent", "harmful answers that are flagged, percent")
    _save(_curves(curves, thresholds, labels), title, folder / ROC)
    curves = {name: _percent(measures.precision_recall(scored)) for name, scored in given.items()}
    labels = ("recall, percent", "precision, percent")
    _save(_curves(curves, thresholds, labels), title, folder / PRECISION_RECALL)
    _save(_reliability(given, temperature), title, folder / RELIABILITY)


def _save(made: Any, title: str, path: Path) -> None:
    made.suptitle(title, fontsize=10)
    made.savefig(path)


def _percent(curve: measures.Curve) -> measures.Curve:
    return measures.Curve(100 * curve.x, 100 * curve.y, curve.thresholds)


def _curves(curves: Mapping[str, measures.Curve], thresholds: Mapping[str, float], labels: tuple[str, str]) -> Any:
    """A line for each guard, a marker where its threshold lies."""
    made = figure(4.2, 4.2)
    axes = made.subplots()
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(curve.x, curve.y, STYLES[i % len(STYLES)], color=colour, label=name, linewidth=1.5)
        flagged = np.flatnonzero(curve.thresholds >= np.float32(thresholds[name]))[-1]
        axes.plot(curve.x[flagged], curve.y[flagged], MARKERS[i % len(MARKERS)], color=colour, markersize=7)
    _square(axes, labels)
    return made


def _reliability(given: Mapping[str, Judged], temperature: float | None) -> Any:
    """A line for each guard through the tenths of its scores, whose markers grow with their answers."""
    made = figure(4.2, 4.2)
    axes = made.subplots()
    shown = dict(given)
    first = next(iter(given))
    if temperature is not None:
        scored = given[first]
        shown[f"{first}, calibrated"] = scored._replace(scores=measures.calibrated(scored.scores, temperature))
    axes.plot([0, 100], [0, 100], color="#999999", linewidth=1)
    for i, (name, scored) in enumerate(shown.items()):
        bins = [each for each in measures.reliability(scored) if each.answers]
        x = [100 * each.mean_score for each in bins]
        y = [100 * each.harmful_share for each in bins]
        sizes = [12 + 150 * each.answers / len(scored.scores) for each in bins]
        axes.plot(x, y, STYLES[i % len(STYLES)], color=COLOURS[i], linewidth=1)
        axes.scatter(x, y, sizes, color=COLOURS[i], marker=MARKERS[i % len(MARKERS)], label=name, alpha=0.8)
    _square(axes, ("mean p(unsafe) of a tenth of the scale, percent", "harmful answers there, percent"))
    return made


def _square(axes: Any, labels: Sequence[str]) -> None:
    """Both axes from 0 to 100, a little more, so that what lies on an edge is seen."""
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_aspect("equal")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=8)
