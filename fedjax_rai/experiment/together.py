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
from fedjax_rai.aliases import Adapter, Array, Base, Float, Int, Key, Metrics
from fedjax_rai.cai.align import Pool, Rates, begin
from fedjax_rai.cai.programs import Conversations, Options, learn, outcome, sampling, train
from fedjax_rai.cai.revise import Chain
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment.round import Federation, Outcome, probe, when_done
from fedjax_rai.fed.base import FedAlgorithm, RoundBatch, ServerState
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.train.generate import Sampling
from fedjax_rai.train.optimizers import learning_rate

BOUNDS = {"top_k", "top_p", "min_p"}  # numbers, too, but a null one is not compiled in
# Keys that points may differ in and still share their programs.
TRACED: dict[str, set[str]] = {
    "federated": {"learning_rate"},
    "cai": {"iterations", "learning_rate", "beta", "temperature"} | BOUNDS,
}
Numbers = tuple[Int[Array, ""], Rates, Sampling]  # of a point: iterations, and what else its phases differ in


def but_numbers(config: ExperimentConfig) -> Any:
    """What points must agree in to go together: all but `TRACED` keys, and `output`."""
    fields = config.model_dump(exclude={"output": True} | TRACED)  # pyright: ignore[reportArgumentType]
    return fields, sorted(name for name in BOUNDS if getattr(config.cai, name) is None)


def one_round(points: Sequence[Federation], states: Sequence[ServerState], t: int) -> list[tuple[ServerState, Outcome]]:
    """Round t of every point, dispatched."""
    first, setting, cai = points[0], points[0].setting, points[0].config.cai
    cohort, tokens = first.cohort(t)
    rates = [jnp.float32(learning_rate(point.config.federated, t)) for point in points]
    batch = RoundBatch(setting.corpus, cohort, rates[0], first.dropout(t))  # in which every point puts its own rate
    trained = federated_rounds(first.algorithm, list(states), setting.lm, batch, rates)
    done = when_done(trained[0][1])
    ends = [(state, Outcome(metrics | {"step_tokens": tokens}, done)) for state, metrics in trained]
    if cai.probe:
        for state, own in ends:
            own.local["probe_harmless"] = probe(setting, cai.probe, state.adapter)
        ends = [(state, own._replace(probe_done=when_done({}))) for state, own in ends]
    if not (cai.enabled and (t + 1) % cai.every == 0 and any(point.config.cai.iterations for point in points)):
        return ends
    phase, source, adapters = first.phase, first.phase.source(t), [state.adapter for state, _ in ends]
    numbers = [(jnp.int32(own.config.cai.iterations), own.phase.rates, sampling(own.config.cai)) for own in points]
    taught = teach(setting.model, phase.options, setting.base, adapters, numbers, source.pool, phase.key(t))
    cai_done = when_done(taught[0][1])
    for i, (adapter, metrics, chain) in enumerate(taught):
        if points[i].config.cai.iterations:
            state, own = ends[i]
            more = own._replace(cai=source.metrics | metrics, cai_done=cai_done, said=source.said(chain))
            ends[i] = state._replace(adapter=adapter), more
    return ends


@partial(jax.jit, static_argnames="algorithm")
def federated_rounds(
    algorithm: FedAlgorithm, states: list[ServerState], lm: LM, batch: RoundBatch, rates: list[Float[Array, ""]]
) -> list[tuple[ServerState, Metrics]]:
    """`round.federated_round` of every point, each with its own learning rate."""
    return each(lambda state, rate: algorithm.round(state, lm, batch._replace(learning_rate=rate)), states, rates)


@partial(jax.jit, static_argnames=("model", "options"))
def teach(
    model: Decoder, options: Options, base: Base, adapters: list[Adapter], numbers: list[Numbers],
    source: Pool | Conversations, key: Key[Array, ""],
) -> list[tuple[Adapter, Metrics, Chain | None]]:  # fmt: skip
    """The CAI phase of every point, as of `phase.Phase`, in one program.

    Takes as many iterations as the point with most of them; the others stay as they are when theirs are over.
    """

    def one(adapter: Adapter, own: Numbers) -> tuple[Adapter, Metrics, Chain | None]:
        (last, rates, drawn), draws = own, rng.stream(key, "align")
        pool, metrics, said = learn(model, options, base, adapter, source, drawn)
        progress = train(model, options, base, begin(adapter), pool, 0 * last, last, rates, draws)
        trained, more = outcome(adapter, progress, last)
        return trained, metrics | more, said

    return each(one, adapters, numbers)


def each(one: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """`one` of every point: lists of trees in, a list of trees out, a vmapped axis between."""
    out = jax.vmap(one)(*(jax.tree.map(lambda *leaves: jnp.stack(leaves), *column) for column in columns))
    return [jax.tree.map(itemgetter(i), out) for i in range(len(columns[0]))]
