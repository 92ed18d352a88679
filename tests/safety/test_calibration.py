"""What held-out answers tell of a guard, worked out by hand."""

import numpy as np
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.safety.calibration import calibrate, parse_notes

# harmful, acceptable, harmful, acceptable, harmful, acceptable
SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.3, 0.1])
HARMFUL = [True, False] * 3
QUESTIONS = list("aabbcd")


def test_the_threshold_is_that_of_its_rule_and_another_rule_chooses_on_the_same_answers():
    """Hmean is best at 0.3 and above 0.1; a third is found at 0.9, two thirds at 0.7, where one in three is dropped."""
    found = calibrate(SCORES, HARMFUL, QUESTIONS, None)
    assert (found.rule, found.threshold) == ("max-hmean", pytest.approx(0.2))
    assert found.judged.questions.tolist() == [0, 0, 1, 1, 2, 3]
    by_recall = found.under("recall=0.34")
    assert (by_recall.rule, by_recall.threshold) == ("recall=0.34", pytest.approx(0.65))
    assert by_recall.threshold_by(None) == by_recall.threshold and by_recall.scores == found.scores
    assert by_recall.threshold_by("drop=0") == pytest.approx(0.85)
    assert calibrate(SCORES, HARMFUL, QUESTIONS, "drop=0").threshold == pytest.approx(0.85)


def test_a_rule_that_cannot_be_met_leaves_no_threshold():
    found = calibrate(np.array([0.9, 0.9, 0.1]), [True, False, False], ["a", "b", "c"], "drop=0.1")
    assert (found.rule, found.threshold) == ("drop=0.1", None)
    with pytest.raises(InputError, match="drop=0.1: 1 of 2 acceptable answers have the highest score"):
        found.threshold_by(None)


def test_the_temperature_is_by_how_much_logits_are_too_large():
    """Three in four of one score are harmful and one in ten of another; their odds 3 and 1/9 are told cubed."""
    scores = np.array([27 / 28] * 4 + [1 / 730] * 10 + [np.nan])
    harmful = [True] * 3 + [False] + [True] + [False] * 9 + [True]
    found = calibrate(scores, harmful, [str(i) for i in range(15)], None)
    assert found.temperature == pytest.approx(3, rel=1e-6) and found.without_score == 1
    assert len(found.scores) == len(found.harmful) == len(found.questions) == 14


@pytest.mark.parametrize(
    "harm", [{"harmful": [True]}, {"questions": [0]}, {"scores": [*[0.5] * 5, -0.1]}, {"scores": [1.1, *[0.5] * 5]}]
)
def test_held_out_answers_that_do_not_fit_together_are_refused(harm):
    made = calibrate(SCORES, HARMFUL, QUESTIONS, None)._asdict()
    notes = dict.fromkeys(
        ("form", "request", "base", "base_name", "data", "pairs", "harmful", "steps", "stopped_early", "questions")
    )
    kept = parse_notes(notes | {"calibration": made}, "guard.json")
    assert kept.calibration and kept.calibration.scores == SCORES.tolist()
    sure = parse_notes(notes | {"calibration": made | {"scores": [0.0, 1.0] * 3}}, "guard.json")
    assert sure.calibration and sure.calibration.judged.scores.tolist() == [0, 1] * 3
    assert parse_notes(notes | {"calibration": None}, "guard.json").calibration is None
    with pytest.raises(InputError, match="guard.json: does not hold what is known .*do not fit together"):
        parse_notes(notes | {"calibration": made | harm}, "guard.json")
