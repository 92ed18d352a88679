"""The rounds of a run, or of several that go together, each recorded in its own folder."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from fedjax_rai import terminal
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment.round import End, Federation, Outcome, play_round
from fedjax_rai.fed.base import ServerState
from fedjax_rai.runs.data import draw_data
from fedjax_rai.runs.folder import entered, run_folder
from fedjax_rai.runs.held import take_up
from fedjax_rai.runs.record import Record, timed
from fedjax_rai.runs.rows import Round

_first_steps: list[float] = []  # when this process gave the device its first local step, once it has


class Pending(NamedTuple):
    """A round that was dispatched and is not yet written down."""

    t: int
    going: list[int]  # which of the runs took part in it
    ends: list[End]  # theirs
    parting: Sequence[ExperimentConfig]  # runs with fewer CAI iterations that go their own way after it
    parting_ends: list[End]


def train(
    federations: Sequence[Federation], siblings: Sequence[ExperimentConfig] = (), until_parted: bool = False
) -> list[ServerState]:
    """All rounds that are still to do, a record of each, in folders that were `entered`; the last states.

    Runs that an interruption left behind the others begin, and are joined by these where they left off. `siblings` of a
    single run have fewer `cai.iterations`, ascending, and differ in nothing else: their folders are filled up to the
    end of the first CAI phase, which is all that they share; `until_parted`: nothing is done behind it.

    The metrics of a round are read after the next one was dispatched, so the device never waits for the host.
    """
    with ExitStack() as stack:
        loop = Loop(federations, siblings, stack)
        loop.show_progress(stack)
        pending: Pending | None = None
        for t in range(min(loop.done), loop.rounds):
            dispatched = loop.play(t)
            if pending:
                loop.settle(pending)
            else:
                draw_all_data(federations)  # takes a while, in which the device has the first round to compute
            pending = dispatched
            if until_parted and not loop.siblings:
                break
        if pending:
            loop.settle(pending)
        else:
            draw_all_data(federations)
    return loop.states


def draw_all_data(federations: Sequence[Federation]) -> None:
    """The picture of each run's data, into its folder."""
    for federation in federations:
        draw_data(run_folder(federation.config))


class Loop:
    """Where the runs are: their records, the rounds that each has done, and the states after them."""

    def __init__(self, federations: Sequence[Federation], siblings: Sequence[ExperimentConfig], stack: ExitStack):
        first = federations[0].setting
        folders = [run_folder(federation.config) for federation in federations]
        self.federations = federations
        self.rounds = first.config.federated.rounds
        self.records = [stack.enter_context(Record(folder, first)) for folder in folders]
        restored = [
            record.restore(federation.init()) for record, federation in zip(self.records, federations, strict=True)
        ]
        self.done = [rounds for rounds, _ in restored]
        self.states = [state for _, state in restored]
        self.siblings = [] if self._have_parted() else list(siblings)
        if min(self.done):
            terminal.say(f"{folders[0]}: going on after round {min(self.done)} of {self.rounds}")
        self.name = folders[0].name if len(folders) == 1 else folders[0].parent.name
        self.advance: terminal.Advance = terminal.silent
        self.began = time.perf_counter()
        self.took = 0.0  # seconds of all rounds that were settled

    def show_progress(self, stack: ExitStack) -> None:
        """Show how far these runs are, from now on."""
        shown = terminal.progress(self.name, self.rounds, min(self.done), terminal.ROUND)
        self.advance = stack.enter_context(shown)

    def _have_parted(self) -> bool:
        """Whether the round in which siblings part lies behind: the first CAI phase."""
        return any(row.cai for record in self.records for row in record.rounds)

    def play(self, t: int) -> Pending:
        """Round t of all runs that have not done it yet, dispatched."""
        going = [i for i, done in enumerate(self.done) if done <= t]
        fewer = [config.cai.iterations for config in self.siblings]
        ends, passed = play_round([self.federations[i] for i in going], [self.states[i] for i in going], t, fewer)
        for i, end in zip(going, ends, strict=True):
            self.states[i] = end.state
        parts = ends[0].outcome.cai is not None or t + 1 == self.rounds
        parting = self.siblings if parts else []
        if parts:
            self.siblings = []
        return Pending(t, going, ends, parting, passed if parts else [])

    def settle(self, pending: Pending, beside: int = 1) -> Round:
        """Write a round down, and return the first run's row; waits for the device.

        `beside`: how many were computed at once, this one among them (`runs.beside`), and share its seconds.
        """
        for config, end in zip(pending.parting, pending.parting_ends, strict=True):
            self._part(config, pending.t, end)
        seconds, self.began = timed([end.outcome for end in pending.ends], self.began)
        took = seconds["seconds"]
        self.took += took
        if len(self.federations) > 1:
            seconds = shared(seconds, len(pending.going))
        elif beside > 1:
            seconds = shared(seconds, beside)
        seconds |= started(pending.ends[0].outcome)
        rows = [
            self.records[i].add(pending.t, *end, seconds) for i, end in zip(pending.going, pending.ends, strict=True)
        ]
        self.advance(note(rows[0]), seconds=took)
        return rows[0]

    def _part(self, config: ExperimentConfig, t: int, end: End) -> None:
        """Fill a sibling's folder as if it had run by itself to the end of round t."""
        (record,) = self.records
        folder = run_folder(config)
        seconds, _ = timed([end.outcome], self.began)
        with entered(folder, config, record.setting) as finished:
            if finished:
                return
            take_up(folder)
            with Record(folder, record.setting) as theirs:
                theirs.copy_rows(record)
                theirs.add(t, *end, seconds)


def started(first: Outcome) -> dict[str, float]:
    """`start_seconds` of the first round of this process, which is said; nothing of the others."""
    if _first_steps:
        return {}
    after = round(first.given - terminal.STARTED, 1)
    _first_steps.append(after)
    terminal.say(f"first local step after {terminal.duration(after)}")
    return {"start_seconds": after}


def note(row: Round) -> str:
    """What progress shows of a round, and of the phase that followed it."""
    parts = ["no loss" if math.isnan(row.train_loss) else f"loss {row.train_loss:.3f}"]
    if row.without_data:
        parts.append(f"{terminal.plural(row.without_data, 'client')} without data")
    if row.cai is not None:
        iterations = terminal.plural(row.cai.iterations, "iteration")
        parts.append(f"{iterations} of CAI in {terminal.duration(row.cai_seconds)}")
    return "  ".join(parts)


def shared(seconds: dict[str, float], runs: int) -> dict[str, Any]:
    """A round's seconds shared out evenly to the runs that went together, and how many these were."""
    return {name: round(value / runs, 3) for name, value in seconds.items()} | {"together": runs}
