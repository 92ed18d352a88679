"""`fedjax-rai eval`: a run's own numbers where nothing is changed, beside each other where something is."""

import shutil
from pathlib import Path

import pytest

from fedjax_rai.config.load import as_written, dump_config, load_config
from fedjax_rai.config.views import value_at
from fedjax_rai.errors import InputError
from fedjax_rai.evals.rate import Rate
from fedjax_rai.memory.plan import COMPUTED
from fedjax_rai.model.families import read_config
from fedjax_rai.model.peft import load_adapter, save_adapter
from fedjax_rai.runs import files
from fedjax_rai.runs.report import silent
from fedjax_rai.runs.rows import Versions
from fedjax_rai.runs.run import evaluate_run
from fedjax_rai.text.hub import resolve
from fedjax_rai.tools import evaluate
from tests.conftest import small_config
from tests.model.common import random_adapter

RATE = Rate(40.0, 10.0, 70.0, 5, 1, "rule", 6)


@pytest.fixture
def run(tmp_path) -> Path:
    """What tells that a folder is a run's, with an adapter that nothing reads."""
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(small_config(folder)))
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """What was measured, instead of measuring it."""
    done = []

    class Setting:
        commits: dict = {}

        class models:
            not_computed: list = []

        class texts:
            class materials:
                evaluations: dict = {}

    def measure(setting, adapter):
        done.append("measured")
        return {"harmless": RATE._asdict()}, [{"set": "utility", "prompt": "a", "verdicts": {}}]

    monkeypatch.setattr(evaluate, "_prepared", lambda *_: (Setting, None))
    monkeypatch.setattr(evaluate, "measure", measure)
    monkeypatch.setattr(evaluate, "_trained_on", lambda *_: {"hhh": 2})
    return done


def test_results_lie_beside_each_other_and_are_found_again(run, measured, capsys):
    before = sorted(run.iterdir())
    first = evaluate.evaluate(evaluate.request(str(run)))
    other = evaluate.evaluate(evaluate.request(str(run), ["eval.samples=1"]))
    assert first.parent == other.parent == run / "evals" and first != other
    assert sorted(run.iterdir()) == sorted([*before, run / "evals"])
    assert evaluate.evaluate(evaluate.request(str(run), ["eval.samples=2"])) == first  # which is the run's own number
    assert len(measured) == 2 and "already evaluated" in capsys.readouterr().err
    assert evaluate.read_record(other).changed == {"eval.samples": "1"}
    assert evaluate.read(first).rates == {"harmless": RATE}


def test_an_interrupted_evaluation_leaves_nothing(run, measured, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    asked = evaluate.request(str(run))
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate.evaluate(asked)
    assert list((run / "evals").iterdir()) == []
    left = run / "evals" / f".{evaluate.digest_of(asked)[:12]}.part"
    left.mkdir()
    (left / "eval.json").write_text("half")  # by a process that was killed
    folder = evaluate.evaluate(asked)
    assert sorted(path.name for path in folder.iterdir()) == [
        "answers.jsonl", "config.yaml", "eval.json", "evaluation.json",
    ]  # fmt: skip
    assert list((run / "evals").iterdir()) == [folder]


def test_a_folder_that_holds_anything_else_is_refused(run, measured, tmp_path):
    out = tmp_path / "out"
    folder = evaluate.evaluate(evaluate.request(str(run), [f"output={out}"]))
    assert folder == out and evaluate.evaluate(evaluate.request(str(run), [f"output={out}"])) == out
    with pytest.raises(InputError, match="holds another evaluation; name another folder"):
        evaluate.evaluate(evaluate.request(str(run), ["eval.samples=1", f"output={out}"]))
    with pytest.raises(InputError, match="exists and is no evaluation's folder"):
        evaluate.evaluate(evaluate.request(str(run), [f"output={run / 'adapter'}"]))


def test_the_digest_is_of_weights_keys_and_files(run, tmp_path):
    asked = evaluate.request(str(run))
    known = evaluate.digest_of(asked)
    assert evaluate.digest_of(evaluate.request(str(run), [f"output={tmp_path}"])) == known
    assert evaluate.digest_of(evaluate.request(str(run), ["eval.prompts=3"])) != known
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"1")
    assert evaluate.digest_of(asked) != known


