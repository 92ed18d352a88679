"""Finished runs as a report takes them: those of runs, tables and sweeps, seeds of one arm together."""

import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.data.summary import DataFile
from fedjax_rai.errors import InputError, did_you_mean_file
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import ANSWERS, CONFIG, DATA, SUMMARY, VERSIONS
from fedjax_rai.runs.record import METRICS
from fedjax_rai.runs.rows import Round, read_data, read_rounds
from fedjax_rai.studies.cells import Summary, with_answers
from fedjax_rai.studies.results import read_planned
from fedjax_rai.studies.sweep import SWEEP
from fedjax_rai.studies.table import ARMS, CONTROLS, TABLE

KINDS = {TABLE: f"*/*/{CONFIG}", SWEEP: f"*/{CONFIG}"}
"""What makes a folder a study's, and where its runs lie."""
BEGUN_TABLE = f"seed*/*/{CONFIG}"
"""Where they lie in a table's folder that has no `table.yaml` yet, as that is written when all are finished."""
_NUMBER = re.compile(r"((?:(?<==)-)?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


class Run:
    """A finished run; its files are read when they are first needed."""

    def __init__(self, folder: Path, study: Path | None):
        self.folder = folder
        self.study = study
        self.config: ExperimentConfig = load_config(folder / CONFIG)

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def answers(self) -> list[dict[str, Any]]:
        """Rows of `answers.jsonl`; none where they are not kept."""
        return files.read_rows(self.folder / ANSWERS)

    @cached_property
    def summary(self) -> Summary:
        """`summary.json`, and what its answers add to rates and means."""
        return with_answers(files.read_object(self.folder / SUMMARY), self.answers)

    @cached_property
    def rounds(self) -> list[Round]:
        return read_rounds(self.folder / METRICS)

    @cached_property
    def data(self) -> DataFile | None:
        """`data.json`; None where an older version ran."""
        path = self.folder / DATA
        return read_data(path) if path.is_file() else None

    @cached_property
    def versions(self) -> list[dict[str, Any]]:
        """The entries of `versions.json`; none where the file is not there."""
        path = self.folder / VERSIONS
        return files.read_json(path) if path.is_file() else []


class Arm(NamedTuple):
    """A row of the report: runs that agree in all that numbers depend on but the seed."""

    label: str
    runs: list[Run]
    """In the order of their seeds."""

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def summaries(self) -> list[Summary]:
        return [run.summary for run in self.runs]

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]


class Gathered(NamedTuple):
    """What a report is of."""

    arms: list[Arm]
    unfinished: list[Path]
    """Run folders without a summary, of which nothing is shown."""
    not_begun: list[Path]
    """Run folders that a study is to have and has not."""


def gather(paths: Sequence[Path]) -> Gathered:
    """The finished runs of run folders, tables and sweeps. Raises InputError for any other folder, and for none."""
    found: list[Run] = []
    unfinished = []
    not_begun: list[Path] = []
    for path in dict.fromkeys(paths):
        study, folders = _runs_in(path)
        for folder in folders:
            if (folder / SUMMARY).is_file():
                found.append(Run(folder, study))
            else:
                unfinished.append(folder)
        not_begun += [folder for folder in read_planned(path) if not (folder / CONFIG).is_file()]
    if not found:
        named = ", ".join(map(str, paths))
        raise InputError(f"{named}: no finished run there ({len(unfinished)} begun); finish one by the same command")
    return Gathered(_arms(found), unfinished, not_begun)


def _runs_in(path: Path) -> tuple[Path | None, list[Path]]:
    """(the study, None for a run by itself; run folders)."""
    for file, pattern in KINDS.items():
        if (path / file).is_file():
            return path, sorted((config.parent for config in path.glob(pattern)), key=_order)
    if (path / CONFIG).is_file():
        return None, [path]
    if begun := sorted((config.parent for config in path.glob(BEGUN_TABLE)), key=_order):
        return path, begun
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; must be a run, a table or a sweep{did_you_mean_file(path)}")
    expected = ", ".join([CONFIG, *KINDS])
    raise InputError(f"{path}: is no run, no table and no sweep; must be a folder with one of {expected}")


def _order(folder: Path) -> tuple[Any, ...]:
    """Arms as the command lists them, then by name, numbers by their size."""
    name = folder.name
    known = list(ARMS | CONTROLS)
    parts = [(float(part), "") if i % 2 else (math.inf, part) for i, part in enumerate(_NUMBER.split(name))]
    return known.index(name) if name in known else len(known), parts, str(folder)


def _arms(runs: Sequence[Run]) -> list[Arm]:
    """Runs by arm: those of one name in their study and one config but the seed; a seed that is there twice is apart.

    Runs by themselves are told apart by their configs alone.
    """
    grouped: dict[Any, list[Run]] = {}
    for run in runs:
        agreed = repr(relevant(run.config, but=["seed"]))
        key = (_name(run) if run.study else "", agreed)
        times = 0
        while any(other.seed == run.seed for other in grouped.get((key, times), [])):
            times += 1
        grouped.setdefault((key, times), []).append(run)
    groups = [sorted(group, key=lambda run: run.seed) for group in grouped.values()]
    labels = [_name(group[0]) for group in groups]
    arms = []
    for label, group in zip(labels, groups, strict=True):
        arms.append(Arm(label if labels.count(label) == 1 else str(group[0].folder), group))
    return arms


def _name(run: Run) -> str:
    """A run folder's name, without the seed of a sweep's point."""
    parts = [part for part in run.folder.resolve().name.split(",") if not part.startswith("seed=")]
    return ",".join(parts) or "all seeds"
