"""The points of a sweep: a config at every combination of some keys' values."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.config.files import check_files
from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.errors import InputError
from fedjax_rai.yaml_lines import parse_value

LONGEST_NAME = 200  # bytes of a folder's name; most file systems take 255


class Point(NamedTuple):
    """One config of a sweep, and what was written for each swept key."""

    values: dict[str, str]
    config: ExperimentConfig


def load_sweep(path: Path, overrides: Sequence[str], output: str = "runs/{stem}-sweep") -> list[Point]:
    """A config for every combination of the values in `key.path=value,value,...`, in the order written.

    The run folder of each is named by its values and lies in the configured output, or the one given. Raises InputError
    as `load_config` and `check_files` do, with the problems of all; and for overrides that make no sweep.
    """
    plain, swept = split_overrides(overrides)
    return combine(lambda values: load_config(path, [*plain, *values], output), swept)


def combine(load: Callable[[Sequence[str]], ExperimentConfig], swept: Mapping[str, Sequence[str]]) -> list[Point]:
    """A point for every combination of the swept keys' values, as texts; `load` takes overrides `key.path=value`.

    Raises InputError as `load_sweep` does.
    """
    if not swept or not all(swept.values()):
        raise InputError("nothing to sweep: each key must be given values, like cai.iterations=0,10,25")
    points: dict[str, Point] = {}
    problems: list[str] = []
    for texts in product(*swept.values()):
        values = dict(zip(swept, texts, strict=True))
        name = folder_name(values)
        try:
            config = load([f"{key}={text}" for key, text in values.items()])
            check_files(config)
        except InputError as error:
            problems += str(error).split("\n")
            continue
        problems += _clashes(name, config, points)
        folder = Path(config.output or "") / name
        points[name] = Point(values, config.model_copy(update={"output": str(folder)}))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))  # what is wrong with all of them, once
    return list(points.values())


def folder_name(values: Mapping[str, str]) -> str:
    """The name of a point's run folder: `cai.iterations=10,seed=0`, with what no folder should hold replaced.

    A name that file systems may refuse as too long is cut, and ends in a digest of the whole.
    """
    name = ",".join(f"{key}={_for_a_folder(text)}" for key, text in values.items())
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    ending = f"-{hashlib.sha256(encoded).hexdigest()[:12]}"
    return encoded[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """(ordinary overrides, values by swept key); raises InputError for overrides that contradict each other."""
    plain: list[str] = []
    swept: dict[str, list[str]] = {}
    problems: list[str] = []
    for override in overrides:
        key, _, text = override.partition("=")
        key = key.strip()
        values = split_values(text)
        if len(values) == 1:
            plain.append(override)
            continue
        problems += _wrong_values(override, key, values, swept)
        swept[key] = values
    for override in plain:
        if override.partition("=")[0].strip() in swept:
            problems.append(f"override {override!r}: this key is swept; must stand once")
    if not swept:
        problems.append("nothing to sweep: must be given values with commas between, like cai.iterations=0,10,25")
    if problems:
        raise InputError("\n".join(problems))
    return plain, swept


def split_values(text: str) -> list[str]:
    """What stands between the commas of a text, but those within brackets, braces and quotes."""
    values = [""]
    depth = 0
    for piece in re.findall(r"""'[^']*'|"(?:[^"\\]|\\.)*"|.""", text, re.DOTALL):
        if piece in "[{":
            depth += 1
        elif piece in "]}":
            depth -= 1
        if piece == "," and depth == 0:
            values.append("")
        else:
            values[-1] += piece
    return [value.strip() for value in values]


def as_text(value: Any) -> str:
    """A value as it would be written in an override."""
    if isinstance(value, str) and _is_read_as_it_is(value):
        return value
    return json.dumps(value)


def _is_read_as_it_is(text: str) -> bool:
    try:
        return parse_value(text) == text
    except ValueError:
        return False


def _wrong_values(override: str, key: str, values: Sequence[str], swept: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the values of one key."""
    if key in swept:
        yield f"override {override!r}: {key} is swept twice; must be once, with all values"
    if key == "output":
        yield f"override {override!r}: must be one folder; put a name with commas in quotes"
    if "" in values:
        yield f"override {override!r}: no value between two commas, or at an end; write null for none"


def _clashes(name: str, config: ExperimentConfig, points: Mapping[str, Point]) -> Iterator[str]:
    """That a point is named as one before it, or is the same."""
    if name in points:
        yield f"two points are named {name}: values must differ in letters or digits"
        return
    for other, point in points.items():
        if relevant(point.config) == relevant(config):
            yield f"{other} and {name} are the same config: each must stand once"
            return


def _for_a_folder(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")
