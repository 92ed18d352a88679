"""Points of a sweep as rows of one vmapped axis: each is what it is by itself."""

from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.config.load import dump_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.round import Federation, play_round
from fedjax_rai.experiment.together import align_together, but_numbers, federated_rounds
from fedjax_rai.memory import advice
from fedjax_rai.memory.plan import plan
from fedjax_rai.runs import files, lockstep, loop
from fedjax_rai.runs.folder import run_folder
from fedjax_rai.runs.lockstep import room, run_together
from fedjax_rai.runs.run import run
from tests import small
from tests.processes import succeed
from tests.texts import write_lines
from tests.tiny_runs import adapter_distance, after_rows, dies_when, vary


def points(config: ExperimentConfig, output: str = "") -> list[ExperimentConfig]:
    """Three that differ in every traced number."""
    federated = [{"learning_rate": rate} for rate in (1e-3, 2e-3, 2e-3)]
    cai = [{"iterations": 0}, {"iterations": 1, "learning_rate": 3e-3}, {"iterations": 3, "temperature": 0.0}]
    return [
        vary(config, f"{output}/{i}", federated=own, cai=other)
        for i, (own, other) in enumerate(zip(federated, cai, strict=True))
    ]


def assert_same_run(folder: Path, other: Path) -> None:
    """But for time, and for the last digits of numbers."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}
    assert adapter_distance(folder, other) < 1e-3
    assert (folder / "revisions.jsonl").read_text() == (other / "revisions.jsonl").read_text()
    rows, others = files.read_rows(folder / "metrics.jsonl"), files.read_rows(other / "metrics.jsonl")
    assert len(rows) == len(others)
    for row, reference in zip(rows, others, strict=True):
        assert row.keys() ^ reference.keys() <= {"together", "start_seconds"}
        for name in (own for own in reference if "seconds" not in own and own != "together"):
            assert row[name] == pytest.approx(reference[name], rel=1e-4, abs=1e-5), name


def alike(one: ExperimentConfig, other: ExperimentConfig) -> bool:
    return but_numbers(one) == but_numbers(other)


def test_two_may_go_together_if_they_differ_in_numbers_alone(config, arm):
    for own in points(config):
        assert alike(config, own)
    bounded = vary(config, cai={"top_k": 5, "min_p": 0.1})
    assert alike(bounded, vary(config, cai={"top_k": 9, "min_p": 0.2})) and not alike(bounded, config)
    others: list[dict] = [
        {"cai": {"prompts": 5}}, {"cai": {"method": "dpo"}}, {"cai": {"enabled": False}}, {"data": {"red": 11}},
        {"federated": {"rounds": 3}}, {"federated": {"algorithm": "scaffold"}}, {"filter": {"enabled": True}},
    ]  # fmt: skip
    assert not any(alike(config, vary(config, **own)) for own in others)
    assert not alike(config, config.model_copy(update={"seed": 1}))
    triggered = [vary(config, output, cai={"probe": 2, "trigger": 0.5}) for output in ("a", "b")]
    with pytest.raises(ValueError, match="a trigger decides for each run"):
        run_together([arm(own) for own in triggered])
    with pytest.raises(ValueError, match="more than numbers"):
        run_together([arm(config), arm(vary(config, cai={"prompts": 5}))])


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"cai": {"method": "sft+dpo", "critic": "base", "revisions": 2, "top_k": 20, "prompts_per_chunk": 3}},
        {"cai": {"every": 2, "probe": 3}, "federated": {"rounds": 3, "algorithm": "scaffold", "clients_per_chunk": 2}},
    ],
)
def test_points_together_are_what_they_are_alone(config, arm, unevaluated, sections):
    own = vary(config, **sections)
    folders = run_together([arm(point) for point in points(own, "together")])
    for folder, alone in zip(folders, points(own, "alone"), strict=True):
        assert_same_run(folder, run(alone, arm(alone)))
    assert all(row["together"] == 3 for folder in folders for row in files.read_rows(folder / "metrics.jsonl"))
    seconds = [[row["seconds"] for row in files.read_rows(folder / "metrics.jsonl")] for folder in folders]
    assert seconds[0] == seconds[1] == seconds[2]


@pytest.mark.slow
def test_points_together_on_eight_devices_are_what_they_are_alone_on_one(config, arm, unevaluated, tmp_path):
    paths = [tmp_path / f"{i}.yaml" for i in range(3)]
    for path, own in zip(paths, points(config, "together"), strict=True):
        path.write_text(dump_config(vary(own, mesh={"fsdp": 2})))
    succeed("points_together", *paths, devices=8)
    for eight, alone in zip(points(config, "together"), points(config, "alone"), strict=True):
        assert_same_run(run_folder(eight), run(alone, arm(alone)))


@pytest.mark.slow
def test_points_on_a_prepared_set_are_what_they_are_alone(config, arm, unevaluated, tmp_path):
    pairs = [{"prompt": f"how do I do {i}", "chosen": f"do not {i}", "rejected": f"so {i}"} for i in range(6)]
    write_lines(tmp_path / "set.jsonl", pairs)
    own = vary(config, cai={"data": str(tmp_path / "set.jsonl"), "method": "sft+dpo"})
    folders = run_together([arm(point) for point in points(own, "together")])
    for folder, alone in zip(folders, points(own, "alone"), strict=True):
        assert_same_run(folder, run(alone, arm(alone)))


@pytest.mark.slow
@pytest.mark.parametrize("written", [3])
def test_killed_between_any_two_points_they_go_on_to_the_same_numbers(config, arm, unevaluated, monkeypatch, written):
    """At the latest moment before row `written` of all the points' rows is there."""
    config = vary(config, federated={"rounds": 3})
    whole = run_together([arm(own) for own in points(config, "whole")])
    with dies_when(after_rows(written)):
        run_together([arm(own) for own in points(config, "killed")])
    calls = []
    monkeypatch.setattr(loop, "play_round", lambda f, s, t, n: calls.append((t, len(f))) or play_round(f, s, t, n))
    resumed = run_together([arm(own) for own in points(config, "killed")])
    assert calls == [(1, 6 - written), (2, 3)]
    for folder, other in zip(resumed, whole, strict=True):
        assert_same_run(folder, other)
    before = {path: path.stat().st_mtime_ns for folder in resumed for path in folder.rglob("*")}
    assert run_together([arm(own) for own in points(config, "killed")]) == resumed
    assert before == {path: path.stat().st_mtime_ns for folder in resumed for path in folder.rglob("*")}


