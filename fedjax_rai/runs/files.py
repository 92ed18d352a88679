"""JSON files, whole or not at all, and what stands in them as typed values."""

import errno
import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from fedjax_rai import reading
from fedjax_rai.errors import InputError


def write_text(path: Path, text: str) -> None:
    """All of it or nothing: a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """A value, whole or not at all; named tuples become objects (`plain`)."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


COPY = "restore it from a copy"


def read_json(path: Path, remedy: str = COPY) -> Any:
    """What stands in a JSON file, as dictionaries and lists; raises InputError, with the remedy, for any other file."""
    try:
        return reading.read_json(path)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None


def read_object(path: Path, remedy: str = COPY) -> dict[str, Any]:
    """The object in a JSON file; raises InputError, with the remedy, for a file that holds anything else."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold an object in JSON; {remedy}")
    return value


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """A JSON-lines file in place of what was there, whole or not at all."""
    write_text(path, "".join(map(_line, rows)))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSON-lines file; a last one cut off by a kill is left out. No file: no rows.

    Raises InputError with the line where another one is no JSON object.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")  # a kill may leave half a character
    if not whole:
        return []
    return [_row(line, path, number) for number, line in enumerate(_text(whole, path).split("\n"), 1)]


def _text(content: bytes, path: Path) -> str:
    try:
        return reading.decode_text(content, str(path))
    except InputError as error:
        raise InputError(f"{error}; {COPY}") from None


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = reading.parse_json(line, str(path), number)
    except InputError as error:
        raise InputError(f"{error}; {COPY}") from None
    if not isinstance(row, dict):
        raise InputError(f"{path}:{number}: must be an object in JSON; {COPY}")
    return row


def append_row(path: Path, row: Any) -> None:
    """Add one row to a JSON-lines file."""
    append_rows(path, [row])


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Add rows to a JSON-lines file."""
    text = "".join(map(_line, rows))
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _line(row: Any) -> str:
    return json.dumps(plain(row), allow_nan=False, ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """A value as JSON has it: named tuples and mappings are objects, other sequences lists.

    A number that is none (NaN, infinity) is null, as JSON has no word for it.
    """
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, Mapping):
        return {name: plain(content) for name, content in value.items()}
    if isinstance(value, list | tuple):
        return [plain(content) for content in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def typed(kind: Any, value: Any, where: str) -> Any:
    """What JSON holds as the type that it is meant to have: the other way round of `plain`.

    `kind`: a named tuple, `list[...]`, `dict[str, ...]`, `... | None`, `int`, `float`, `bool` or `str`. Null is NaN
    where a `float` must stand. Raises InputError where something else stands there; `where` names the place.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        (present,) = [part for part in inner if part is not NoneType]
        return None if value is None else typed(present, value, where)
    if kind is float and value is None:
        return math.nan
    if not _fits(kind, origin, value):
        raise InputError(f"{where}: is {value!r}; must be {_in_words(kind)}; was it written by another version?")
    if is_named_tuple(kind):
        return _named_tuple(kind, value, where)
    if origin is list:
        return [typed(inner[0], content, f"{where}[{i}]") for i, content in enumerate(value)]
    if origin is dict:
        return {name: typed(inner[1], content, f"{where}.{name}") for name, content in value.items()}
    return value


def is_named_tuple(kind: Any) -> bool:
    """Whether this is a `NamedTuple` class."""
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _fits(kind: Any, origin: Any, value: Any) -> bool:
    if is_named_tuple(kind):
        return isinstance(value, Mapping)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _in_words(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if kind in words:
        return words[kind]
    return "a list" if get_origin(kind) is list else "an object"


def _named_tuple(kind: Any, value: Mapping[str, Any], where: str) -> Any:
    unknown = [name for name in value if name not in kind._fields]
    missing = [name for name in kind._fields if name not in value and name not in kind._field_defaults]
    if unknown or missing:
        found = [f"unknown: {', '.join(unknown)}"] if unknown else []
        found += [f"missing: {', '.join(missing)}"] if missing else []
        raise InputError(f"{where}: {'; '.join(found)}; was it written by another version?")
    kinds = get_type_hints(kind)
    return kind(**{name: typed(kinds[name], content, f"{where}.{name}") for name, content in value.items()})


LONGEST_INSIDE = 200  # bytes of the longest path within a folder of ours: a state's, while it is written


def check_writable(folder: Path, stated: str) -> None:
    """Raises InputError unless files can be written into a folder that is there, or that can be made; leaves nothing.

    A file of that name is no fault here: who wants the folder says what it must be. `stated` says who names the folder,
    as messages begin with it.
    """
    whole = folder.absolute()
    there = next(place for place in (whole, *whole.parents) if os.path.lexists(place))
    if there == whole and there.is_file():
        return  # which the caller takes for what it is
    if not there.is_dir():
        raise InputError(f"{stated}: {there} is no folder; name another one")
    try:
        _check_names(there, whole)
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"written")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{stated}: cannot be written to ({there}: {reason}); name another folder") from None


def _check_names(there: Path, whole: Path) -> None:
    """Raises OSError if the names behind the folder that is there, or a path within, would be too long."""
    longest_name = os.pathconf(there, "PC_NAME_MAX")
    names = [len(os.fsencode(name)) for name in whole.relative_to(there).parts]
    length = len(os.fsencode(whole)) + LONGEST_INSIDE
    if max(names, default=0) > longest_name or length > os.pathconf(there, "PC_PATH_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


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
