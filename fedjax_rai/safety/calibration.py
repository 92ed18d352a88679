"""What held-out questions tell of a guard: its threshold and its temperature; and what a fitted one is kept with."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.config.threshold_rule import MAX_HMEAN, parse_rule
from fedjax_rai.errors import InputError
from fedjax_rai.safety import measures
from fedjax_rai.safety.measures import Judged

THRESHOLD = 0.5
"""Of a guard that nothing was held out for."""


class Calibration(NamedTuple):
    """A guard's scores of labelled answers to questions that it was not fitted on, and what follows from them."""

    scores: list[float]
    """p(unsafe) of each answer."""
    harmful: list[bool]
    questions: list[int]
    """Answers with the same number are to one question."""
    rule: str
    """By which the threshold was chosen."""
    threshold: float | None
    """None: no threshold does what the rule asks."""
    temperature: float
    """What logits are divided by, so that p(unsafe) is as likely as it says; it moves no verdict."""
    without_score: int = 0
    """Answers that the guard gave no verdict on; in none of these."""

    @property
    def judged(self) -> Judged:
        """The answers, as measures read them."""
        return Judged(np.array(self.scores), np.array(self.harmful, bool), np.array(self.questions, int))

    def threshold_by(self, rule: str | None) -> float:
        """The threshold by a rule, or by its own; raises InputError where none does what the rule asks."""
        return measures.choose_threshold(self.judged, parse_rule(rule or self.rule))

    def under(self, rule: str) -> "Calibration":
        """The same with the threshold that another rule chooses."""
        try:
            return self._replace(rule=rule, threshold=self.threshold_by(rule))
        except InputError:  # said where the threshold is used: the fit was long, and another rule may do
            return self._replace(rule=rule, threshold=None)


def calibrate(scores: np.ndarray, harmful: Sequence[bool], questions: Sequence[str], rule: str | None) -> Calibration:
    """Of the scores of held-out answers; raises InputError where they have not both kinds."""
    given = measures.judged(scores, harmful, questions)
    rule = rule or MAX_HMEAN
    found = Calibration(
        scores=given.scores.tolist(),
        harmful=given.harmful.tolist(),
        questions=given.questions.tolist(),
        rule=rule,
        threshold=None,
        temperature=measures.fit_temperature(given.scores, given.harmful),
        without_score=given.without_score,
    )
    return found.under(rule)


class Notes(NamedTuple):
    """What is kept beside the adapter of a fitted guard, as `guard.json`."""

    form: str
    """The form in which it was fitted, as `guard.form` names it."""
    request: Any
    """The words around a pair and, of another form than our own, all that makes it: it must be asked in the same."""
    base: str
    """The digest of the model that it is an adapter on."""
    base_name: str
    data: str
    """The digest of the labelled pairs that it was fitted on."""
    pairs: int
    """How many these were."""
    harmful: int
    steps: int
    """Optimizer updates that made the adapter; less than were asked for where it stopped early."""
    stopped_early: bool
    questions: list[str]
    """A digest of every question that it was fitted, stopped or calibrated on: it is not to be tested on these."""
    calibration: Calibration | None
    """None: nothing was held out."""


def parse_notes(raw: Mapping[str, Any], place: str) -> Notes:
    """The notes in a JSON object; raises InputError where it holds anything else."""
    try:
        held_out = raw["calibration"]
        known: dict[str, Any] = {name: raw[name] for name in Notes._fields}
        known["calibration"] = None if held_out is None else _parsed(held_out)
        return Notes(**known)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{place}: does not hold what is known of a fitted guard ({error!r}); restore it from a copy, or remove it "
            "and set guard.threshold"
        ) from None


def _parsed(raw: Mapping[str, Any]) -> Calibration:
    found = Calibration(**raw)
    parse_rule(found.rule)
    lengths = {len(found.scores), len(found.harmful), len(found.questions)}
    if len(lengths) > 1 or not all(0 <= score <= 1 for score in found.scores):
        raise ValueError("scores, labels and questions of held-out answers do not fit together")
    return found
