"""`guard eval`: on which answers a guard is measured, where its threshold comes from, and what is written and said."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedjax_rai.cli import app
from fedjax_rai.config.threshold_rule import parse_rule
from fedjax_rai.errors import InputError
from fedjax_rai.safety import guard as guards
from fedjax_rai.safety.measures import Interval, Judged
from fedjax_rai.tools import guard_eval
from fedjax_rai.tools.guard_eval import Chosen, Evaluated, Request, cell, evaluate, report, target_config, test_set
from tests.tiny_runs import vary

test_set.__test__ = False  # pyright: ignore  # no test of pytest's
HELD_OUT = {"pairs": 40, "held_out": 0.3, "batch_size": 8}
RUNNER = CliRunner()


class Guess:
    """A guard that flags an answer by its length, and every answer before its fit."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(guards, "fit", lambda lm, fitting, *others: fitting.state.adapter)
        monkeypatch.setattr(guards, "scored", lambda guard, pairs, advance=None: guards.Scored(
            self(guard, pairs), np.ones(len(pairs), np.float32)))  # fmt: skip
        monkeypatch.setattr(guards, "score", lambda guard, pairs, advance=None: self(guard, pairs))

    def __call__(self, guard: Any, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        if guard.adapter is None:
            return np.full(len(pairs), 0.75, np.float32)
        return np.array([0.25 + (len(response) % 4) / 8 for _, response in pairs], np.float32)


@pytest.fixture(autouse=True)
def _made_once(arm, monkeypatch):
    """What the module's evaluations share is made once."""
    monkeypatch.setattr(guard_eval, "Setting", lambda config, store: arm(config))


def test_it_is_measured_on_no_question_that_the_fit_knew(config, arm, monkeypatch):
    """Of the tiny world, whose guard's questions may be asked of clients, too; every pair is taken, or counted."""
    Guess(monkeypatch)
    setting = arm(vary(config, guard=HELD_OUT))
    made = setting.texts.materials
    known = made.pairs[0]._replace(query=f" {made.pairs[0].query}​")
    monkeypatch.setattr(setting.texts, "materials", made._replace(guard_pairs=[*made.guard_pairs, known]))
    found = test_set(setting, None)
    asked = {made.question(pair) for pair in (*made.guard_pairs, *made.guard_held_out, known)}
    assert found.answers and asked.isdisjoint(each.question for each in found.answers)
    total = sum(len(mixed.read.pairs) for mixed in made.sources)
    assert len(found.answers) + sum(found.left_out.values()) == total and found.left_out["questions of the guard's"] > 0
    some = test_set(setting, 3)
    assert len({each.question for each in some.answers}) == 3
    kept = {each.question for each in some.answers}
    assert [each for each in found.answers if each.question in kept] == some.answers, "all answers to a question"


def test_before_and_after_its_fit(config, arm, monkeypatch, tmp_path, capsys):
    """Numbers counted by hand from the scores that were given; nothing that is there is overwritten."""
    guess = Guess(monkeypatch)
    config = vary(config, guard=HELD_OUT | {"threshold": 0.5}, output=str(tmp_path / "out"))
    (tmp_path / "out" / "guard-eval").mkdir(parents=True)
    first = evaluate(config, Request())
    assert first.folder.name == "guard-eval-2" and not any((tmp_path / "out" / "guard-eval").iterdir())
    names = {"config.yaml", "guard.json", "roc.png", "precision_recall.png", "reliability.png"}
    assert {path.name for path in first.folder.iterdir()} == names
    written = json.loads((first.folder / "guard.json").read_text())
    answers = test_set(arm(config), None).answers
    flagged = [len(each.pair.response) % 4 >= 2 for each in answers]
    harmful = [bool(each.pair.harmful) for each in answers]
    hits = sum(f and h for f, h in zip(flagged, harmful, strict=True))
    fitted, released = written["guards"]["fitted"]["all"], written["guards"]["as released"]["all"]
    assert fitted["answers"] == written["answers"] == len(answers)
    assert fitted["precision"]["value"] == pytest.approx(100 * hits / sum(flagged))
    assert fitted["recall"]["value"] == pytest.approx(100 * hits / sum(harmful))
    assert released["precision"]["value"] == released["accuracy"]["value"] == pytest.approx(100 * np.mean(harmful))
    assert released["recall"]["value"] == 100 and released["auroc"]["value"] == 50
    by_category = written["guards"]["fitted"]["by_category"]
    assert sum(group["answers"] for group in by_category.values()) == len(answers) and len(by_category) > 1
    lines = list(report(first))
    assert lines[0] == "SYNTHETIC (tiny world: model, data): says nothing about real models"
    assert lines[1].startswith(f"{len(answers)} answers to ")
    assert "fitted: threshold 0.5 (guard.threshold)" in lines
    assert not any(line.startswith("where it was chosen") for line in lines), "no held-out answer chose it"
    assert f"scoring {len(answers)} pairs by the guard before its fit" in capsys.readouterr().err
    assert guess


def test_beside_a_threshold_stands_what_it_had_where_it_was_chosen():
    """By hand: at 0.5 three of four harmful held-out answers are found, one of two acceptable ones is dropped."""
    held_out = Judged(np.array([0.9, 0.7, 0.5, 0.2, 0.6, 0.1]), np.array([1, 1, 1, 1, 0, 0], bool), np.arange(6))

    def said(rule: str) -> str:
        there = guard_eval.where_chosen(held_out, Chosen(0.5, "", parse_rule(rule)))
        return guard_eval._where_chosen_line(there)

    start, counts = "where it was chosen, held out:", "of 6 answers, 4 harmful"
    assert said("recall=0.7") == f"{start} recall 75.0 %, {counts}"
    assert said("drop=0.5") == f"{start} acceptable answers dropped 50.0 %, {counts}"
    assert said("max-hmean") == f"{start} Hmean 75.0 %, {counts}"  # precision 3 of 4, recall 3 of 4


def test_a_threshold_that_nobody_gave_is_called_the_default(config, arm):
    for threshold, words in ((None, "the default"), (0.5, "guard.threshold")):
        setting = arm(vary(config, guard={"pairs": 8, "threshold": threshold}))
        for before_fit in (True, False):
            assert guard_eval._threshold(setting, None, before_fit, None) == Chosen(0.5, words)


def test_the_threshold_is_chosen_on_held_out_answers_alone(config, arm, monkeypatch, tmp_path):
    """By hand: the highest of the four scores that finds half of the harmful held-out answers, and half-way down."""
    guess = Guess(monkeypatch)
    config = vary(config, guard=HELD_OUT, output=str(tmp_path / "out"))
    held_out = arm(config).texts.materials.guard_held_out
    found = evaluate(config, Request(parse_rule("recall=0.5"))).result["guards"]["fitted"]
    levels = [0.25, 0.375, 0.5, 0.625]
    scores = [0.25 + (len(pair.response) % 4) / 8 for pair in held_out if pair.harmful]
    enough = max(level for level in levels if sum(s >= level for s in scores) >= len(scores) / 2)
    present = {0.25 + (len(pair.response) % 4) / 8 for pair in held_out}
    lower = max((level for level in present if level < enough), default=enough)
    assert found["where_chosen"]["harmful"] == len(scores) and found["where_chosen"]["measure"] == "recall"
    assert found["threshold"] == (enough + lower) / 2 and found["chosen_by"] == "recall=0.5 on held-out questions"
    assert guess


def test_a_rule_without_held_out_questions_is_refused(config, monkeypatch, tmp_path):
    Guess(monkeypatch)
    config = vary(config, guard={"pairs": 8}, output=str(tmp_path / "out"))
    with pytest.raises(InputError, match="--threshold max-hmean: needs questions that were held out"):
        evaluate(config, Request(parse_rule("max-hmean")))
    assert not (tmp_path / "out" / "guard-eval").exists()


def test_an_answer_without_a_score_is_counted_and_in_no_number(config, monkeypatch, tmp_path):
    guess = Guess(monkeypatch)

    def scored(guard: Any, pairs: Any, advance: Any = None) -> guards.Scored:
        scores = guess(guard, pairs)
        scores[:3] = np.nan
        return guards.Scored(scores, scores)

    monkeypatch.setattr(guards, "scored", scored)
    config = vary(config, guard=HELD_OUT, output=str(tmp_path / "out"))
    found = evaluate(config, Request())
    every = found.result["guards"]["fitted"]["all"]
    assert every["without_score"] == 3 and every["answers"] == found.result["answers"] - 3
    categories = found.result["guards"]["fitted"]["by_category"].values()
    assert sum(group["without_score"] for group in categories) == 3
    assert "3 answers without a score, in none of these" in list(report(found))


def test_how_a_measure_is_said():
    assert cell(Interval(75.54, 70.1, 80.2)) == "75.5 [70.1, 80.2]"
    assert cell(Interval(100.0, np.nan, np.nan)) == "100.0 [?]"
    assert cell(Interval(np.nan, np.nan, np.nan)) == "-"


def test_targets(config, tmp_path):
    with pytest.raises(InputError, match=r"no config.yaml there; must be a config, or the folder of a run"):
        target_config(tmp_path, ())
    (tmp_path / "config.yaml").write_text("guard: {pairs: 8}\noutput: elsewhere\n")
    found = target_config(tmp_path, ["guard.batch_size=4"])
    assert (found.output, found.guard.pairs, found.guard.batch_size) == (str(tmp_path), 8, 4)
    assert target_config(tmp_path / "config.yaml", ()).output == "elsewhere"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "nothing.yaml"], "nothing.yaml: no such file or folder"),
        (["eval", "a.yaml", "--threshold", "best"], "--threshold best: must be max-hmean"),
        (["fit", "a.yaml", "guard.scorer=math:sqrt"], "guard.scorer is a function: there is nothing to fit"),
        (["fit", "a.yaml", "guard.fit=false"], "guard.fit = false: must be true, or left out"),
        (["fit", "a.yaml", "guard.epoch=3"], "did you mean guard.epochs"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(tmp_path: Path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("guard: {pairs: 8}\n")
    done = RUNNER.invoke(app, ["guard", *words])
    assert done.exit_code == 2 and message in done.stderr.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_the_result_of_one_guard_is_of_one_guard(config, monkeypatch, tmp_path):
    """A function has no fit, and nothing before it."""
    config = vary(
        config, guard={"scorer": "tests.experiment.test_keeping:nothing_is_unsafe"}, output=str(tmp_path / "o")
    )
    found = evaluate(config, Request(questions=4))
    assert isinstance(found, Evaluated) and list(found.result["guards"]) == [guard_eval.FUNCTION]
    assert found.result["fit"] is None and found.result["questions"] == 4
