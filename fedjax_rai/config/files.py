"""The files that a config names, and their digests."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fedjax_rai.config.keys import own_values
from fedjax_rai.config.names import fingerprint
from fedjax_rai.config.schema import TINY, ExperimentConfig

ONLINE = "online"
CONSTITUTION = Path(__file__).parent.parent / "assets" / "constitution.yaml"
SHIPPED = {"data.train": TINY, "eval.advbench": TINY, "cai.constitution": "default", "cai.data": ONLINE}


def digests(config: ExperimentConfig) -> dict[str, str]:
    """The hash of every file here that a config names, by key; of a folder, that of the JSON lines in it.

    Of a `package.module:attribute`, its name and the hash of the file that it is from.
    """
    own = own_values(config)
    found = {key: fingerprint(name, key) for key, name in own.items()}
    for key, shipped in SHIPPED.items():
        path = Path(value_of(config, key))
        if key not in own and str(path) != shipped and path.exists():
            found[key] = digest(_files(path))
    return found


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


def value_of(config: ExperimentConfig, key: str) -> str:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
