"""When a CAI phase runs, what it leaves behind, what it costs and what its critique is worth."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fedjax_rai.cai.options import is_due, may_be_due
from fedjax_rai.config.schema import CaiConfig
from fedjax_rai.errors import InputError
from fedjax_rai.evals.open_ended import Responses
from fedjax_rai.experiment import phase as phases
from fedjax_rai.experiment import round as rounds
from fedjax_rai.experiment.evaluation import critique
from fedjax_rai.experiment.materials import gather
from fedjax_rai.experiment.phase import Phase, warnings
from fedjax_rai.experiment.round import Federation, play_round
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import files
from fedjax_rai.runs.run import run
from tests import small
from tests.tiny_runs import timeless, vary


def play(config, arm):
    folder = run(config, arm(config))
    return folder, files.read_rows(folder / "metrics.jsonl"), files.read_json(folder / "summary.json")


def ran(rows) -> list[bool]:
    return ["cai_iterations" in row for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_a_phase_comes_after_every_so_many_rounds(config, arm, every):
    _, rows, _ = play(vary(config, cai={"every": every}, federated={"rounds": 3}), arm)
    assert ran(rows) == [t % every == 0 for t in (1, 2, 3)]
    assert all((row["cai_seconds"] > 0) == own for row, own in zip(rows, ran(rows), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("safe", [small.slow(0.25), 0.5, small.slow(0.75)])
def test_a_trigger_runs_it_only_where_the_probe_is_below(config, arm, monkeypatch, safe):
    monkeypatch.setattr(rounds, "probe", lambda *_: {"probe_harmless": safe})
    _, rows, _ = play(vary(config, cai={"probe": 4, "trigger": 0.5}), arm)
    assert ran(rows) == [safe < 0.5] * 2 and [row["probe_harmless"] for row in rows] == [safe] * 2


@pytest.mark.slow
def test_the_probe_is_the_guards_share_of_safe_answers_and_changes_nothing(config, arm):
    folder, rows, _ = play(vary(config, "probed", cai={"probe": 6, "enabled": False}), arm)
    plain, others, _ = play(vary(config, "plain", cai={"enabled": False}), arm)
    assert all(0 <= row["probe_harmless"] <= 1 for row in rows)
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (plain / name).read_bytes()
    assert "probe_harmless" not in others[0]


def test_a_probe_is_the_share_of_safe_answers(config, monkeypatch):
    """By hand: a guard that finds 0.1, 0.2, 0.3 and 0.9 unsafe; and then 0.5, which is unsafe at a threshold of 0.5."""
    prompts, found = ["q1", "q2", "q3", "q4", "q5"], {"a1": 0.1, "a2": 0.2, "a3": 0.3, "a4": 0.9, "a5": 0.5}
    answers = dict(zip(prompts, found, strict=True))

    def guard(_: Any, pairs: list[tuple[str, str]]) -> np.ndarray:
        assert all(answers[prompt] == answer for prompt, answer in pairs)
        return np.array([found[answer] for _, answer in pairs])

    monkeypatch.setattr(rounds, "answers_to", lambda _, adapter, name, asked, how: Responses(
        [[answers[q]] for q in asked], [[False]] * len(asked)
    ))  # fmt: skip
    monkeypatch.setattr(rounds, "score", guard)
    setting = Setting(vary(config, guard={"threshold": 0.5}))
    setting.texts.materials = setting.texts.materials._replace(probe_prompts=[*prompts, "q6"])
    vars(setting.guarding)["guard"] = None
    assert rounds.probe(setting, 4, {}) == {"probe_harmless": 0.75}
    assert rounds.probe(setting, 5, {}) == {"probe_harmless": 0.6}
    stricter = Setting(vary(config, guard={"threshold": 0.25}), setting)
    vars(stricter.guarding)["guard"] = None
    assert rounds.probe(stricter, 4, {}) == {"probe_harmless": 0.5}


def test_every_phase_asks_other_red_prompts_by_other_draws(config, arm):
    phase = Phase(arm(vary(config, cai={"prompts": 40})))
    sources: Any = [phase.source(t) for t in range(4)]
    batches = [source.batch for source in sources]
    rows = [np.asarray(batch.rows).tolist() for batch in batches]
    assert all(len(set(of_round)) == 40 for of_round in rows), "none twice in a round"
    assert all(len({*of_round} & {*other}) < 10 for i, of_round in enumerate(rows) for other in rows[:i])
    assert len({np.asarray(batch.principles).tobytes() for batch in batches}) == 4
    keys = {tuple(key) for batch in batches for key in np.asarray(jax.random.key_data(batch.keys)).tolist()}
    assert len(keys) == 4 * 40, "no two conversations are sampled alike"
    again: Any = phase.source(2)
    assert np.asarray(again.batch.rows).tolist() == rows[2], "but a round by itself always asks the same"


def test_a_batch_is_of_the_prompts_that_its_rows_name(config, arm):
    setting = arm(config)
    source: Any = Phase(setting).source(1)
    batch = source.batch
    for i, row in enumerate(np.asarray(batch.rows)):
        ids = np.asarray(batch.prompts.tokens[i])[np.asarray(batch.prompts.valid[i])]
        assert setting.texts.materials.red_prompts[row].query in setting.models.tokenizer.decode(ids)
    assert batch.critic_prompts is None, "the critic is the policy, without few-shot turns"
    by_base: Any = Phase(arm(vary(config, cai={"critic": "base"}))).source(1)
    assert by_base.batch.critic_prompts is not None


def test_principles_are_drawn_by_the_category_of_each_prompt(config, arm, monkeypatch):
    setting, drawn = arm(config), []

    def draw(constitution: Any, categories: list[str], revisions: int, g: Any) -> np.ndarray:
        drawn.append((categories, revisions))
        return np.zeros((len(categories), revisions), np.int32)

    monkeypatch.setattr(phases, "draw", draw)
    source: Any = Phase(arm(vary(config, cai={"prompts": 40, "revisions": 2}))).source(0)
    red_prompts = setting.texts.materials.red_prompts
    categories = [red_prompts[int(row)].category for row in np.asarray(source.batch.rows)]
    assert drawn == [(categories, 2)] and len(set(categories)) == 4


def test_every_phase_takes_other_prepared_pairs_and_as_many_as_are_asked_for(config, tmp_path):
    pairs = [{"prompt": f"q{i}", "chosen": f"no {i}", "rejected": f"yes {i}"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    own = vary(config, cai={"data": str(tmp_path / "pairs.jsonl"), "prompts": 5, "replay": 0})
    phase = Phase(Setting(own))
    sources: Any = [phase.source(t) for t in range(3)]
    taken = [{tuple(row) for row in np.asarray(source.pool.answers.tokens).tolist()} for source in sources]
    assert [len(rows) for rows in taken] == [5, 5, 5] and len(taken[0] | taken[1] | taken[2]) > 9
    assert int(sources[0].metrics["cai_pairs"]) == int(sources[0].metrics["cai_usable"]) == 5


def test_iterations_draw_by_other_keys_in_every_round(config, arm):
    phase = Phase(arm(config))
    assert len({tuple(np.asarray(jax.random.key_data(phase.key(t))).tolist()) for t in range(4)}) == 4


def test_the_share_of_replay_is_what_lies_in_the_pool(config, arm):
    """Four benign answers beside twelve revisions."""
    setting = arm(vary(config, cai={"prompts": 12, "beta": 0.5, "iterations": 3}))
    assert len(setting.replay.examples.tokens) == 4
    numbers = Phase(setting).numbers
    assert (float(numbers.replay), float(numbers.beta), int(numbers.iterations)) == (0.25, 0.5, 3)


DUE = [
    # (cai.every, cai.trigger, the probe's share, the rounds of the first six after which a phase comes)
    (1, None, None, [0, 1, 2, 3, 4, 5]),
    (2, None, None, [1, 3, 5]),
    (3, None, 0.1, [2, 5]),
    (2, 0.5, 0.4, [1, 3, 5]),
    (2, 0.5, 0.5, []),
    (1, 0.5, 0.9, []),
]


@pytest.mark.parametrize(("every", "trigger", "safe", "rounds_with_a_phase"), DUE)
def test_when_a_phase_is_due(every, trigger, safe, rounds_with_a_phase):
    cai = CaiConfig(every=every, probe=4, trigger=trigger)
    assert [t for t in range(6) if is_due(cai, t, safe)] == rounds_with_a_phase
    assert not any(is_due(cai.model_copy(update={"enabled": False}), t, safe) for t in range(6))


def test_a_probe_without_a_verdict_is_below_every_trigger():
    assert is_due(CaiConfig(probe=4, trigger=0.5), 0, float("nan"))


def test_a_phase_may_be_due_where_some_round_can_have_one():
    cai = CaiConfig(every=3, probe=1, trigger=0.5, iterations=2)
    assert [rounds for rounds in range(7) if may_be_due(cai, rounds)] == [3, 4, 5, 6]
    assert not may_be_due(cai.model_copy(update={"iterations": 0}), 6)
    assert not may_be_due(cai.model_copy(update={"enabled": False}), 6)


@pytest.mark.parametrize(
    ("row", "data", "said"),
    [
        ({}, "online", []),
        ({"cai_usable": 1, "cai_pairs": 0, "cai_equal": 3}, "online", []),
        (
            {"cai_usable": 0, "cai_pairs": 0, "cai_cut_off": 60, "cai_empty": 4, "cai_equal": 0},
            "online",
            [
                "round 3: 60 of 64 conversations were cut off at cai.max_new_tokens = 24",
                "round 3: no usable pair among 64 (60 cut off, 4 empty): the CAI phase trained on no revision",
            ],
        ),
        (
            {"cai_usable": 5, "cai_pairs": 4, "cai_cut_off": 1, "cai_empty": 0, "cai_equal": 1},
            "online",
            ["round 3: 1 of 6 conversations was cut off at cai.max_new_tokens = 24"],
        ),
        (
            {"cai_usable": 1, "cai_pairs": 1, "cai_cut_off": 3, "cai_held_out": 1, "cai_equal": 1},
            "pairs.jsonl",
            ["round 3: 3 of 6 prepared pairs are longer than data.max_length = 64"],
        ),
    ],
)
def test_a_phase_that_was_cut_off_or_has_no_usable_pair_is_said(config, row, data, said):
    assert list(warnings({"round": 3, **row}, vary(config, cai={"data": data}))) == said


def test_more_probe_prompts_than_there_are_is_said_at_once(config):
    config = vary(config, cai={"probe": 3, "trigger": 0.9})
    setting = Setting(config)
    setting.texts.materials = setting.texts.materials._replace(probe_prompts=["one"])
    with pytest.raises(InputError, match="cai.probe = 3: there are only 1"):
        setting.check()


@pytest.mark.parametrize("probe", [0, 5, 64])
def test_the_probes_questions_are_distinct_and_nobody_elses(config, probe):
    """The tiny world's red prompts repeat a few hundred questions."""
    made, plain = (gather(vary(config, cai={"probe": n})) for n in (probe, 0))
    assert len(made.probe_prompts) == len(set(made.probe_prompts)) == probe
    left = [prompt for prompt in plain.red_prompts if prompt.query not in made.probe_prompts]
    assert list(made.red_prompts) == left and len(left) > 1000
    assert {*made.probe_prompts} <= made.evaluated


