"""Runs side by side: points of a sweep whose rounds a CPU computes at once, where that was measured to be faster.

Each has its own programs, so its numbers are those of a run by itself, bit for bit, whatever is under way beside it.
"""

import itertools
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple, TypeVar

import jax

from fedjax_rai import terminal
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment.round import Federation
from fedjax_rai.fed.base import ServerState
from fedjax_rai.runs.folder import run_folder
from fedjax_rai.runs.loop import Loop, Pending, draw_all_data, note

T = TypeVar("T")

FEWEST_TURNS = 5  # of a sweep that is measured: one that compiles, one of each way, and some to gain by


class Run:
    """A run of a sweep, and which round is its next."""

    def __init__(self, federation: Federation, stack: ExitStack):
        self.loop = Loop([federation], (), stack)
        self.next = self.loop.done[0]

    @property
    def left(self) -> int:
        """Rounds that it was not yet given."""
        return self.loop.rounds - self.next


class Dispatched(NamedTuple):
    """A round that is under way."""

    run: Run
    pending: Future[Pending]


class Lane:
    """A thread that dispatches rounds of some runs.

    What one thread dispatches is computed in turn; what two dispatch, at once. A round's seconds go from the end of the
    lane's round before it to its own, and are shared out to all lanes.
    """

    def __init__(self, runs: Sequence[Run], lanes: int):
        self._runs = runs
        self._lanes = lanes
        self._thread = ThreadPoolExecutor(1, "lane")
        self._ended = 0.0

    def leave(self) -> None:
        """Begin no further round of those that were dispatched."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def wait(self) -> None:
        """Wait for the round that has begun; the thread ends."""
        self._thread.shutdown(wait=True)

    def begin(self) -> None:
        """From now on its seconds count."""
        self._ended = time.perf_counter()

    def dispatch(self) -> list[Dispatched]:
        """The next round of each run that has one left."""
        dispatched = []
        for run in self._runs:
            if run.left:
                dispatched.append(Dispatched(run, self._thread.submit(run.loop.play, run.next)))
                run.next += 1
        return dispatched

    def settle(self, dispatched: Sequence[Dispatched], advance: terminal.Advance) -> None:
        """Write these rounds down; waits for the device."""
        for run, pending in dispatched:
            loop = run.loop
            loop.began = self._ended
            row = loop.settle(pending.result(), beside=self._lanes)
            self._ended = loop.began
            advance(f"{loop.name}  {note(row)}", seconds=row.seconds)


def make_lanes(parts: Sequence[Sequence[Run]], lanes: int, stack: ExitStack) -> list[Lane]:
    """A lane for each part of the runs, until the stack is left.

    An interrupt leaves what has not begun, in all of them before it waits for any: a lane would begin its next round
    meanwhile.
    """
    made = [Lane(part, lanes) for part in parts]
    for lane in made:
        stack.callback(lane.wait)
    for lane in made:  # which is called first
        stack.callback(lane.leave)
    return made


def lanes_of(configs: Sequence[ExperimentConfig]) -> int:
    """How many runs of these configs may be computed at once; 1: they go one after another.

    An accelerator computes one program at a time, programs of several devices must be dispatched in one order, and a
    probe waits for the host.
    """
    devices = jax.devices()
    if len(devices) > 1 or devices[0].platform != "cpu" or any(config.cai.probe for config in configs):
        return 1
    return min(len(configs), os.cpu_count() or 1)


def train_beside(federations: Sequence[Federation], lanes: int) -> list[ServerState]:
    """All rounds that are still to do of runs whose folders were `entered`; the last states.

    With more than one of `lanes`, a turn of every run's next rounds is measured with the runs one after another, and
    one with so many at once; the faster way is gone on with, which is said. No number depends on it, so a sweep that
    was interrupted measures again.
    """
    with ExitStack() as stack:
        draw_all_data(federations)
        runs = [Run(federation, stack) for federation in federations]
        name = run_folder(federations[0].config).parent.name
        total = sum(run.loop.rounds for run in runs)
        done = total - sum(run.left for run in runs)
        advance = stack.enter_context(terminal.progress(name, total, done, terminal.ROUND))
        turn = federations[0].config.cai.every  # so that each has a phase
        in_turn = make_lanes([runs], 1, stack)
        if lanes == 1 or max(run.left for run in runs) < FEWEST_TURNS * turn:
            go_on(in_turn, advance)
        else:
            go_on(in_turn, advance, turn)  # compiles, and makes what is made when it is first asked for
            before = [run.loop.took for run in runs]
            turn_seconds = measured(in_turn, advance, turn)
            each = [run.loop.took - took for run, took in zip(runs, before, strict=True)]
            beside = make_lanes(split(runs, each, lanes), lanes, stack)
            beside_seconds = measured(beside, advance, turn)
            is_faster = beside_seconds < turn_seconds
            terminal.say(comparison(len(runs), lanes, turn_seconds / turn, beside_seconds / turn))
            go_on(beside if is_faster else in_turn, advance)
    return [run.loop.states[0] for run in runs]


def comparison(runs: int, lanes: int, turn_seconds: float, beside_seconds: float) -> str:
    """What is said of the two ways to go on: how long a round of all runs took."""
    going = f"{lanes} at once" if beside_seconds < turn_seconds else "one after another"
    took = f"{turn_seconds:.1f} s one after another, {beside_seconds:.1f} s with {lanes} at once"
    return f"a round of {runs} runs took {took}; they go on {going}"


def measured(lanes: Sequence[Lane], advance: terminal.Advance, turns: int) -> float:
    """Seconds of so many turns, from nothing under way to nothing under way."""
    began = time.perf_counter()
    go_on(lanes, advance, turns)
    return time.perf_counter() - began


def go_on(lanes: Sequence[Lane], advance: terminal.Advance, turns: int | None = None) -> None:
    """So many rounds of each run, or all that are left; each is written down when the next one was dispatched."""
    for lane in lanes:
        lane.begin()
    previous: list[list[Dispatched]] = []
    for taken in itertools.count():
        is_last = turns is not None and taken == turns
        dispatched = [] if is_last else [lane.dispatch() for lane in lanes]
        for lane, rounds in zip(lanes, previous, strict=False):
            lane.settle(rounds, advance)
        if not any(dispatched):
            return
        previous = dispatched


def split(runs: Sequence[T], seconds: Sequence[float], parts: int) -> list[list[T]]:
    """The runs in so many parts that take about equally long: the longest first, each to the part with least."""
    found: list[list[T]] = [[] for _ in range(parts)]
    sums = [0.0] * parts
    for i in sorted(range(len(runs)), key=lambda i: -seconds[i]):
        least = sums.index(min(sums))
        found[least].append(runs[i])
        sums[least] += seconds[i]
    return found
