"""FedOpt: a server optimizer of the aggregated delta, taken as a gradient (arXiv 2003.00295, 1909.06335)."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Float, Metrics, PyTree
from fedjax_rai.fed.aggregate import Aggregator, held
from fedjax_rai.fed.base import FedAlgorithm, RoundBatch, ServerState, summary
from fedjax_rai.fed.client import ClientUpdate, Cohort, Mapper, local_update
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.step import Trainer

Server = Callable[..., optax.GradientTransformation]
Number = float | Array


class Memory(NamedTuple):
    aggregator: PyTree
    optimizer: optax.OptState
    numbers: dict[str, Float[Array, ""]]  # the server optimizer's arguments


def fedopt(local: Trainer, aggregator: Aggregator, mapper: Mapper, server: Server, **numbers: float) -> FedAlgorithm:
    """x + server(**numbers)'s step for the gradient -aggregate(deltas); `numbers` are traced.

    `server` is a constructor of optax: with `optax.sgd, learning_rate=1.0` this is FedAvg. A round that nobody took
    part in leaves adapter and optimizer as they are.
    """

    def init(adapter) -> ServerState:
        traced = {name: jnp.float32(number) for name, number in numbers.items()}
        return ServerState(adapter, Memory(aggregator.init(adapter), server(**traced).init(adapter), traced))

    mapper = mapper._replace(adds_up=aggregator.linear)
    return FedAlgorithm(init, _round(local, aggregator.apply, mapper, server), held(aggregator, mapper))


@lru_cache
def _round(local: Trainer, aggregate: Callable, mapper: Mapper, server: Server) -> Callable:
    def round(state: ServerState, lm: LM, batch: RoundBatch) -> tuple[ServerState, Metrics]:
        kept, optimizer, numbers = state.memory

        def train(client: Cohort) -> ClientUpdate:
            return local_update(local, lm, state.adapter, batch.task(client))

        updates = mapper.updates(train, mapper.pad(batch.cohort))
        direction, kept = aggregate(updates, kept)
        gradient = trees.scale(-1.0, direction)
        step, stepped = server(**numbers).update(gradient, optimizer, state.adapter)
        after = trees.add(state.adapter, step), stepped
        anyone = jnp.any(updates.weight > 0)
        adapter, optimizer = trees.select(anyone, after, (state.adapter, optimizer))
        return ServerState(adapter, Memory(kept, optimizer, numbers)), summary(updates, direction)

    return round


def momentum(momentum: Number, learning_rate: Number) -> optax.GradientTransformation:
    """FedAvgM's (arXiv 1909.06335): v <- momentum v + delta; x <- x + learning_rate v."""
    return optax.chain(optax.trace(decay=momentum), optax.scale_by_learning_rate(learning_rate))


def adam(learning_rate: Number, beta1: Number, beta2: Number, tau: Number) -> optax.GradientTransformation:
    """FedAdam's: `adaptive` with v <- beta2 v + (1 - beta2) delta^2."""
    return adaptive(lambda v, square: beta2 * v + (1.0 - beta2) * square, learning_rate, beta1, tau)


def yogi(learning_rate: Number, beta1: Number, beta2: Number, tau: Number) -> optax.GradientTransformation:
    """FedYogi's: `adaptive` with v <- v - (1 - beta2) delta^2 sign(v - delta^2)."""
    return adaptive(lambda v, square: v - (1.0 - beta2) * square * jnp.sign(v - square), learning_rate, beta1, tau)


def adagrad(learning_rate: Number, beta1: Number, tau: Number) -> optax.GradientTransformation:
    """FedAdagrad's: `adaptive` with v <- v + delta^2."""
    return adaptive(lambda v, square: v + square, learning_rate, beta1, tau)


class Moments(NamedTuple):
    first: Adapter
    second: Adapter


def adaptive(
    second: Callable[[Array, Array], Array], learning_rate: Number, beta1: Number, tau: Number
) -> optax.GradientTransformation:
    """Algorithm 2 of arXiv 2003.00295, whose second moment v follows `second(v, delta^2)` from tau^2 on:

        m <- beta1 m + (1 - beta1) delta;  x <- x + learning_rate m / (sqrt(v) + tau)

    Not optax's Adam and Yogi: those correct the moments' bias and start the second one elsewhere.
    """

    def init(params: Adapter) -> Moments:
        return Moments(trees.zeros_like(params), jax.tree.map(lambda x: jnp.full_like(x, tau**2), params))

    def update(gradient: Adapter, state: Moments, params: Adapter | None = None) -> tuple[Adapter, Moments]:
        m = jax.tree.map(lambda m, g: beta1 * m + (1.0 - beta1) * g, state.first, gradient)
        v = jax.tree.map(lambda v, g: second(v, jnp.square(g)), state.second, gradient)
        step = jax.tree.map(lambda m, v: -learning_rate * m / (jnp.sqrt(v) + tau), m, v)
        return step, Moments(m, v)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


# By the name of the algorithm; the section of that name holds the arguments.
SERVERS: dict[str, Server] = {"fedavgm": momentum, "fedadam": adam, "fedyogi": yogi, "fedadagrad": adagrad}
