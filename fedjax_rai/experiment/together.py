"""The programs of a round: for one run, and for several that differ in numbers alone as a vmapped axis.

What does not depend on these numbers (base, corpus, cohort, red prompts, principles, random keys) is there once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Float, Int, Key, Metrics
from fedjax_rai.cai.align import Pool, Rates, begin
from fedjax_rai.cai.programs import Conversations, Options, learn, outcome, train
from fedjax_rai.cai.revise import Chain
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant, value_at
from fedjax_rai.fed.base import FedAlgorithm, RoundBatch, ServerState
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.generate import Sampling

BOUNDS = {"cai.top_k", "cai.top_p", "cai.min_p"}  # numbers, too, but a null one is not compiled in
# Keys that points may differ in and still share their programs.
TRACED = {
    "federated.learning_rate",
    "cai.iterations",
    "cai.learning_rate",
    "cai.beta",
    "cai.temperature",
} | BOUNDS


class Numbers(NamedTuple):
    """What the CAI phases of runs that go together may differ in, all traced."""

    iterations: Int[Array, ""]
    rates: Rates
    sampling: Sampling


def but_numbers(config: ExperimentConfig) -> Any:
    """What points must agree in to go together: every number but the traced ones, and which bounds are in use."""
    return relevant(config, but=TRACED), [value_at(config, key) is None for key in sorted(BOUNDS)]


@partial(jax.jit, static_argnames="algorithm")
def federated_round(
    algorithm: FedAlgorithm, state: ServerState, lm: LM, batch: RoundBatch
) -> tuple[ServerState, Metrics]:
    """One round of local training and aggregation."""
    return algorithm.round(state, lm, batch)


@partial(jax.jit, static_argnames="algorithm")
def federated_rounds(
    algorithm: FedAlgorithm, states: list[ServerState], lm: LM, batch: RoundBatch, rates: list[Float[Array, ""]]
) -> list[tuple[ServerState, Metrics]]:
    """`federated_round` of every point, each with its own learning rate in place of the batch's."""

    def one(state: ServerState, rate: Array) -> tuple[ServerState, Metrics]:
        return algorithm.round(state, lm, batch._replace(learning_rate=rate))

    return each(one, states, rates)


@partial(jax.jit, static_argnames="options")
def teach(
    lm: LM,
    options: Options,
    adapters: list[Adapter],
    numbers: list[Numbers],
    source: Pool | Conversations,
    key: Key[Array, ""],
) -> list[tuple[Adapter, Metrics, Chain | None]]:
    """The CAI phase of every point, as of `phase.Phase`, in one program.

    Takes as many iterations as the point with most of them; the others stay as they are when theirs are over.
    """
    draws = rng.stream(key, "align")

    def one(adapter: Adapter, own: Numbers) -> tuple[Adapter, Metrics, Chain | None]:
        first = jnp.zeros_like(own.iterations)
        pool, metrics, said = learn(lm.model, options, lm.base, adapter, source, own.sampling)
        progress = train(lm.model, options, lm.base, begin(adapter), pool, first, own.iterations, own.rates, draws)
        trained, more = outcome(adapter, progress, own.iterations)
        return trained, metrics | more, said

    return each(one, adapters, numbers)


def each(one: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """`one` of every point: lists of trees in, a list of trees out, a vmapped axis between."""
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *column) for column in columns]
    out = jax.vmap(one)(*stacked)
    return [jax.tree.map(itemgetter(i), out) for i in range(len(columns[0]))]
