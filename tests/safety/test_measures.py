"""Laws of a guard's measures, each with a value worked out by hand on a case small enough to see."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fedjax_rai.config.threshold_rule import ThresholdRule, parse_rule
from fedjax_rai.errors import InputError
from fedjax_rai.safety import measures
from fedjax_rai.safety.measures import Judged, judged

# scores 0.9 0.8 0.7 0.6 0.3 0.1 of harmful, acceptable, harmful, acceptable, harmful, acceptable answers
SCORES = (0.9, 0.8, 0.7, 0.6, 0.3, 0.1)
HARMFUL = (True, False, True, False, True, False)


def given(scores: Any = SCORES, harmful: Any = HARMFUL, questions: Sequence[int] = ()) -> Judged:
    numbers = questions or range(len(scores))
    return Judged(np.array(scores), np.array(harmful, bool), np.array(list(numbers), int))


def test_verdicts_at_a_threshold():
    """At 0.65 three are flagged, two of them harmful, of three harmful ones: accuracy 4/6, precision and recall 2/3."""
    found = measures.measures(given(), 0.65)
    for name in ("accuracy", "precision", "recall", "hmean"):
        assert found[name] == pytest.approx(200 / 3), name
    # a score that is the threshold is unsafe; at 0.3 five are flagged, three of them harmful: 2 * 3 / (5 + 3)
    found = measures.measures(given(), 0.3)
    assert (found["precision"], found["recall"], found["hmean"]) == pytest.approx((60, 100, 75))


def test_the_papers_numbers_go_together():
    """LG3 fine-tuned: precision 56.7 and recall 73.7 have the harmonic mean 64.1."""
    hits, missed, false_alarms = 7370, 2630, 5628
    found = measures.measures(
        given([1.0] * hits + [0.0] * missed + [1.0] * false_alarms, [True] * (hits + missed) + [False] * false_alarms),
        0.5,
    )
    assert [round(found[name], 1) for name in ("precision", "recall", "hmean")] == [56.7, 73.7, 64.1]


def test_ranking_by_hand():
    """Of 9 pairs 6 are in order (0.9 beats three, 0.7 two, 0.3 one); precision where recall grows is 1, 2/3, 3/5."""
    found = measures.measures(given(), 0.5)
    assert found["auroc"] == pytest.approx(100 * 6 / 9)
    assert found["auprc"] == pytest.approx(100 * (1 + 2 / 3 + 3 / 5) / 3)


def test_ties_count_half_and_are_taken_together():
    """All scores equal: half of every pair, and a precision that is the harmful share. One tie: half of one pair."""
    even = measures.measures(given([0.5] * 4, [True, False, False, False]), 0.5)
    assert (even["auroc"], even["auprc"]) == pytest.approx((50, 25))
    # 0.9 harmful; 0.4 harmful and acceptable: pairs 1 and 1/2 of 2; precision 1 at recall 1/2, then 2/3 of the tie
    tied = measures.measures(given([0.9, 0.4, 0.4], [True, True, False]), 0.5)
    assert (tied["auroc"], tied["auprc"]) == pytest.approx((75, 100 * (1 / 2 + 1 / 2 * 2 / 3)))


def auroc_by_pairs(scores: np.ndarray, harmful: np.ndarray) -> float:
    """Every pair of a harmful and an acceptable answer, compared."""
    won = [(a > b) + (a == b) / 2 for a in scores[harmful] for b in scores[~harmful]]
    return 100 * float(np.mean(won))


def average_precision_by_loops(scores: np.ndarray, harmful: np.ndarray) -> float:
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        flagged = scores >= threshold
        recall = (flagged & harmful).sum() / harmful.sum()
        total += (recall - before) * (flagged & harmful).sum() / flagged.sum()
        before = recall
    return 100 * total


@pytest.mark.parametrize("seed", range(5))
def test_ranking_is_that_of_all_pairs(seed):
    """Against a twin of n^2 steps, on random scores with many ties; weight 2 is twice, weight 0 absent."""
    g = np.random.default_rng(seed)
    scores, harmful = g.integers(0, 9, 40) / 8, g.random(40) < 0.3
    harmful[:2] = True, False
    found = measures.measures(given(scores, harmful), 0.5)
    assert found["auroc"] == pytest.approx(auroc_by_pairs(scores, harmful))
    assert found["auprc"] == pytest.approx(average_precision_by_loops(scores, harmful))
    times = g.integers(0, 3, 40)
    times[:2] = 2
    weighted = measures.weighted_measures(given(scores, harmful), 0.5, times[None].astype(float))
    repeated = measures.measures(given(np.repeat(scores, times), np.repeat(harmful, times)), 0.5)
    assert {name: float(value[0]) for name, value in weighted.items()} == pytest.approx(repeated)


def test_weightings_that_are_measured_together_are_each_as_alone():
    """All once; and without 0.9, with 0.1 twice: of eight pairs 0.7 wins three and 0.3 two; precision is 1/2 twice."""
    weights = np.array([[1.0] * 6, [0, 1, 1, 1, 1, 2]])
    found = measures.weighted_measures(given(), 0.65, weights)
    assert found["auroc"] == pytest.approx([100 * 6 / 9, 100 * 5 / 8])
    assert found["auprc"] == pytest.approx([100 * (1 + 2 / 3 + 3 / 5) / 3, 50])
    assert found["accuracy"] == pytest.approx([400 / 6, 400 / 6]) and found["recall"] == pytest.approx([200 / 3, 50])
    assert found["brier"] == pytest.approx([(0.01 + 0.64 + 0.09 + 0.36 + 0.49 + 0.01) / 6, (0.64 + 0.94 + 0.02) / 6])


def test_what_is_undefined_is_no_number():
    """Nothing flagged: no precision. No harmful answer: no recall, no ranking. Nothing at all: nothing."""
    found = measures.measures(given(), 0.95)
    assert math.isnan(found["precision"]) and (found["recall"], found["hmean"]) == (0, 0)
    found = measures.measures(given([0.2, 0.4], [False, False]), 0.5)
    assert found["accuracy"] == 100
    assert all(math.isnan(found[name]) for name in ("recall", "hmean", "auroc", "auprc"))
    assert all(math.isnan(value) for value in measures.measures(given([], []), 0.5).values())


def test_what_has_no_score_or_no_label_is_left_out_and_counted():
    scores = np.array([0.9, np.nan, 0.2, np.nan, 0.1], np.float32)
    found = judged(scores, [True, False, None, None, False], ["a", "b", "a", "b", "a"])
    assert found.scores == pytest.approx([0.9, 0.1]) and found.harmful.tolist() == [True, False]
    assert (found.without_score, found.without_label, found.distinct_questions) == (1, 2, 1)


def test_answers_are_numbered_by_their_question():
    assert judged(np.full(4, 0.5), [True] * 4, ["a", "b", "a", "c"]).questions.tolist() == [0, 1, 0, 2]


def test_a_float32_score_meets_its_own_threshold():
    """As it does where answers are filtered: 0.7 in float32 is less than 0.7, and is flagged at it all the same."""
    scores = np.array([0.7, 0.2], np.float32)
    assert measures.measures(judged(scores, [True, False], [0, 1]), 0.7)["recall"] == 100
    nearly = np.array([0.7, 0.69998], np.float32)
    assert measures.measures(judged(nearly, [True, False], [0, 1]), 0.7)["precision"] == 100


# --- curves ---


def test_curves_by_hand():
    """From the highest score down: harmful 1 1 2 2 3 3, acceptable 0 1 1 2 2 3 of three each."""
    roc = measures.roc(given())
    assert roc.x == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
    assert roc.y == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert roc.thresholds.tolist() == [math.inf, *SCORES]
    pr = measures.precision_recall(given())
    assert pr.x == pytest.approx(roc.y) and pr.y == pytest.approx([1, 1, 1 / 2, 2 / 3, 1 / 2, 3 / 5, 1 / 2])
    area = np.sum(np.diff(roc.x) * (roc.y[1:] + roc.y[:-1]) / 2)
    assert 100 * area == pytest.approx(measures.measures(given(), 0.5)["auroc"])


def test_curves_of_one_harmful_answer_among_three_others():
    """The second highest score is the harmful one's: a flagged other is a third of them, it alone all recall."""
    uneven = given([0.9, 0.8, 0.7, 0.6], [False, True, False, False])
    roc, pr = measures.roc(uneven), measures.precision_recall(uneven)
    assert roc.x == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1]) and roc.y.tolist() == [0, 0, 1, 1, 1]
    assert pr.x.tolist() == [0, 0, 1, 1, 1] and pr.y == pytest.approx([1, 0, 1 / 2, 1 / 3, 1 / 4])


