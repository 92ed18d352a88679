"""The rounds of a run on disk: a row of metrics each, the conversations of CAI phases, and states to go on from."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_rai import terminal
from fedjax_rai.aliases import PyTree
from fedjax_rai.cai.revise import Rollout
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.phase import warnings
from fedjax_rai.experiment.round import Outcome
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import conversations, files, rows
from fedjax_rai.runs.checkpoint import Checkpoints
from fedjax_rai.runs.rows import Revision, Round
from fedjax_rai.runs.trackers import track

METRICS, REVISIONS, CHECKPOINTS = "metrics.jsonl", "revisions.jsonl", "checkpoints"


class Record:
    """The record in a run folder that this process has for itself (`folder.entered`).

    A context manager, so that the last state is whole when it is left.
    """

    def __init__(self, folder: Path, setting: Setting):
        self.folder = folder
        self.setting = setting
        self._checkpoints = Checkpoints(folder / CHECKPOINTS)
        self._track = track(setting.config.tracker, folder)

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoints.close()

    def restore(self, like: PyTree) -> tuple[int, PyTree]:
        """(rounds done, state after them); rows that are ahead of the state are taken off.

        Raises InputError where no state can be read, or a file of rows is not what it was: a row of each round, in
        order, in the metrics, and conversations of rounds.
        """
        done, state = self._checkpoints.restore(like)
        metrics = self.folder / METRICS
        every_row = rows.read_rounds(metrics)
        if len(every_row) > done + 1:  # one row is ahead wherever a run was killed before its state was whole
            terminal.say(
                f"{metrics}: {len(every_row)} rounds, and a state after {done}: those behind it are done again"
            )
        there = [row.round for row in every_row[:done]]
        missing = [t for t in range(1, done + 1) if there[t - 1 : t] != [t]]
        if missing:
            raise InputError(
                f"{metrics}: its line {missing[0]} is not the row of round {missing[0]}, though there is a state after "
                f"round {done}; restore the file from a copy, or remove {self.folder / CHECKPOINTS} to begin anew"
            )
        for name in (METRICS, REVISIONS):
            path = self.folder / name
            kept = [row for row in files.read_rows(path) if _round(row, path) <= done]
            files.write_rows(path, kept)
        return done, state

    @property
    def rounds(self) -> list[Round]:
        """The rounds so far."""
        return rows.read_rounds(self.folder / METRICS)

    def add(self, t: int, state: PyTree, outcome: Outcome, seconds: Mapping[str, float]) -> Round:
        """Write round t (from 0) down: conversations, then metrics, then the state; waits for the device.

        `seconds`: the fields of `Round` that tell how long it took (`timed`), and `together`.
        """
        row = measured(t, outcome, seconds)
        if outcome.rollout is not None:
            files.append_rows(self.folder / REVISIONS, revisions(self.setting, t, outcome.rollout))
        for warning in warnings(rows.flat(row), self.setting.config):
            terminal.say(f"{self.folder.name}: {warning}")
        files.append_row(self.folder / METRICS, rows.flat(row))
        self._track(rows.flat(row))
        self._checkpoints.save(t + 1, state)
        return row

    def copy_rows(self, other: "Record") -> None:
        """Take over another record's rows so far."""
        for name in (METRICS, REVISIONS):
            files.write_rows(self.folder / name, files.read_rows(other.folder / name))


def _round(row: Mapping[str, Any], path: Path) -> int:
    found = row.get("round")
    if not isinstance(found, int):
        raise InputError(f"{path}: a row has no field 'round', a whole number; restore the file from a copy")
    return found


def measured(t: int, outcome: Outcome, seconds: Mapping[str, float]) -> Round:
    """Round t (from 0) as its row; waits for the device."""
    reported = jax.device_get(outcome.local | (outcome.cai or {}))  # one wait for all of them
    numbers = {name: np.asarray(value).item() for name, value in reported.items()}
    row = {"round": t + 1, **numbers, **seconds}
    return files.typed(Round, rows.nested(row), f"round {t + 1}")


def revisions(setting: Setting, t: int, rollout: Rollout) -> Iterator[Revision]:
    """The conversations of round t (from 0); waits for the device."""
    for conversation in conversations.read(setting, rollout):
        yield Revision(t + 1, *conversation)


def timed(outcomes: Sequence[Outcome], began: float) -> tuple[dict[str, float], float]:
    """(seconds of a round that began then, by fields of `Round`; when it ended); waits for the device.

    Of several runs that went together: local training is one program, the probes follow each other, and the phase of
    those that have one is a program again.
    """
    local = outcomes[0].local_done.result()
    probes = [outcome.probe_done.result() for outcome in outcomes if outcome.probe_done]
    phases = [outcome.cai_done.result() for outcome in outcomes if outcome.cai_done]
    probed = max(probes, default=local)
    end = max(phases, default=probed)
    parts = {"seconds": end - began, "local_seconds": local - began, "cai_seconds": end - probed}
    if probes:
        parts["probe_seconds"] = probed - local
    return {name: round(value, 3) for name, value in parts.items()}, end
