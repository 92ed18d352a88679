"""Round states on disk, by Orbax: every round is kept until the next one is whole."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from fedjax_rai import terminal
from fedjax_rai.aliases import PyTree
from fedjax_rai.errors import InputError

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save


class Checkpoints:
    """Saves in the background; to be closed, which waits until the last save is whole."""

    def __init__(self, folder: Path):
        self.folder = folder
        policies: dict[str, Any] = {
            # Orbax's default policy skips a save while another one runs.
            "save_decision_policy": ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            "preservation_policy": ocp.training.preservation_policies.LatestN(2),
        }
        self._saver = ocp.training.Checkpointer(str(folder.absolute()), cleanup_tmp_directories=True, **policies)

    def close(self) -> None:
        self._saver.close()

    def save(self, rounds: int, state: PyTree) -> None:
        """The state after that many rounds."""
        self._saver.save_async(rounds, _named(state), force=True)

    def restore(self, like: PyTree) -> tuple[int, PyTree]:
        """(rounds done, state after them) of the latest one that can be read; (0, `like`) if there is none at all.

        Damaged ones that are later are deleted, which is said. Raises InputError where all are damaged.
        """
        saved = sorted((checkpoint.step for checkpoint in self._saver.checkpoints), reverse=True)
        for place, rounds in enumerate(saved):
            try:
                state = self._load(rounds, like)
            except Exception as error:  # what Orbax raises depends on which of its files are damaged, and how
                if rounds == saved[-1]:
                    raise InputError(self._all_damaged(saved)) from error
                continue
            self._delete_damaged(saved[:place], rounds)
            return rounds, state
        return 0, like

    def _load(self, rounds: int, like: PyTree) -> PyTree:
        leaves = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _named(like))
        return jax.tree.unflatten(jax.tree.structure(like), list(self._saver.load(rounds, leaves).values()))

    def _all_damaged(self, saved: Sequence[int]) -> str:
        listed = ", ".join(map(str, saved))
        problem = f"{self.folder}: no state there can be read (after round {listed})"
        return f"{problem}; restore the folder from a copy, or name another output"

    def _delete_damaged(self, damaged: Sequence[int], rounds: int) -> None:
        """Make room for their rounds, which are done again from the state after `rounds`."""
        for step in damaged:
            terminal.say(f"{self.folder}: the state after round {step} is damaged; going back to round {rounds}")
            self._saver.delete(step)


def _named(state: PyTree) -> dict[str, jax.Array]:
    """Leaves under names that sort in tree order: a plain dictionary is what every version of Orbax reads back."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
