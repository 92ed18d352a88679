"""Where a model lies: the shipped tiny one, a folder, or a snapshot of a repository on the Hugging Face hub."""

import hashlib
from functools import lru_cache
from importlib import resources
from pathlib import Path

from fedjax_rai.config.files import digest
from fedjax_rai.config.schema import TINY, is_hub_name
from fedjax_rai.errors import InputError

WANTED = ("*.json", "*.model", "*.txt", "*.jinja")
WEIGHTS = ("*.safetensors",)
# Folders hold other formats of the same weights; `consolidated` files are Mistral's second copy of them.
UNWANTED = ("*/*", "consolidated*")


def resolve(path: str, revision: str | None = None, weights: bool = False) -> Path:
    """The folder of a model: `tiny` is the shipped synthetic one; an absent `owner/name` is fetched from the hub.

    From the hub come config and tokenizer, and with `weights` the rest, of the same commit: a model that turns out not
    to be supported costs a few megabytes. A folder that is there is never looked up on the network. `revision`: a
    branch, tag or commit of a hub name, null for its main branch. Raises InputError for a folder that is not there, and
    for whatever the hub refuses.
    """
    if path == TINY:
        folder = Path(str(resources.files("fedjax_rai"))) / "assets" / "tiny"
    else:
        folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{path}: is a folder here and has no revision {revision!r}; only a name on the hub has")
        return folder
    if folder.exists() or not is_hub_name(path):
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{path}: {what}; must be a Hugging Face folder, owner/name of one on the hub, or 'tiny'")
    return _snapshot(path, revision, weights)


def commit(folder: Path) -> str | None:
    """The commit that a resolved folder is a snapshot of; None for one that is not the hub's."""
    return folder.name if folder.parent.name == "snapshots" else None


def contents(folder: Path) -> str:
    """What is in a resolved folder: the commit of one from the hub, else the digest of its files, weights included."""
    there = commit(folder)
    if there is not None:
        return f"commit:{there}"
    paths = sorted({path for pattern in (*WANTED, *WEIGHTS) for path in folder.glob(pattern)})
    found = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        found.update(f"{path.name} {_digest(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return f"sha256:{found.hexdigest()}"


@lru_cache
def _digest(path: Path, size: int, changed: int) -> str:
    """The digest of a file, which is read once a process as long as size and time of change stay."""
    return digest([path])


@lru_cache
def _snapshot(name: str, revision: str | None, weights: bool) -> Path:
    """The folder of a snapshot; the hub is asked once a process, so that all that a run reads is of one commit."""
    import huggingface_hub

    patterns = WANTED
    pinned = revision
    if weights:
        patterns = WEIGHTS
        pinned = commit(_snapshot(name, revision, False))  # of config and tokenizer
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=pinned, allow_patterns=list(patterns), ignore_patterns=list(UNWANTED)
        )
    except Exception as error:  # its own errors, those of its HTTP client, and those of the disk
        raise InputError(f"{name}: {_explain(name, revision, error)}") from error
    return Path(folder)


def _explain(name: str, revision: str | None, error: Exception) -> str:
    """What went wrong on the hub, and what to do."""
    from huggingface_hub import constants, errors

    log_in = "log in with `hf auth login` or set HF_TOKEN"
    unreachable = "and no whole copy is in its cache; give the folder of a local copy, or"
    if isinstance(error, errors.GatedRepoError):
        return f"this model is gated: ask for access at https://huggingface.co/{name}, then {log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such folder here, and no such model on the hub; if it is private, {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {revision!r} on the hub; must be a branch, tag or commit of this model"
    if isinstance(error, errors.HFValidationError):
        return f"no such folder here, and no name that the hub allows ({error})"
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return f"no such folder here, offline mode is on {unreachable} unset HF_HUB_OFFLINE"
    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError | TimeoutError):
        return f"no such folder here, the hub cannot be reached {unreachable} connect to the network"
    return f"cannot be fetched from the hub ({type(error).__name__}: {error})"
