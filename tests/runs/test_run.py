"""The whole loop on the small fake: what a run folder holds, and the laws that bind its stages."""

import json

import jax
import numpy as np
import pytest

from fedjax_rai import terminal
from fedjax_rai.cai.align import align_in_place
from fedjax_rai.cai.programs import generate_rollout, pool_of_rollout
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.round import Federation, play_round
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.together import federated_round
from fedjax_rai.model import lora
from fedjax_rai.runs import loop
from fedjax_rai.runs.rows import read_rounds
from fedjax_rai.runs.run import evaluate_run, run
from fedjax_rai.text.hub import resolve
from tests import small
from tests.tiny_runs import adapter_bytes, after_round, dies_when, timeless, vary


def play(config, arm, **options):
    """(folder, adapter bytes) of a run."""
    folder = run(config, arm(config), **options)
    return folder, adapter_bytes(folder)


@pytest.mark.slow
def test_a_run_folder_holds_all_that_the_run_was(config, arm, capsys):
    folder, _ = play(config, arm)
    lines = [line.split("  ") for line in capsys.readouterr().err.splitlines() if ": round " in line]
    assert [line[0] for line in lines] == ["run: round 1/2", "run: round 2/2"]
    first, second = (terminal.duration(row.seconds) for row in read_rounds(folder / "metrics.jsonl"))
    own = [f"{first} for the whole round, compiling included", f"{second} a round"]
    assert [line[-1] for line in lines] == own, "the round's own time"
    assert {p.name for p in folder.iterdir()} >= {
        "config.yaml", "versions.json", "metrics.jsonl", "adapter", "eval.json", "answers.jsonl", "summary.json",
        "run.png",
    }  # fmt: skip
    assert [row["round"] for row in timeless(folder)] == [1, 2]
    assert all(np.isfinite(row["train_loss"]) and row["clients"] == 2 for row in timeless(folder))
    summary = json.loads((folder / "summary.json").read_text())
    assert (
        summary["synthetic"] == ["model", "data", "AdvBench prompts"] and summary["rates"]["harmless"]["prompts"] == 4
    )
    assert "jax" in json.loads((folder / "versions.json").read_text())[0]["packages"]
    assert not list(folder.glob("*.partial"))


@pytest.mark.slow
def test_a_finished_run_is_left_alone(config, arm):
    folder, _ = play(config, arm)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    play(config, arm)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    (folder / "run.png").unlink()
    play(config, arm)
    assert (folder / "run.png").is_file()


@pytest.mark.slow
def test_a_folder_of_another_config_is_refused_and_untouched(config, arm):
    folder, _ = play(config, arm)
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match="federated.local_steps: 2 there, 3 now"):
        run(vary(config, federated={"local_steps": 3}))
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_is_no_run_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="not a run folder"):
        run(config)


@pytest.mark.parametrize("algorithm", ["fedavg", small.slow("scaffold")])
@pytest.mark.parametrize("stop_after", [1, small.slow(2)])
def test_resumed_equals_uninterrupted_bitwise(config, arm, monkeypatch, algorithm, stop_after):
    """Killed while the metrics of round `stop_after` are being read, at the latest moment before they are written."""
    config = vary(config, federated={"rounds": 3, "algorithm": algorithm})
    whole, adapter = play(vary(config, "whole"), arm)
    with dies_when(after_round(stop_after)):
        play(config, arm)
    calls = []
    monkeypatch.setattr(loop, "play_round", lambda f, s, t, fewer: calls.append(t) or play_round(f, s, t, fewer))
    resumed, again = play(config, arm)
    assert again == adapter and timeless(resumed) == timeless(whole)
    assert calls == list(range(stop_after, 3)), "rounds already done are not done again"
    for name in ("answers.jsonl", "revisions.jsonl"):
        assert (resumed / name).read_text() == (whole / name).read_text()


@pytest.mark.slow
def test_a_filter_that_keeps_all_is_no_filter(config, arm):
    keeps = vary(config, "keep", filter={"enabled": True, "action": "keep"})
    assert play(keeps, arm)[1] == play(config, arm)[1]


@pytest.mark.slow
def test_zero_iterations_of_cai_are_no_cai(config, arm):
    none, zero = vary(config, "none", cai={"enabled": False}), vary(config, "zero", cai={"iterations": 0})
    assert play(zero, arm)[1] == play(none, arm)[1] != play(config, arm)[1]


