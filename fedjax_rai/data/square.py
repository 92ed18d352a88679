"""The builder that TFDS knows as `square`: the prepared corpus, made of SQuARe's official files.

This module imports `tensorflow_datasets`, so it is itself imported only where a corpus is built. It is built without
tensorflow, in the format `array_record` alone: TFDS' parquet reader ignores slices, so that every host would read all.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedjax_rai.config.prepared import CORPORA
from fedjax_rai.data.corpus import TEXTS, TRAIN, Corpus, Placed, corpus, prepare_splits
from fedjax_rai.data.download import file_sha256
from fedjax_rai.data.files import read_rows
from fedjax_rai.errors import InputError

DESCRIPTIONS = {
    "square20k": "SQuARe20K: 6,000 red and 14,000 acceptable pairs to train clients on",
    "slg20k": "S-LG20K: as many, of other questions, as conversations with a guard's verdict",
    "questions": "The sensitive questions, without answers",
}
_LABELS = tfds.features.Sequence(tfds.features.Text())
_TURNS = tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()})


class Square(tfds.core.GeneratorBasedBuilder):
    """SQuARe20K, S-LG20K and SQuARe's questions, each in English and Korean.

    `source`: one of SQuARe's files, which becomes the split `train`, or a folder with its files by their official
    names; TFDS' manual folder if none is given. `partial`: see `data.corpus.prepare_splits`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=f"{DESCRIPTIONS[corpus(name).kind]} ({corpus(name).language})")
        for name in CORPORA
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Place SQuARe's response_*.json and question_*.json files in the manual folder."

    def __init__(self, *, source: Path | None = None, partial: bool = False, **options: Any) -> None:
        self._source = source
        self._partial = partial
        super().__init__(**{"file_format": "array_record", **options})

    @property
    def _corpus(self) -> Corpus:
        return corpus(self.builder_config.name)  # pyright: ignore[reportOptionalMemberAccess]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pairs and questions of SQuARe (arXiv 2305.17696), chosen as for arXiv 2502.16691.",
            features=tfds.features.FeaturesDict(_features(self._corpus)),
            homepage="https://github.com/naver-ai/korean-safety-benchmarks",
            license="MIT",
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the corpus has an order of its own
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        files = source_files(self._corpus, Path(self._source or dl_manager.manual_dir))
        placed: dict[str, Iterable[Placed]] = {split: read_rows(path) for split, path in files.items()}
        made = prepare_splits(self._corpus, placed, self._partial)
        self.info.metadata.update(  # pyright: ignore[reportOptionalMemberAccess]
            partial=self._partial,
            splits={
                split: {**provenance(files[split]), **counts, "rows_sha256": _hash(rows)}
                for split, (rows, counts) in made.items()
            },
        )
        return {split: self._generate_examples(made[split].rows) for split in made}

    def _generate_examples(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(rows)


def source_files(prepared: Corpus, source: Path) -> dict[str, Path]:
    """The file of each split: a file is that of `train`, a folder has them by their official names.

    Raises InputError where there is none, or none for `train`.
    """
    if not source.is_dir():
        return {TRAIN: source}
    files = {split: source / name for split, name in prepared.files.items() if (source / name).is_file()}
    if TRAIN not in files:
        raise InputError(f"{source}: no {prepared.files[TRAIN]} in it; must be that file, or a folder that has it")
    return files


def provenance(path: Path) -> dict[str, str]:
    """What is kept of a file that a split was made of: its name and the hash of its contents."""
    return {"file": path.name, "sha256": file_sha256(path)}


def _hash(rows: Iterable[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _features(prepared: Corpus) -> dict[str, Any]:
    question, response = TEXTS[prepared.language]
    text = tfds.features.Text()
    if prepared.kind == "questions":
        return {question: text, "sensitive?": np.int64, "category": text}
    categories = {"category": _LABELS, "question_category": text}
    if prepared.kind == "square20k":
        return {question: text, response: text, "acceptable?": np.int64, **categories}
    return {"messages": _TURNS, "verdict": text, **categories}