@pytest.mark.slow
def test_an_exhausted_point_waits_untouched_and_new_numbers_compile_nothing(config, arm):
    def ends(*counts: int, **numbers: float):
        federations = [Federation(arm(vary(config, cai={"iterations": n} | numbers))) for n in counts]
        return play_round(federations, [federations[0].init()] * len(federations), 0)[0]

    first = ends(0, 1, 2)
    programs = federated_rounds, align_together
    before = [small.compilations(program) for program in programs]
    second = ends(0, 1, 9)
    other = ends(4, 0, 1, learning_rate=5e-3, beta=0.3, temperature=0.3)
    assert [small.compilations(program) for program in programs] == before
    for i in (0, 1):
        assert small.distance(first[i][0].adapter, second[i][0].adapter) == 0
        assert small.distance(first[i][0].adapter, second[2][0].adapter) > 0
    assert first[0][1].cai is None and other[1][1].cai is None
    assert small.distance(first[0][0].adapter, other[1][0].adapter) == 0, "no iterations: local training alone"
    assert [int(own.cai["cai_iterations"]) for _, own in second if own.cai] == [1, 9]


def test_more_memory_has_room_for_more_points_and_larger_points_for_fewer(config, arm, monkeypatch):
    def rooms(limit: int | None, **sections: Any) -> int:
        monkeypatch.setattr(advice, "device_limit", lambda: limit)
        return room(arm(vary(config, **sections)))

    found = [rooms(2**n) for n in range(20, 40)]
    assert found == sorted(found) and found[0] == 1 < 10 < found[-1]
    assert rooms(2**36, cai={"prompts": 400}) < rooms(2**36)
    assert rooms(2**36, federated={"clients_per_chunk": 4}) <= rooms(2**36)
    assert rooms(None) > 10**6


def test_each_point_after_the_first_takes_what_its_rounds_hold_besides_base_and_data(config, arm, monkeypatch):
    made = plan(config, sizes.sizes(arm(config)))
    first = max(made.need(phase) for phase in ("local training", "CAI, generating", "CAI, training"))
    further = first - made.held["base"] - made.held["data"]
    for points_there in (2, 3, 6):
        enough = first + (points_there - 1) * further
        for limit, expected in ((enough, points_there), (enough - 1, points_there - 1)):
            monkeypatch.setattr(advice, "device_limit", lambda limit=limit: limit)
            assert room(arm(config)) == expected


@pytest.mark.slow
def test_where_points_do_not_fit_some_go_after_others(config, arm, unevaluated, monkeypatch):
    monkeypatch.setattr(lockstep, "room", lambda *_: 2)
    folders = run_together([arm(own) for own in points(config)])
    counts = [{row.get("together") for row in files.read_rows(folder / "metrics.jsonl")} for folder in folders]
    assert counts == [{2}, {2}, {None}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("federated", "section", "numbers"),
    [
        ({"algorithm": "fedprox"}, "fedprox", [{"mu": 0.0}, {"mu": 1.0}]),
        ({"algorithm": "fedadam", "aggregator": "trimmed_mean"}, "fedadam", [{"tau": 1e-3}, {"tau": 1e-2}]),
    ],
)
def test_numbers_of_an_algorithm_go_together_too(config, arm, unevaluated, federated, section, numbers):
    both = [vary(config, f"{i}", federated=federated, **{section: own}) for i, own in enumerate(numbers)]
    assert alike(*both)
    together = run_together([arm(own) for own in both])
    for folder, own in zip(together, both, strict=True):
        alone = vary(own, "alone")
        assert_same_run(folder, run(alone, arm(alone)))
    assert adapter_distance(*together) > 1e-3
