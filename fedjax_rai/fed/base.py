"""What every federated algorithm is: a pair of pure functions over pytrees, and what others need to know of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Float, Metrics, PyTree
from fedjax_rai.data.examples import Examples
from fedjax_rai.data.packing import batches
from fedjax_rai.fed.client import ClientUpdate, Cohort, Task
from fedjax_rai.mesh import whole
from fedjax_rai.model.decoder import LM
from fedjax_rai.model.lora import Dropout


class ServerState(NamedTuple):
    """What the server keeps from round to round."""

    adapter: Adapter  # the global one, which everybody may read and replace
    memory: PyTree  # the algorithm's alone: its control variates, moments, numbers


class RoundBatch(NamedTuple):
    """All that a round reads: the clients' examples, who takes part with which rows, and the round's learning rate."""

    corpus: Examples
    cohort: Cohort
    learning_rate: Float[Array, ""]
    dropout: Dropout | None = None  # of the round; each client has its own

    def task(self, client: Cohort) -> Task:
        """What one client of the cohort, a row of it, trains on."""
        dropout = None
        if self.dropout is not None:
            dropout = self.dropout.at(client=client.client)
        return Task(batches(self.corpus, client.rows), client.weight, self.learning_rate, dropout)


def spreads_nothing(state: ServerState) -> PyTree:
    """Of an algorithm whose state every device has."""
    return ()


def holds_nothing(cohort: int, chunk: int) -> dict[str, int]:
    """Of an algorithm or aggregator that a round's deltas suffice."""
    return {}


@dataclass(frozen=True)
class FedAlgorithm:
    """`init(adapter) -> state`; `round(state, lm, batch) -> (state, metrics)`.

    `init` puts the algorithm's numbers (a server's learning rate, a penalty's strength) into the state's memory, so
    that they are traced: algorithms that differ in them alone share one `round`, are equal, and are compiled once.
    `holds(cohort, chunk)` says what a round holds besides state and deltas, in adapters by name, for so many clients.
    `spread(state)` is the part of the state that lies spread over the devices (`fed.client.Stacks`).
    """

    init: Callable[[Adapter], ServerState] = field(compare=False)
    round: Callable[[ServerState, LM, RoundBatch], tuple[ServerState, Metrics]]
    holds: Callable[[int, int], dict[str, int]] = field(default=holds_nothing, compare=False)
    spread: Callable[[ServerState], PyTree] = field(default=spreads_nothing, compare=False)


def whole_but_spread(algorithm: FedAlgorithm, state: ServerState, beside: PyTree) -> ServerState:
    """A round's state, of which all but what is spread is on each device that `beside` has parts on (`mesh.whole`)."""
    spread = {id(leaf) for leaf in jax.tree.leaves(algorithm.spread(state))}
    return jax.tree.map(lambda leaf: leaf if id(leaf) in spread else whole(leaf, beside), state)


class Row(NamedTuple):
    """A row of a table: a constructor, and the config's section whose keys are its own numbers; None: it has none."""

    constructor: Callable
    section: str | None = None


def summary(updates: ClientUpdate, direction: Adapter) -> Metrics:
    """The metrics of a round: the clients' loss a trained token, who took part, the norm of the aggregated delta.

    The loss is NaN where no token was trained on.
    """
    total = updates.metrics["loss_total"].sum()
    weight = updates.metrics["loss_weight"].sum()
    return {
        "train_loss": jnp.where(weight > 0, total / jnp.maximum(weight, 1.0), jnp.nan),
        "trained_tokens": weight,
        "clients": jnp.sum(updates.metrics.get("clients", updates.weight > 0)),
        "diverged": updates.metrics["diverged"].sum(),
        "delta_norm": trees.norm(direction),
    }
