"""Files of rows: whatever form a user's data have, as (place, row); the place is said of what is wrong with a row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedjax_rai.config.prepared import is_prepared
from fedjax_rai.data.records import read_records
from fedjax_rai.errors import InputError

_SPACE = " \t\r\n"


def read_rows(
    path: str | Path, name: str | None = None, split: str = "train", revision: str | None = None
) -> Iterator[tuple[str, Any]]:
    """(place, row) of a JSON list, JSON lines, or what `datasets` reads; raises InputError where it cannot be read.

    `name`, `split` and `revision` are of a data set on the hub. A place is `file:line: row n` where lines are known.
    """
    if is_prepared(str(path)):
        return read_records(str(path), split)
    path = Path(path)
    if path.suffix in (".json", ".jsonl"):
        text = read_text(path)
        return json_rows(text, path) if path.suffix == ".json" else jsonl_rows(text, path)
    return _dataset_rows(path)


def checked_text(value: str, place: str, field: str) -> str:
    """The text itself; raises InputError where it holds half of a surrogate pair, which is no Unicode text."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        raise InputError(
            f"{place}: field {field!r} holds half of a character, {half} at character {error.start}; must be Unicode "
            "text, in which surrogates stand in pairs"
        ) from None
    return value


def read_text(path: Path) -> str:
    """A file in UTF-8, without a byte order mark; raises InputError where it is none, or empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; must be a text file in UTF-8") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return text


def json_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a JSON list, decoded row by row so that the line on which each one starts is known."""
    decoder = json.JSONDecoder()
    line = 1
    counted = 0  # up to where `line` is known
    index = 0
    at = _skip(text, 0)
    if text[at] != "[":
        raise InputError(f"{path}:{text.count(chr(10), 0, at) + 1}: must be a JSON list of objects, in brackets")
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]" or index:
        line += text.count("\n", counted, at)
        counted = at
        try:
            row, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
        yield f"{path}:{line}: row {index}", row
        at = _skip(text, at)
        index += 1
        if text[at : at + 1] != ",":
            break
        at = _skip(text, at + 1)
    if text[at : at + 1] != "]" or text[at + 1 :].strip():
        wrong = at if text[at : at + 1] != "]" else _skip(text, at + 1)
        error = json.JSONDecodeError("", text, wrong)
        wanted = "a comma or the closing bracket" if wrong == at else "nothing after the list"
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: must be {wanted} here")


def _skip(text: str, at: int) -> int:
    """The place of the first character from `at` on that is no white space."""
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def jsonl_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of an object a line; empty lines are passed over."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for index, (number, line) in enumerate(lines):
        try:
            yield f"{path}:{number}: row {index}", json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}:{error.colno}: not valid JSON: {error.msg}") from None


def _dataset_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        rows: Any = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path), split="train")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no .json or .jsonl file, nor a data set that can be loaded: {reason}") from None
    if isinstance(rows, datasets.DatasetDict):
        if "train" not in rows:
            raise InputError(f"{path}: no split 'train', only {', '.join(map(str, rows))}; must have it")
        rows = rows["train"]
    return ((f"{path}: row {index}", row) for index, row in enumerate(rows))
