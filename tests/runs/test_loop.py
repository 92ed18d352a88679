"""How runs that go together share a round's seconds."""

from concurrent.futures import Future
from typing import Any

from fedjax_rai import terminal
from fedjax_rai.experiment.round import Outcome
from fedjax_rai.runs import loop
from fedjax_rai.runs.loop import note, shared, train
from tests.tiny_runs import PHASE, ROUND


class Watched:
    """A loop of four rounds, the first of which is done; what is dispatched and what is waited for, in turn."""

    def __init__(self, calls: list[str]):
        self.calls = calls
        self.done = [1]
        self.rounds = 4
        self.states: list[Any] = []

    def show_progress(self, stack: Any) -> None:
        pass

    def play(self, t: int) -> int:
        self.calls.append(f"dispatch {t}")
        return t

    def settle(self, t: int) -> None:
        self.calls.append(f"wait {t}")


def test_a_round_is_waited_for_when_the_next_one_was_dispatched(monkeypatch):
    """And pictures are drawn when the device has something to do."""
    calls: list[str] = []
    monkeypatch.setattr(loop, "Loop", lambda *_: Watched(calls))
    monkeypatch.setattr(loop, "draw_all_data", lambda _: calls.append("draw"))
    train([])
    assert calls == ["dispatch 1", "draw", "dispatch 2", "wait 1", "dispatch 3", "wait 2", "wait 3"]


def test_the_seconds_of_a_round_are_shared_out_evenly():
    """Nine seconds of three runs, of which 4.5 are the phase's: a run's seconds add up over the runs to the round's."""
    assert shared({"seconds": 9.0, "cai_seconds": 4.5}, 3) == {"seconds": 3.0, "cai_seconds": 1.5, "together": 3}


def test_progress_tells_of_a_round_and_of_the_phase_that_followed():
    assert note(ROUND._replace(train_loss=0.51944)) == "loss 0.519"
    phase = ROUND._replace(train_loss=2.0, cai=PHASE._replace(iterations=25), cai_seconds=12.34)
    assert note(phase) == "loss 2.000  25 iterations of CAI in 12 s"
    once = ROUND._replace(train_loss=2.0, cai=PHASE._replace(iterations=1), cai_seconds=12.34)
    assert note(once) == "loss 2.000  1 iteration of CAI in 12 s"
    assert note(ROUND._replace(train_loss=float("nan"), without_data=2)) == "no loss  2 clients without data"


def test_the_start_is_told_of_the_first_round_of_a_process_alone(monkeypatch, capsys):
    """Given to the device at 112.34, by a process that began at 100."""
    monkeypatch.setattr(loop, "_first_steps", [])
    monkeypatch.setattr(terminal, "STARTED", 100.0)
    assert [loop.started(Outcome({}, Future(), given=given)) for given in (112.34, 120.0)] == [
        {"start_seconds": 12.3},
        {},
    ]
    assert capsys.readouterr().err == "first local step after 12 s\n"
