"""The federated algorithms by name, and the one that a config asks for."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from fedjax_rai.config.names import look_up
from fedjax_rai.config.schema import FederatedConfig
from fedjax_rai.fed.aggregate import AGGREGATORS, Aggregator
from fedjax_rai.fed.base import FedAlgorithm, Row
from fedjax_rai.fed.client import Mapper
from fedjax_rai.fed.fedavg import fedavg
from fedjax_rai.fed.fedopt import SERVERS, fedopt
from fedjax_rai.fed.fedprox import fedprox
from fedjax_rai.fed.scaffold import scaffold
from fedjax_rai.mesh import over_clients
from fedjax_rai.train.optimizers import OPTIMIZERS, make_optimizer
from fedjax_rai.train.step import Trainer

# constructor(local, aggregator, mapper, **numbers of its section)
ALGORITHMS: dict[str, Row] = {
    "fedavg": Row(fedavg),
    "scaffold": Row(scaffold),
    "fedprox": Row(fedprox, "fedprox"),
    **{name: Row(partial(fedopt, server=server), name) for name, server in SERVERS.items()},
}


def make_algorithm(federated: FederatedConfig, sections: Mapping[str, Any], mesh: Mesh | AbstractMesh) -> FedAlgorithm:
    """The algorithm, aggregator and local optimizer of a config; `sections` holds the numbers of each, by its name.

    A chunk is a multiple of the mesh's clients axis. Configs that differ in numbers of sections give equal algorithms.
    """
    direction = look_up(OPTIMIZERS, federated.optimizer, "federated.optimizer")
    optimizer = make_optimizer(direction, federated.weight_decay, federated.clip_norm)
    rule = look_up(AGGREGATORS, federated.aggregator, "federated.aggregator")
    aggregator: Aggregator = construct(rule, sections)()
    across = mesh.shape["clients"]
    chunk = -(-federated.clients_per_chunk // across) * across
    mapper = Mapper(federated.clients, chunk, over_clients(mesh))
    algorithm = look_up(ALGORITHMS, federated.algorithm, "federated.algorithm")
    return construct(algorithm, sections)(Trainer(optimizer), aggregator, mapper)


def construct(row: Row | Callable, sections: Mapping[str, Any]) -> Callable:
    """A row's constructor, given the numbers of its section; the user's own has none."""
    if not isinstance(row, Row):
        return row
    if row.section is None:
        return row.constructor
    return partial(row.constructor, **dict(sections[row.section]))
