"""What the tests of runs share."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment.cost import CaiCost, Cost, LocalCost
from fedjax_rai.experiment.setting import Setting, views
from fedjax_rai.runs import files
from fedjax_rai.runs.rows import Phase, Round, Seconds, Summary

LOCAL = LocalCost(generated_tokens=0, read_tokens=0, trained_tokens=500, step_tokens=900, flops=9e6, seconds=2.0)
CAI = CaiCost(
    generated_tokens=300, read_tokens=700, trained_tokens=40, step_tokens=80, flops=2e6, phases=2, untrained_phases=0,
    seconds=1.0, full_epoch_flops=8e6, share_saved=0.75,
)  # fmt: skip
SUMMARY = Summary(
    rates={}, rounds=2, seed=0, synthetic=[], adapter_parameters=928, truncated_examples=0, diverged_clients=0,
    guard=None, filter=None, seconds=Seconds(3.0, 5.0, 1.0), cost=Cost(LOCAL, None, None), critique=None,
)  # fmt: skip
PHASE = Phase(
    pairs=3, cut_off=1, equal=0, empty=0, usable=3, revised=1.0, generated_tokens=30, read_tokens=70, iterations=2,
    loss=0.5, margin=0.0, diverged=False, trained_tokens=40.0, step_tokens=80.0,
)  # fmt: skip
ROUND = Round(
    round=1, clients=2, diverged=0.0, delta_norm=1.5, train_loss=0.25, trained_tokens=50.0, step_tokens=90,
    seconds=4.0, local_seconds=3.0, cai_seconds=0.0,
)  # fmt: skip


def vary(config: ExperimentConfig, suffix: str = "", **fields: Any) -> ExperimentConfig:
    """The config with other values: of a section's keys, or of a field; the suffix is added to its `output`."""
    given = config.model_dump()
    for name, value in fields.items():
        given[name] = given[name] | value if isinstance(value, dict) else value
    if suffix:
        given["output"] += suffix
    return ExperimentConfig.model_validate(given)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """A run's rows of metrics without the seconds, which no two runs share."""
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in files.read_rows(folder / "metrics.jsonl")]


@contextmanager
def dies_when(condition: Callable[[dict[str, Any]], bool]) -> Iterator[None]:
    """What runs within is killed, at the latest moment before a row of metrics is written that the condition holds of.

    Fails where nothing was killed.
    """
    append_row = files.append_row

    def killed(path: Path, row: dict[str, Any]) -> None:
        if condition(row):
            raise KeyboardInterrupt
        append_row(path, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "append_row", killed)
        with pytest.raises(KeyboardInterrupt):
            yield


def after_round(last: int) -> Callable[[dict[str, Any]], bool]:
    """Holds of a run's first row after that of round `last`."""
    return lambda row: row["round"] > last


def after_rows(count: int) -> Callable[[dict[str, Any]], bool]:
    """Holds of the row that comes after `count` others, of whichever runs."""
    rows = itertools.count()
    return lambda row: next(rows) >= count


def adapter_bytes(folder: Path) -> bytes:
    """A run's adapter, as it is stored."""
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def adapter_distance(folder: Path, other: Path) -> float:
    """Between two runs' adapters, as a share of the norm: Adam makes a step of rounding where a gradient is tiny."""

    def flat(run: Path) -> np.ndarray:
        tensors = load_file(run / "adapter" / "adapter_model.safetensors")
        return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])

    return float(np.linalg.norm(flat(folder) - flat(other)) / np.linalg.norm(flat(other)))


class Arms:
    """Settings of configs, each with the parts that it shares with one made before."""

    def __init__(self):
        self.made: list[Setting] = []

    def __call__(self, config: ExperimentConfig, *_: Any) -> Setting:
        wanted = views(config)

        def alike(setting: Setting) -> int:
            return sum(wanted[name] == view for name, view in setting._views.items())

        setting = Setting(config, max(self.made, key=alike, default=None))
        self.made.append(setting)
        return setting
