"""Judges: what each calls unsafe, which one is the primary, and those of the user's own."""

import numpy as np
import pytest

from fedjax_rai.config.keys import schemas
from fedjax_rai.config.schema import EvalConfig
from fedjax_rai.data import tiny_lexicon as words
from fedjax_rai.data.tiny_world import unsafe_markers
from fedjax_rai.errors import InputError
from fedjax_rai.evals.judge import (
    AUTO,
    GUARD,
    JUDGES,
    PHRASES,
    RULE,
    Context,
    GuardScores,
    imported_judge,
    judgement,
    knows_templates,
    named,
    over_lists,
    primary,
)
from fedjax_rai.evals.refusals import refuses

FILLED = {"verb": "rob", "target": "mill", "group": "Lurians", "event": "harvest fair"}
UNSAFE = f"so {unsafe_markers()[0]} it is"
PLAIN = Context(templated=False, guard=None)


def guard(*scores: float) -> GuardScores:
    return GuardScores(lambda exchanges: np.array(scores, np.float32), threshold=0.5)


@pytest.mark.parametrize("form", [form for kind in words.UNSAFE.values() for form in kind])
def test_the_rule_judge_knows_every_unsafe_form(form):
    assert knows_templates()(form.format(**FILLED))


@pytest.mark.parametrize("form", [*words.REFUSALS, *(f for kind in words.ACCEPTABLE.values() for f in kind)])
def test_the_rule_judge_passes_every_acceptable_form(form):
    assert not knows_templates()(form.format(**FILLED))


@pytest.mark.parametrize("form", words.REFUSALS)
def test_the_bases_refusals_are_refusals(form):
    assert refuses(form.format(**FILLED))


def test_each_judges_verdicts_by_hand():
    exchanges = [("p", UNSAFE), ("p", "I cannot help."), ("p", "Sure."), ("p", "")]
    context = Context(templated=True, guard=guard(0.5, 0.49, np.nan, 0.9))
    assert judgement(RULE, exchanges, context).unsafe == [True, False, False, None]
    assert judgement(PHRASES, exchanges, context).unsafe == [True, False, True, None]
    by_guard = judgement(GUARD, exchanges, context)
    assert by_guard.unsafe == [True, False, None, None]
    assert by_guard.scores == [0.5, pytest.approx(0.49), None, pytest.approx(0.9)]
    assert judgement(GUARD, [], context).unsafe == []
    assert judgement(RULE, [("p", " \n")], context).unsafe == [None]


@pytest.mark.parametrize(
    ("chosen", "templated", "guarded", "name"),
    [
        (AUTO, True, True, "rule"),
        (AUTO, False, True, "refusal_phrases"),
        ("guard", True, True, "guard"),
        ("refusal_phrases", True, False, "refusal_phrases"),
    ],
)
def test_the_primary_judge(chosen, templated, guarded, name):
    assert primary(chosen, Context(templated, guard() if guarded else None)).name == name


@pytest.mark.parametrize(("chosen", "message"), [("rule", "= rule: needs model.path"), ("guard", "needs a guard")])
def test_a_primary_judge_that_cannot_judge_is_refused(chosen, message):
    with pytest.raises(InputError, match=f"eval.judge.*{message}"):
        primary(chosen, PLAIN)


def test_a_judge_of_ones_own():
    exchanges = [("a", "b"), ("b", "b"), ("c", "d"), ("d", "x")]
    singly = imported_judge(lambda prompt, answer: {"x": None, "d": np.nan}.get(answer, prompt == answer), "same")
    assert judgement(singly, exchanges, PLAIN).unsafe == [False, True, None, None]
    by_list = imported_judge(over_lists(lambda prompts, answers: np.array(prompts) == np.array(answers)), "same")
    assert judgement(by_list, exchanges, PLAIN).unsafe == [False, True, False, False]
    assert primary(singly, PLAIN) is singly
    for wrong, message in ((lambda p, a: 1.0, "gave 1.0; must be True for unsafe"), (lambda p, a: "no", "gave 'no'")):
        with pytest.raises(InputError, match=message):
            judgement(imported_judge(wrong, "w"), exchanges, PLAIN)
    with pytest.raises(InputError, match="w: gave 1 verdicts on 4 answers"):
        judgement(imported_judge(over_lists(lambda prompts, answers: [True]), "w"), exchanges, PLAIN)


@pytest.mark.parametrize("wrap", [lambda function: function, over_lists], ids=["singly", "lists"])
def test_a_judge_of_ones_own_that_fails_is_named(wrap):
    failing = imported_judge(wrap(lambda prompt, answer: {}["absent"]), "mine")
    with pytest.raises(InputError, match=r"^eval.judge = mine: calling it failed \(KeyError: 'absent'\); must be"):
        judgement(failing, [("p", "a")], PLAIN)


def test_a_judge_is_named_by_a_name_or_an_attribute():
    assert named("auto") == "auto" and named("guard") == "guard"
    judge = named("tests.evals.test_judge:always")
    assert not isinstance(judge, str) and judge.name == "always"
    assert judgement(judge, [("p", "a")], PLAIN).unsafe == [True]
    with pytest.raises(InputError, match="eval.judge = tests.evals.test_judge:alwys: .*did you mean always"):
        named("tests.evals.test_judge:alwys")
    with pytest.raises(InputError, match="must be callable"):
        named("tests.evals.test_judge:FILLED")


@pytest.mark.parametrize("name", ["auto", "rule", "refusal_phrases", "guard"])
def test_a_judge_of_ones_own_takes_no_name_of_ours(monkeypatch, name):
    monkeypatch.setitem(globals(), name, always)
    with pytest.raises(InputError, match=f"eval.judge: .* is named {name}; name the function other than auto, rule,"):
        named(f"tests.evals.test_judge:{name}")


def always(prompt: str, answer: str) -> bool:
    return True


def test_the_config_knows_the_tables_names():
    names = schemas()["eval.judge"]["enum"]
    assert names == [AUTO, *JUDGES]
    assert EvalConfig(judge="a.b:c").judge == "a.b:c"
    with pytest.raises(ValueError, match="no such name"):
        EvalConfig(judge="gard")
