"""Round states on disk, by Orbax: every round is kept until the next one is whole."""

import errno
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from fedjax_rai import terminal
from fedjax_rai.aliases import PyTree
from fedjax_rai.errors import InputError

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save
warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)  # of its readers that failed


_WAYS_OUT = "restore it from a copy, remove it to begin anew, or name another output"


class Checkpoints:
    """Saves in the background; to be closed, which waits until the last save is whole.

    Where there is nothing to restore, Orbax is loaded by the first save, when the device has the next round to compute.
    Raises InputError where something else than a folder lies in its place, and OSError where the disk is full.
    """

    def __init__(self, folder: Path):
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"{folder}: is no folder; {_WAYS_OUT}")
        self.folder = folder
        if folder.exists():
            _ = self._saver  # what is wrong there is said now

    @cached_property
    def _saver(self) -> Any:
        try:
            with _quiet():
                return self._opened()
        except (ValueError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.folder}: the states there cannot be told ({reason}); {_WAYS_OUT}") from None

    def _opened(self) -> Any:
        from orbax.checkpoint import v1 as ocp

        policies: dict[str, Any] = {
            # Orbax's default policy skips a save while another one runs.
            "save_decision_policy": ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            "preservation_policy": ocp.training.preservation_policies.LatestN(2),
        }
        return ocp.training.Checkpointer(str(self.folder.absolute()), cleanup_tmp_directories=True, **policies)

    def close(self) -> None:
        if "_saver" not in vars(self):
            return
        with self._named_disk():
            self._saver.close()

    def save(self, rounds: int, state: PyTree) -> None:
        """The state after that many rounds."""
        with self._named_disk():
            self._saver.save_async(rounds, _named(state), force=True)

    @contextmanager
    def _named_disk(self) -> Iterator[None]:
        """A full disk is an OSError with the folder, whatever Orbax makes of it."""
        try:
            yield
        except Exception as error:
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder)) from error

    def restore(self, like: PyTree) -> tuple[int, PyTree]:
        """(rounds done, state after them) of the latest one that can be read; (0, `like`) if there is none at all.

        Damaged ones that are later are deleted, which is said. Raises InputError where all are damaged.
        """
        if not self.folder.exists():
            return 0, like
        with _quiet():
            saved = self._saved()
            damaged = []
            state = None
            for rounds in saved:
                state = self._load(rounds, like)
                if state is not None:
                    break
                damaged.append(rounds)
        if not saved:
            return 0, like
        if state is None:
            raise InputError(self._all_damaged(saved))
        self._delete_damaged(damaged, saved[len(damaged)])
        return saved[len(damaged)], state

    def _saved(self) -> list[int]:
        """After how many rounds there are states, the latest first."""
        try:
            steps = [checkpoint.step for checkpoint in self._saver.checkpoints]
        except Exception:  # files beside a state that tell of it are damaged
            steps = [int(place.name) for place in self.folder.iterdir() if place.is_dir() and place.name.isdigit()]
        return sorted(steps, reverse=True)

    def _load(self, rounds: int, like: PyTree) -> PyTree | None:
        """The state after that many rounds; None if it cannot be read."""
        try:
            return self._read(rounds, like)
        except Exception:  # what Orbax raises depends on which of its files are damaged, and how
            return None

    def _read(self, rounds: int, like: PyTree) -> PyTree:
        leaves = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _named(like))
        return jax.tree.unflatten(jax.tree.structure(like), list(self._saver.load(rounds, leaves).values()))

    def _all_damaged(self, saved: Sequence[int]) -> str:
        listed = ", ".join(map(str, saved))
        return f"{self.folder}: no state there can be read (after round {listed}); {_WAYS_OUT}"

    def _delete_damaged(self, damaged: Sequence[int], rounds: int) -> None:
        """Make room for their rounds, which are done again from the state after `rounds`."""
        for step in damaged:
            terminal.say(f"{self.folder}: the state after round {step} is damaged; going back to round {rounds}")
            shutil.rmtree(self.folder / str(step), ignore_errors=True)
        if damaged:
            self._saver.close()
            self._saver = self._opened()


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax says nothing in its log of what it cannot read."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _named(state: PyTree) -> dict[str, jax.Array]:
    """Leaves under names that sort in tree order: a plain dictionary is what every version of Orbax reads back."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
