"""Runs side by side: how they are shared out to lanes, and that each is a run by itself."""

import math
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest

from fedjax_rai import terminal
from fedjax_rai.runs import beside
from fedjax_rai.runs.beside import Lane, Run, comparison, go_on, lanes_of, make_lanes, split
from tests.processes import succeed
from tests.tiny_runs import vary


def test_lanes_take_about_equally_long():
    """By hand: 8, 3 and (of two sums of 11, the first) 1, against 6 and 5."""
    assert split("abcde", [5.0, 3.0, 8.0, 6.0, 1.0], 2) == [["c", "b", "e"], ["d", "a"]]
    assert split("ab", [1.0, 2.0], 3) == [["b"], ["a"], []]


class Watched(Lane):
    """A lane with two rounds; what is dispatched and what is written down, in turn."""

    def __init__(self, name: str, rounds: int, calls: list[str]):
        self.name = name
        self.rounds = [f"{name}{t}" for t in range(rounds)]
        self.calls = calls

    def begin(self) -> None:
        pass

    def dispatch(self) -> list[str]:
        found, self.rounds = self.rounds[:1], self.rounds[1:]
        self.calls += [f"dispatch {t}" for t in found]
        return found

    def settle(self, rounds: list[str], advance: terminal.Advance) -> None:
        self.calls += [f"wait {t}" for t in rounds]


def lanes(calls: list[str]) -> Any:
    return [Watched("a", 3, calls), Watched("b", 1, calls)]


def test_rounds_are_waited_for_when_the_next_of_every_lane_were_dispatched():
    calls: list[str] = []
    go_on(lanes(calls), terminal.silent)
    assert calls == [
        "dispatch a0", "dispatch b0", "dispatch a1", "wait a0", "wait b0", "dispatch a2", "wait a1", "wait a2",
    ]  # fmt: skip


def test_after_so_many_turns_nothing_is_under_way():
    calls: list[str] = []
    go_on(lanes(calls), terminal.silent, turns=1)
    assert calls == ["dispatch a0", "dispatch b0", "wait a0", "wait b0"]


def test_only_one_cpu_computes_several_at_once_and_none_with_a_probe(config, monkeypatch):
    configs, probed = [config] * 3, [config, vary(config, cai={"probe": 4})]
    monkeypatch.setattr(beside.os, "cpu_count", lambda: 2)
    assert lanes_of(configs) == 1, "the tests' two devices"
    device = beside.jax.devices()[0]
    monkeypatch.setattr(beside.jax, "devices", lambda: [device])
    assert [lanes_of(configs), lanes_of(configs[:1]), lanes_of([]), lanes_of(probed)] == [2, 1, 0, 1]
    monkeypatch.setattr(beside.os, "cpu_count", lambda: 64)
    assert lanes_of(configs) == 3


def test_the_way_that_took_less_time_is_said_with_both_times():
    said = "a round of 5 runs took 20.1 s one after another, 16.0 s with 2 at once; they go on 2 at once"
    assert comparison(5, 2, 20.06, 16.0) == said
    assert comparison(5, 2, 16.0, 16.0).endswith("they go on one after another")
    assert comparison(5, 2, 16.0, math.inf).endswith("they go on one after another")


@pytest.mark.slow
def test_runs_computed_at_once_are_runs_by_themselves_and_compile_nothing_anew(tmp_path):
    succeed("runs_beside", tmp_path)


class Rounds(Run):
    """A run, and its loop, that computes nothing: each round waits until it may go on."""

    def __init__(self, name: str, rounds: int, begun: list[str], ended: list[str], gate: threading.Event):
        self.name = name
        self.rounds = rounds
        self.next = 0
        self.loop = self
        self._begun = begun
        self._ended = ended
        self._gate = gate

    def play(self, t: int) -> None:
        self._begun.append(f"{self.name}{t}")
        assert self._gate.wait(30)
        self._ended.append(f"{self.name}{t}")


def test_after_an_interrupt_what_has_begun_is_waited_for_and_what_has_not_is_left() -> None:
    """Two lanes of two runs, all of whose rounds are dispatched: the first of each lane is under way."""
    begun: list[str] = []
    ended: list[str] = []
    gate = threading.Event()
    runs: Any = [Rounds(name, 2, begun, ended, gate) for name in "abcd"]
    with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        for lane in make_lanes([runs[:2], runs[2:]], 2, stack):
            lane.dispatch()
        while len(begun) < 2:
            time.sleep(0.01)
        threading.Timer(0.2, gate.set).start()
        raise KeyboardInterrupt
    assert sorted(ended) == sorted(begun) == ["a0", "c0"]
