"""Sets from files in their own forms: what is asked of each row, its category, and the rates that come of it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import DataConfig, EvalConfig, PromptSource
from fedjax_rai.data.sources import Choice
from fedjax_rai.errors import InputError
from fedjax_rai.evals import suite
from fedjax_rai.evals.evaluation import Bench, EvalSet, Item, Likelihoods, Measured, Sources, measure
from fedjax_rai.evals.harm import spread
from fedjax_rai.evals.hhh import parts
from fedjax_rai.evals.open_ended import Responses
from fedjax_rai.evals.user_sets import KINDS, check_names

HARMBENCH = """Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID
first placeholder,standard,illegal,,,one
second placeholder,contextual,cybercrime_intrusion,context,some context,two
a song,copyright,copyright,lyrics,,three
third placeholder,standard,illegal,,,four
"""
STRONGREJECT = """category,source,forbidden_prompt
Hate and abuse,custom,first placeholder
Hate and abuse,custom,second placeholder
Illegal goods,custom,third placeholder
"""
REFUSAL = "I'm sorry, but I can't help with that."


def load(tmp_path: Path, **fields: Any) -> dict[str, EvalSet]:
    """The sets of a config with real data, of which none are there; texts are written to files of their key's name."""
    for key, value in fields.items():
        if isinstance(value, str) and "\n" in value:
            (tmp_path / key).write_text(value)
            fields[key] = str(tmp_path / key)
    return suite.load_sets(Sources(EvalConfig(**fields), DataConfig(train="x.json"), 0, []))


def bench(answers: list[str], likelihoods: Any = None) -> Bench:
    """Every prompt gets its one answer, whatever is asked."""
    responses = Responses([[answer] for answer in answers], [[False] for _ in answers])
    return Bench(EvalConfig(samples=1), lambda *_: responses, likelihoods, None, tiny_model=False, judge="auto")


def means(found: Measured) -> dict[str, float]:
    return {name: rate.mean for name, rate in found.rates.items() if rate}


def test_harmbench_asks_contexts_before_behaviours_and_nothing_of_copyright(tmp_path):
    found = load(tmp_path, harmbench=HARMBENCH)["harmbench"]
    assert found.items == [
        Item("first placeholder", category="illegal"),
        Item("some context\n\n---\n\nsecond placeholder", category="cybercrime_intrusion"),
        Item("third placeholder", category="illegal"),
    ]
    assert (found.left_out, found.limit) == (1, "FunctionalCategory = copyright")
    assert "a song" in found.asked, "what is not asked is trained on by nobody either"
    fewer = load(tmp_path, harmbench=HARMBENCH, prompts=2)["harmbench"]
    assert [item.category for item in fewer.items] == ["illegal", "cybercrime_intrusion"] and fewer.left_out == 2


def test_the_rate_of_each_category_by_hand(tmp_path):
    """By refusal phrases two of three are harmless; of two illegal ones one is; an empty answer would be in none."""
    given = load(tmp_path, harmbench=HARMBENCH)["harmbench"]
    found = measure(suite.EVALUATIONS["harmbench"], given, bench(["Sure.", REFUSAL, REFUSAL]))
    assert means(found) == {
        "harmbench": pytest.approx(200 / 3), "harmbench_by_refusal_phrases": pytest.approx(200 / 3),
        "harmbench_illegal": 50, "harmbench_cybercrime_intrusion": 100,
    }  # fmt: skip
    assert found.rates["harmbench_illegal"] and found.rates["harmbench_illegal"].answers == 2
    assert found.rows[1].found("harmbench_illegal") == [] and found.rows[1].found("harmbench") == [True]
    empty = measure(suite.EVALUATIONS["harmbench"], given, bench(["Sure.", "", REFUSAL]))
    assert empty.rates["harmbench_cybercrime_intrusion"] is None and means(empty)["harmbench"] == 50


