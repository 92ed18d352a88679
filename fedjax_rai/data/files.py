"""Files of rows: whatever form a user's data have, as (place, row); the place is said of what is wrong with a row.

A file's form is known by its content, compressed or not, and not by its name. What is here is never looked up on a hub.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedjax_rai import terminal
from fedjax_rai.config.files import DATA_SUFFIXES, data_suffix, files_at, is_glob, may_be_on_hub, stem
from fedjax_rai.config.prepared import is_prepared
from fedjax_rai.data.records import read_records
from fedjax_rai.errors import InputError, did_you_mean_file
from fedjax_rai.reading import decode_text, one_line, parse_json, parse_json_at

Rows = Iterator[tuple[str, Any]]
"""(place, row): a place is `file:line: row n` where lines are known, else `file: row n`."""
FORMS = "JSON, JSON lines, CSV, Parquet or Arrow"
_SPACE = " \t\r\n"
_PARQUET = b"PAR1"
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")  # a file, a stream
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def read_rows(path: str | Path, name: str | None = None, split: str = "train", revision: str | None = None) -> Rows:
    """(place, row) of a file, of all files of a folder or a glob, or of a data set on the hub.

    A folder may have been saved by `datasets`. `split` chooses among those of a folder or of a data set on the hub;
    `name` (its configuration) and `revision` are of a data set on the hub. Raises InputError for what cannot be read.
    """
    if is_prepared(str(path)):
        _refuse("name", name, path, "is prepared, and names its configuration itself")
        _refuse("revision", revision, path, "is here, and not on the hub")
        return read_records(str(path), split)
    here = Path(path)
    if here.exists():
        _refuse("revision", revision, path, "is here, and not on the hub")
    if here.is_dir():
        return _folder_rows(here, name, split)
    if here.exists() or is_glob(path):
        _refuse("name", name, path, "is files, which have no configurations")
        _refuse("split", None if split == "train" else split, path, "is files, which have no splits")
        files = [here] if here.exists() else files_at(path)
        if not files:
            raise InputError(f"{path}: no file matches{did_you_mean_file(path)}")
        return _rows_of(files)
    if may_be_on_hub(str(path)):
        return _loaded(str(path), name, split, revision)
    raise InputError(f"{path}: cannot be read: No such file or directory{did_you_mean_file(path)}")


def _refuse(key: str, value: str | None, path: str | Path, reason: str) -> None:
    if value is not None:
        raise InputError(f"{path}: {key} = {value!r}: must be left out, as {path} {reason}")


# --- a file: bytes, text, rows ----------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """A file's content, decompressed; raises InputError where it cannot be read or is an archive."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    for magic, (form, unpack) in _COMPRESSIONS.items():
        if content.startswith(magic):
            try:
                content = unpack(content)
            except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
                raise InputError(f"{path}: not a whole {form} file: {error}") from None
            break
    if content.startswith(b"PK\x03\x04"):
        content = _unzipped(content, path)
    if content[257:262] == b"ustar":
        raise InputError(f"{path}: is a tar archive; must be unpacked, to {FORMS}")
    return content


