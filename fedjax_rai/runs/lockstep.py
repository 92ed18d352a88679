"""Runs that go together: points of a sweep that differ in numbers alone, as many at once as memory allows."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from math import ceil
from pathlib import Path

from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.layout import settle
from fedjax_rai.experiment.round import Federation
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.together import but_numbers
from fedjax_rai.memory import advice
from fedjax_rai.memory.plan import plan
from fedjax_rai.runs.data import announce, keep
from fedjax_rai.runs.folder import check_folder, entered, run_folder
from fedjax_rai.runs.inputs import check_inputs
from fedjax_rai.runs.loop import train
from fedjax_rai.runs.run import finish, run


def room(setting: Setting) -> int:
    """How many points fit at once, at least 1: what the rounds need besides base and data, counted once a point.

    An upper bound of the need: copies of the base in another type, which points share, may be part of it.
    `sys.maxsize` where nothing says how much there is.
    """
    limit, made = advice.device_limit(), plan(setting.planned, sizes.sizes(setting))
    mapped = [sum(parts.values()) for name, parts in made.phases.items() if name.startswith(("local training", "CAI,"))]
    if limit is None or not mapped:
        return sys.maxsize
    adapters = made.held["adapters"]
    return max(1, (limit - sum(made.held.values()) + adapters) // (max(mapped) + adapters))


def run_together(settings: Sequence[Setting]) -> list[Path]:
    """The run folders of arms whose configs agree in `but_numbers`, finished, as `run` does it.

    Raises ValueError for others, and where phases wait for the host's decision (`cai.trigger`).

    A row of metrics has `together` besides, the number of points p of its round, and its seconds are the round's
    divided by p, whatever a point's own share in them. Numbers are those of a run by itself but for the order in which
    floating-point sums are taken. Where the points do not all fit, some go after others.
    """
    configs = [setting.config for setting in settings]
    if any(but_numbers(configs[0]) != but_numbers(config) for config in configs):
        raise ValueError("configs that differ in more than numbers cannot run together")
    if configs[0].cai.trigger is not None:
        raise ValueError("a trigger decides for each run by itself")
    check_inputs(configs)
    todo = [setting for setting in settings if not check_folder(run_folder(setting.config), setting.config)]
    if todo:
        largest = max(todo, key=lambda setting: setting.config.cai.iterations)
        settle(todo)
        advice.announce(largest.planned, sizes.sizes(largest))
        announce(largest)
        largest.check()
        for setting in todo:
            setting.check_values()  # a schedule is a number that points may differ in
        groups = ceil(len(todo) / room(largest))
        size = ceil(len(todo) / groups)
        for i in range(0, len(todo), size):
            _run_group(todo[i : i + size])
    return [run_folder(config) for config in configs]


def _run_group(settings: Sequence[Setting]) -> None:
    if len(settings) == 1:
        run(settings[0].config, settings[0])
        return
    with ExitStack() as stack:
        left = []
        for setting in settings:
            finished = stack.enter_context(entered(run_folder(setting.config), setting.config, setting))
            if not finished:
                left.append(setting)
        federations = [Federation(setting) for setting in left]
        for federation in federations:
            keep(federation)
        states = train(federations) if left else []
        for setting, state in zip(left, states, strict=True):
            finish(setting, state.adapter)
