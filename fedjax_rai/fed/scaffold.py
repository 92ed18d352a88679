"""SCAFFOLD: Stochastic Controlled Averaging for Federated Learning (arXiv 1910.06378)."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Float, Metrics, PyTree
from fedjax_rai.fed.aggregate import Aggregator
from fedjax_rai.fed.base import FedAlgorithm, RoundBatch, ServerState, summary
from fedjax_rai.fed.client import ClientUpdate, Cohort, Mapper, local_update
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.step import Trainer


class Memory(NamedTuple):
    aggregator: PyTree
    server: Adapter  # the control variate c
    clients: Adapter  # every client's c_i, leaves [clients, ...], spread over the devices


def scaffold(local: Trainer, aggregator: Aggregator, mapper: Mapper) -> FedAlgorithm:
    """SCAFFOLD, option II, on the local optimizer's directions d:

        y <- y - lr (d - c_i + c);  c_i+ = c_i - c - delta_i / (K lr);  c += sum_i (c_i+ - c_i) / clients

    With SGD, d is the gradient and this is the paper's. c_i+ follows from delta_i, so the wire carries no more than
    FedAvg's. The memory holds one control variate per client, of which each device has a part.
    """
    spread, _ = mapper.stacks

    def init(adapter) -> ServerState:
        def nothing() -> Adapter:
            return spread(jax.tree.map(lambda x: jnp.zeros((mapper.clients, *x.shape), x.dtype), adapter))

        everyone = jax.jit(nothing)()  # no device makes all of it
        return ServerState(adapter, Memory(aggregator.init(adapter), trees.zeros_like(adapter), everyone))

    def holds(cohort: int, chunk: int) -> dict[str, int]:
        return aggregator.holds(cohort, chunk) | {"control variates": cohort + chunk}  # gathered, and corrections

    return FedAlgorithm(init, _round(local, aggregator.apply, mapper), holds, lambda state: state.memory.clients)


@lru_cache
def _round(local: Trainer, aggregate: Callable, mapper: Mapper) -> Callable:
    spread, whole = mapper.stacks

    def round(state: ServerState, lm: LM, batch: RoundBatch) -> tuple[ServerState, Metrics]:
        kept, server, everyone = state.memory
        cohort = mapper.pad(batch.cohort)
        controls = jax.tree.map(lambda x: x[cohort.client], everyone)

        def train(row: tuple[Cohort, Adapter]) -> ClientUpdate:
            client, control = row
            drift = trees.sub(control, server)
            corrected = local._replace(correct=lambda direction: trees.sub(direction, drift))
            return local_update(corrected, lm, state.adapter, batch.task(client))

        updates = mapper.spread(train, (cohort, controls))
        changes = _changes(updates, server, cohort.rows.shape[1], batch.learning_rate)
        moved = jax.tree.map(lambda c, change: c + change.sum(axis=0) / mapper.clients, server, changes)
        everyone = jax.tree.map(lambda c, change: c.at[cohort.client].add(change), everyone, changes)
        direction, kept = aggregate(updates, kept)
        direction, server = whole((direction, moved))
        everyone = spread(everyone)
        adapter = trees.add(state.adapter, direction)
        return ServerState(adapter, Memory(kept, server, everyone)), summary(updates, direction)

    return round


def _changes(updates: ClientUpdate, server: Adapter, local_steps: int, learning_rate: Float[Array, ""]) -> Adapter:
    """c_i+ - c_i of every client, leaves [c, ...]; 0 of an absent one."""
    present = updates.weight > 0

    def change(c: Array, delta: Array) -> Array:
        moved = -c[None] - delta / (local_steps * learning_rate)
        return jnp.where(present.reshape(-1, *(1,) * c.ndim), moved, 0.0)

    return jax.tree.map(change, server, updates.delta)
