"""How far judges agree: kappa by hand, where it is undefined, and over which answers."""

from typing import Any

import pytest

from fedjax_rai.evals.agreement import agreements, kappa_of, matrix, together
from fedjax_rai.evals.spoilt import AnswerCounts, answer_counts
from fedjax_rai.runs import report
from fedjax_rai.studies import report_judges


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        ((20, 5, 10, 15), 0.4),  # 35 of 50 agree, 25 * 30 + 25 * 20 of 2500 by chance: (0.7 - 0.5) / 0.5
        ((3, 0, 0, 2), 1.0),
        ((0, 4, 4, 0), -1.0),
        ((1, 1, 1, 1), 0.0),
        ((45, 15, 25, 15), 3 / 23),  # 0.6 agree, 0.54 by chance: 0.06 / 0.46
        ((6, 2, 0, 0), 0.0),  # the second says yes to all: it agrees as chance does
    ],
)
def test_kappa_by_hand(counts, kappa):
    assert kappa_of(*counts) == pytest.approx(kappa)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (7, 0, 0, 0), (0, 0, 0, 7), (0, 7, 0, 0), (0, 0, 7, 0)])
def test_kappa_is_undefined_where_nothing_can_be_told(counts):
    """No answer, or each judge gives one verdict to all: never 1."""
    assert kappa_of(*counts) is None


def row(**verdicts: Any) -> dict[str, Any]:
    return {"set": "advbench", "verdicts": {f"harmless_by_{judge}": given for judge, given in verdicts.items()}}


def test_agreement_is_over_the_answers_on_which_both_have_a_verdict():
    """Several answers a prompt; b has none twice, c is in one row alone. Both, a only, b only, neither."""
    rows = [
        row(a=[True, True, False, None], b=[True, None, False, True]),
        row(a=[True, False], b=[False, True], c=[True, False]),
        {"set": "hhh", "verdicts": {"hhh": [True]}},
        {"set": "advbench", "verdicts": {"harmless": [True, False]}},
        {"set": "drift", "total": 1.0, "tokens": 2},
    ]
    found = {(agreement.first, agreement.second): agreement for agreement in agreements(rows)}
    assert [*found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found["a", "b"].counts == (1, 1, 1, 1) and found["a", "b"].kappa == 0
    assert found["a", "c"].counts == (1, 0, 0, 1) and found["a", "c"].kappa == 1
    assert found["b", "c"].counts == (0, 1, 1, 0) and found["b", "c"].kappa == -1
    assert {agreement.rate for agreement in found.values()} == {"harmless"}


def test_who_counts_an_answer_alone_is_told_apart():
    """4 of 7 agree; of 4 and 3 that either counts (4 x 3 + 3 x 4) of 49 do by chance."""
    first, second = [True, True, True, False, True, False, False], [True, False, False, True, True, False, False]
    (found,) = agreements([row(a=first, b=second)])
    assert found.counts == (2, 2, 1, 2) and found.kappa == pytest.approx((28 - 24) / (49 - 24))
    others = found._replace(rate="refusal", first="x", second="y")
    assert matrix([others, found], "harmless") == [["kappa, agreement", "b"], ["a", "0.16, 57 %"]]
    three = agreements([row(a=first, b=second, c=first)])
    assert together([three]) == three and len(three) == 3


def test_agreements_of_runs_are_of_all_their_answers():
    """Two runs of (1, 1, 1, 1) and (9, 0, 0, 5): 16 of 18 agree, 11 * 11 + 7 * 7 of 324 by chance."""
    one = agreements([row(a=[True, True, False, False], b=[True, False, True, False])])
    other = agreements([row(a=[True] * 9 + [False] * 5, b=[True] * 9 + [False] * 5)])
    (found,) = together([one, other])
    assert found.counts == (10, 1, 1, 6)
    assert found.kappa == pytest.approx((16 / 18 - 170 / 324) / (1 - 170 / 324))


def test_the_matrix_has_a_cell_for_every_two_judges_that_share_an_answer():
    rows = [row(a=[True, False], b=[True, True], c=[None, None]), row(d=[True], e=[True])]
    assert matrix(agreements(rows), "harmless") == [
        ["kappa, agreement", "b", "d", "e"],
        ["a", "0.00, 50 %", "", ""],
        ["b", "", "", ""],
        ["d", "", "", "-, 100 %"],
    ]
    assert matrix([], "harmless") == []


def test_a_kappa_of_nothing_has_no_sign():
    """9, 10, 10 and 11 of 40: 2 (9 * 11 - 10 * 10) / (2 * 19 * 21) = -1 / 399."""
    firsts, seconds = [True] * 19 + [False] * 21, [True] * 9 + [False] * 10 + [True] * 10 + [False] * 11
    (found,) = agreements([row(a=firsts, b=seconds)])
    assert found.kappa == pytest.approx(-1 / 399)
    assert matrix([found], "harmless") == [["kappa, agreement", "b"], ["a", "0.00, 50 %"]]
    assert list(report.agreement_lines([found])) == ["  harmless, a and b: kappa 0.00, 20 of 40 the same"]
    shown = report_judges.agreement(firsts, seconds)
    assert shown is not None and "0.00" in report_judges._fields(shown)


def test_answers_that_say_nothing_are_counted_by_evaluation():
    rows: list[dict[str, Any]] = [
        {
            "set": "advbench",
            "answers": ["a", " ", ""],
            "cut_off": [True, True, False],
            "non_finite": [False, True, True],
        },
        {"set": "advbench", "answers": ["b"], "cut_off": [True]},
        {"set": "hhh", "good": "a"},
        {"set": "utility", "answers": ["4"], "cut_off": [False], "non_finite": []},
    ]
    assert answer_counts(rows) == {"advbench": AnswerCounts(4, 2, 3, 2), "utility": AnswerCounts(1, 0, 0, 0)}
    assert AnswerCounts(4, 2, 2, 1).spoilt == 5 and AnswerCounts(3, 0, 0, 0).spoilt == 0
    assert AnswerCounts(4, 2, 2, 1).plus(AnswerCounts(1, 0, 0, 0)) == AnswerCounts(5, 2, 2, 1)
