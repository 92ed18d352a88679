"""Several runs as one: points of a sweep that differ in numbers alone are rows of a vmapped axis, in lockstep.

What does not depend on these numbers (base, corpus, cohort, red prompts, principles, random keys) is there once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Base, Float, Key, Metrics
from fedjax_rai.cai.align import align, begin
from fedjax_rai.cai.options import Numbers, Options, make_sampling
from fedjax_rai.cai.programs import Source, outcome
from fedjax_rai.cai.revise import Rollout
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment.round import Federation, Outcome, probe, when_done
from fedjax_rai.fed.algorithm import FedAlgorithm, RoundBatch, ServerState
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.generate import Sampling

BOUNDS = {"top_k", "top_p", "min_p"}  # numbers, too, but a null one is not compiled in
# Keys that points may differ in and still share their programs.
TRACED: dict[str, set[str]] = {
    "federated": {"learning_rate"},
    "cai": {"iterations", "learning_rate", "beta", "temperature"} | BOUNDS,
}
PhaseNumbers = tuple[Numbers, Sampling]  # of a point: all that its phases differ in


def but_numbers(config: ExperimentConfig) -> Any:
    """What points must agree in to go together: all but `TRACED` keys, and `output`."""
    fields = config.model_dump(exclude={"output": True} | TRACED)  # pyright: ignore[reportArgumentType]
    return fields, sorted(name for name in BOUNDS if getattr(config.cai, name) is None)


def one_round(points: Sequence[Federation], states: Sequence[ServerState], t: int) -> list[tuple[ServerState, Outcome]]:
    """Round t of every point, dispatched."""
    first, setting, cai = points[0], points[0].setting, points[0].config.cai
    cohort, tokens = first.cohort(t)
    rates = [jnp.float32(point.config.federated.learning_rate) for point in points]
    batch = RoundBatch(setting.corpus, cohort, rates[0])  # in which every point puts its own
    trained = federated_rounds(first.algorithm, list(states), setting.base, batch, rates)
    done = when_done(trained[0][1])
    ends = [(state, Outcome(metrics | {"step_tokens": tokens}, done)) for state, metrics in trained]
    if cai.probe:
        for state, own in ends:
            own.local["probe_harmless"] = probe(setting, cai.probe, state.adapter)
        ends = [(state, own._replace(probe_done=when_done({}))) for state, own in ends]
    if not (cai.enabled and (t + 1) % cai.every == 0 and any(point.config.cai.iterations for point in points)):
        return ends
    phase = first.phase
    source = phase.source(t)
    adapters = [state.adapter for state, _ in ends]
    numbers = [(point.phase.numbers, make_sampling(point.config.cai)) for point in points]
    aligned = align_together(setting.lm, phase.options, adapters, numbers, source, phase.key(t))
    cai_done = when_done(aligned[0][1])
    for i, (adapter, metrics, rollout) in enumerate(aligned):
        if points[i].config.cai.iterations:
            state, local = ends[i]
            ends[i] = state._replace(adapter=adapter), local._replace(cai=metrics, cai_done=cai_done, rollout=rollout)
    return ends


@partial(jax.jit, static_argnames="algorithm")
def federated_rounds(
    algorithm: FedAlgorithm, states: list[ServerState], base: Base, batch: RoundBatch, rates: list[Float[Array, ""]]
) -> list[tuple[ServerState, Metrics]]:
    """`round.federated_round` of every point, each with its own learning rate."""
    return each(lambda state, rate: algorithm.round(state, base, batch._replace(learning_rate=rate)), states, rates)


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
        point_numbers, sampling = given
        collected = source.collect(lm, options, adapter, sampling)
        progress = align(lm, options, begin(adapter), collected.pool, point_numbers, align_key)
        aligned, metrics = outcome(adapter, progress)
        return aligned, collected.metrics | metrics, collected.rollout

    return each(phase, adapters, numbers)


def each(one: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """`one` of every point: lists of trees in, a list of trees out, a vmapped axis between."""
    out = jax.vmap(one)(*(jax.tree.map(lambda *leaves: jnp.stack(leaves), *column) for column in columns))
    return [jax.tree.map(itemgetter(i), out) for i in range(len(columns[0]))]