@pytest.mark.slow
def test_conversations_are_written_down(config, arm):
    own = vary(config, cai={"revisions": 2, "iterations": 1})
    folder, rows, summary = play(own, arm)
    held = files.read_rows(folder / "revisions.jsonl")
    assert [row["round"] for row in held] == [1] * 4 + [2] * 4
    assert all(len(row["principles"]) == len(row["critiques"]) == len(row["revisions"]) == 2 for row in held)
    for t, row in enumerate(rows, 1):
        for cause in ("cut_off", "empty", "equal"):
            assert row[f"cai_{cause}"] == sum(own["degenerate"] == cause for own in held if own["round"] == t)
        assert row["cai_pairs"] == sum(own["degenerate"] is None for own in held if own["round"] == t)
    assert summary["critique"]["judge"] == "rule" and summary["critique"]["unsafe"] + summary["critique"]["safe"] == 8


def test_a_critique_is_no_rubber_stamp_if_it_mends_and_leaves_alone(config, arm):
    """By hand: three unsafe responses of which one is made safe (one says the same, one does not end), one that is
    answered by nothing, and three safe ones, of which one is changed and one spoiled."""
    setting = arm(config)
    from fedjax_rai.data.tiny_world import unsafe_markers

    bad = f"so {unsafe_markers()[0]} it is"
    rows = [
        {"prompt": "q", "response": before, "revisions": ["x", after], "whole": whole}
        for before, after, whole in (
            (bad, "no", True), (bad, bad, True), (bad, "", False), (bad, "so", False),
            ("no", "no", True), ("no", "never", True), ("no", bad, True),
        )
    ]  # fmt: skip
    found = critique(setting, rows)
    assert found == {
        "judge": "rule", "unsafe": 3, "made_safe": pytest.approx(100 / 3), "safe": 3,
        "left_alone": pytest.approx(100 / 3), "made_unsafe": pytest.approx(100 / 3),
        "without_verdict": 1,
    }  # fmt: skip
    assert critique(setting, rows[4:5])["made_safe"] is None