def test_the_filter_decides_what_clients_train_on(config, arm):
    filtering = vary(config, filter={"enabled": True}, federated={"weight": "examples"})
    setting = arm(config)
    kept = Federation(arm(filtering)).kept
    for client, part in enumerate(setting.client_rows):
        assert set(kept[client]) == {i for i in part if setting.guarding.scores[i] < setting.guarding.threshold}
    cohort, counts = Federation(arm(filtering)).cohort(0)
    assert counts["step_tokens"] == setting.texts.lengths[np.asarray(cohort.rows)][np.asarray(cohort.weight) > 0].sum()
    for client, client_rows, weight in zip(cohort.client, cohort.rows, cohort.weight, strict=True):
        assert weight == len(kept[int(client)])
        assert weight == 0 or set(np.asarray(client_rows).ravel().tolist()) <= set(kept[int(client)].tolist())


def test_a_client_that_kept_nothing_has_no_weight(config, arm):
    setting = arm(config)
    federation = Federation(setting)
    federation.kept = [np.array([], int)] * 4
    ((end,), _) = play_round([federation], [federation.init()], 0)
    local = end.outcome.local
    assert int(local["clients"]) == int(local["trained_tokens"]) == int(local["step_tokens"]) == 0


@pytest.mark.slow
def test_arms_rounds_and_iteration_counts_share_their_programs(config, arm):
    play(config, arm)
    compiled = federated_round, generate_rollout, pool_of_rollout, align_in_place
    before = [small.compilations(program) for program in compiled]
    other = {"cai": {"iterations": 5, "learning_rate": 1e-2, "temperature": 0.5}, "federated": {"learning_rate": 1e-3}}
    play(vary(config, "more", **other), arm)
    play(vary(config, "control", filter={"enabled": True, "action": "keep"}), arm)
    assert [small.compilations(program) for program in compiled] == before


@pytest.mark.slow
def test_eval_repeats_the_evaluation(config, arm):
    folder, _ = play(config, arm)
    before = (folder / "eval.json").read_text()
    (folder / "eval.json").unlink()
    evaluate_run(folder)
    assert (folder / "eval.json").read_text() == before


def test_eval_of_no_run_says_so(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        evaluate_run(tmp_path)


def test_what_is_wrong_is_said_before_anything_is_written(config, tmp_path):
    (tmp_path / "bad.csv").write_text("aim,means\nx,y\n")
    (tmp_path / "bad.yaml").write_text("- name: a\n")
    (tmp_path / "model").mkdir()
    for file in resolve("tiny").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes().replace(b'"llama"', b'"llamb"'))
    wrong: list[dict] = [
        {"eval": {"advbench": str(tmp_path / "bad.csv")}},
        {"cai": {"constitution": str(tmp_path / "bad.yaml")}},
        {"model": {"path": str(tmp_path / "model")}},
    ]
    for sections in wrong:
        with pytest.raises(InputError):
            run(vary(config, **sections))
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_no_replay_and_an_unfitted_guard_are_fine(config):
    folder = run(vary(config, cai={"replay": 0}, guard={"steps": 0}, federated={"rounds": 1}, filter={"enabled": True}))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["filter"]["kept"] + summary["filter"]["dropped"] == 40 and summary["filter"]["without_score"] == 0


def test_a_diverging_cai_phase_is_undone(config, arm):
    federation = Federation(arm(vary(config, cai={"learning_rate": 1e30, "iterations": 3})))
    before = federation.init().adapter
    ((after, metrics),) = federation.phase.align(before, federation.phase.collect(before, 0), 0, [3])
    assert bool(metrics["cai_diverged"]) and small.distance(before, after) == 0


@pytest.mark.slow
def test_a_table_shares_a_setting_without_changing_a_run(config, arm):
    """The same config by itself and with the parts that were made for another arm."""
    other = Setting(vary(config, federated={"rounds": 0}, cai={"enabled": False, "iterations": 7}))
    other.check()
    shared = Setting(config, other)
    assert shared.models is other.models and shared.texts is other.texts and shared.guarding is other.guarding
    alone = play(vary(config, "alone"), arm)[1]
    assert adapter_bytes(run(config, shared)) == alone


def test_the_base_arm_is_the_base(config, arm):
    """No rounds: the fresh adapter changes nothing, so the untouched base is what is evaluated."""
    from fedjax_rai.evals.choice import both_answers, likelihoods
    from fedjax_rai.experiment.evaluation import subject

    setting = arm(config)
    fresh = Federation(setting).init().adapter
    read = both_answers(setting.texts.materials.evaluations["synthetic_choice"].items[:40])
    with_fresh, without = (likelihoods(subject(setting, adapter), read).logps for adapter in (fresh, None))
    np.testing.assert_array_equal(with_fresh, without)
    assert lora.size(*setting.shapes) == sum(leaf.size for leaf in jax.tree.leaves(fresh))
