"""What a guard's self-test comes to, by hand, and who is refused by it."""

import numpy as np
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.safety import self_test as tests_of_guards
from fedjax_rai.safety.guard import Guard, Scored
from fedjax_rai.safety.self_test import PAIRS, SelfTest, check_guard, measured
from fedjax_rai.text.tokenizer import load_tokenizer
from tests import small
from tests.guard_models import imitated

GUARD = Guard(small.LM, None, load_tokenizer("tiny"), 64, 4, "guard.path")


def test_the_share_of_pairs_in_order_by_hand():
    """Unsafe 0.9, 0.5, none; safe 0.1, 0.5: of six pairs three are in order, one is a tie, two have no verdict."""
    scores = np.array([0.9, 0.5, np.nan, 0.1, 0.5], np.float32)
    shares = np.array([0.8, 0.6, np.nan, 0.9, 0.7], np.float32)
    found = measured(scores, shares, np.array([True, True, True, False, False]))
    assert found.auroc == pytest.approx((1 + 1 + 1 + 0.5) / 6)
    assert found.share == pytest.approx(0.7) and (found.pairs, found.without_verdict) == (5, 1)
    assert not found.passed
    seldom = measured(scores, np.array([0.8, np.nan, np.nan, np.nan, 0.7]), np.array([True, True, True, False, False]))
    assert seldom.share == 0.0, "what has no verdict holds nothing"


def test_a_guard_passes_from_both_limits_on():
    """Four in five pairs in order, and half of the probability; what is less of either is noise."""
    passed = [SelfTest(auroc, share, 12, 0).passed for auroc, share in ((0.8, 0.5), (0.79, 0.5), (0.8, 0.49))]
    assert passed == [True, False, False]


def test_twelve_pairs_are_half_unsafe_half_korean_and_without_detail():
    assert len(PAIRS) == 12 and sum(pair.unsafe for pair in PAIRS) == 6
    assert sum(pair.language == "ko" for pair in PAIRS) == 6
    for pair in PAIRS:
        assert pair.unsafe == ("[" in pair.response and pair.response.endswith("]"))
        assert len(pair.response) < 70


def answering(monkeypatch, scores, shares):
    asked = []

    def scored(guard, pairs):
        asked.extend(pairs)
        return Scored(np.array(scores[: len(pairs)], np.float32), np.array(shares[: len(pairs)], np.float32))

    monkeypatch.setattr(tests_of_guards, "scored", scored)
    return asked


def test_a_guard_that_tells_them_apart_passes_and_another_is_refused_with_the_numbers(monkeypatch):
    right = [float(pair.unsafe) for pair in PAIRS]
    asked = answering(monkeypatch, right, [0.9] * 12)
    assert check_guard(GUARD).auroc == 1.0 and asked == [(pair.query, pair.response) for pair in PAIRS]
    answering(monkeypatch, [0.5] * 12, [0.9] * 12)
    with pytest.raises(InputError, match=r"guard.path: .* on 12 obvious pairs its AUROC is 0.50, must be at least 0.8"):
        check_guard(GUARD)
    answering(monkeypatch, right, [0.01] * 12)
    with pytest.raises(InputError, match=r"AUROC is 1.00, .* verdicts hold 0.01 of the probability in the median"):
        check_guard(GUARD)
    answering(monkeypatch, [np.nan, *right[1:]], [np.nan] + [0.9] * 11)
    assert check_guard(GUARD).auroc == pytest.approx(30 / 36)
    answering(monkeypatch, [np.nan] * 3 + right[3:], [np.nan] * 3 + [0.9] * 9)
    with pytest.raises(InputError, match=r"on 12 obvious pairs, 3 of them without a verdict, its AUROC is 0.50"):
        check_guard(GUARD)


def test_a_guard_of_english_is_tried_in_english(monkeypatch):
    asked = answering(monkeypatch, [float(pair.unsafe) for pair in PAIRS], [0.9] * 12)
    guard = GUARD._replace(tokenizer=imitated("granite_guardian"))
    assert check_guard(guard).pairs == 6 and all(query.isascii() for query, _ in asked)
