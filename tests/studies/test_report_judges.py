"""Judges against each other in a report: over which answers, worked out by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from fedjax_rai.studies.gathered import Arm
from fedjax_rai.studies.report_judges import Agreement, _fields, agreement, verdicts_by_set


def test_judges_agree_beyond_chance_by_hand():
    """Two by two: 3 both, 3 neither, 2 and 4 alone: 6 of 12 agree, by chance (5 x 7 + 7 x 5) of 144."""
    first = [True] * 3 + [True] * 2 + [False] * 4 + [False] * 3 + [None, True, False]
    second = [True] * 3 + [False] * 2 + [True] * 4 + [False] * 3 + [True, None, None]
    found = agreement(first, second)
    assert found is not None and found[:2] == (12, 0.5) and found[3:] == (2, 4)
    assert found.kappa == pytest.approx((72 - 70) / (144 - 70))
    assert agreement([True, True], [True, True]) == (2, 1.0, None, 0, 0), "chance agrees, too"
    assert agreement([None], [True]) is None


def test_an_agreement_is_shown_in_percent():
    assert _fields(Agreement(1234, 0.5678, 0.125, 3, 1000)) == ["1,234", "56.8 %", "0.12", "3", "1,000"]
    assert _fields(Agreement(2, 1.0, None, 0, 0))[2] == "none"


def row(name: str, answers: int, **verdicts: Any) -> dict[str, Any]:
    return {"set": name, "answers": ["x"] * answers, "verdicts": verdicts}


def test_a_judge_that_judged_some_answers_alone_has_none_on_the_others():
    """Two arms, the first of two runs; `harmless` stands for the rule, which gave it; choices are not judged."""
    rule, guard, phrases = "harmless_by_rule", "harmless_by_guard", "harmless_by_refusal_phrases"
    runs = [
        [
            row("red", 2, **{"harmless": [True, False], rule: [True, False], guard: [None, True]}),
            {"set": "hhh", "verdicts": {}},
        ],
        [
            row("red", 1, **{"harmless": [None], rule: [None]}),
            row("mine", 1, harmless=[True]),
            {"set": "m", "answers": ["x"]},
        ],
        [row("red", 2, **{"harmless": [True, True], rule: [True, True], phrases: [False, True]})],
    ]
    summary = {"rates": {"harmless": {"judge": "rule"}}}
    run: list[Any] = [SimpleNamespace(answers=answers, summary=summary) for answers in runs]
    assert verdicts_by_set([Arm("a", run[:2]), Arm("b", run[2:])]) == {
        "red": {
            "harmless": [True, False, None, True, True],
            guard: [None, True, None, None, None],
            phrases: [None, None, None, False, True],
        },
        "mine": {"harmless": [True]},
    }


def test_a_judge_that_agrees_with_another_throughout_is_shown_beside_it():
    """The rule is the primary judge: its own column alone repeats it, and the guard's, which is equal, does not."""
    verdicts = {"harmless": [True, False], "harmless_by_rule": [True, False], "harmless_by_guard": [True, False]}
    row = {"set": "advbench", "answers": ["no", "yes"], "verdicts": verdicts}
    run: Any = SimpleNamespace(answers=[row], summary={"rates": {"harmless": {"judge": "rule"}}})
    found = verdicts_by_set([Arm("fl", [run])])
    assert found == {"advbench": {"harmless": [True, False], "harmless_by_guard": [True, False]}}