@pytest.mark.parametrize("key", COMPUTED)
def test_how_a_model_answers_may_be_another_than_in_training(run, key):
    """All that says how it is computed, but what concerns training alone."""
    other = {"dtype": "bfloat16", "attention": "chunked", "quantize": "int8", "kv_cache": "int8", "unroll": "full"}
    value = (other | {"answering": "merged"}).get(key)
    if value is not None:
        assert getattr(evaluate.request(str(run), [f"model.{key}={value}"]).config.model, key) == value
    else:
        assert key == "remat"


def test_the_digest_is_of_judges_in_any_form_that_names_them(run):
    """`guard:FORM:PATH` is the model of PATH."""
    named = evaluate.request(str(run), ["eval.judges=['guard:a/b','guard:request:c/d']"])
    assert evaluate._judging_models(named.config) == [("a/b", None), ("c/d", None)]
    with_form = evaluate.request(str(run), ["eval.judges=['guard:request:tiny']"])
    assert evaluate.digest_of(with_form) != evaluate.digest_of(
        evaluate.request(str(run), ["eval.judges=['guard:tiny']"])
    )


@pytest.mark.parametrize("override", ["federated.rounds=1", "seed=3", "data.red=5", "lora.rank=3", "cai.iterations=1"])
def test_what_a_run_was_trained_on_cannot_be_changed(run, override):
    with pytest.raises(InputError, match=f"override of {override.partition('=')[0]}: .*; must be of eval, guard"):
        evaluate.request(str(run), [override])


def test_a_model_takes_other_data_and_its_own_base(run):
    assert evaluate.request("tiny", ["seed=3", "data.red=5"]).config.seed == 3
    with pytest.raises(InputError, match="override of lora.rank: an evaluation does not read it"):
        evaluate.request("tiny", ["lora.rank=3"])
    with pytest.raises(InputError, match="eval.sampels: no such key"):
        evaluate.request("tiny", ["eval.sampels=3"])
    with pytest.raises(InputError, match="--config x.yaml: .* is a run, which has its config"):
        evaluate.request(str(run), config=Path("x.yaml"))
    config = evaluate.request("tiny", config=run / "config.yaml").config
    assert config.eval == small_config(run).eval and config.output is None


RECORD = evaluate.Record("r", "d", {}, [], {}, [], 1.0, Versions("", "", [], {}))


def test_rates_by_other_judges_are_not_put_side_by_side():
    guard = RATE._replace(judge="guard", without_verdict=0)
    now = evaluate.Evaluated(RECORD, {"harmless": guard, "utility": RATE}, None)
    assert list(evaluate.side_by_side({"harmless": RATE, "hhh": None}, now)) == [
        ("harmless (rule)", " 40.0  [10.0, 70.0]  (no verdict: 1; 33.3 of all 6)", "-"),
        ("harmless (guard)", "-", " 40.0  [10.0, 70.0]"),
        ("hhh", "not measured", "-"),
        ("utility", "-", " 40.0  [10.0, 70.0]  (no verdict: 1; 33.3 of all 6)"),
    ]