def _unzipped(content: bytes, path: Path) -> bytes:
    """The one file of a zip archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if not (name.endswith("/") or name.startswith("__MACOSX/"))]
            if len(names) == 1:
                return archive.read(names[0])
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: not a whole zip file: {error}") from None
    raise InputError(f"{path}: is a zip archive of {len(names)} files (or an Excel file); must be unpacked, to {FORMS}")


def _by_arrow(codec: str) -> Callable[[bytes], bytes]:
    def unpack(content: bytes) -> bytes:
        import pyarrow

        with pyarrow.input_stream(pyarrow.py_buffer(content), compression=codec) as stream:
            return stream.read()

    return unpack


_COMPRESSIONS: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"BZh91AY&SY": ("bzip2", bz2.decompress),
    b"\xfd7zXZ\x00": ("xz", lzma.decompress),
    b"\x28\xb5\x2f\xfd": ("Zstandard", _by_arrow("zstd")),
    b"\x04\x22\x4d\x18": ("LZ4", _by_arrow("lz4")),
}


def read_text(path: Path) -> str:
    """A file in UTF-8, compressed or not, without a byte order mark; InputError where it is none, or empty."""
    return _decoded(read_bytes(path), path)


def _decoded(content: bytes, path: Path) -> str:
    text = decode_text(content, str(path))
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return text


def file_rows(path: Path) -> Rows:
    """(place, row) of one file, in whatever form its content has."""
    content = read_bytes(path)
    if content.startswith(_PARQUET):
        return _table_rows(content, path, _parquet_table)
    if content.startswith(_ARROW):
        return _table_rows(content, path, _arrow_table)
    text = _decoded(content, path)
    form = _text_form(text, path)
    return form(text, path)


def _rows_of(files: Sequence[Path]) -> Rows:
    """The rows of files, one after another; each is read when its turn comes."""
    for path in files:
        yield from file_rows(path)


def _text_form(text: str, path: Path) -> Callable[[str, Path], Rows]:
    """The reader of a text by its first characters; a name decides only where a text can be read either way."""
    start = text[_skip(text, 0) :]
    name = data_suffix(path)
    named_csv = name in (".csv", ".tsv")
    named_json = name in (".json", ".jsonl", ".ndjson")
    if start[0] in "[{" and (not named_csv or _begins_json(start)):
        return json_rows if start[0] == "[" else _object_rows
    if _columns(start) > 1 and not (named_json and _begins_json(start.partition("\n")[0])):
        return csv_rows
    if named_json:
        return jsonl_rows
    if named_csv:
        return csv_rows
    raise InputError(f"{path}: neither {FORMS}; must be one of these (compressed, if you like)")


def _columns(text: str) -> int:
    """How many values the first line of a text has as CSV; 0 where it is none, or very long."""
    try:
        return len(next(csv.reader(io.StringIO(text), delimiter=_delimiter(text)), []))
    except csv.Error:
        return 0


def _begins_json(text: str) -> bool:
    """Whether a JSON value, or a list with a first JSON value, begins a text."""
    try:
        json.JSONDecoder().raw_decode(text, _skip(text, 1) if text.startswith("[") else 0)
    except (ValueError, RecursionError) as error:
        return isinstance(error, RecursionError) or not isinstance(error, json.JSONDecodeError)
    return True


# --- JSON -------------------------------------------------------------------------------------------------------


def json_rows(text: str, path: Path) -> Rows:
    """(place, row) of a JSON list, decoded row by row so that the line on which each one starts is known."""
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
        row, at = parse_json_at(text, at, str(path))
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


def jsonl_rows(text: str, path: Path) -> Rows:
    """(place, row) of an object a line; empty lines are passed over."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    first = lines[0][1].strip() if lines else ""
    if first.startswith("[") and not first.endswith("]"):
        raise InputError(
            f"{path}:{lines[0][0]}: is a JSON list; must be JSON lines, an object a line, without brackets"
        )
    for index, (number, line) in enumerate(lines):
        yield f"{path}:{number}: row {index}", parse_json(line, str(path), number)


def _object_rows(text: str, path: Path) -> Rows:
    """(place, row) of objects: one a line, or each over several lines, as programs print them for people."""
    first = text[_skip(text, 0) :].partition("\n")[0]
    if first.rstrip().endswith("}") or not _begins_json(text[_skip(text, 0) :]):
        return jsonl_rows(text, path)
    return _printed_rows(text, path)


def _printed_rows(text: str, path: Path) -> Rows:
    at = _skip(text, 0)
    index = 0
    while at < len(text):
        place = f"{path}:{text.count(chr(10), 0, at) + 1}: row {index}"
        row, at = parse_json_at(text, at, str(path))
        at = _skip(text, at)
        lists = [key for key, value in row.items() if _is_rows(value)] if isinstance(row, dict) else []
        if index == 0 and at == len(text) and lists:
            raise InputError(
                f"{place}: is one object, which has a list of rows under {lists[0]!r}; must be that list alone, or an "
                "object a line"
            )
        yield place, row
        index += 1


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, dict) for item in value)


# --- CSV --------------------------------------------------------------------------------------------------------


def _delimiter(text: str) -> str:
    """Comma, tab or semicolon: whichever the header has most often, outside of quotes."""
    header = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])
    return max(",\t;", key=header.count)


def csv_rows(text: str, path: Path) -> Rows:
    """(place, row) of a CSV file with a header; an empty value is None, and all others are text."""
    header: list[str] | None = None
    index = 0
    for place, values in _csv_values(text, path):
        if header is None:
            header = _header(values, place)
        elif len(values) != len(header):
            raise InputError(f"{place}: {len(values)} values; must be {len(header)}, as in the header")
        else:
            yield f"{place}: row {index}", {name: value or None for name, value in zip(header, values, strict=True)}
            index += 1


def _header(values: list[str], place: str) -> list[str]:
    names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(values)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{place}: column {name!r} stands twice in the header; must stand once")
    return names


