"""Names of prepared data sets, `tfds:square/square20k_en`, and the folders where they lie; nothing is read here."""

import os
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.errors import InputError, did_you_mean

PREFIX = "tfds:"
DATASET = "square"
CORPORA = ("square20k_en", "square20k_ko", "slg20k_en", "slg20k_ko", "questions_en", "questions_ko")
FORM = f"{PREFIX}NAME/CONFIG, like {PREFIX}{DATASET}/{CORPORA[0]}, or {PREFIX}DIR/NAME/CONFIG for those under a folder"
INFO = "dataset_info.json"  # TFDS writes it last: a folder that has it is whole
CHECKSUMS = "sha256.json"
"""Beside the records of a corpus: the hash of each file. The reader of damaged records ends the whole process."""
METADATA = "metadata.json"
"""What a corpus was made of, and the hash of its rows; two that are made of the same have the same."""
_COLUMNS = {
    "square20k": "square",
    "slg20k": {
        "messages": "messages",
        "label": "verdict",
        "harmful": "unsafe",
        "acceptable": "safe",
        "category": "question_category",
    },
}
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class PreparedName(NamedTuple):
    """A prepared data set, as TFDS names it."""

    data_dir: Path
    dataset: str
    config: str
    version: str | None
    """Such as 1.0.0; None: the newest that is there."""


def is_prepared(source: str) -> bool:
    """Whether a source names a prepared data set, rather than a file, a folder or one on a hub."""
    return source.startswith(PREFIX)


def default_data_dir() -> Path:
    """Where TFDS keeps what it prepared: `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def parse(source: str) -> PreparedName:
    """What `tfds:[DIR/]NAME/CONFIG[:VERSION]` means; raises InputError for another form, or an unknown corpus."""
    folder, _, last = source.removeprefix(PREFIX).rpartition("/")
    above, slash, dataset = folder.rpartition("/")
    config, _, version = last.partition(":")
    if not (is_prepared(source) and dataset and config) or (version and not _VERSION.fullmatch(version)):
        raise InputError(f"{source}: no prepared data set; must be {FORM}, and maybe a version, like :1.0.0")
    if dataset == DATASET:
        check_corpus(config, source)
    data_dir = Path(above or slash).expanduser() if slash else default_data_dir()
    return PreparedName(data_dir, dataset, config, version or None)


def check_corpus(name: str, stated: str) -> None:
    """Raise InputError, beginning with `stated`, unless there is a corpus of that name."""
    if name not in CORPORA:
        near = did_you_mean(name, CORPORA)
        raise InputError(f"{stated}: no such corpus; must be one of {', '.join(CORPORA)}{near}")


def language_of(source: str) -> str | None:
    """The language of a corpus, `en` or `ko`; None for any other source."""
    if not is_prepared(source):
        return None
    name = parse(source)
    return name.config.rpartition("_")[2] if name.dataset == DATASET else None


def columns_of(source: str) -> Any:
    """The columns of a corpus' pairs, as `data.columns` names them; None for any other source."""
    if language_of(source) is None:
        return None
    return _COLUMNS.get(parse(source).config.rpartition("_")[0])


def check_language(source: str, language: str, key: str = "data.language") -> None:
    """Raise InputError, which names the key, where a corpus is in another language than the one that is read."""
    found = language_of(source)
    if found is not None and found != language:
        raise InputError(f"{source}: is in another language than {key} = {language!r}; must be {found!r}")


def folder(source: str) -> Path:
    """The folder of a prepared data set, of its newest version if none is named.

    Raises InputError, with the command to type, where it is not prepared.
    """
    name = parse(source)
    versions = name.data_dir / name.dataset / name.config
    there = [path for path in versions.glob("*") if _VERSION.fullmatch(path.name) and (path / INFO).is_file()]
    if name.version is not None:
        there = [path for path in there if path.name == name.version]
    if not there:
        raise InputError(_missing(source, name))
    return max(there, key=lambda path: tuple(map(int, path.name.split("."))))


def digested_files(path: Path) -> list[Path] | None:
    """The files whose hash tells a corpus in this folder from another; None: all of them, as of any other data set.

    Records of the same rows are written in other bytes each time, so their hash is that of the rows, in `METADATA`.
    """
    return [path / METADATA] if (path / CHECKSUMS).is_file() else None


def _missing(source: str, name: PreparedName) -> str:
    """What is said where a data set is not prepared."""
    stated = f"{source}: not prepared in {name.data_dir}"
    if name.dataset != DATASET:
        return f"{stated}; must be a data set that TFDS prepared there with file_format='array_record'"
    words = ["fedjax-rai", "data", "prepare", name.config]
    if name.data_dir != default_data_dir():
        words += ["--data-dir", str(name.data_dir)]
    kind = "question" if name.config.startswith("questions") else "response"
    command = f"{shlex.join(words)} SOURCE"
    return f"{stated}; to prepare it: {command}, with SOURCE the folder of SQuARe's files, or {kind}_train.json"