def test_what_was_measured_in_words():
    """The columns stay apart however long a rate is, what was not measured is there by its title."""
    record = RECORD._replace(changed={"eval.judges": "[gcg, korean]"}, trained_on={"hhh": 1})
    drift = Rate(0.0032, 0.0, 0.007, 5, unit="nats a token")
    rates = {"harmless": RATE, "drift": drift, "hhh": None, "hhh_per_token": None}
    found = evaluate.Evaluated(record, rates | {"harmless_by_korean": None}, rates, {"harmless_by_korean": 20})
    assert list(evaluate.lines(found)) == [
        "eval.judges = [gcg, korean]",
        "percent, 95 % intervals over prompts",
        f"  {'':20}{'the run had':53}now",
        f"  {'harmless':20} 40.0  [10.0, 70.0]  (no verdict: 1; 33.3 of all 6)   "
        "40.0  [10.0, 70.0]  (no verdict: 1; 33.3 of all 6)",
        f"  {'drift':20}{'0.0032  [0.0000, 0.0070] nats a token':53}0.0032  [0.0000, 0.0070] nats a token",
        f"  {'harmless by korean':20}{'-':53}no verdict on any of 20 answers",
        "  not measured: HHH",
        "hhh: the run was trained on 1 prompt of this set",
    ]
    alone = list(evaluate.lines(found._replace(had=None)))
    assert f"  {'harmless':40} 40.0  [10.0, 70.0]  (no verdict: 1; 33.3 of all 6)" in alone
    assert f"  {'harmless by korean':40}no verdict on any of 20 answers" in alone


def test_what_differs_is_told_as_a_user_writes_it():
    """Behind its key, where it gives the same value again; of an entry what is not the default."""
    texts = {
        "eval.sets": "[{set: sums, kind: task, path: tiny}]", "eval.judges": "[gcg, korean]", "eval.samples": "1",
        "eval.by_guard": "null", "eval.judge": "gcg", "output": "'no'",
    }  # fmt: skip
    config = load_config({}, [f"{key}={text}" for key, text in texts.items()])
    assert {key: as_written(value_at(config, key)) for key in texts} == texts


def test_rates_of_other_prompts_say_so():
    def rows(name: str, *prompts: str) -> list[dict]:
        return [{"set": name, "prompt": prompt, "verdicts": {f"{name}_by_rule": [True]}} for prompt in prompts]

    before = [*rows("over_refusal", "a", "b"), *rows("harmless", "c"), *rows("gone", "d")]
    now = [*rows("over_refusal", "a", "e"), *rows("harmless", "c", "c"), *rows("new", "d")]
    others = evaluate.asked_of_others(before, now)
    assert others == {"over_refusal", "over_refusal_by_rule"}
    rates: dict[str, Rate | None] = {"harmless": RATE, "over_refusal": RATE}
    shown = list(evaluate.side_by_side(rates, evaluate.Evaluated(RECORD, rates, rates, {}, others)))
    assert [name for name, _, text in shown if text.endswith("(another set: not to be compared)")] == ["over_refusal"]


def test_a_judge_without_any_verdict_is_told_from_one_that_was_not_asked():
    rows = [{"verdicts": {"harmless": [True, None], "harmless_by_korean": [None, None]}}, {"set": "drift"}]
    assert silent([*rows, {"verdicts": {"harmless_by_korean": [None]}}]) == {"harmless_by_korean": 3}


@pytest.mark.slow
@pytest.mark.usefixtures("config")  # fewer items
def test_where_nothing_is_changed_the_numbers_are_the_runs_own(finished_run, tmp_path):
    """Of a run whose adapter does something: as a run, and as an adapter by the config of that run."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shape = read_config(resolve("tiny"))
    lora, _ = load_adapter(run / "adapter", shape)
    save_adapter(run / "adapter", shape, lora, random_adapter(shape, lora, 0), "tiny")
    evaluate_run(run)
    assert files.read_rows(run / "answers.jsonl") != files.read_rows(finished_run / "answers.jsonl")
    for asked in (evaluate.request(str(run)), evaluate.request(str(run / "adapter"), config=run / "config.yaml")):
        folder = evaluate.evaluate(asked._replace(output=tmp_path / f"of {asked.target.run}".replace("/", "-")))
        assert (folder / "eval.json").read_text() == (run / "eval.json").read_text()
        assert (folder / "answers.jsonl").read_text() == (run / "answers.jsonl").read_text()
