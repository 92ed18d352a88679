"""What a command's TARGET names: a finished run, an adapter in PEFT's format, or a model."""

from pathlib import Path
from typing import NamedTuple

from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import TINY, is_hub_name
from fedjax_rai.errors import InputError, did_you_mean_file
from fedjax_rai.model import peft
from fedjax_rai.runs.folder import ADAPTER, CONFIG, pinned

MODEL = "config.json"
STUDIES = ("table.yaml", "sweep.yaml")
ALLOWED = (
    "must be the folder of a finished run, of an adapter in PEFT's format, or of a Hugging Face model, owner/name of "
    f"one on the hub, or {TINY!r}"
)


class Target(NamedTuple):
    """A model, with or without an adapter, by whatever its user named."""

    name: str
    """As it was given."""
    model: str
    """The base: a Hugging Face folder, owner/name on the hub, or `tiny`."""
    revision: str | None = None
    """Branch, tag or commit of a base on the hub."""
    adapter: Path | None = None
    """A folder in PEFT's format; None: the base alone."""
    run: Path | None = None
    """The folder of the run whose adapter it is; None: it is no run's."""


def read_target(name: str, model: str | None = None, revision: str | None = None) -> Target:
    """What a name means. A run brings its base; an adapter names it, unless `model` does.

    Nothing but the small files is read. Raises InputError for a name that means nothing, a run without an adapter, an
    adapter that names no base, and a `model` beside what has one already.
    """
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        _refuse_model(name, "a run", model, revision)
        return _of_run(name, folder)
    if (folder / peft.CONFIG).is_file():
        return _of_adapter(name, folder, model, revision)
    _refuse_model(name, "a model", model, None)
    if name == TINY or (folder / MODEL).is_file() or (is_hub_name(name) and not folder.exists()):
        return Target(name, name, revision)
    if study := next((file for file in STUDIES if (folder / file).is_file()), None):
        raise InputError(f"{name}: holds many runs ({study}); must be the folder of one of them")
    wrong = "none of these is there" if folder.is_dir() else "no such folder"
    raise InputError(f"{name}: {wrong}; {ALLOWED}{did_you_mean_file(folder)}")


def _of_run(name: str, folder: Path) -> Target:
    if not (folder / ADAPTER / peft.CONFIG).is_file():
        raise InputError(f"{name}: this run is not finished (it has no {ADAPTER}/); give its config to `run` to go on")
    model = pinned(folder, load_config(folder / CONFIG)).model
    return Target(name, model.path, model.revision, folder / ADAPTER, folder)


def _of_adapter(name: str, folder: Path, model: str | None, revision: str | None) -> Target:
    if model is not None:
        return Target(name, model, revision, folder)
    base = peft.base_of(folder)
    if base is None:
        raise InputError(f"{name}: this adapter names no base; must be given: model.path=FOLDER, or =owner/name")
    return Target(name, base[0], revision or base[1], folder)


def _refuse_model(name: str, what: str, model: str | None, revision: str | None) -> None:
    if model is not None:
        raise InputError(f"model.path = {model}: {name} is {what}, which has its base; must be left out")
    if revision is not None:
        raise InputError(f"model.revision = {revision}: {name} is {what}, which has its base; must be left out")
