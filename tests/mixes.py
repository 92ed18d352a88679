"""Sources without files, for tests of mixes."""

from collections.abc import Sequence
from typing import Any

from fedjax_rai.config.schema import DataConfig, SourceConfig
from fedjax_rai.data.mix import Entry, Mixed
from fedjax_rai.data.sources import Pair, Read


def source(pairs: Sequence[Pair], twins: tuple[str, ...] = (), key: str = "data.sources[0]", **config: Any) -> Mixed:
    """A source as it would have been read."""
    entry = Entry(key, SourceConfig(path="pairs.json", **config), 0)
    return Mixed(entry, Read(list(pairs), len(pairs), "square"), twins)


def data_of(*sources: dict[str, Any], **data: Any) -> DataConfig:
    """The config's section `data` with these sources."""
    listed = [{"path": f"{i}.json"} | given for i, given in enumerate(sources)]
    return DataConfig.model_validate({"sources": listed} | data)
