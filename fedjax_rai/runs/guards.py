"""The guards that a study fitted, and what they said of the clients' pairs, in its folder: made once, found again.

    guards/README.md             what this is
    guards/fitted-<digest>/      an adapter in PEFT's format, which `guard.adapter` takes; guard.json, how it was
                                fitted, and its calibration
    guards/fitting-<digest>/     state.safetensors: a fit that has not ended, to go on from; gone when it has
    guards/scores-<digest>/      scores.safetensors: float32[2, n], p(unsafe) and how probable a verdict was at all,
                                of every answer in order: of the clients' pairs, of a test set, or judged by a model
    guards/*/origin.json         what it was made of, the digests of its files, and the versions that made it

The digest is that of all that the numbers depend on (`experiment.keeping`), so what is found is what would be made.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import numpy as np
from safetensors.numpy import load_file

from fedjax_rai import terminal
from fedjax_rai.aliases import Adapter, PyTree
from fedjax_rai.config.files import digest
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.guard_fit import NOTES
from fedjax_rai.experiment.keeping import FITTING, Origin
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.lora import Lora, abstract_adapter
from fedjax_rai.model.peft import load_adapter, save_adapter
from fedjax_rai.model.weights import save_safetensors
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import versions
from fedjax_rai.runs.judges import JUDGES, KeptReplies

T = TypeVar("T")
GUARDS, ABOUT, ORIGIN, SCORES = "guards", "README.md", "origin.json", "scores.safetensors"
STATE, STEPS = "state.safetensors", "steps"
TEXT = """# Fitted guards and scores

What this study fitted and scored, so that no run of it does so twice. `origin.json` says what each was made of.

* `fitted-*`: a guard, as an adapter in PEFT's format on the model that it was fitted on, with its calibration in
  `guard.json`. `guard.adapter=<this folder>/fitted-...` uses it elsewhere, on the same model.
* `fitting-*`: a fit that was interrupted, or is under way.
* `scores-*`: two numbers for every answer, in order: p(unsafe), and how probable a verdict was at all. The answers are
  those of the clients' pairs, of `guard eval`, or those that a model judged in an evaluation.