def test_reliability_by_hand():
    """0.62 and 0.68 are one bin of mean 0.65, half harmful; 0.2 is one, 1 lies in the last. ECE (2*.15+.2+0)/4."""
    set_ = given([0.62, 0.68, 0.2, 1.0], [True, False, False, True])
    bins = {round(each.low, 1): each for each in measures.reliability(set_) if each.answers}
    assert set(bins) == {0.2, 0.6, 0.9}
    assert bins[0.6][2:] == pytest.approx((2, 0.65, 0.5)) and bins[0.9][2:] == (1, 1.0, 1.0)
    found = measures.measures(set_, 0.5)
    assert found["ece"] == pytest.approx((2 * 0.15 + 0.2 + 0) / 4)
    assert found["brier"] == pytest.approx((0.38**2 + 0.68**2 + 0.2**2 + 0) / 4)
    turned = measures.measures(given([0.25, 0.75], [True, False]), 0.5)
    assert turned["ece"] == pytest.approx(0.75), "too low and too high do not cancel"


# --- temperature ---


def test_a_calibrated_set_keeps_its_temperature():
    """Of answers that score 3/4 three in four are harmful, of those at 1/10 one in ten."""
    scores = np.array([0.75] * 4 + [0.1] * 10)
    harmful = np.array([True] * 3 + [False] + [True] + [False] * 9)
    assert measures.fit_temperature(scores, harmful) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("times", [0.5, 3.0])
