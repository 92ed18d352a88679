"""FedProx: Federated Optimization in Heterogeneous Networks (arXiv 1812.06127)."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Float, Metrics, PyTree
from fedjax_rai.fed.aggregate import Aggregator, held
from fedjax_rai.fed.base import FedAlgorithm, RoundBatch, ServerState, summary
from fedjax_rai.fed.client import ClientUpdate, Cohort, Mapper, local_update
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.step import Trainer


class Memory(NamedTuple):
    aggregator: PyTree
    mu: Float[Array, ""]


def fedprox(local: Trainer, aggregator: Aggregator, mapper: Mapper, mu: float) -> FedAlgorithm:
    """FedAvg of clients that descend loss(y) + mu / 2 |y - x|^2 from the received adapter x; `mu` is traced."""

    def init(adapter) -> ServerState:
        return ServerState(adapter, Memory(aggregator.init(adapter), jnp.float32(mu)))

    mapper = mapper._replace(adds_up=aggregator.linear)
    return FedAlgorithm(init, _round(local, aggregator.apply, mapper), held(aggregator, mapper))


@lru_cache
def _round(local: Trainer, aggregate: Callable, mapper: Mapper) -> Callable:
    def round(state: ServerState, lm: LM, batch: RoundBatch) -> tuple[ServerState, Metrics]:
        kept, mu = state.memory

        def penalty(adapter: Adapter) -> Float[Array, ""]:
            return 0.5 * mu * trees.squared_norm(trees.sub(adapter, state.adapter))

        proximal = local._replace(penalty=penalty)

        def train(client: Cohort) -> ClientUpdate:
            return local_update(proximal, lm, state.adapter, batch.task(client))

        updates = mapper.updates(train, mapper.pad(batch.cohort))
        direction, kept = aggregate(updates, kept)
        adapter = trees.add(state.adapter, direction)
        return ServerState(adapter, Memory(kept, mu)), summary(updates, direction)

    return round
