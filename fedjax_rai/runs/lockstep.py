"""Runs that go together: a record of each in its own folder."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from math import ceil
from pathlib import Path

from fedjax_rai import terminal
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.round import Federation, Outcome
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.together import but_numbers, one_round
from fedjax_rai.fed.algorithm import ServerState
from fedjax_rai.memory import advice
from fedjax_rai.memory.plan import plan
from fedjax_rai.runs.folder import check_folder, open_folder, run_folder
from fedjax_rai.runs.inputs import check_inputs
from fedjax_rai.runs.record import Record, timed
from fedjax_rai.runs.run import finish, run


def room(config: ExperimentConfig, setting: Setting) -> int:
    """How many points fit at once, at least 1: what the rounds need besides base and data, counted once a point.

    An upper bound of the need: copies of the base in another type, which points share, may be part of it.
    `sys.maxsize` where nothing says how much there is.
    """
    limit, made = advice.device_limit(), plan(config, sizes.sizes(setting, config))
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
        advice.announce(largest, sizes.sizes(setting, largest))
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
        advance = stack.enter_context(terminal.progress(run_folder(points[0].config).parent.name, rounds, min(done)))
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
