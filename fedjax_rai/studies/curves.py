"""How a guard's scores rank labelled pairs, as a report draws it: ROC, precision against recall, reliability."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 10


class Labelled(NamedTuple):
    """Pairs with a score and a label."""

    scores: np.ndarray
    """float32[n]: p(unsafe)."""
    harmful: np.ndarray
    """bool[n]"""
    questions: np.ndarray
    """int[n]: pairs of one number are about one question."""


class Curve(NamedTuple):
    """By threshold, from one that flags nothing to one that flags all; shares, 0 to 1."""

    thresholds: np.ndarray
    false_alarms: np.ndarray
    """Of the acceptable pairs, those flagged."""
    recall: np.ndarray
    """Of the harmful pairs, those flagged."""
    precision: np.ndarray
    """Of those flagged, the harmful ones; 1 where nothing is."""


class Bin(NamedTuple):
    """Pairs whose scores lie in a part of 0 to 1."""

    low: float
    high: float
    pairs: int
    questions: int
    score: float
    """Their mean."""
    harmful: float
    """Share, 0 to 1."""


def labelled(scores: np.ndarray, harmful: Sequence[bool | None], questions: Sequence[str]) -> Labelled:
    """The pairs that have both a score and a label."""
    known = np.array([label is not None for label in harmful], bool) & ~np.isnan(scores)
    _, numbers = np.unique(np.array(questions, object).astype(str), return_inverse=True)
    return Labelled(
        scores[known].astype(np.float32), np.array([bool(label) for label in harmful], bool)[known], numbers[known]
    )


def curve(pairs: Labelled) -> Curve:
    """The curve over all distinct scores; a pair is flagged that scores the threshold or more."""
    thresholds = np.unique(pairs.scores)[::-1]
    hits = _at_least(pairs.scores[pairs.harmful], thresholds)
    alarms = _at_least(pairs.scores[~pairs.harmful], thresholds)
    precision = hits / np.maximum(hits + alarms, 1)
    recall = hits / max(int(pairs.harmful.sum()), 1)
    false_alarms = alarms / max(int((~pairs.harmful).sum()), 1)
    return Curve(
        np.concatenate([[np.inf], thresholds]),
        np.concatenate([[0.0], false_alarms]),
        np.concatenate([[0.0], recall]),
        np.concatenate([[1.0], precision]),
    )


def _at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many scores are at least each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def measures(pairs: Labelled, threshold: float) -> dict[str, float]:
    """Percent: accuracy, precision, recall and their harmonic mean at the threshold (0 where undefined), AUROC (a tie
    is half) and AUPRC (average precision).
    """
    flagged = pairs.scores >= np.float32(threshold)
    hits = int((flagged & pairs.harmful).sum())
    precision = hits / max(int(flagged.sum()), 1)
    recall = hits / max(int(pairs.harmful.sum()), 1)
    whole = curve(pairs)
    found = {
        "accuracy": float((flagged == pairs.harmful).mean()),
        "precision": precision,
        "recall": recall,
        "hmean": 2 * precision * recall / max(precision + recall, 1e-9),
        "auroc": float(np.trapezoid(whole.recall, whole.false_alarms)),
        "auprc": float(np.sum(np.diff(whole.recall) * whole.precision[1:])),
    }
    return {name: 100 * value for name, value in found.items()}


def reliability(pairs: Labelled) -> list[Bin]:
    """The bins of equal width that hold a pair."""
    place = np.minimum((pairs.scores * BINS).astype(int), BINS - 1)
    found = []
    for i in np.unique(place):
        inside = place == i
        questions = len(np.unique(pairs.questions[inside]))
        score, share = float(pairs.scores[inside].mean()), float(pairs.harmful[inside].mean())
        found.append(Bin(i / BINS, (i + 1) / BINS, int(inside.sum()), questions, score, share))
    return found
