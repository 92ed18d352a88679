"""Files of users as text and JSON: whatever is wrong with one is an InputError with its place."""

import json
import re
from pathlib import Path
from typing import Any

from fedjax_rai.errors import InputError, did_you_mean_file

DEEPEST = 100  # levels of lists and objects within each other; what prints or compares them goes down by recursion
# How the file begins that Git LFS leaves in place of a large one; the second one is that of its first versions.
POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_MARK = "\ufeff"
_HALF = re.compile("[\ud800-\udfff]")


class _Repeated(ValueError):
    """A key that stands twice in an object, so that one of its values would be lost."""


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(fields)
    if len(found) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Repeated(f"field {twice!r} stands twice in an object; must stand once")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def read_text(path: Path, what: str = "text file", pattern: str = "*") -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises InputError with the file and, for a byte that is no UTF-8, its line. `what`: the kind that it must be;
    `pattern`: files beside it of that kind, one of whose names may be meant.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        reason = "is a folder" if isinstance(error, IsADirectoryError) else "no such file"
        raise InputError(f"{path}: {reason}; must be a {what}{did_you_mean_file(path, pattern)}") from None
    except (OSError, ValueError) as error:  # of a name that no file can have
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return decode_text(content, str(path))


def decode_text(content: bytes, name: str) -> str:
    """Bytes in UTF-8 as text, without a byte order mark; raises InputError with the name and the line."""
    if content.startswith(POINTERS):
        raise InputError(f"{name}: {_POINTS}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{name}: is text in UTF-16; must be in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: byte {error.start} is not UTF-8; must be a text file in UTF-8") from None


def read_json(path: Path, what: str = "JSON file", pattern: str = "*.json") -> Any:
    """What a JSON file holds; raises InputError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, what, pattern), str(path))


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; raises InputError as `read_json` does, and for JSON that is no object."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a JSON object")
    return found


def refuse_pointer(path: Path) -> None:
    """Raises InputError where a file, of whatever form, is a pointer of Git LFS; who reads it says all else."""
    try:
        with path.open("rb") as file:
            start = file.read(max(map(len, POINTERS)))
    except OSError:
        return
    if start.startswith(POINTERS):
        raise InputError(f"{path}: {_POINTS}")


def one_line(error: BaseException, most: int = 300) -> str:
    """What another library says is wrong, on one line that is not too long; the error's kind where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def shown(value: Any) -> str:
    """A value as a message shows it; nobody reads a number of hundreds of digits."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of too many digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def parse_json(text: str, name: str, line: int = 1) -> Any:
    """The JSON value that is the whole text, whose first line is `line` of what is called `name`.

    Raises InputError with line and column where it is none, and for what JSON allows and nothing here can hold: text
    with half of a character (a lone surrogate), a number of thousands of digits, more levels than `DEEPEST`.
    """
    value, end = parse_json_at(text, 0, name, line)
    rest = text[end:].lstrip(" \t\r\n")
    if rest:
        raise _not_json("nothing may stand behind the value", text, len(text) - len(rest), name, line)
    return value


def parse_json_at(text: str, at: int, name: str, line: int = 1) -> tuple[Any, int]:
    """(the JSON value that begins at a character of the text, where it ends); raises InputError as `parse_json`."""
    while text[at : at + 1] in (" ", "\t", "\r", "\n", _MARK):
        at += 1
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _not_json(error.msg, text, error.pos, name, line) from None
    except RecursionError:
        raise InputError(f"{_place(text, at, name, line)}: {_TOO_DEEP}") from None
    except _Repeated as error:
        raise InputError(f"{_place(text, at, name, line)}: {error}") from None
    except ValueError:  # Python's limit for numbers in digits
        raise InputError(f"{_place(text, at, name, line)}: holds a number of thousands of digits") from None
    wrong = _no_text(value)
    if wrong is not None:
        raise InputError(f"{_place(text, at, name, line)}: {wrong}")
    return value, end


def checked_text(value: str, place: str, field: str) -> str:
    """The text itself; raises InputError where it holds half of a character, which is no Unicode text."""
    wrong = half_a_character(value)
    if wrong is None:
        return value
    raise InputError(f"{place}: field {field!r} {wrong}")


def half_a_character(text: str) -> str | None:
    """What is wrong with a text that holds a lone surrogate, and so is no Unicode; None: nothing is."""
    found = _HALF.search(text)
    if found is None:
        return None
    return f"holds half of a character, U+{ord(found.group()):04X} at character {found.start()}; must be Unicode text"


_POINTS = "is a pointer of Git LFS in place of the file; fetch the file: git lfs pull"
_TOO_DEEP = f"lists and objects within each other, more than {DEEPEST} levels"


def _no_text(value: Any) -> str | None:
    """What is wrong with a value that has too many levels, or half a character in some text, with its field."""
    left: list[tuple[str, int, Any]] = [("", 0, value)]
    while left:
        field, level, content = left.pop()
        if level > DEEPEST:
            return _TOO_DEEP
        if isinstance(content, str):
            wrong = half_a_character(content)
            if wrong is not None:
                return f"field {field!r} {wrong}" if field else f"the text {wrong}"
        elif isinstance(content, list):
            left += [(f"{field}[{i}]", level + 1, inner) for i, inner in enumerate(content)]
        elif isinstance(content, dict):
            for name, inner in content.items():
                wrong = half_a_character(name)
                if wrong is not None:
                    return f"the name of a field {wrong}"
                left.append((f"{field}.{name}" if field else name, level + 1, inner))
    return None


def _place(text: str, at: int, name: str, line: int) -> str:
    return f"{name}:{line + text.count(chr(10), 0, at)}"


def _not_json(reason: str, text: str, at: int, name: str, line: int) -> InputError:
    column = at - text.rfind("\n", 0, at)
    return InputError(f"{_place(text, at, name, line)}:{column}: not valid JSON: {reason}")
