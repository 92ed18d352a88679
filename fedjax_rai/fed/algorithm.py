"""Federated algorithms as values: a pair of pure functions over pytrees."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Base, Float, Metrics, PyTree
from fedjax_rai.data.examples import Examples
from fedjax_rai.data.packing import batches
from fedjax_rai.fed.aggregate import Aggregator
from fedjax_rai.fed.client import ClientUpdate, Cohort, local_update, map_cohort, pad_cohort
from fedjax_rai.model.decoder import LM, Decoder


class ServerState(NamedTuple):
    """What the server keeps from round to round."""

    adapter: Adapter
    aggregator: PyTree
    controls: PyTree  # SCAFFOLD's control variates; () elsewhere


class RoundBatch(NamedTuple):
    """All that a round reads: the clients' examples, who takes part with which rows, and the round's learning rate."""

    corpus: Examples
    cohort: Cohort
    learning_rate: Float[Array, ""]


class FedAlgorithm(NamedTuple):
    """`init(adapter) -> state`; `round(state, base, batch) -> (state, metrics)`."""

    init: Callable[[Adapter], ServerState]
    round: Callable[[ServerState, Base, RoundBatch], tuple[ServerState, Metrics]]


class Controls(NamedTuple):
    """Control variates: the server's `c` and every client's `c_i`, leaves [clients, ...]."""

    server: Adapter
    clients: Adapter


def fedavg(
    model: Decoder, aggregator: Aggregator, clients: int, chunk: int = 1, constrain: Callable = lambda x: x
) -> FedAlgorithm:
    """adapter + aggregate(deltas) (arXiv 1602.05629)."""

    def init(adapter: Adapter) -> ServerState:
        return ServerState(adapter, aggregator.init(adapter), ())

    def round(state: ServerState, base: Base, batch: RoundBatch) -> tuple[ServerState, Metrics]:
        def client(own: Cohort) -> ClientUpdate:
            client_batches = batches(batch.corpus, own.rows)
            return local_update(LM(model, base), state.adapter, client_batches, own.weight, batch.learning_rate)

        updates = map_cohort(client, pad_cohort(batch.cohort, chunk), chunk, constrain)
        direction, kept = aggregator.apply(updates, state.aggregator)
        return ServerState(trees.add(state.adapter, direction), kept, ()), _summary(updates, direction)

    return FedAlgorithm(init, round)


def scaffold(
    model: Decoder, aggregator: Aggregator, clients: int, chunk: int = 1, constrain: Callable = lambda x: x
) -> FedAlgorithm:
    """SCAFFOLD, option II (arXiv 1910.06378), on the local optimizer's directions d:

        y <- y - lr (d - c_i + c);  c_i+ = c_i - c - delta_i / (K lr);  c += sum_i (c_i+ - c_i) / clients

    With SGD, d is the gradient and this is the paper's. c_i+ follows from delta_i, so the wire carries no more than
    FedAvg's. The server state holds one control variate per client.
    """

    def init(adapter: Adapter) -> ServerState:
        everyone = jax.tree.map(lambda x: jnp.zeros((clients, *x.shape), x.dtype), adapter)
        return ServerState(adapter, aggregator.init(adapter), Controls(trees.zeros_like(adapter), everyone))

    def round(state: ServerState, base: Base, batch: RoundBatch) -> tuple[ServerState, Metrics]:
        server, everyone = state.controls
        cohort = pad_cohort(batch.cohort, chunk)
        own = jax.tree.map(lambda x: x[cohort.client], everyone)

        def client(argument: tuple[Cohort, Adapter]) -> ClientUpdate:
            who, control = argument
            own, correction = batches(batch.corpus, who.rows), trees.sub(control, server)
            return local_update(LM(model, base), state.adapter, own, who.weight, batch.learning_rate, correction)

        updates = map_cohort(client, (cohort, own), chunk, constrain)
        local_steps = cohort.rows.shape[1]
        present = updates.weight > 0

        def change(c: Array, delta: Array) -> Array:
            moved = -c[None] - delta / (local_steps * batch.learning_rate)
            return jnp.where(present.reshape(-1, *(1,) * c.ndim), moved, 0.0)

        changes = jax.tree.map(change, server, updates.delta)
        controls = Controls(
            jax.tree.map(lambda c, moved: c + moved.sum(axis=0) / clients, server, changes),
            jax.tree.map(lambda all_, moved: all_.at[cohort.client].add(moved), everyone, changes),
        )
        direction, kept = aggregator.apply(updates, state.aggregator)
        return ServerState(trees.add(state.adapter, direction), kept, controls), _summary(updates, direction)

    return FedAlgorithm(init, round)


def _summary(updates: ClientUpdate, direction: Adapter) -> Metrics:
    total, weight = updates.metrics["loss_total"].sum(), updates.metrics["loss_weight"].sum()
    return {
        "train_loss": total / jnp.maximum(weight, 1.0),
        "trained_tokens": weight,
        "clients": jnp.sum(updates.weight > 0),
        "diverged": updates.metrics["diverged"].sum(),
        "delta_norm": trees.norm(direction),
    }


ALGORITHMS: dict[str, Callable[..., FedAlgorithm]] = {"fedavg": fedavg, "scaffold": scaffold}
