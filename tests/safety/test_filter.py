"""What a client makes of its pairs by its guard's scores: each case small enough to be worked out by hand."""

from typing import get_args

import numpy as np
import pytest

from fedjax_rai.config.schema import FilterConfig
from fedjax_rai.data import tiny_lexicon
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.evals.refusals import refuses
from fedjax_rai.safety.filter import ACTIONS, REFUSALS, Limit, flag, limits, with_refusals
from fedjax_rai.text.prompts import Turn

# Four pairs of 1, 2, 1 and 2 answers: safe; an unsafe one beside a safe one; no score; no score beside an unsafe one.
PAIR = np.array([0, 1, 1, 2, 3, 3])
SCORES = np.array([0.1, 0.5, 0.2, np.nan, np.nan, 0.9])
NOBODY = [False] * 6


@pytest.mark.parametrize(
    ("action", "keep_unscored", "kept", "replaced"),
    [
        ("drop", False, [True, False, False, False], NOBODY),
        ("drop", True, [True, False, True, False], NOBODY),
        ("replace", False, [True, True, False, False], [False, True, False, False, False, False]),
        ("replace", True, [True, True, True, True], [False, True, False, False, False, True]),
        ("keep", False, [True] * 4, NOBODY),
        ("keep", True, [True] * 4, NOBODY),
    ],
)
def test_what_is_kept_and_what_is_replaced(action, keep_unscored, kept, replaced):
    """A score at the threshold is unsafe, and no score never is."""
    decision = ACTIONS[action](flag(SCORES, PAIR, Limit(0.5), keep_unscored))
    assert decision.kept.tolist() == kept and decision.replaced.tolist() == replaced


def test_a_float32_score_meets_its_own_threshold():
    """0.7 in float32 is less than 0.7, and is unsafe at it all the same."""
    assert flag(np.array([0.7, 0.69], np.float32), np.arange(2), Limit(0.7)).unsafe.tolist() == [True, False]


def test_what_has_no_score_is_not_unsafe_where_everything_else_is():
    found = flag(np.array([np.nan, 0.0]), np.arange(2), Limit(0.0), keep_unscored=True)
    assert found.unsafe.tolist() == [False, True]


@pytest.mark.parametrize("action", ACTIONS)
def test_of_nothing_nothing_is_kept_and_a_threshold_out_of_reach_flags_nothing(action):
    nothing = ACTIONS[action](flag(np.zeros(0), np.zeros(0, int), Limit(0.5)))
    assert len(nothing.kept) == len(nothing.replaced) == 0
    scores = np.array([0.1, 1.0, 0.5])
    everything = ACTIONS[action](flag(scores, np.arange(3), Limit(np.inf)))
    assert everything.kept.all() and not everything.replaced.any()


@pytest.mark.parametrize(
    ("scores", "rate", "unsafe"),
    [
        ([0.1, 0.9, 0.3, 0.8], 0.5, [1, 3]),
        ([0.1, 0.9, 0.3, 0.8], 0.49, [1]),
        ([0.1, 0.9, 0.3, 0.8], 0.0, []),
        ([0.7, 0.7, 0.7, 0.7], 0.5, [0, 1]),  # of equal scores the first
        ([0.7, 0.1, 0.7, 0.7, 0.4] * 20, 0.3, [i for i in range(50) if i % 5 in (0, 2, 3)]),
        ([np.nan, 0.2, 0.3, np.nan], 0.5, [2]),  # of the two that have a score
        ([0.0, 0.0, 0.0], 0.34, [0]),
        (list(np.linspace(0, 1, 100)), 0.29, range(71, 100)),  # 0.29 x 100 is a little less than 29
    ],
)
def test_a_chosen_rate_flags_that_share_of_the_greatest_scores(scores, rate, unsafe):
    found = flag(np.array(scores), np.arange(len(scores)), Limit(0.5, rate))
    assert np.flatnonzero(found.unsafe).tolist() == list(unsafe)


def test_a_chosen_rate_goes_by_pairs_and_flags_their_worst_answers():
    """Three pairs; the worst of 0.9 and 0.4, of 0.8 and 0.85, of 0.7: one in three is the first, two in three both."""
    pair, scores = np.array([0, 0, 1, 1, 2]), np.array([0.9, 0.4, 0.8, 0.85, 0.7])
    first, both = (flag(scores, pair, Limit(0.5, rate)).unsafe.tolist() for rate in (0.34, 0.67))
    assert first == [True, False, False, False, False]
    assert both == [True, False, False, True, False]


