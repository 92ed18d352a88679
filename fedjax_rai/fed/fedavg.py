"""FedAvg: Communication-Efficient Learning of Deep Networks from Decentralized Data (arXiv 1602.05629)."""

from collections.abc import Callable
from functools import lru_cache

from fedjax_rai import trees
from fedjax_rai.aliases import Metrics
from fedjax_rai.fed.aggregate import Aggregator, held
from fedjax_rai.fed.base import FedAlgorithm, RoundBatch, ServerState, summary
from fedjax_rai.fed.client import ClientUpdate, Cohort, Mapper, local_update
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.step import Trainer


def fedavg(local: Trainer, aggregator: Aggregator, mapper: Mapper) -> FedAlgorithm:
    """adapter + aggregate(deltas). The memory is the aggregator's."""

    def init(adapter) -> ServerState:
        return ServerState(adapter, aggregator.init(adapter))

    mapper = mapper._replace(adds_up=aggregator.linear)
    return FedAlgorithm(init, _round(local, aggregator.apply, mapper), held(aggregator, mapper))


@lru_cache
def _round(local: Trainer, aggregate: Callable, mapper: Mapper) -> Callable:
    def round(state: ServerState, lm: LM, batch: RoundBatch) -> tuple[ServerState, Metrics]:
        def train(client: Cohort) -> ClientUpdate:
            return local_update(local, lm, state.adapter, batch.task(client))

        updates = mapper.updates(train, mapper.pad(batch.cohort))
        direction, memory = aggregate(updates, state.memory)
        adapter = trees.add(state.adapter, direction)
        return ServerState(adapter, memory), summary(updates, direction)

    return round
