"""What a run writes for people and programs: JSON files, whole or not at all; progress with time left."""

import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedjax_rai.errors import InputError


def write_text(path: Path, text: str) -> None:
    """All of it or nothing: a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSON-lines file; a last one cut off by a kill is left out. No file: no rows."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")  # a kill may leave half a character
    return [json.loads(line) for line in lines[:-1]]


def append_row(path: Path, row: dict[str, Any]) -> None:
    append_rows(path, [row])


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows; a number that is none (NaN, infinity) becomes null, as JSON has no word for it."""
    finite = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in finite))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder. Raises InputError if one is there; a killed one is there no more."""
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            there = f"{folder}: another process is at work there; wait for it, or name another folder"
            raise InputError(there) from None
        yield
    finally:
        os.close(held)
