"""The rounds of a run on disk: a row of metrics each, the conversations of CAI phases, and states to go on from."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rai import terminal
from fedjax_rai.aliases import PyTree
from fedjax_rai.experiment.phase import nothing_usable
from fedjax_rai.experiment.round import Outcome
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import conversations, files
from fedjax_rai.runs.checkpoint import Checkpoints

METRICS, REVISIONS, CHECKPOINTS = "metrics.jsonl", "revisions.jsonl", "checkpoints"


class Record:
    """A run folder's, for one process at a time; a context manager, so that the last state is whole when it is left."""

    def __init__(self, folder: Path, setting: Setting):
        self.folder, self.setting = folder, setting
        self._held = ExitStack()
        self._held.enter_context(files.alone(folder))
        self._checkpoints = Checkpoints(folder / CHECKPOINTS)

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoints.close()
        self._held.close()

    def restore(self, like: PyTree) -> tuple[int, PyTree]:
        """(rounds done, state after them); rows that are ahead of the state are taken off."""
        done, state = self._checkpoints.restore(like)
        for name in (METRICS, REVISIONS):
            rows = files.read_rows(self.folder / name)
            files.write_rows(self.folder / name, [row for row in rows if row["round"] <= done])
        return done, state

    @property
    def rows(self) -> list[dict[str, Any]]:
        return files.read_rows(self.folder / METRICS)

    def add(self, t: int, state: PyTree, outcome: Outcome, seconds: dict[str, float]) -> dict[str, Any]:
        """Write round t down: its conversations, then the metrics, then the state. Returns the row of metrics."""
        metrics = outcome.local | (outcome.cai or {})
        row = {"round": t + 1} | {name: np.asarray(value).item() for name, value in metrics.items()} | seconds
        if outcome.rollout is not None:
            read = conversations.read(self.setting, outcome.rollout)
            files.append_rows(self.folder / REVISIONS, [{"round": t + 1} | row._asdict() for row in read])
        if warning := nothing_usable(row):
            terminal.say(warning)
        files.append_row(self.folder / METRICS, row)
        self._checkpoints.save(t + 1, state)
        return row

    def begin_as(self, other: "Record") -> None:
        """Take over another's rows so far."""
        files.write_rows(self.folder / METRICS, other.rows)
        files.write_rows(self.folder / REVISIONS, files.read_rows(other.folder / REVISIONS))


def timed(outcome: Outcome, began: float) -> tuple[dict[str, float], float]:
    """(seconds of a round that began then, in all and by phase; when it ended); waits for the device."""
    local = outcome.local_done.result()
    probed = outcome.probe_done.result() if outcome.probe_done else local
    end = outcome.cai_done.result() if outcome.cai_done else probed
    parts = {"seconds": end - began, "local_seconds": local - began, "cai_seconds": end - probed}
    parts |= {"probe_seconds": probed - local} if outcome.probe_done else {}
    return {name: round(value, 3) for name, value in parts.items()}, end
