"""Processes that are measured in turns, by lines of JSON; medians, spreads and ratios of what they answer."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.bench import measure, summary
from fedjax_rai.bench.peers import Side
from fedjax_rai.bench.protocol import Worker, alternate
from fedjax_rai.errors import InputError
from tests.processes import PROGRAMS

SERVER = [sys.executable, "-P", str(PROGRAMS / "serve_seconds.py")]
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2])}
SHAPE = {"clients": 1, "steps": 1, "batch": 1, "length": 4, "chunk": 1}
REQUEST: dict[str, Any] = {
    "work": "round",
    "model": "tiny",
    "shape": SHAPE,
    "lora": {"rank": 16},
    "computed": {"dtype": "float32"},
    "mesh": {"fsdp": 1},
    "micro_batch": None,
    "devices": None,
    "warmup": 2,
    "repeats": 3,
}


def test_a_worker_warms_up_runs_and_ends_and_what_it_prints_is_no_answer() -> None:
    with Worker("it", SERVER, ENVIRONMENT) as worker:
        ready = worker.prepare(REQUEST | {"what": "count"})
        assert ready["runs"] == 1 + 2 and ready["first_seconds"] >= 0  # the one that compiles, and two more
        assert worker.run() >= 0
        assert worker.end()["runs"] == 4


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("refuse", "^--x: is wrong$"),
        ("fail", "^the measurement of it ended with exit code 7; its message stands above$"),
    ],
)
def test_a_worker_that_refuses_or_fails_is_bad_input(what: str, message: str) -> None:
    with Worker("it", SERVER, ENVIRONMENT) as worker, pytest.raises(InputError, match=message):
        worker.prepare(REQUEST | {"what": what})


class Noted:
    """Notes whose turn it was, and takes so long."""

    def __init__(self, name: str, seconds: float, turns: list[str]):
        self.name, self.seconds, self.turns = name, seconds, turns

    def run(self) -> float:
        self.turns.append(self.name)
        return self.seconds


def test_runs_are_taken_in_turns() -> None:
    turns: list[str] = []
    assert alternate([Noted("a", 1.0, turns), Noted("b", 2.0, turns)], 2) == [[1.0, 1.0], [2.0, 2.0]]
    assert turns == ["a", "b", "a", "b"]


def test_spread_is_of_the_median_and_the_ratio_of_rates() -> None:
    assert summary.spread([2.0, 1.0, 4.0]) == (4.0 - 1.0) / 2.0 and summary.spread([2.0]) is None
    assert summary.ratio([2.0, 1.0, 4.0], [3.0, 9.0, 5.0]) == 5.0 / 2.0  # we take 2 s, the peer takes 5


def test_rates_are_of_the_median_and_shares_of_the_limits() -> None:
    work = {"tokens": 60, "floor": [["a", 100, 10], ["b", 20, 70]]}
    found = summary.reached([3.0, 1.0, 2.0], work, {"matmul_flops": 200.0, "copy_bytes": 100.0})
    assert found["median_seconds"] == 2.0 and found["tokens_per_second"] == 30.0
    assert found["flops"] == 120 and found["share_of_matmul"] == pytest.approx(60 / 200)
    assert found["bytes"] == 80 and found["share_of_copy"] == pytest.approx(40 / 100)
    assert found["floor_seconds"] == pytest.approx(100 / 200 + 70 / 100)
    assert found["share_of_floor"] == pytest.approx(1.2 / 2)


def test_compiling_is_what_the_first_run_took_longer() -> None:
    ready = {"first_seconds": 3.5, "device": "cpu", "devices": 1, "versions": "x 1"}
    found = summary.about(ready, {"host_memory": 7, "matmul_flops": 1.0}, [0.25, 0.5, 0.75])
    assert found["compile_seconds"] == 3.0 and found["host_memory"] == 7
    assert found["compilations"] is None and "matmul_flops" not in found


def test_both_sides_are_measured_by_the_same_floor_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "COMMAND", SERVER)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    peer = Side("torch", [*SERVER, "peer"], ENVIRONMENT)  # which knows neither floor nor limits
    ours, theirs = measure.measure(REQUEST | {"what": "count"}, [peer])
    assert (ours["by"], theirs["by"]) == ("fedjax_rai", "torch")
    assert len(ours["seconds"]) == len(theirs["seconds"]) == 3
    assert ours["ratio_to_torch"] == theirs["median_seconds"] / ours["median_seconds"]
    assert theirs["flops"] == ours["flops"] == 1000 and theirs["matmul_flops"] == 50.0
    assert json.loads(json.dumps(ours)) == ours and ours["clients"] == 1 and ours["dtype"] == "float32"


def test_devices_are_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    assert measure.environment(REQUEST, has_peers=False) == {}
    assert measure.environment(REQUEST, has_peers=True) == {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    two = measure.environment(REQUEST | {"devices": 2}, has_peers=False)
    assert two["CUDA_VISIBLE_DEVICES"] == "3,5" and two["JAX_NUM_CPU_DEVICES"] == "2" and int(two["NPROC"]) >= 8
