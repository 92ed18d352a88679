"""The files that a config names: whether they are there, and their digests."""

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fedjax_rai.config.keys import imported_values, schemas
from fedjax_rai.config.names import attribute, fingerprint
from fedjax_rai.config.schema import TINY, ExperimentConfig, is_hub_name
from fedjax_rai.config.views import value_at
from fedjax_rai.errors import InputError, did_you_mean_file

ONLINE = "online"
CONSTITUTION = Path(__file__).parent.parent / "assets" / "constitution.yaml"


class Wanted(NamedTuple):
    """What a key that names a file or a folder must name."""

    what: str
    shipped: str | None  # the default, which is no file; None: no file at all
    inside: str  # a file that a folder must hold, or nothing


@cache
def wanted() -> dict[str, Wanted]:
    """What every key that the schema marks as `a_file` must name, by key."""
    found = {}
    for key, schema in schemas().items():
        if "file" in schema:
            found[key] = Wanted(schema["file"], schema["default"], schema.get("inside", ""))
    return found


def check_files(config: ExperimentConfig) -> None:
    """Raise InputError naming every configured file or folder that is not there, or value that cannot be imported.

    What could be the name of a model or a data set on a hub (`owner/name`) is left to its reader.
    """
    imported = imported_values(config)
    problems = []
    for key, file in wanted().items():
        value = value_at(config, key)
        if key in imported or value is None or value == file.shipped:
            continue
        if not _may_be_there(key, value, file.inside):
            near = did_you_mean_file(value)
            shipped = file.shipped or (TINY if file.inside else None)
            allowed = "must be one" if shipped is None else f"must be one, or {shipped!r}"
            problems.append(f"{key} = {value!r}: no {file.what} there; {allowed}{near}")
    for key, name in imported.items():
        try:
            attribute(name, key, object)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


def _may_be_there(key: str, value: str, inside: str) -> bool:
    """Whether a file or folder is here, or may be on a hub."""
    path = Path(value)
    if (path / inside).exists():
        return True
    if key == "data.train":
        return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(?<!\.json)(?<!\.jsonl)", value) is not None
    return bool(inside) and is_hub_name(value) and not path.exists()


def digests(config: ExperimentConfig) -> dict[str, str]:
    """The hash of every file here that a config names, by key; of a folder, of the JSON lines or the adapter in it.

    A `package.module:attribute` gives its name and the hash of the file that it is from.
    """
    imported = imported_values(config)
    found = {key: fingerprint(name, key) for key, name in imported.items()}
    for key, file in wanted().items():
        value = value_at(config, key)
        is_model = bool(file.inside)  # those of a hub are noted by their commit
        if key not in imported and value != file.shipped and not is_model and Path(value).exists():
            found[key] = digest(_files(Path(value)))
    return found


def digest(files: Iterable[Path]) -> str:
    """The SHA-256 hash of files' contents, one after another."""
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                found.update(block)
    return f"sha256:{found.hexdigest()}"


def _files(path: Path) -> list[Path]:
    """A file, or the JSON-lines files of a folder, or the files of an adapter in it."""
    if path.is_dir():
        return sorted([*path.glob("*.jsonl"), *path.glob("adapter_config.json"), *path.glob("adapter_model.*")])
    return [path]