All of it may be deleted: it is made again when it is needed, with the same numbers.
"""


def study_of(run_folder: Path) -> Path:
    """The folder of the table or the sweep whose guards a run shares; of a run by itself its own."""
    absolute = run_folder.absolute()
    for study in (absolute.parent, absolute.parent.parent):
        if (study / GUARDS / ABOUT).is_file():
            return study
    return run_folder


class KeptGuards:
    """The store of guards and scores in a study's folder, for any number of processes.

    An entry appears whole or not at all. A damaged one is said, removed and made again; where the file system refuses
    to keep one, that is said, and the run goes on.
    """

    def __init__(self, study: Path):
        self._folder = study / GUARDS
        self._judges = study / JUDGES

    def adapter(self, origin: Origin, shape: tuple[DecoderConfig, Lora]) -> Adapter | None:
        """The adapter of a fitted guard, float32; None where it is not there, or not whole."""

        def read(entry: Path) -> Adapter:
            _, adapter = load_adapter(entry, shape[0])
            wanted = jax.tree.map(lambda leaf: leaf.shape, abstract_adapter(*shape))
            if jax.tree.map(np.shape, adapter) != wanted:
                raise ValueError("an adapter of another shape")
            return adapter

        return self._read(origin, read)

    def notes(self, origin: Origin) -> dict[str, Any] | None:
        """What is kept beside a fitted guard's adapter; None where nothing is, or not whole."""
        if not (self._entry(origin) / NOTES).exists():
            return None
        return self._read(origin, lambda entry: files.read_object(entry / NOTES), told=False)

    def keep_adapter(
        self,
        origin: Origin,
        shape: tuple[DecoderConfig, Lora],
        adapter: Adapter,
        notes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Keep the adapter of a fitted guard, in PEFT's format, and beside it what is known of its fit."""

        def write(entry: Path) -> None:
            save_adapter(entry, *shape, adapter, origin.base)
            if notes:
                files.write_json(entry / NOTES, notes)

        self._keep(origin, write, anew=True)
        _remove(self._entry(_fit_of(origin)))

    def fitting(self, origin: Origin, like: PyTree) -> tuple[int, PyTree] | None:
        """(steps done, state after them) of a guard's fit; None where it is not there, or not whole."""

        def read(entry: Path) -> tuple[int, PyTree]:
            tensors = load_file(entry / STATE)
            steps = tensors.pop(STEPS)
            leaves = [tensors[name] for name in sorted(tensors)]
            shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(like)]
            if [(leaf.shape, leaf.dtype) for leaf in leaves] != shapes:
                raise ValueError("a state of another shape")
            return int(steps[0]), jax.tree.unflatten(jax.tree.structure(like), leaves)

        return self._read(_fit_of(origin), read)

    def keep_fitting(self, origin: Origin, steps: int, state: PyTree) -> None:
        """Keep the state of a guard's fit, in the place of an earlier one."""
        tensors = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        tensors[STEPS] = np.array([steps])
        self._keep(_fit_of(origin), lambda entry: save_safetensors(entry / STATE, tensors), anew=True)

    def scores(self, origin: Origin) -> np.ndarray | None:
        """float32[2, n]: scores and shares; None where they are not there, or not whole."""
        return self._read(origin, lambda entry: load_file(entry / SCORES)["scores"])

    def keep_scores(self, origin: Origin, scores: np.ndarray) -> None:
        """Keep scores."""
        self._keep(origin, lambda entry: save_safetensors(entry / SCORES, {"scores": scores}))

    def place(self, origin: Origin) -> Path:
        """The folder of what is kept of an origin."""
        return self._entry(origin)

    def replies(self, name: str) -> KeptReplies:
        """What the endpoint of that name replied before."""
        return KeptReplies(self._judges / f"{name}.jsonl")

    def _entry(self, origin: Origin) -> Path:
        return self._folder / f"{origin.kind}-{origin.digest[:16]}"

    def _read(self, origin: Origin, read: Callable[[Path], T], told: bool = True) -> T | None:
        entry = self._entry(origin)
        try:
            if not entry.exists():
                return None
            _check(entry, origin)
            value = read(entry)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            return self._made_again(entry, error)
        if told:
            terminal.say(f"{entry}: kept from before")
        return value

    def _made_again(self, entry: Path, error: Exception) -> None:
        """Make room for another in the place of a damaged one."""
        terminal.say(f"{entry}: is damaged ({error}); it is made again")
        aside = self._beside(entry, "damaged")
        try:
            os.rename(entry, aside)
        except OSError:  # another process was faster, or nothing can be moved there
            return
        _remove(aside)

    def _keep(self, origin: Origin, write: Callable[[Path], None], anew: bool = False) -> None:
        """Keep what `write` writes; `anew`: in the place of what is there."""
        entry = self._entry(origin)
        part = self._beside(entry, "part")
        old = self._beside(entry, "old")
        try:
            self._begin()
            _remove(old)
            _remove(part)
            part.mkdir()
            write(part)
            files.write_json(part / ORIGIN, _described(origin, part))
            if anew and entry.exists():
                os.rename(entry, old)  # at once, so that nobody reads a half of it
            os.rename(part, entry)
        except OSError as error:
            if not entry.is_dir():  # else another process has kept the same meanwhile
                terminal.say(f"{entry}: could not be kept ({error.strerror or error}); it will be made again")
        finally:
            _put_back(old, entry)
            _remove(part)
            _remove(old)

    def _begin(self) -> None:
        """The folder, with what tells what it is."""
        self._folder.mkdir(parents=True, exist_ok=True)
        about = self._folder / ABOUT
        if about.is_file():
            return
        try:
            files.write_text(about, TEXT)
        except FileNotFoundError:
            if not about.is_file():  # else another process wrote it at the same time
                raise

    def _beside(self, entry: Path, purpose: str) -> Path:
        """A place that no other process uses."""
        return entry.with_name(f".{entry.name}.{os.getpid()}.{purpose}")


def _put_back(old: Path, entry: Path) -> None:
    """Where an interrupt came before the new entry was in its place, the old one serves again."""
    with suppress(OSError):
        if old.exists() and not entry.exists():
            os.rename(old, entry)


def _fit_of(origin: Origin) -> Origin:
    """Of the fit of a guard of that origin."""
    return origin._replace(kind=FITTING)


def _described(origin: Origin, entry: Path) -> dict[str, Any]:
    """What stands in `origin.json`."""
    contents = {path.name: digest([path]) for path in sorted(entry.iterdir())}
    return {
        "kind": origin.kind,
        "base": origin.base,
        "digest": origin.digest,
        "made_of": origin.parts,
        "files": contents,
        "made_with": versions(),
    }


def _check(entry: Path, origin: Origin) -> None:
    """Raises ValueError for an entry that is of something else, or whose files are not what was written."""
    there = files.read_json(entry / ORIGIN)
    if (there["kind"], there["digest"]) != (origin.kind, origin.digest):
        raise ValueError(f"{ORIGIN} tells of something else")
    for name, written in there["files"].items():
        if digest([entry / name]) != written:
            raise ValueError(f"{name} is not what was written")


def _remove(path: Path) -> None:
    """A folder or a file, where it is there; what cannot be removed stays."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()
