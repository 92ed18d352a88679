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
from fedjax_rai.aliases import Adapter, Array, Float, Key, Metrics
from fedjax_rai.cai.align import align, begin
from fedjax_rai.cai.options import Numbers, Options
from fedjax_rai.cai.programs import Source, outcome
from fedjax_rai.cai.revise import Rollout
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import all_keys, relevant, value_at
from fedjax_rai.fed.aggregate import AGGREGATORS
from fedjax_rai.fed.algorithm import ALGORITHMS
from fedjax_rai.fed.base import FedAlgorithm, RoundBatch, ServerState, whole_but_spread
from fedjax_rai.mesh import whole
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.generate import Sampling

BOUNDS = {"cai.top_k", "cai.top_p", "cai.min_p"}  # numbers, too, but a null one is not compiled in
# Sections of numbers that an algorithm or an aggregator keeps in the server's state, where they are traced.
IN_STATE = {row.section for row in (*ALGORITHMS.values(), *AGGREGATORS.values())}
# Keys that points may differ in and still share their programs.
TRACED = {
    "federated.learning_rate",
    "federated.schedule",
    "federated.final_learning_rate",
    "cai.iterations",
    "cai.learning_rate",
    "cai.beta",
    "cai.temperature",
    *BOUNDS,
    *(key for key in all_keys() if key.partition(".")[0] in IN_STATE),
}


class PhaseNumbers(NamedTuple):
    """What the CAI phases of runs that go together may differ in, all traced."""

    numbers: Numbers
    sampling: Sampling


def but_numbers(config: ExperimentConfig) -> Any:
    """What points must agree in to go together: every number but the traced ones, and which bounds are in use."""
    return relevant(config, but=TRACED), [value_at(config, key) is None for key in sorted(BOUNDS)]


@partial(jax.jit, static_argnames="algorithm")
def federated_round(
    algorithm: FedAlgorithm, state: ServerState, lm: LM, batch: RoundBatch
) -> tuple[ServerState, Metrics]:
    """One round of local training and aggregation."""
    after, metrics = algorithm.round(state, lm, batch)
    return whole_but_spread(algorithm, after, lm.base), whole(metrics, lm.base)


@partial(jax.jit, static_argnames="algorithm")
def federated_rounds(
    algorithm: FedAlgorithm, states: list[ServerState], lm: LM, batch: RoundBatch, rates: list[Float[Array, ""]]
) -> list[tuple[ServerState, Metrics]]:
    """`federated_round` of every point, each with its own learning rate in place of the batch's."""

    def point_round(state: ServerState, rate: Array) -> tuple[ServerState, Metrics]:
        return algorithm.round(state, lm, batch._replace(learning_rate=rate))

    ends = each(point_round, states, rates)
    return [(whole_but_spread(algorithm, after, lm.base), whole(metrics, lm.base)) for after, metrics in ends]


@partial(jax.jit, static_argnames="options")
def align_together(
    lm: LM,
    options: Options,
    adapters: list[Adapter],
    numbers: list[PhaseNumbers],
    source: Source,
    key: Key[Array, ""],
) -> list[tuple[Adapter, Metrics, Rollout | None]]:
    """The CAI phase of every point, as of `phase.Phase`, in one program.

    Takes as many iterations as the point with most of them; the others stay as they are when theirs are over.
    """
    align_key = rng.stream(key, "align")

    def phase(adapter: Adapter, given: PhaseNumbers) -> tuple[Adapter, Metrics, Rollout | None]:
        collected = source.collect(lm, options, adapter, given.sampling)
        progress = align(lm, options, begin(adapter), collected.pool, given.numbers, align_key)
        aligned, metrics = outcome(adapter, progress)
        return aligned, collected.metrics | metrics, collected.rollout

    return each(phase, adapters, numbers)


def each(function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """`function` of every point: lists of trees in, a list of trees out, a vmapped axis between."""
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *column) for column in columns]
    out = jax.vmap(function)(*stacked)
    return [jax.tree.map(itemgetter(i), out) for i in range(len(columns[0]))]