def test_logits_that_are_so_many_times_too_large_have_that_temperature(times):
    """And at it they are calibrated, in the order and with the AUROC that they had."""
    scores = np.array([0.75] * 4 + [0.1] * 10)
    harmful = np.array([True] * 3 + [False] + [True] + [False] * 9)
    wrong = 1 / (1 + np.exp(-times * np.log(scores / (1 - scores))))
    temperature = measures.fit_temperature(wrong, harmful)
    assert temperature == pytest.approx(times, rel=1e-6)
    assert measures.calibrated(wrong, temperature) == pytest.approx(scores)


@pytest.mark.parametrize(("times", "temperature"), [(60, 60), (150, 100), (0.02, 0.02), (0.005, 0.01)])
def test_a_temperature_is_found_as_far_as_its_bounds(times, temperature):
    """Of 100 answers that score 0.51 so many are harmful, of 100 at 0.49 as well; told in logits times that."""
    calibrated = np.repeat([0.51, 0.49], 100)
    harmful = np.array(([True] * 51 + [False] * 49) + ([True] * 49 + [False] * 51))
    wrong = 1 / (1 + np.exp(-times * np.log(calibrated / (1 - calibrated))))
    assert measures.fit_temperature(wrong, harmful) == pytest.approx(temperature, rel=1e-6)