def test_pairs_without_a_score_count_towards_a_rate_only_where_they_are_kept():
    """Two pairs of an answer without a score each: beside 0.9, and alone; and two of 0.2 and 0.3.

    Half of the two that are left is one; so is half of the three that have some score.
    """
    pair, scores = np.array([0, 0, 1, 2, 3]), np.array([np.nan, 0.9, np.nan, 0.2, 0.3])
    dropped = flag(scores, pair, Limit(0.5, 0.5))
    assert dropped.unsafe.tolist() == [False, False, False, False, True] and dropped.left_out.tolist()[:2] == [True] * 2
    kept = flag(scores, pair, Limit(0.5, 0.5), keep_unscored=True)
    assert kept.unsafe.tolist() == [False, True, False, False, False] and not kept.left_out.any()


def entries(*given: dict) -> FilterConfig:
    return FilterConfig.model_validate({"thresholds": given})


def test_each_client_has_the_limit_that_its_entry_names():
    """Ten clients: three by range, one by number, two of those that nobody names, and all others."""
    filtering = entries(
        {"clients": "0-2", "threshold": 0.1},
        {"clients": [7], "drop_rate": 0.25},
        {"clients": "20%", "threshold": 0.9},
    )
    found = limits(filtering, 0.5, 10)
    lax, common = Limit(0.9), Limit(0.5)
    assert found == [Limit(0.1)] * 3 + [lax, lax, common, common, Limit(0.5, 0.25), common, common]
    for_others = limits(entries({"clients": [1], "threshold": 0.1}, {"drop_rate": 0.5}), 0.5, 3)
    assert for_others == [Limit(0.5, 0.5), Limit(0.1), Limit(0.5, 0.5)]
    assert limits(FilterConfig(), 0.5, 2) == [common, common]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"clients": "0-9", "threshold": 0.1}], r"filter.thresholds\[0\].clients = 0-9: there is no client 9"),
        (
            [{"clients": "0-1", "threshold": 0.1}, {"clients": [1], "threshold": 0.2}],
            r"filter.thresholds\[1\].clients: names client 1, as an entry before",
        ),
        ([{"threshold": 0.1}, {"threshold": 0.2}], r"filter.thresholds\[1\].clients: names no clients"),
        (
            [{"clients": "0-3", "threshold": 0.1}, {"clients": "50%", "threshold": 0.2}],
            "but only 1 are left that no other entry names",
        ),
    ],
)
def test_clients_that_there_are_not_or_that_are_named_twice_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        limits(entries(*given), 0.5, 5)


@pytest.mark.parametrize("given", [{}, {"threshold": 0.5, "drop_rate": 0.5}])
def test_an_entry_has_a_threshold_or_a_rate(given):
    with pytest.raises(ValueError, match="must be given where threshold is not"):
        entries({"clients": [1], **given})


def exchange(question: str, answer: str) -> tuple[Turn, Turn]:
    return Turn("user", question), Turn("assistant", answer)


def test_a_refusal_takes_the_place_of_the_flagged_answers_alone():
    """A system prompt, three questions with answers."""
    pair = Pair("q2", "a2", True, "x", (Turn("system", "s"), *exchange("q0", "a0"), *exchange("q1", "a1")))
    first = with_refusals(pair, [True, False, False], "No.")
    assert [turn.text for turn in first.turns] == ["s", "q0", "No.", "q1", "a1", "q2", "a2"]
    assert first.harmful is True, "its own answer still stands"
    last = with_refusals(pair, [False, True, True], "No.")
    assert [turn.text for turn in last.turns] == ["s", "q0", "a0", "q1", "No.", "q2", "No."]
    assert (
        last.harmful is False and last.category == "x" and [t.role for t in last.turns] == [t.role for t in pair.turns]
    )
    assert with_refusals(pair, [False] * 3, "No.") == pair
    assert [with_refusals(pair, [False, i == 1, i == 2], "No.").harmful for i in (1, 2)] == [True, False]


def test_turns_that_are_no_exchange_are_passed_over():
    """A greeting behind a system prompt, and a question asked twice."""
    before = Turn("system", "s"), Turn("assistant", "hello"), Turn("user", "q"), *exchange("q0", "a0")
    found = with_refusals(Pair("q1", "a1", True, "x", before), [True, False], "No.")
    assert [turn.text for turn in found.turns] == ["s", "hello", "q", "q0", "No.", "q1", "a1"]


def test_the_refusals_are_refusals_and_the_tiny_world_knows_its_own():
    assert REFUSALS["en"] in tiny_lexicon.REFUSALS
    assert all(refuses(text) for text in REFUSALS.values())


def test_the_schemas_actions_are_those_of_the_table():
    assert get_args(FilterConfig.model_fields["action"].annotation) == tuple(ACTIONS)
