"""A run's folder: whose it is, what it began with, and whether it is finished."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from fedjax_rai.config.files import digests
from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import files
from fedjax_rai.runs.inputs import check_unchanged
from fedjax_rai.runs.rows import Versions, present, read_summary

PACKAGES = (
    "fedjax_rai",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
)


def versions() -> dict[str, Any]:
    """What the numbers of a run depend on besides its config."""
    import jax

    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    devices = sorted({device.device_kind for device in jax.devices()})
    return {
        "python": platform.python_version(),
        "platform": platform.machine(),
        "devices": devices,
        "packages": installed,
    }


RESTORED = "restore it from a copy, or name another output"
CONFIG, VERSIONS, ADAPTER = "config.yaml", "versions.json", "adapter"
DATA = "data.json"
EVALUATION, ANSWERS, SUMMARY = "eval.json", "answers.jsonl", "summary.json"


def run_folder(config: ExperimentConfig) -> Path:
    return Path(config.output or "runs/run")


def open_folder(folder: Path, config: ExperimentConfig, setting: Setting) -> None:
    """Create it, with what tells whose it is."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / CONFIG, dump_config(config))
    note_versions(folder / VERSIONS, setting.commits | {"files": digests(config)})


@contextmanager
def entered(folder: Path, config: ExperimentConfig, setting: Setting) -> Iterator[bool]:
    """A run's folder for this process alone, with what tells whose it is. Yields whether the run is finished.

    Nothing is written to a finished run's. Raises InputError where another process is at work, and as `check_folder`:
    another one may have been there since the folder was last looked at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone(folder):
        finished = check_folder(folder, config)
        if not finished:
            open_folder(folder, config, setting)
        yield finished


def check_folder(folder: Path, config: ExperimentConfig) -> bool:
    """Whether the run is finished. Raises InputError if the folder holds anything but this very run.

    So it does for a summary that is damaged, and if a run that is not finished could not write there.
    """
    if not os.path.isfile(folder / SUMMARY):
        files.check_writable(folder, f"output = {folder}")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / CONFIG).is_file():
        raise InputError(f"output = {folder}: exists and is not a run folder; name another one")
    changed = differences(relevant(load_config(folder / CONFIG)), relevant(config))
    if changed:
        listed = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed)
        raise InputError(f"output = {folder}: holds a run of another config; name another folder, or undo\n{listed}")
    check_unchanged(config, folder, began_with(folder).get("files", {}))
    if not (folder / SUMMARY).is_file():
        return False
    read_summary(folder / SUMMARY)
    return True


def note_versions(path: Path, others: dict[str, Any]) -> None:
    """A list of the versions that took part: one entry, and another for each time a run was resumed under others.

    `others`: commits of the models that came from the hub, digests of files.
    """
    past = _noted(path)
    now = present(Versions(**versions(), **others))
    if now not in past:
        files.write_json(path, [*past, now])


def began_with(folder: Path) -> dict[str, Any]:
    """The versions that the run in a folder began with; nothing where none has."""
    return next(iter(_noted(folder / VERSIONS)), {})


def _noted(path: Path) -> list[dict[str, Any]]:
    """The entries of a file of versions, none without it; raises InputError where it holds anything else."""
    if not path.exists():
        return []
    entries = files.read_json(path, RESTORED)
    if not entries or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: must hold a list of objects in JSON; {RESTORED}")
    if not isinstance(entries[0].get("files", {}), dict):
        raise InputError(f"{path}: its first entry must have an object of digests under 'files'; {RESTORED}")
    return entries


def pins(configs: Sequence[ExperimentConfig]) -> dict[str, str]:
    """The commits of models on the hub that the first of these runs to begin began with: a branch may move on."""
    for config in configs:
        began = began_with(run_folder(config))
        if began:
            return pins_of(began)
    return {}


def pins_of(versions: Mapping[str, Any]) -> dict[str, str]:
    """The commits among what a run began with."""
    models = {name: versions[name] for name in ("model_commit", "guard_commit") if name in versions}
    judges = versions.get("judge_commits") or {}
    return models | {f"judge {name}": pinned_commit for name, pinned_commit in judges.items()}


def pinned(folder: Path, config: ExperimentConfig) -> ExperimentConfig:
    """The config with the commits that the run in `folder` began with, if any: a branch on the hub may move on."""
    began = began_with(folder)
    for name in ("model", "guard"):
        if commit := began.get(f"{name}_commit"):
            config = config.model_copy(update={name: getattr(config, name).model_copy(update={"revision": commit})})
    return config


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two resolved configs differ; an absent key is as one of None.

    In the order of `old`, then of what is in `new` alone.
    """
    found = []
    for key in dict.fromkeys([*old, *new]):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
            found += differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append((prefix + key, before, now))
    return found
