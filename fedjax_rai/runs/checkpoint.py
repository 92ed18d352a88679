"""Round states on disk, by Orbax: every round is kept until the next one is whole."""

import logging
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from fedjax_rai.aliases import PyTree

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save


class Checkpoints:
    """Saves in the background; to be closed, which waits until the last save is whole."""

    def __init__(self, folder: Path):
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
        """(rounds done, state after them) of the latest one; (0, `like`) if there is none."""
        if self._saver.latest is None:
            return 0, like
        rounds = self._saver.latest.step
        leaves = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _named(like))
        return rounds, jax.tree.unflatten(jax.tree.structure(like), list(self._saver.load(rounds, leaves).values()))


def _named(state: PyTree) -> dict[str, jax.Array]:
    """Leaves under names that sort in tree order: a plain dictionary is what every version of Orbax reads back."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