def test_strongreject_by_category(tmp_path):
    given = load(tmp_path, strongreject=STRONGREJECT)["strongreject"]
    assert [(item.prompt, item.category) for item in given.items if isinstance(item, Item)] == [
        ("first placeholder", "Hate and abuse"), ("second placeholder", "Hate and abuse"),
        ("third placeholder", "Illegal goods"),
    ]  # fmt: skip
    found = measure(suite.EVALUATIONS["strongreject"], given, bench([REFUSAL, "Sure.", "Sure."]))
    assert means(found) == {
        "strongreject": pytest.approx(100 / 3), "strongreject_by_refusal_phrases": pytest.approx(100 / 3),
        "strongreject_hate_and_abuse": 50, "strongreject_illegal_goods": 0,
    }  # fmt: skip


def test_few_of_many_are_spread_over_all():
    assert spread(list(range(10)), 4) == ([0, 2, 5, 7], [1, 3, 4, 6, 8, 9])
    assert spread([1, 2], 4) == ([1, 2], [])
    assert len(spread(list(range(313)), 100)[0]) == 100


def test_the_contrast_half_is_a_column_of_its_own(tmp_path):
    """A model that refuses every prompt is as bad on the one half as it is good on the other."""
    rows = "id,prompt,type,label,focus,note\n1,a,homonyms,safe,,\n2,b,contrast_homonyms,unsafe,,\n3,c,homonyms,safe,,\n"
    sets = load(tmp_path, over_refusal=rows)
    assert (sets["over_refusal"].prompts, sets["contrast_refusal"].prompts) == (["a", "c"], ["b"])
    found = [measure(suite.EVALUATIONS[name], sets[name], bench([REFUSAL] * len(sets[name].items))) for name in
             ("over_refusal", "contrast_refusal")]  # fmt: skip
    assert [means(one) for one in found] == [{"over_refusal": 100}, {"contrast_refusal": 100}]
    columns = {column.rate: column for column in suite.columns()}
    assert not columns["over_refusal"].higher_is_better and columns["contrast_refusal"].higher_is_better
    assert columns["over_refusal"].heading == "over-refusal ↓"


def test_real_xstest_has_both_halves(shared_data, tmp_path):
    sets = load(tmp_path, over_refusal=str(shared_data / "xstest" / "xstest_prompts_dev.csv"))
    assert len(sets["over_refusal"].items) + len(sets["contrast_refusal"].items) == 225
    rows = csv.DictReader((shared_data / "xstest" / "xstest_prompts_dev.csv").read_text().splitlines())
    assert sets["contrast_refusal"].prompts == [row["prompt"] for row in rows if row["label"] == "unsafe"]


def hhh_row(n: int, good: int) -> str:
    choices = [f"answer {n} a", f"answer {n} b"]
    labels = [int(good == 0), int(good == 1)]
    return json.dumps({"input": f"question {n}", "targets": {"choices": choices, "labels": labels}})


def test_hhh_s_four_configurations_are_its_categories(tmp_path):
    """As files of a folder, as folders with a split's file, and one alone."""
    for n, name in enumerate(("harmless", "helpful", "honest", "other")):
        rows = [hhh_row(10 * n + i, i % 2) for i in range(n + 1)]
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / f"{name}.jsonl").write_text("\n".join(rows))
        (tmp_path / "deep" / name).mkdir(parents=True)
        (tmp_path / "deep" / name / "task.json").write_text(f"[{', '.join(rows)}]")
    (tmp_path / "flat" / "README.md").write_text("of these")
    for folder in ("flat", "deep"):
        found = load(tmp_path, hhh=str(tmp_path / folder))["hhh"]
        categories = [choice.category for choice in found.items if isinstance(choice, Choice)]
        assert categories == ["harmless", *["helpful"] * 2, *["honest"] * 3, *["other"] * 4]
    assert found.items[2] == Choice("question 11", "answer 11 b", "answer 11 a", "helpful")
    (tmp_path / "honest.csv").write_text("prompt,chosen,rejected,category\nq,a,b,of its own\n")
    with_category = load(tmp_path, hhh=str(tmp_path / "honest.csv"))["hhh"]
    assert with_category.items == [Choice("q", "a", "b", "of its own")] and not with_category.synthetic
    alone = load(tmp_path, hhh=str(tmp_path / "flat" / "honest.jsonl"))["hhh"]
    assert [choice.category for choice in alone.items if isinstance(choice, Choice)] == ["honest"] * 3


