"""The files that a config names: sound before anything is written, and the same whenever a run goes on."""

from collections.abc import Iterable
from pathlib import Path

from fedjax_rai.cai.constitution import find_constitution
from fedjax_rai.config.files import ONLINE, check_files, digests
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import value_at
from fedjax_rai.data.sources import read_preferences
from fedjax_rai.errors import InputError
from fedjax_rai.runs.trackers import check_tracker


def check_inputs(configs: Iterable[ExperimentConfig]) -> None:
    """Raises InputError for files that are not there; for constitutions, prepared sets and trackers with mistakes."""
    seen = set()
    for config in configs:
        check_files(config)
        check_tracker(config.tracker)
        read = (config.cai.constitution, config.cai.data) if config.cai.enabled else None
        if read is None or read in seen:
            continue
        seen.add(read)
        if config.cai.data == ONLINE:
            find_constitution(config.cai.constitution)
        else:
            read_preferences(Path(config.cai.data))


def check_unchanged(config: ExperimentConfig, folder: Path, began: dict[str, str]) -> None:
    """Raises InputError where a file is not what it was when the run in the folder began, by `digests`."""
    changed = [key for key, now in digests(config).items() if began.get(key, now) != now]
    if changed:
        listed = "\n".join(f"  {key} = {value_at(config, key)}" for key in changed)
        raise InputError(f"{folder}: began with other contents of\n{listed}\nname another folder, or restore the file")