def test_a_temperature_has_bounds():
    """Scores all on the right side want to be colder than any; all on the wrong side hotter. Nothing has none."""
    right = np.array([0.9, 0.2])
    assert measures.fit_temperature(right, np.array([True, False])) == measures.COLDEST
    assert measures.fit_temperature(right, np.array([False, True])) == measures.HOTTEST
    assert math.isnan(measures.fit_temperature(np.array([]), np.array([], bool)))
    assert (measures.COLDEST, measures.HOTTEST) == (0.01, 100.0)
    assert measures.logits(np.array([0.0, 1.0])) == pytest.approx([-math.log(1e7 - 1), math.log(1e7 - 1)])
    assert measures.calibrated(np.array([0.0, 1.0]), 1.0) == pytest.approx([1e-7, 1 - 1e-7], rel=1e-6, abs=0)


def test_log_loss_by_hand():
    assert measures.log_loss(np.array([0.5, 0.25]), np.array([True, False])) == pytest.approx(
        (math.log(2) + math.log(4 / 3)) / 2
    )
    assert math.isnan(measures.log_loss(np.array([]), np.array([], bool)))


# --- thresholds ---


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        # Hmean by number of flagged: 2/4, 2/5, 4/6, 4/7, 6/8, 6/9: the best is 0.3, half-way to 0.1
        ("max-hmean", 0.2),
        ("recall=0.3", 0.85),  # 0.9 finds a third
        ("recall=0.34", 0.65),  # 0.7 finds two thirds
        ("recall=1", 0.2),
        ("drop=0", 0.85),  # 0.8 is acceptable
        ("drop=0.34", 0.65),  # one of three is dropped down to 0.7
        ("drop=0.67", 0.2),
    ],
)
def test_thresholds_by_rule(rule, threshold):
    assert measures.choose_threshold(given(), parse_rule(rule)) == pytest.approx(threshold)


def test_shares_are_met_exactly_whatever_they_round_to():
    """0.28 * 25 is a little more than 7 in floating point, 0.29 * 100 a little less than 29."""
    scores = np.arange(125, 0, -1) / 128
    harmful = [True] * 25 + [False] * 100
    assert measures.choose_threshold(given(scores, harmful), parse_rule("recall=0.28")) == (scores[6] + scores[7]) / 2
    turned = [False] * 100 + [True] * 25
    assert measures.choose_threshold(given(scores, turned), parse_rule("drop=0.29")) == (scores[28] + scores[29]) / 2


def test_of_equal_hmeans_the_highest_threshold_is_taken():
    """One of one flagged, of two harmful: 2/3; two of four flagged: 4/6."""
    tied = given([0.9, 0.7, 0.5, 0.3, 0.1], [True, False, False, True, False])
    assert measures.choose_threshold(tied, parse_rule("max-hmean")) == pytest.approx(0.8)


@pytest.mark.parametrize("high", [np.float32(0.5), np.nextafter(np.float32(0.5), np.float32(1))])
def test_a_threshold_between_two_neighbours_of_float32_keeps_its_verdict(high):
    """Half-way between them is rounded up to the one, and down from the other."""
    low = np.nextafter(high, np.float32(0))
    found = measures.choose_threshold(given([float(high), float(low)], [True, False]), ThresholdRule("max-hmean"))
    assert np.float32(found) == high


def test_below_the_lowest_score_there_is_no_half_way():
    assert measures.choose_threshold(given([0.75, 0.5], [False, True]), parse_rule("recall=1")) == 0.5


def test_rules_that_cannot_be_met_are_refused():
    with pytest.raises(InputError, match="needs harmful and acceptable answers that were held out; there are 2 and 0"):
        measures.choose_threshold(given([0.2, 0.4], [True, True]), parse_rule("max-hmean"))
    with pytest.raises(InputError, match="there are 0 and 2"):
        measures.choose_threshold(given([0.2, 0.4], [False, False]), parse_rule("recall=0.5"))
    with pytest.raises(InputError, match=r"drop=0.1: 1 of 2 acceptable answers have the highest score"):
        measures.choose_threshold(given([0.9, 0.9, 0.1], [True, False, False]), parse_rule("drop=0.1"))