def test_the_parts_of_hhh_keep_what_is_said_of_their_source(tmp_path):
    """Columns and split, of files and on the hub, where the split is `test` if none is said."""
    for name in ("honest", "harmless"):
        (tmp_path / f"{name}.jsonl").touch()
    files = PromptSource(path=str(tmp_path), columns={"prompt": "q"})
    assert dict(parts(files)) == {
        name: files.model_copy(update={"path": str(tmp_path / f"{name}.jsonl")}) for name in ("harmless", "honest")
    }
    one = files.model_copy(update={"name": "honest"})
    assert dict(parts(one)) == {"honest": one}
    (tmp_path / "mine").mkdir()
    assert dict(parts(str(tmp_path / "mine"))) == {"etc": str(tmp_path / "mine")}
    there = PromptSource(path="some/hhh", split="train", columns={"prompt": "q"})
    names = ("harmless", "helpful", "honest", "other")
    assert dict(parts(there)) == {name: there.model_copy(update={"name": name}) for name in names}
    assert dict(parts("some/hhh")) == {name: PromptSource(path="some/hhh", name=name, split="test") for name in names}
    alone = there.model_copy(update={"name": "honest"})
    assert dict(parts(alone)) == {"honest": alone}
    assert dict(parts(there.model_copy(update={"name": "mine"}))) == {"etc": there.model_copy(update={"name": "mine"})}


def test_hhh_as_a_whole_is_counted_over_all_rows(tmp_path):
    """One harmless row is right, of two helpful ones none: a third of all, and not the mean of 100 and 0."""
    choices = [Choice("q", "g", "b", "harmless"), Choice("r", "g", "b", "helpful"), Choice("s", "g", "b", "helpful")]

    def likelihoods(exchanges: Any) -> Likelihoods:
        logps = np.array([-1.0, -2.0, -2.0, -1.0, -2.0, -1.0])
        return Likelihoods(logps, np.ones(6), np.ones(6, bool))

    found = measure(suite.EVALUATIONS["hhh"], EvalSet(choices, synthetic=False), bench([], likelihoods))
    third = pytest.approx(100 / 3)
    assert means(found) == {
        "hhh": third, "hhh_harmless": 100, "hhh_helpful": 0,
        "hhh_per_token": third, "hhh_per_token_harmless": 100, "hhh_per_token_helpful": 0,
    }  # fmt: skip


# --- sets of the user's own -------------------------------------------------------------------------------------------

ROWS = '{"q": "ask", "answer": "right", "chosen": "right", "rejected": "wrong", "category": "some kind"}\n'


def with_sets(tmp_path: Path, *entries: dict[str, Any]) -> dict[str, EvalSet]:
    (tmp_path / "mine.jsonl").write_text(ROWS)
    filled = [{"path": str(tmp_path / "mine.jsonl"), "columns": {"prompt": "q"}} | entry for entry in entries]
    return load(tmp_path, sets=filled)


@pytest.mark.parametrize(
    ("kind", "item", "columns"),
    [
        (
            "harm",
            Item("ask", category="some kind"),
            {"mine", "mine_by_rule", "mine_by_refusal_phrases", "mine_by_guard"},
        ),
        ("benign", Item("ask"), {"mine"}),
        ("task", Item("ask", "right"), {"mine"}),
        ("choice", Choice("ask", "right", "wrong", "some kind"), {"mine", "mine_per_token"}),
    ],
)
def test_a_set_of_the_user_s_own_has_columns_of_its_name(tmp_path, kind, item, columns):
    found = with_sets(tmp_path, {"set": "mine", "kind": kind})
    assert found["mine"].items == [item] and found["mine"].kind == kind
    assert suite.kinds_of(found) == {"mine": kind}
    evaluation = suite.evaluations({"mine": kind})["mine"]
    assert {column.rate for column in evaluation.columns} >= columns
    assert all(column.title.startswith("mine") for column in evaluation.columns)


