"""The federated algorithms by name, and the one that a config asks for."""

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from fedjax_rai.config.names import look_up
from fedjax_rai.config.schema import FederatedConfig
from fedjax_rai.errors import InputError
from fedjax_rai.fed.aggregate import AGGREGATORS, Aggregator
from fedjax_rai.fed.base import FedAlgorithm, Row
from fedjax_rai.fed.client import Mapper, laid_out, stacks
from fedjax_rai.fed.fedavg import fedavg
from fedjax_rai.fed.fedopt import SERVERS, fedopt
from fedjax_rai.fed.fedprox import fedprox
from fedjax_rai.fed.scaffold import scaffold
from fedjax_rai.fed.weights import WEIGHTS, Counts, Weigher
from fedjax_rai.mesh import ways
from fedjax_rai.train.optimizers import OPTIMIZERS, make_optimizer
from fedjax_rai.train.step import Trainer

# constructor(local, aggregator, mapper, **numbers of its section)
ALGORITHMS: dict[str, Row] = {
    "fedavg": Row(fedavg),
    "scaffold": Row(scaffold),
    "fedprox": Row(fedprox, "fedprox"),
    **{name: Row(partial(fedopt, server=server), name) for name, server in SERVERS.items()},
}


class _Form(NamedTuple):
    """What a key takes: a row of the table, or the user's own constructor of the kind."""

    key: str
    table: Mapping[str, Any]
    kind: type
    text: str  # how the user's own is called, and what it gives


_OPTIMIZER = _Form(
    "federated.optimizer",
    OPTIMIZERS,
    optax.GradientTransformation,
    "a function of the weight decay that gives an optax.GradientTransformation",
)
_AGGREGATOR = _Form(
    "federated.aggregator", AGGREGATORS, Aggregator, "a function without arguments that gives an Aggregator"
)
_ALGORITHM = _Form(
    "federated.algorithm",
    ALGORITHMS,
    FedAlgorithm,
    "a function of trainer, aggregator and mapper that gives a FedAlgorithm",
)


def make_algorithm(federated: FederatedConfig, sections: Mapping[str, Any], mesh: Mesh | AbstractMesh) -> FedAlgorithm:
    """The algorithm, aggregator and local optimizer of a config; `sections` holds the numbers of each, by its name.

    Configs that differ in numbers of sections give equal algorithms. Raises InputError for a value of the user's own
    that cannot be called so, or gives something else.
    """
    aggregator = _made(_AGGREGATOR, federated.aggregator, lambda row: construct(row, sections)())
    takes_turns = in_turn(federated, mesh)
    chunk = chunk_of_clients(federated, mesh)
    mapper = Mapper(federated.clients, chunk, laid_out(mesh, takes_turns), stacks(mesh))
    devices = ways(mesh) if takes_turns else mesh.shape.get("fsdp", 1)
    local = Trainer(local_optimizer(federated), devices=devices, micro_batch=federated.micro_batch)
    return _made(_ALGORITHM, federated.algorithm, lambda row: construct(row, sections)(local, aggregator, mapper))


def make_weigher(federated: FederatedConfig, sections: Mapping[str, Any]) -> Weigher:
    """What `federated.weight` names: a row of the table with the numbers of its section, or the user's own function.

    Raises InputError for one of the user's that gives no number greater than 0.
    """
    row = look_up(WEIGHTS, federated.weight, "federated.weight")
    if isinstance(row, Row):
        return construct(row, sections)()

    def weigh(counts: Counts, g: np.random.Generator) -> float:
        weight = row(counts, g)
        if not isinstance(weight, int | float | np.number) or not 0 < weight < np.inf:
            raise InputError(
                f"federated.weight = {federated.weight}: gave {weight!r} of {counts}; must be a number greater than 0"
            )
        return float(weight)

    return weigh


def in_turn(federated: FederatedConfig, mesh: Mesh | AbstractMesh) -> bool:
    """Whether devices share the rows of each client's steps, as they do not divide the cohort but do divide a batch.

    Else a device has clients of its own, and some are idle where the last chunk is not full. A packed step has fewer
    rows than `batch_size`, which the devices may not divide.
    """
    undivided = federated.cohort % mesh.shape["clients"] != 0
    return undivided and federated.batch_size % ways(mesh) == 0


def chunk_of_clients(federated: FederatedConfig, mesh: Mesh | AbstractMesh) -> int:
    """How many clients are mapped at once, on all devices together.

    Places of the last chunk that no client has are computed, too, so a cohort is dealt out evenly: seven clients, five
    at most, are two chunks of four.
    """
    across = 1 if in_turn(federated, mesh) else mesh.shape["clients"]
    most = ceil(federated.clients_per_chunk / across)
    each = ceil(federated.cohort / across)
    return across * ceil(each / ceil(each / most))


def local_optimizer(federated: FederatedConfig) -> optax.GradientTransformation:
    """The clients' optimizer, without its learning rate; raises InputError as `make_algorithm` does."""

    def make(constructor: Callable) -> optax.GradientTransformation:
        return make_optimizer(constructor, federated.weight_decay, federated.clip_norm)

    return _made(_OPTIMIZER, federated.optimizer, make)


def _made(form: _Form, name: str, make: Callable[[Any], Any]) -> Any:
    """What is made of the row or of the user's own constructor of that name."""
    row = look_up(form.table, name, form.key)
    if name in form.table:
        return make(row)
    try:
        value = make(row)
    except TypeError as error:
        raise InputError(f"{form.key} = {name}: calling it failed ({error}); must be {form.text}") from error
    if not isinstance(value, form.kind):
        raise InputError(f"{form.key} = {name}: gives a value of the type {type(value).__name__}; must be {form.text}")
    return value


def construct(row: Row | Callable, sections: Mapping[str, Any]) -> Callable:
    """A row's constructor, given the numbers of its section; the user's own has none."""
    if not isinstance(row, Row):
        return row
    if row.section is None:
        return row.constructor
    return partial(row.constructor, **dict(sections[row.section]))
