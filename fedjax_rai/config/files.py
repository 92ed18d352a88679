"""The files that a config names: whether they are there, and their digests."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.config.keys import imported_values, leaves
from fedjax_rai.config.names import attribute, fingerprint
from fedjax_rai.config.prepared import digested_files, folder, is_prepared
from fedjax_rai.config.schema import TINY, ExperimentConfig, is_hub_name
from fedjax_rai.errors import InputError, did_you_mean_file

ONLINE = "online"
CONSTITUTION = Path(__file__).parent.parent / "assets" / "constitution.yaml"


class Wanted(NamedTuple):
    """What a key that names a file or a folder must name."""

    what: str
    shipped: str | None  # the default, which is no file; None: no file at all
    inside: tuple[str, ...]  # files that a folder must hold; none: it may be a file
    hub: bool  # a model, which may be on a hub
    rows: bool  # in any form that `data.files.read_rows` takes


def wanted(config: ExperimentConfig) -> Iterator[tuple[str, Wanted, str]]:
    """(key, what it must name, the file or folder that it names) of every key that the schema marks as `a_file`.

    Not of those that name none, or a value of the user's own. Of a mapping in place of a path it is the mapping's path.
    """
    imported = imported_values(config)
    for key, schema, value in leaves(config):
        if "file" not in schema or key in imported or not isinstance(value, str):
            continue
        inside = tuple(schema.get("inside", ()))
        hub, rows = bool(schema.get("hub")), bool(schema.get("rows"))
        file = Wanted(schema["file"], shipped(schema), inside, hub, rows)
        if value != file.shipped and value not in schema.get("enum", ()):
            yield key, file, value


def shipped(schema: dict[str, Any]) -> str | None:
    """What a key that is marked as `a_file` takes that is no file; None: nothing, or null."""
    return schema.get("shipped", schema.get("default", TINY))


def check_files(config: ExperimentConfig) -> None:
    """Raise InputError naming every configured file or folder that is not there, or value that cannot be imported.

    What could be the name of a model or a data set on a hub (`owner/name`) is left to its reader.
    """
    problems = []
    for key, file, value in wanted(config):
        if file.rows and is_prepared(value):
            try:
                folder(value)
            except InputError as error:
                problems.append(f"{key} = {error}")
        elif not _may_be_there(value, file):
            problems.append(f"{key} = {value!r}: {_not_there(value, file)}")
    for key, name in imported_values(config).items():
        try:
            attribute(name, key, object)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


def _not_there(value: str, file: Wanted) -> str:
    """What is missing where a file or folder should be, what may stand there, and what may be meant."""
    near = did_you_mean_file(value, inside=file.inside)
    shipped = file.shipped or (TINY if file.hub else None)
    allowed = "must be one" if shipped is None else f"must be one, or {shipped!r}"
    missing = [name for name in file.inside if not (Path(value) / name).exists()]
    lacks = f" (it holds no {' and no '.join(missing)})" if Path(value).is_dir() else ""
    return f"no {file.what} there{lacks}; {allowed}{near}"


def _may_be_there(value: str, file: Wanted) -> bool:
    """Whether a file or folder is here, or may be on a hub."""
    path = Path(value)
    if path.exists() and all((path / name).exists() for name in file.inside):
        return True
    if file.rows:
        return bool(is_glob(value) and files_at(value)) or may_be_on_hub(value)
    return file.hub and is_hub_name(value) and not path.exists()


def digests(config: ExperimentConfig) -> dict[str, str]:
    """The hash of every file here that a config names, by key; of a folder or a glob of rows, of all files and names.

    Of a folder of other files, the hash of the JSON lines or the adapter in it. A `package.module:attribute` gives its
    name and the hash of the file that it is from.
    """
    found = {key: fingerprint(name, key) for key, name in imported_values(config).items()}
    for key, file, value in wanted(config):
        if file.hub:  # those of a hub are noted by their commit
            continue
        if file.rows and (is_prepared(value) or Path(value).exists() or is_glob(value)):
            found[key] = rows_digest(value)
        elif Path(value).exists():
            found[key] = digest(_files(Path(value)))
    return found


def digest(files: Iterable[Path]) -> str:
    """The SHA-256 hash of files' contents, one after another."""
    found = hashlib.sha256()
    for path in files:
        _add(found, path)
    return f"sha256:{found.hexdigest()}"


def rows_digest(path: str | Path) -> str:
    """The SHA-256 hash of a file of rows; of a folder or a glob, of all files' names and contents, at any depth."""
    here = folder(str(path)) if is_prepared(str(path)) else Path(path)
    if is_prepared(str(path)) and (known := digested_files(here)):
        return digest(known)
    if here.is_file():
        return digest([here])
    files = files_at(path if is_glob(path) else here)
    names = [file.relative_to(here).as_posix() if here.is_dir() else str(file) for file in files]
    found = hashlib.sha256()
    for name, file in sorted(zip(names, files, strict=True)):
        found.update(f"{name}\0{digest([file])}\n".encode(errors="surrogateescape"))
    return f"sha256:{found.hexdigest()}"


def _add(found: Any, path: Path) -> None:
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                found.update(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _files(path: Path) -> list[Path]:
    """A file, or the JSON-lines files of a folder, or the files of an adapter in it."""
    if path.is_dir():
        return sorted([*path.glob("*.jsonl"), *path.glob("adapter_config.json"), *path.glob("adapter_model.*")])
    return [path]


# --- files of rows: which there are -----------------------------------------------------------------------------

DATA_SUFFIXES = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather"}
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip"}


def data_suffix(path: Path) -> str:
    """The last suffix of a name, in small letters, that is not a compression's: `.jsonl` of `A.JSONL.GZ`."""
    for suffix in reversed(path.suffixes):
        if suffix.lower() not in _COMPRESSED:
            return suffix.lower()
    return ""


def stem(path: Path) -> str:
    """A name without the suffixes of data and compression: `v1.train` of `v1.train.jsonl.gz`."""
    name = path.name
    while Path(name).suffix.lower() in DATA_SUFFIXES | _COMPRESSED:
        name = name[: -len(Path(name).suffix)]
    return name


def is_glob(path: str | Path) -> bool:
    """Whether a path is a pattern, and not the name of something that is here."""
    return glob.has_magic(str(path)) and not Path(path).exists()


def may_be_on_hub(path: str) -> bool:
    """Whether a data set on a hub may be meant: `owner/name`, where no such owner is a folder here."""
    named_as_file = data_suffix(Path(path)) in DATA_SUFFIXES or Path(path).suffix.lower() in _COMPRESSED
    return is_hub_name(path) and not named_as_file and not Path(path).exists() and not Path(path).parent.is_dir()


def files_at(path: str | Path) -> list[Path]:
    """A file, or all files of a folder at any depth, or of what a glob matches; in alphabetical order, without hidden
    ones and the caches that `datasets` leaves. Raises InputError for a folder that cannot be read."""
    matched = [Path(found) for found in glob.glob(str(path), recursive=True)] if is_glob(path) else [Path(path)]
    files = []
    for found in sorted(matched):
        files += _below(found) if found.is_dir() else [found]
    return list(dict.fromkeys(files))


def _below(folder: Path) -> list[Path]:
    """All files of a folder, links followed, but none of them in a circle."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from None

    files = []
    entered = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root) / name for name in names if not (name.startswith(".") or _CACHE.fullmatch(name))]
    return sorted(files)


_CACHE = re.compile(r"cache-.*\.arrow|tmp\w+")