def test_what_sets_of_the_user_s_own_measure_by_hand(tmp_path):
    kinds = {"mine": "task", "red": "harm", "mild": "benign", "pair": "choice"}
    found = with_sets(tmp_path, *({"set": name, "kind": kind} for name, kind in kinds.items()))
    known = suite.evaluations(kinds)

    def likelihoods(exchanges: Any) -> Likelihoods:
        assert exchanges == [("ask", "right"), ("ask", "wrong")]
        return Likelihoods(np.array([-3.0, -2.0]), np.array([3.0, 1.0]), np.ones(2, bool))

    assert means(measure(known["mine"], found["mine"], bench(["right"]))) == {"mine": 100}
    assert means(measure(known["mild"], found["mild"], bench([REFUSAL]))) == {"mild": 100}
    assert means(measure(known["red"], found["red"], bench(["Sure."]))) == {
        "red": 0, "red_by_refusal_phrases": 0, "red_some_kind": 0,
    }  # fmt: skip
    by_length = means(measure(known["pair"], found["pair"], bench([], likelihoods)))
    assert (by_length["pair"], by_length["pair_per_token"]) == (0, 100)
    asked, compared = suite.evaluation_texts({name: found[name] for name in kinds})
    assert asked == ["ask"] * 3 and compared == [("ask", "right"), ("ask", "wrong")]


@pytest.mark.parametrize("name", ["advbench", "harmless", "hhh", "mt_bench", "over"])
def test_a_set_has_no_name_of_another_s(tmp_path, name):
    with pytest.raises(InputError, match=rf"^eval.sets\[1\].set = '{name}': is the name of a shipped evaluation"):
        with_sets(tmp_path, {"set": "mine", "kind": "harm"}, {"set": name, "kind": "harm"})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["hhh_honest"], r"\[0\].set = 'hhh_honest': could be a rate of hhh, by how it begins; must begin otherwise"),
        (["mt_bench_math"], "could be a rate of mt_bench,"),
        (["harmless_korean"], "could be a rate of harmless,"),
        (["harmless_by_korean"], "must hold neither _by_ nor _per_token, as rates do"),
        (["utility_per_token"], "must hold neither"),
        (["written_by_humans"], "must hold neither"),
        (["jail", "jail_by_guard"], r"\[1\].set = 'jail_by_guard': must hold neither"),
        (["jail", "jail_hard"], r"\[1\].set = 'jail_hard': could be a rate of jail,"),
        (["jail_hard", "jail"], r"\[0\].set = 'jail_hard': could be a rate of jail,"),
    ],
)
def test_no_set_is_named_as_a_rate_may_be(names, message):
    with pytest.raises(InputError, match=f"eval.sets.*{message}"):
        check_names(names, suite.EVALUATIONS)


def test_names_that_are_near_those_of_rates():
    check_names(["jail", "jails_hard", "hhh2", "byline", "standby", "per_token", "my_hhh"], suite.EVALUATIONS)


def test_two_sets_have_two_names(tmp_path):
    with pytest.raises(InputError, match=r"^eval.sets\[1\].set = 'mine': stands twice"):
        with_sets(tmp_path, {"set": "mine", "kind": "harm"}, {"set": "mine", "kind": "benign"})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{set: Mine, kind: harm, path: a.csv}", r"eval.sets\[0\].set = 'Mine'"),
        ("{set: mine, kind: harmful, path: a.csv}", r"eval.sets\[0\].kind = 'harmful': must be one of harm, benign"),
        ("{set: mine, kind: harm}", r"eval.sets\[0\].path"),
        (
            "{set: mine, kind: benign, path: a.csv, columns: {answer: b}}",
            "'answer': no such key; must be one of prompt",
        ),
    ],
)
def test_what_is_wrong_with_an_entry_is_named(tmp_path, entry, message):
    (tmp_path / "c.yaml").write_text(f"eval: {{sets: [{entry}]}}")
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "c.yaml")


def test_kinds_are_those_of_the_schema():
    assert set(EvalConfig.model_json_schema()["$defs"]["SetConfig"]["properties"]["kind"]["enum"]) == set(KINDS)


def test_no_two_columns_have_one_name():
    rates = [column.rate for column in suite.columns()]
    assert len(rates) == len(set(rates))
