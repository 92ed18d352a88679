"""The files that a config names, and their digests."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fedjax_rai.config.schema import TINY, ExperimentConfig
from fedjax_rai.config.views import Readable, value_at

ONLINE = "online"
CONSTITUTION = Path(__file__).parent.parent / "assets" / "constitution.yaml"
SHIPPED = {"data.train": TINY, "eval.advbench": TINY, "cai.constitution": "default", "cai.data": ONLINE}


def constitution_path(config: Readable) -> Path:
    return CONSTITUTION if config.cai.constitution == "default" else Path(config.cai.constitution)


def digests(config: ExperimentConfig) -> dict[str, str]:
    """The hash of every file here that a config names, by key; of a folder, that of the JSON lines in it."""
    paths = {key: Path(value) for key, shipped in SHIPPED.items() if (value := value_at(config, key)) != shipped}
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
