"""The files that a config names: sound before anything is written, and the same whenever a run goes on."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fedjax_rai.cai.constitution import load_constitution
from fedjax_rai.config import ExperimentConfig
from fedjax_rai.config_file import check_files
from fedjax_rai.data.sources import read_preferences
from fedjax_rai.errors import InputError
from fedjax_rai.text.hub import TINY

ONLINE = "online"
CONSTITUTION = Path(__file__).parent.parent / "assets" / "constitution.yaml"
SHIPPED = {"data.train": TINY, "eval.advbench": TINY, "cai.constitution": "default", "cai.data": ONLINE}


def constitution_path(config: ExperimentConfig) -> Path:
    return CONSTITUTION if config.cai.constitution == "default" else Path(config.cai.constitution)


def check_inputs(configs: Iterable[ExperimentConfig]) -> None:
    """Raises InputError for files that are not there, and for constitutions and prepared sets with mistakes."""
    seen = set()
    for config in configs:
        check_files(config)
        read = (config.cai.constitution, config.cai.data) if config.cai.enabled else None
        if read is None or read in seen:
            continue
        seen.add(read)
        if config.cai.data == ONLINE:
            load_constitution(constitution_path(config))
        else:
            read_preferences(Path(config.cai.data))


def check_unchanged(config: ExperimentConfig, folder: Path, began: dict[str, str]) -> None:
    """Raises InputError where a file is not what it was when the run in the folder began, by `digests`."""
    changed = [key for key, own in digests(config).items() if began.get(key, own) != own]
    if changed:
        listed = "\n".join(f"  {key} = {_value(config, key)}" for key in changed)
        raise InputError(f"{folder}: began with other contents of\n{listed}\nname another folder, or restore the file")


def digests(config: ExperimentConfig) -> dict[str, str]:
    """The hash of every file here that a config names, by key; of a folder, that of the JSON lines in it."""
    paths = {key: Path(value) for key, shipped in SHIPPED.items() if (value := _value(config, key)) != shipped}
    return {key: digest(_files(path)) for key, path in paths.items() if path.exists()}


def digest(files: Iterable[Path]) -> str:
    """Of files' contents, one after another."""
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                found.update(block)
    return f"sha256:{found.hexdigest()}"


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.jsonl")) if path.is_dir() else [path]


def _value(config: ExperimentConfig, key: str) -> str:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
