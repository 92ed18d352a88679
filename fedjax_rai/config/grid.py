"""The points of a sweep: a config at every combination of some keys' values."""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from fedjax_rai.config.load import check_files, load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.errors import InputError


class Point(NamedTuple):
    """One config of a sweep, and what was written for each swept key."""

    values: dict[str, str]
    config: ExperimentConfig


def load_sweep(path: Path, overrides: Sequence[str], output: str = "runs/{stem}-sweep") -> list[Point]:
    """A config for every combination of the values in `key.path=value,value,...`, in the order written.

    The run folder of each is named by its values and lies in the configured output, or the one given. Raises InputError
    as `load_config` and `check_files` do, with the problems of all; and for overrides that make no sweep.
    """
    plain, swept = _swept(overrides)
    points, problems = {}, {}
    for combination in product(*swept.values()):
        values = dict(zip(swept, combination, strict=True))
        try:
            config = load_config(path, [*plain, *(f"{key}={value}" for key, value in values.items())], output)
            check_files(config)
        except InputError as error:
            problems |= dict.fromkeys(str(error).split("\n"))
            continue
        name = ",".join(f"{key}={_for_a_folder(value)}" for key, value in values.items())
        if name in points:
            problems[f"two points are named {name}: values must differ in letters or digits"] = None
        elif same := [other for other, point in points.items() if relevant(point.config) == relevant(config)]:
            problems[f"{same[0]} and {name} are the same config: each must stand once"] = None
        points[name] = Point(values, config.model_copy(update={"output": str(Path(config.output or "") / name)}))
    if problems:
        raise InputError("\n".join(problems))
    return list(points.values())


def split_values(text: str) -> list[str]:
    """What stands between the commas of a text, but those within brackets, braces and quotes."""
    values, depth = [""], 0
    for piece in re.findall(r"""'[^']*'|"(?:[^"\\]|\\.)*"|.""", text, re.DOTALL):
        depth += (piece in "[{") - (piece in "]}")
        if piece == "," and depth == 0:
            values.append("")
        else:
            values[-1] += piece
    return [value.strip() for value in values]


def _swept(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """(ordinary overrides, values by swept key)."""
    plain, swept, problems = [], {}, []
    for override in overrides:
        key, _, text = override.partition("=")
        key, values = key.strip(), split_values(text)
        if len(values) == 1:
            plain.append(override)
            continue
        if key in swept:
            problems.append(f"override {override!r}: {key} is swept twice; must be once, with all values")
        if key == "output":
            problems.append(f"override {override!r}: must be one folder; put a name with commas in quotes")
        if "" in values:
            problems.append(f"override {override!r}: no value between two commas, or at an end; write null for none")
        swept[key] = values
    if fixed := [override for override in plain if override.partition("=")[0].strip() in swept]:
        problems += [f"override {override!r}: this key is swept; must stand once" for override in fixed]
    if not swept:
        problems.append("nothing to sweep: must be given values with commas between, like cai.iterations=0,10,25")
    if problems:
        raise InputError("\n".join(problems))
    return plain, swept


def _for_a_folder(value: str) -> str:
    """A value with what does not belong in a folder's name replaced."""
    return re.sub(r"[^\w.+-]+", "_", value).strip("_")
