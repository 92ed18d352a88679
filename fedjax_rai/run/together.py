"""Several runs as one: points of a sweep that differ in numbers alone are rows of a vmapped axis, in lockstep.

What does not depend on these numbers (base, corpus, cohort, red prompts, principles, random keys) is there once.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from math import ceil
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Base, Float, Int, Key, Metrics
from fedjax_rai.cai.align import Pool, Rates, begin
from fedjax_rai.cai.revise import Chain
from fedjax_rai.config import ExperimentConfig
from fedjax_rai.fed.algorithm import FedAlgorithm, RoundBatch, ServerState
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.run import log, memory
from fedjax_rai.run.experiment import check_folder, finish, open_folder, run, run_folder
from fedjax_rai.run.inputs import check_inputs
from fedjax_rai.run.memory_plan import plan
from fedjax_rai.run.phase import Conversations, Options, learn, outcome, sampling, train
from fedjax_rai.run.record import Record, timed
from fedjax_rai.run.round import Federation, Outcome, probe, when_done
from fedjax_rai.run.setting import Setting
from fedjax_rai.train.generate import Sampling

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


def room(config: ExperimentConfig, setting: Setting) -> int:
    """How many points fit at once, at least 1: what the rounds need besides base and data, counted once a point.

    An upper bound of the need: copies of the base in another type, which points share, may be part of it.
    `sys.maxsize` where nothing says how much there is.
    """
    limit, made = memory.device_limit(), plan(config, memory.sizes(setting, config))
    mapped = [sum(parts.values()) for name, parts in made.phases.items() if name.startswith(("local training", "CAI,"))]
    if limit is None or not mapped:
        return sys.maxsize
    adapters = made.held["adapters"]
    return max(1, (limit - sum(made.held.values()) + adapters) // (max(mapped) + adapters))


def run_together(configs: Sequence[ExperimentConfig], setting: Setting) -> list[Path]:
    """The run folders of configs that agree in `but_numbers`, finished, as `experiment.run` does it.

    Raises ValueError for others, and where phases wait for the host's decision (`cai.trigger`).

    A row of metrics has `together` besides, the number of points p of its round, and its seconds are the round's
    divided by p, whatever a point's own share in them. Numbers are those of a run by itself but for the order in which
    floating-point sums are taken. Where the points do not all fit, some go after others.
    """
    if any(but_numbers(configs[0]) != but_numbers(config) for config in configs):
        raise ValueError("configs that differ in more than numbers cannot run together")
    if configs[0].cai.trigger is not None:
        raise ValueError("a trigger decides for each run by itself")
    check_inputs(configs)
    todo = [config for config in configs if not check_folder(run_folder(config), config)]
    if todo:
        largest = max(todo, key=lambda config: config.cai.iterations)
        memory.announce(largest, memory.sizes(setting, largest))
        setting.check(largest)
        size = ceil(len(todo) / ceil(len(todo) / room(largest, setting)))
        for i in range(0, len(todo), size):
            _run_group(todo[i : i + size], setting)
    return [run_folder(config) for config in configs]


def _run_group(configs: Sequence[ExperimentConfig], setting: Setting) -> None:
    if len(configs) == 1:
        run(configs[0], setting)
        return
    for config in configs:
        open_folder(run_folder(config), config, setting)
    states = lockstep([Federation(setting, config) for config in configs])
    for config, state in zip(configs, states, strict=True):
        finish(setting, config, state.adapter)


def lockstep(points: Sequence[Federation]) -> list[ServerState]:
    """All rounds that are still to do, a record of each in each point's folder; the last states.

    Points that an interruption left behind the others begin, and are joined by these where they left off. The metrics
    of a round are read after the next one was dispatched, so the device never waits for the host.
    """
    setting, rounds = points[0].setting, points[0].config.federated.rounds
    with ExitStack() as stack:
        records = [stack.enter_context(Record(run_folder(own.config), setting)) for own in points]
        done, states = map(list, zip(*(record.restore(points[0].init()) for record in records), strict=True))
        advance = stack.enter_context(log.progress(run_folder(points[0].config).parent.name, rounds, min(done)))
        pending, began = None, time.perf_counter()

        def settle(t: int, going: list[int], ends: list[tuple[ServerState, Outcome]]) -> None:
            nonlocal began
            seconds, began = timed(max((own for _, own in ends), key=lambda own: own.cai is not None), began)
            shared = {name: round(value / len(going), 3) for name, value in seconds.items()} | {"together": len(going)}
            rows = [records[i].add(t, *end, shared) for i, end in zip(going, ends, strict=True)]
            advance(f"loss {rows[0]['train_loss']:.3f}")

        for t in range(min(done), rounds):
            going = [i for i, rounds_done in enumerate(done) if rounds_done <= t]
            ends = one_round([points[i] for i in going], [states[i] for i in going], t)
            if pending:
                settle(*pending)
            for i, (state, _) in zip(going, ends, strict=True):
                states[i] = state
            pending = t, going, ends
        if pending:
            settle(*pending)
    return states


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
    algorithm: FedAlgorithm, states: list[ServerState], base: Base, batch: RoundBatch, rates: list[Float[Array, ""]]
) -> list[tuple[ServerState, Metrics]]:
    """`round.federated_round` of every point, each with its own learning rate."""
    return each(lambda state, rate: algorithm.round(state, base, batch._replace(learning_rate=rate)), states, rates)


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
