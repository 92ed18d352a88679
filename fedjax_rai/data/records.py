"""Reading what TFDS prepared, row by row in any order, without tensorflow; and which part of it each host reads."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedjax_rai.config.prepared import CHECKSUMS, INFO, METADATA, folder
from fedjax_rai.data.download import file_sha256
from fedjax_rai.errors import InputError, did_you_mean
from fedjax_rai.reading import read_object

FORMAT = "array_record"


class Records(Sequence):
    """The rows of a split of a prepared data set, in its order; of several hosts, those of one.

    A row is a dict of text, numbers and lists. `split` is a split's name, or a part of it as TFDS writes it, like
    `train[:10%]`. Hosts' parts are disjoint, cover the split, follow each other, and their sizes are within one.
    Raises InputError where the data set is not prepared, is damaged, or has no such split.
    """

    def __init__(self, source: str, split: str = "train", host: int = 0, hosts: int = 1) -> None:
        if not 0 <= host < hosts:
            raise InputError(f"host {host} of {hosts}: must be from 0 to {hosts - 1}")
        self._path = folder(source)
        _check(self._path, source)
        self._rows, self._features = _open(self._path, source, split)
        rows = len(self._rows)
        self._part = range(rows * host // hosts, rows * (host + 1) // hosts)

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        record = self._rows[self._part[index]]
        return {name: _plain(record[name], feature) for name, feature in self._features.items()}


def read_records(source: str, split: str = "train") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a prepared data set; a place is `source: split train: row 3`."""
    records = Records(source, split)
    return ((f"{source}: split {split}: row {index}", records[index]) for index in range(len(records)))


def write_checksums(path: Path) -> None:
    """Keep the hash of every file of a prepared data set beside them."""
    hashes = {file.name: file_sha256(file) for file in sorted(path.iterdir())}
    (path / CHECKSUMS).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def metadata(source: str) -> dict[str, Any]:
    """What a prepared corpus was made of: its files by split, their hashes, and what became of their rows."""
    return read_metadata(folder(source))


def read_metadata(path: Path) -> dict[str, Any]:
    """The same of the folder of a prepared data set; empty where it is not there, or damaged."""
    try:
        return read_object(path / METADATA)
    except InputError:
        return {}


def _check(path: Path, source: str) -> None:
    """Raise InputError where the format is another, or a file is not as it was written."""
    try:
        info = read_object(path / INFO)
        hashes = read_object(path / CHECKSUMS) if (path / CHECKSUMS).is_file() else {}
    except InputError:
        raise InputError(f"{source}: damaged: {INFO} or {CHECKSUMS} in {path} is no JSON; {_AGAIN}") from None
    kind = info.get("fileFormat")
    if kind != FORMAT:
        raise InputError(f"{source}: prepared in {path} as {kind}; must be {FORMAT}, the one that is read in parts")
    for name, expected in hashes.items():
        file = path / name
        if not file.is_file() or file_sha256(file) != expected:
            state = "changed" if file.is_file() else "missing"
            raise InputError(f"{source}: damaged: {file} is {state}; {_AGAIN}")


_AGAIN = "to prepare it again: fedjax-rai data prepare, with --overwrite"


def _open(path: Path, source: str, split: str) -> tuple[Any, dict[str, Any]]:
    """The rows of a split, or of a part of it, and their features by name."""
    tfds = load_tfds()
    builder = tfds.builder_from_directory(path)
    name = split.partition("[")[0]
    if name not in builder.info.splits:
        near = did_you_mean(name, builder.info.splits)
        raise InputError(f"{source}: no split {name!r}; must be one of {', '.join(builder.info.splits)}{near}")
    try:
        instruction = builder.info.splits[split]
    except (ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{source}: split {split!r}: {reason}; must be like {name}, {name}[:100], {name}[:10%]"
        ) from None
    if not instruction.num_examples:
        raise InputError(f"{source}: split {split!r} has no rows; must have one at least")
    features = dict(sorted(builder.info.features.items()))  # TFDS keeps them in no order
    return builder.as_data_source(split=split), features


def load_tfds() -> Any:
    """`tensorflow_datasets`; raises InputError where what it needs is not installed."""
    try:
        import array_record  # noqa: F401
        import importlib_resources  # noqa: F401  # TFDS imports it late, and does not require it
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"prepared data sets need {error.name}, which is not installed: pip install tensorflow-datasets "
            "importlib_resources array_record. array_record is built for Linux and for macOS on Apple silicon alone; "
            "elsewhere read SQuARe's file itself, by data.train=FILE"
        ) from None
    return tensorflow_datasets


def _plain(value: Any, feature: Any) -> Any:
    """A value of a row as JSON would have it: text for bytes, and objects in a list for columns of lists."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        columns = {name: _plain(column, None) for name, column in value.items()}
        if type(feature).__name__ != "Sequence":
            return columns
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(each, None) for each in value] if isinstance(value, list) else value
