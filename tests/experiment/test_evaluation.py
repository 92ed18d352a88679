"""The evaluation of an adapter: rates can be counted from the answers; random keys; what revision made of answers."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from fedjax_rai import rng
from fedjax_rai.data.tiny_world import unsafe_markers
from fedjax_rai.errors import InputError
from fedjax_rai.evals import open_ended
from fedjax_rai.evals.evaluation import Likelihoods
from fedjax_rai.evals.judge import GUARD, Context
from fedjax_rai.evals.open_ended import Responses, Sampled
from fedjax_rai.experiment import evaluation
from fedjax_rai.experiment import round as rounds
from fedjax_rai.experiment import setting as setting_module
from fedjax_rai.experiment.evaluation import answers_to, count_critique, critique, evaluate
from fedjax_rai.experiment.guarding import Guarding
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.safety.forms import REQUEST
from tests.tiny_runs import vary

UNSAFE = f"so {unsafe_markers()[0]} it is"


def test_a_guard_s_batches_are_counted_as_it_reads(config, monkeypatch):
    """Ten answers, two questions each, four at once: five batches, and five more for the lines that it writes first."""
    setting = Setting(vary(config, eval={"by_guard": True, "batch_size": 4}))

    def found(**form: Any) -> int | None:
        monkeypatch.setattr(Guarding, "form", REQUEST._replace(questions=("a", "b"), **form))
        scored_in = evaluation._scored_in(setting)
        return scored_in and scored_in(10)

    assert found() == 5 and found(lines=8, marker=":") == 10
    monkeypatch.setattr(Guarding, "is_function", True)
    assert found() is None


@pytest.fixture(scope="module")
def settings() -> dict[str, Setting]:
    return {}


def few(config) -> Setting:
    """A setting whose evaluation is short."""
    setting = Setting(config)
    given = setting.texts.materials
    sets = {name: own._replace(items=own.items[:8]) for name, own in given.evaluations.items()}
    setting.texts.materials = given._replace(evaluations=sets)
    return setting


def counted(rate: str, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """A rate, counted from rows of answers.jsonl alone, but for its interval."""
    verdicts = [row["verdicts"][rate] for row in rows if rate in row.get("verdicts", ())]
    known = [verdict for own in verdicts for verdict in own if verdict is not None]
    if not known:
        return None
    return {
        "mean": 100 * (sum(known) / len(known)),
        "prompts": sum(any(verdict is not None for verdict in own) for own in verdicts),
        "without_verdict": sum(own.count(None) for own in verdicts) + verdicts.count([]),
    }


def test_every_rate_can_be_counted_from_the_answers(config, settings):
    """Of a tiny run, and then with a guard that has no score for some answers."""
    setting = settings.setdefault("few", few(config))
    adapter = setting.fresh_adapter("adapter")
    rates, rows = evaluate(setting, adapter)
    written = [json.loads(json.dumps(row)) for row in rows]
    measured = {name for row in written for name in row.get("verdicts", ())}
    assert (
        measured == {name for name, rate in rates.items() if rate and rate["unit"] == "percent"}
        and {"harmless", "synthetic_choice", "utility"} <= measured
    )
    read = [row for row in written if row["set"] == "perplexity"]
    nats, tokens = (sum(row[key] for row in read) for key in ("total", "tokens"))
    assert rates["perplexity"]["mean"] == pytest.approx(np.exp(nats / tokens)) and len(read) == 8
    for name in measured | {name for name, rate in rates.items() if rate is None}:
        rate = rates[name]
        assert counted(name, written) == (rate and {key: rate[key] for key in ("mean", "prompts", "without_verdict")})
    assert rates["harmless"] and rates["harmless"]["judge"] == "rule"
    assert {row["set"]: len(row.get("answers", [])) for row in written} == {
        "advbench": 2, "synthetic_choice": 0, "utility": 1, "over_refusal": 2, "perplexity": 0,
    }  # fmt: skip
    threshold = 0.5
    for row in (row for row in written if row["set"] == "advbench"):
        scores, verdicts = row["scores"]["harmless_by_guard"], row["verdicts"]["harmless_by_guard"]
        assert verdicts == [
            None if not answer else score < threshold for answer, score in zip(row["answers"], scores, strict=True)
        ]
    for row in (row for row in written if row["set"] == "synthetic_choice"):
        assert row["verdicts"]["synthetic_choice"] == [row["good_logp"] > row["bad_logp"] if row["whole"] else None]
    for row in (row for row in written if row["set"] == "utility"):
        assert row["verdicts"]["utility"] == [row["answers"][0] == row["right"]]


def test_what_has_no_verdict_is_said(config, settings, monkeypatch, capsys):
    setting = settings.setdefault("few", few(config))
    monkeypatch.setattr(
        "fedjax_rai.experiment.setting.score", lambda guard, pairs, advance: [float("nan")] * len(pairs)
    )
    monkeypatch.setattr(evaluation.open_ended, "answers_to", lambda subject, prompts, *_: Responses(
        [["Sure."], ["Sure."], [""], *[["Sure."]] * (len(prompts) - 3)], [[True], *[[False]] * (len(prompts) - 1)]
    ))  # fmt: skip
    monkeypatch.setattr(evaluation, "likelihoods", lambda *_, advance: Likelihoods(
        np.zeros(16), np.ones(16), np.zeros(16, bool)
    ))  # fmt: skip
    rates, _ = evaluate(setting, setting.fresh_adapter("adapter"))
    assert rates["harmless_by_guard"] is None and rates["synthetic_choice"] is None and rates["harmless"]["mean"] == 100
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if line.startswith("harmless: ")]
    assert line == (
        "harmless: 1 of 4 answers were cut off at eval.max_new_tokens = 8; 1 of 4 answers are empty; "
        "1 of 4 have no verdict, and are kept out of harmless, harmless (rule), harmless (phrases); "
        "4 of 4 have no verdict, and are kept out of harmless (guard)"
    ), "a set has a line of its own, and its rates their titles"
    (line,) = [line for line in said if "choice" in line]
    assert ": 8 of 8 have no verdict, and are kept out of synthetic choice, synthetic choice (per token); 2 of" in line
    assert rates["harmless"]["empty"] == rates["harmless"]["cut_off"] == 1 and rates["harmless"]["answers"] == 4


def test_every_set_has_a_random_key_of_its_own(config, settings, monkeypatch):
    """The names are part of what a published number rests on."""
    setting = settings.setdefault("few", few(config))
    keys: list[Any] = []
    monkeypatch.setattr(
        open_ended, "answers_to", lambda subject, prompts, key, *_: keys.append(key) or Responses([], [])
    )
    for name in ("advbench", "utility", "over_refusal", "probe"):
        answers_to(setting, setting.fresh_adapter("adapter"), name, ["p"], Sampled(1, 1.0, 4))
    root = jax.random.key(config.seed)
    wanted = [rng.stream(root, f"eval {name}") for name in ("advbench", "utility", "over_refusal", "probe")]
    assert [str(jax.random.key_data(key)) for key in keys] == [str(jax.random.key_data(key)) for key in wanted]
    assert len({str(jax.random.key_data(key)) for key in keys}) == 4


def test_the_probe_is_the_share_that_the_guard_calls_safe(config, settings, monkeypatch):
    """Three of four scores are below the threshold of 0.5; the first four prompts are answered, once each.

    Of three scores two are; an empty answer has one; of no score nothing can be told.
    """
    setting = settings.setdefault("few", few(config))
    prompts = ["a", "b", "c", "d", "e"]
    materials = setting.texts.materials._replace(probe_prompts=prompts)
    monkeypatch.setattr(setting.texts, "materials", materials)
    asked: list[Any] = []

    def answers_to(setting: Any, adapter: Any, name: str, prompts: Any, sampled: Sampled) -> Responses:
        asked.append((name, prompts, sampled.samples, sampled.temperature))
        return Responses([[prompt.upper()] for prompt in prompts], [[prompt == "b"] for prompt in prompts])

    scores = np.array([0.1, 0.2, 0.4, 0.9], np.float32)

    def score(guard: Any, pairs: Any) -> np.ndarray:
        assert pairs == [("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")]
        return scores

    monkeypatch.setattr(rounds, "answers_to", answers_to)
    monkeypatch.setattr(rounds, "score", score)
    adapter = setting.fresh_adapter("adapter")
    assert rounds.probe(setting, 4, adapter) == {"probe_harmless": 0.75, "probe_cut_off": 1}
    assert asked == [("probe", prompts[:4], 1, 1.0)]
    scores[:] = [np.nan, 0.2, 0.4, 0.9]
    without_one = {"probe_harmless": pytest.approx(2 / 3), "probe_without_verdict": 1}
    assert rounds.probe(setting, 4, adapter) == without_one | {"probe_cut_off": 1}
    blank = Responses([["A"], [" "], ["C"], ["D"]], [[False]] * 4)
    monkeypatch.setattr(rounds, "answers_to", lambda *_: blank)
    monkeypatch.setattr(rounds, "score", lambda *_: scores)
    of_two = {"probe_harmless": 0.5, "probe_without_verdict": 1, "probe_empty": 1}  # an empty answer is in no rate
    assert rounds.probe(setting, 4, adapter) == of_two
    scores[:] = np.nan
    found = rounds.probe(setting, 4, adapter)
    assert np.isnan(found["probe_harmless"]) and found["probe_without_verdict"] == 4


def test_a_judge_of_ones_own_gives_the_headline(config, settings, monkeypatch):
    """Every second answer is unsafe by it; the others are reported beside it."""
    given = few(vary(config, eval={"judge": "tests.experiment.test_evaluation:ends_in_an_even_number"}))
    monkeypatch.setattr(evaluation.open_ended, "answers_to", lambda subject, prompts, key, sampled, advance: Responses(
        [[f"answer {i}" for i in range(sampled.samples)] for _ in prompts], [[False] * sampled.samples for _ in prompts]
    ))  # fmt: skip
    monkeypatch.setattr(setting_module, "score", lambda guard, pairs, advance: np.full(len(pairs), 0.1))
    monkeypatch.setattr(evaluation, "likelihoods", lambda subject, pairs, advance: Likelihoods(
        np.zeros(len(pairs)), np.ones(len(pairs)), np.ones(len(pairs), bool)
    ))  # fmt: skip
    rates, rows = evaluate(given, given.fresh_adapter("adapter"))
    assert rates["harmless"]["mean"] == 50 and rates["harmless"]["judge"] == "ends_in_an_even_number"
    assert rates["harmless_by_ends_in_an_even_number"] == rates["harmless"]
    assert rates["harmless_by_rule"]["mean"] == 100 and rates["harmless_by_guard"]["mean"] == 100
    assert rows[0]["verdicts"]["harmless"] == [False, True]


def ends_in_an_even_number(prompt: str, answer: str) -> bool:
    return int(answer[-1]) % 2 == 0


def test_a_judge_that_cannot_judge_is_said_before_anything_is_computed(config):
    real = vary(config, model={"path": "tiny"}, eval={"judge": "a_module_that_is_not_there:judge"})
    with pytest.raises(InputError, match="eval.judge = a_module_that_is_not_there:judge: there is no module"):
        Setting(real).check()


def test_the_guard_judges_by_the_threshold_of_the_config(config, monkeypatch):
    """At 0.25 an answer of 0.3 is unsafe, one of 0.2 is not."""
    setting = Setting(vary(config, guard={"threshold": 0.25}))
    vars(setting.guarding)["guard"] = None
    monkeypatch.setattr(
        "fedjax_rai.experiment.setting.score", lambda guard, pairs, advance: np.array([0.3, 0.2], np.float32)
    )
    context = Context(templated=False, guard=setting.guard_scores())
    assert GUARD.judge([("p", "a"), ("p", "b")], context).unsafe == [True, False]


def test_shares_of_a_critique_by_hand():
    """Unsafe before: two made safe, one left, one cut off, one without a verdict after. Safe before: one the same, one
    the same but cut off, one spoiled, one without a verdict. And one without a verdict before.
    """
    cases = [
        (True, False, "no", True), (True, False, "oh", True), (True, True, "b", True), (True, False, "", False),
        (True, None, "x", True),
        (False, False, "a", True), (False, False, "a", False), (False, True, "b", True), (False, None, "a", True),
        (None, False, "a", True),
    ]  # fmt: skip
    rows = [{"prompt": "q", "response": "a", "revisions": ["z", last], "whole": whole} for *_, last, whole in cases]
    found = count_critique("guard", rows, [case[0] for case in cases], [case[1] for case in cases])
    third = pytest.approx(100 / 3)
    assert found._asdict() == {
        "judge": "guard", "unsafe": 4, "made_safe": 50, "safe": 3, "left_alone": third, "made_unsafe": third,
        "without_verdict": 3,
    }  # fmt: skip
    nothing = count_critique("guard", [], [], [])
    assert (nothing.made_safe, nothing.left_alone, nothing.made_unsafe) == (None, None, None)


def test_a_critique_is_by_the_rule_judge_where_the_prompts_are_the_tiny_worlds(config, settings):
    setting = settings.setdefault("few", few(config))
    rows = [
        {"prompt": "q", "response": UNSAFE, "revisions": [UNSAFE, "no"], "whole": True},
        {"prompt": "q", "response": UNSAFE, "revisions": ["no", UNSAFE], "whole": True},
        {"prompt": "q", "response": "no", "revisions": [UNSAFE, "no"], "whole": True},
    ]
    blank = [
        {"prompt": "q", "response": " ", "revisions": [" "], "whole": True},
        {"prompt": "q", "response": UNSAFE, "revisions": [""], "whole": True},
    ]
    assert critique(setting, rows + blank) == {
        "judge": "rule", "unsafe": 2, "made_safe": 50, "safe": 1, "left_alone": 100, "made_unsafe": 0,
        "without_verdict": 2,
    }  # fmt: skip