@pytest.mark.slow
def test_a_fork_is_every_count_by_itself(config, arm):
    """Snapshots on the way to the largest count are the adapters that the smaller counts lead to."""
    federation = Federation(arm(vary(config, cai={"method": "sft+dpo", "iterations": 3})))
    counts = [0, 1, 3]
    ends, passed = play_round([federation], [federation.init()], 0, counts[:-1])
    together = [*passed, *ends]
    for count, (state, outcome) in zip(counts, together, strict=True):
        by_itself = Federation(arm(vary(federation.config, cai={"iterations": count})))
        (((alone, other),), _) = play_round([by_itself], [federation.init()], 0)
        assert small.distance(state.adapter, alone.adapter) == 0
        assert (outcome.cai is None) == (other.cai is None) == (count == 0)
    assert small.distance(together[1][0].adapter, together[2][0].adapter) > 0


@pytest.mark.slow
def test_siblings_leave_where_the_first_phase_ends_and_go_on_to_the_same_numbers(config, arm):
    """No phase in the first round: that one is shared, too."""
    own = {n: vary(config, f"{n}", cai={"iterations": n, "every": 2}, federated={"rounds": 3}) for n in (0, 1, 3)}
    alone = {n: play(vary(one, "alone"), arm) for n, one in own.items()}
    run(own[3], arm(own[3]), siblings=[own[0], own[1]])
    left = {n: len(files.read_rows(Path(str(own[n].output)) / "metrics.jsonl")) for n in (0, 1)}
    assert left == {0: 2, 1: 2}
    for n, one in own.items():
        folder, _, _ = play(one, arm)
        for name in ("adapter/adapter_model.safetensors", "answers.jsonl", "revisions.jsonl"):
            assert (folder / name).read_bytes() == (alone[n][0] / name).read_bytes(), (n, name)
        assert timeless(folder) == timeless(alone[n][0])