def _csv_values(text: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """(`file:line`, values) of every line that is not empty; a value in quotes may go over several lines."""
    allowed = csv.field_size_limit(2**31 - 1)  # the library's limit is for all of the process
    first = 1
    found = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        for values in reader:
            if values:
                found.append((f"{path}:{first}", values))
            first = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{first}: not valid CSV: {error}") from None
    finally:
        csv.field_size_limit(allowed)
    return iter(found)


# --- Parquet and Arrow ------------------------------------------------------------------------------------------


def _parquet_table(source: Any) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(source)


def _arrow_table(source: Any) -> Any:
    import pyarrow

    opened = pyarrow.ipc.open_file if source.read(6) == _ARROW[0] else pyarrow.ipc.open_stream
    source.seek(0)
    return opened(source).read_all()


def _table_rows(content: bytes, path: Path, read: Callable[[Any], Any]) -> Rows:
    import pyarrow

    try:
        table = read(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    names = table.column_names
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: column {name!r} stands twice; must stand once")
    index = 0
    for batch in table.to_batches(max_chunksize=1024):
        try:
            rows = batch.to_pylist()
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:
            raise InputError(f"{path}: a row from {index} on cannot be read: {one_line(error)}") from None
        for row in rows:
            yield f"{path}: row {index}", row
            index += 1


# --- folders, and data sets on the hub --------------------------------------------------------------------------


def _folder_rows(folder: Path, name: str | None, split: str) -> Rows:
    if name is not None or _has_configurations(folder):
        return _loaded(str(folder), name, split, None)
    if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        return _saved_rows(folder, split)
    files = [file for file in files_at(folder) if data_suffix(file) in DATA_SUFFIXES]
    if not files:
        raise InputError(f"{folder}: no file of {FORMS} in it, at any depth, by their names; must hold one")
    return _rows_of(_of_split(files, folder, split))


def _has_configurations(folder: Path) -> bool:
    """Whether a folder's README, as on a hub, says which files belong together."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    head = card.read_bytes()[: 2**16].decode(errors="replace").split("\n---", 1)[0]
    return head.startswith("---") and "\nconfigs:" in head


def _of_split(files: Sequence[Path], folder: Path, split: str) -> list[Path]:
    """The files of a split, by the words in their names below the folder; without such words, all are of `train`."""
    wanted = _standard(split)
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder), split), []).append(file)
    if "" in splits and "train" not in splits:
        splits["train"] = splits.pop("")
    if wanted not in splits:
        there = ", ".join(sorted(name for name in splits if name))
        raise InputError(f"{folder}: no split {split!r}, only {there}; must have it")
    unread = splits.get("", [])
    if unread:
        others = ", ..." if len(unread) > 1 else ""
        terminal.say(
            f"{folder}: {terminal.plural(len(unread), 'file')} whose names say no split are not read, as others are of "
            f"{split!r}: {unread[0].relative_to(folder)}{others}"
        )
    return splits[wanted]


def _standard(split: str) -> str:
    """`train`, `validation` or `test` for what the field calls so; any other name is its own."""
    for name, words in _SPLITS.items():
        if split.lower() in words:
            return name
    return split


def _split_of(path: Path, split: str) -> str:
    """The split that a file's name, or a folder's above it, names last; nothing where none does."""
    name = stem(path)
    if split in (name, *path.parts[:-1]) or name.startswith(f"{split}-"):
        return _standard(split)
    words = re.split(r"[^a-z]+", "/".join([*path.parts[:-1], name]).lower())
    for word in reversed(words):
        for name, spellings in _SPLITS.items():
            if word in spellings:
                return name
    return ""


def _saved_rows(folder: Path, split: str) -> Rows:
    import datasets

    try:
        found: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever it meets in the folder's files
        raise InputError(f"{folder}: no data set that can be loaded: {one_line(error)}") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise InputError(f"{folder}: no split {split!r}, only {', '.join(map(str, found))}; must have it")
        found = found[split]
    elif split not in ("train", str(found.split)):
        raise InputError(f"{folder}: no split {split!r}; was saved as one data set, without splits")
    return _numbered(found, str(folder))


def _loaded(path: str, name: str | None, split: str, revision: str | None) -> Rows:
    import datasets

    try:
        found: Any = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # of the network, of the hub, of whatever it meets in files
        here = "cannot be loaded" if Path(path).exists() else "is no file here, nor a data set that can be loaded"
        raise InputError(f"{path}: {here}: {one_line(error)}") from None
    return _numbered(found, path)


def _numbered(rows: Iterable[Any], path: str) -> Rows:
    return ((f"{path}: row {index}", row) for index, row in enumerate(rows))
