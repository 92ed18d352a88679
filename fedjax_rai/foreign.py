"""Files that others wrote: JSON objects, whatever is wrong with them, and Git LFS pointers in the place of any file."""

import json
from pathlib import Path
from typing import Any

from fedjax_rai.errors import InputError

# the second one is that of the versions before Git LFS 1.0
POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")


def refuse_pointer(path: Path) -> None:
    """Raises InputError where the file is a Git LFS pointer: a few lines of text in place of what it stands for."""
    try:
        with path.open("rb") as file:
            start = file.read(max(map(len, POINTERS)))
    except OSError:
        return  # who reads the file says so
    if start.startswith(POINTERS):
        raise InputError(f"{path}: is a Git LFS pointer, not the file itself; fetch it by `git lfs pull` in its folder")


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; a byte order mark is passed over.

    Raises InputError, with the path, for a file that cannot be read, a Git LFS pointer, what is no JSON or nothing that
    Python can hold (numbers of thousands of digits, thousands of brackets in one another), text that is no Unicode
    (half a character), and JSON that is no object.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    refuse_pointer(path)
    try:
        value = json.loads(data.decode("utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; must be JSON in UTF-8") from None
    except UnicodeEncodeError:
        raise InputError(f"{path}: holds a text that is no Unicode (half a character)") from None
    except RecursionError:
        raise InputError(f"{path}: not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def one_line(error: BaseException, most: int = 300) -> str:
    """What another library says is wrong, on one line that is not too long; the error's kind where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."
