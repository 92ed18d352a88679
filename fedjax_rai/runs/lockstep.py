"""Runs that go together: points of a sweep, as one vmapped axis or side by side, as many as memory allows."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from math import ceil
from pathlib import Path

from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.layout import choose_mesh
from fedjax_rai.experiment.round import Federation
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.together import but_numbers
from fedjax_rai.fed.base import ServerState
from fedjax_rai.memory import advice
from fedjax_rai.memory.plan import plan
from fedjax_rai.runs.beside import lanes_of, train_beside
from fedjax_rai.runs.data import announce, keep
from fedjax_rai.runs.folder import check_folder, entered, run_folder
from fedjax_rai.runs.held import take_up
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
    todo = _unfinished(settings)
    if todo:
        groups = ceil(len(todo) / room(_checked(todo)))
        size = ceil(len(todo) / groups)
        for i in range(0, len(todo), size):
            _run_group(todo[i : i + size], train)
    return [run_folder(config) for config in configs]


def run_beside(settings: Sequence[Setting]) -> list[Path]:
    """The run folders of arms whose configs differ in `cai.iterations` alone, finished, as `run` does it, bit for bit.

    Rounds up to the end of the first CAI phase are computed once for all that were never begun. From there on several
    runs are computed at once where that was measured to be faster (`train_beside`).
    """
    configs = [setting.config for setting in settings]
    check_inputs(configs)
    todo = sorted(_unfinished(settings), key=_iterations, reverse=True)
    if todo:
        lanes = min(lanes_of([setting.config for setting in todo]), room(_checked(todo)))
        _run_shared_rounds(todo)
        _run_group(todo, partial(train_beside, lanes=lanes))
    return [run_folder(config) for config in configs]


def _iterations(setting: Setting) -> int:
    return setting.config.cai.iterations


def _unfinished(settings: Sequence[Setting]) -> list[Setting]:
    return [setting for setting in settings if not check_folder(run_folder(setting.config), setting.config)]


def _checked(settings: Sequence[Setting]) -> Setting:
    """The one with most iterations, of which all is checked and said that holds of the others, too."""
    largest = max(settings, key=_iterations)
    choose_mesh(settings)
    advice.announce(largest.planned, sizes.sizes(largest))
    announce(largest)
    largest.check()
    for setting in settings:
        setting.check_values()  # a schedule is a number that points may differ in
    return largest


def _run_shared_rounds(settings: Sequence[Setting]) -> None:
    """Fill the folders of runs that were never begun up to the end of the first phase, by the first: the largest."""
    first, *others = settings
    never_begun = [setting.config for setting in reversed(others) if not run_folder(setting.config).exists()]
    if not never_begun:
        return
    with entered(run_folder(first.config), first.config, first) as finished:
        if not finished:
            take_up(run_folder(first.config))
            federation = Federation(first)
            keep(federation)
            train([federation], never_begun, until_parted=True)


def _run_group(settings: Sequence[Setting], train_all: Callable[[Sequence[Federation]], list[ServerState]]) -> None:
    if len(settings) == 1:
        run(settings[0].config, settings[0])
        return
    with ExitStack() as stack:
        left = []
        for setting in settings:
            finished = stack.enter_context(entered(run_folder(setting.config), setting.config, setting))
            if not finished:
                left.append(setting)
        resumed = [take_up(run_folder(setting.config)) for setting in left]
        federations = [Federation(setting) for setting in left]
        for federation in federations:
            keep(federation)
        states = train_all(federations) if left else []
        for setting, state, was_resumed in zip(left, states, resumed, strict=True):
            finish(setting, state.adapter, was_resumed)