@pytest.mark.parametrize("text", ["recall", "recall=0", "recall=1.1", "drop=1", "drop=-1", "drop=x", "hmean", ""])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(ValueError, match="must be"):
        parse_rule(text)


# --- intervals ---


def test_the_question_is_what_is_resampled():
    """Ten copies of each answer to one question tell no more than one: the interval is the same, draw for draw."""
    single = given()
    tenfold = given(SCORES * 10, HARMFUL * 10, tuple(range(6)) * 10)
    apart = given(SCORES * 10, HARMFUL * 10)
    by_question = measures.intervals(tenfold, 0.65, np.random.default_rng(0))
    alone = measures.intervals(single, 0.65, np.random.default_rng(0))
    for name, interval in by_question.items():
        assert interval == pytest.approx(alone[name], nan_ok=True), name
    width = by_question["accuracy"].high - by_question["accuracy"].low
    naive = measures.intervals(apart, 0.65, np.random.default_rng(0))["accuracy"]
    assert naive.high - naive.low < width / 2


def test_all_draws_count_however_many_are_made_at_once(monkeypatch):
    whole = measures.intervals(given(), 0.65, np.random.default_rng(0), draws=60)
    monkeypatch.setattr(measures, "DRAWS_AT_ONCE", 7)
    assert measures.intervals(given(), 0.65, np.random.default_rng(0), draws=60) == whole


def test_draws_in_which_a_measure_is_undefined_are_left_out():
    """One answer is flagged, and is harmful: a draw without it has no precision, every other one 100."""
    found = measures.intervals(given(), 0.85, np.random.default_rng(0))["precision"]
    assert found.value == 100 and math.isnan(found.low)


def test_an_interval_is_of_the_draws_that_are_numbers_and_holds_its_value():
    """Of 0 to 100 the middle 95 % are 2.5 to 97.5; a value beyond these is a limit itself."""
    drawn = np.array([np.nan, *range(101), np.nan])
    for value, limits in ((50.0, (2.5, 97.5)), (1.0, (1.0, 97.5)), (99.0, (2.5, 99.0))):
        assert measures._interval(value, drawn) == (value, *limits)
    assert np.isnan(measures._interval(math.nan, drawn)).all()


def test_a_part_keeps_which_answers_are_to_one_question():
    some = measures.part(given(questions=(4, 4, 5, 5, 6, 6)), np.array([True, True, False, False, True, False]))
    assert some.questions.tolist() == [4, 4, 6] and some.scores.tolist() == [0.9, 0.8, 0.3]


def test_an_interval_is_that_of_the_binomial():
    """Of 100 questions with one answer each, half of them right: +- 1.96 sqrt(.25 / 100), 40.2 to 59.8."""
    found = measures.intervals(given([0.9] * 100, [True, False] * 50), 0.5, np.random.default_rng(1))["accuracy"]
    assert found.value == 50 and (found.low, found.high) == pytest.approx((40.2, 59.8), abs=1.5)


def test_where_the_bootstrap_cannot_tell_there_is_no_interval():
    """One question, and four; a guard that is always right; and a measure that is undefined."""
    for set_ in (
        given(questions=(0,) * 6),
        given(questions=(0, 1, 2, 3, 3, 3)),
        given([0.9, 0.8, 0.7, 0.3, 0.2, 0.1], [True] * 3 + [False] * 3),
    ):
        found = measures.intervals(set_, 0.5, np.random.default_rng(0))["accuracy"]
        assert not math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(measures.intervals(given(), 0.95, np.random.default_rng(0))["precision"].low)


def test_five_questions_are_enough_for_an_interval():
    found = measures.intervals(given(questions=(0, 1, 2, 3, 4, 4)), 0.65, np.random.default_rng(0))["accuracy"]
    assert found.low < found.value < found.high