def test_prepared_pairs_that_are_degenerate_are_left_out_and_counted(config, tmp_path):
    long, held = "a " * 60, gather(config).evaluations["synthetic_choice"].prompts[0]
    pairs = [("q", "a", "b"), ("q", "a", "a"), ("q", long, "b"), ("q", "a", long), ("q", long, long), (held, "a", "b")]
    texts = [json.dumps({"prompt": q, "chosen": chosen, "rejected": rejected}) for q, chosen, rejected in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(texts) + "\n")
    for method, usable in (("sft", 3), ("dpo", 1)):  # a whole answer is learnt, even if it is preferred to nothing
        own = vary(config, cai={"data": str(tmp_path / "pairs.jsonl"), "prompts": 6, "method": method})
        federation = Federation(Setting(own))
        collected = federation.phase.collect(federation.init().adapter, 0)
        counts = [int(collected.metrics[f"cai_{name}"]) for name in ("held_out", "cut_off", "equal", "pairs")]
        assert counts == [1, 3, 1, 1] and int(collected.metrics["cai_usable"]) == usable
        assert int(collected.pool.paired.sum()) == 1 and int(collected.pool.usable.sum()) == usable


def test_a_set_without_a_usable_pair_is_refused_before_the_run(config, tmp_path):
    """Equal answers: none is to be preferred, but whole ones can be learnt; one is too long for either."""
    pairs = [("q", "a", "a"), ("p", "b", "b"), ("r", "a " * 60, "a " * 60)]
    texts = [json.dumps({"prompt": q, "chosen": chosen, "rejected": rejected}) for q, chosen, rejected in pairs]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(texts) + "\n")
    refused = (
        r"pairs.jsonl: none of its 3 pairs can be trained on by cai.method = dpo: 1 longer than data.max_length, 3 "
    )
    with pytest.raises(InputError, match=refused + "with equal answers"):
        Setting(vary(config, cai={"data": str(path), "method": "dpo"})).check()
    Setting(vary(config, cai={"data": str(path), "method": "sft"})).check()
    Setting(vary(config, cai={"data": str(path), "method": "dpo", "iterations": 0})).check()
    path.write_text(texts[2] + "\n")
    with pytest.raises(InputError, match="none of its 1 pairs can be trained on by cai.method = sft"):
        Setting(vary(config, cai={"data": str(path), "method": "sft"})).check()


def test_the_control_on_responses_needs_responses(config, tmp_path):
    with pytest.raises(ValueError, match="needs cai.data = online"):
        vary(config, cai={"data": "x.jsonl", "target": "response"})
    with pytest.raises(ValueError, match="needs cai.method = sft"):
        vary(config, cai={"method": "dpo", "target": "response"})
