"""What a command would do: its config, data, memory and folders; reads what a run reads first, and writes nothing."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedjax_rai.config.grid import Point
from fedjax_rai.config.load import dump_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.data_summary import describe
from fedjax_rai.experiment.layout import choose_mesh
from fedjax_rai.experiment.setting import Setting, views
from fedjax_rai.experiment.together import but_numbers
from fedjax_rai.memory import advice
from fedjax_rai.memory.plan import Sizes, plan
from fedjax_rai.runs import files, prepare
from fedjax_rai.runs.data import lines
from fedjax_rai.runs.folder import check_folder, pins, run_folder
from fedjax_rai.runs.inputs import check_inputs
from fedjax_rai.runs.record import METRICS
from fedjax_rai.studies import sweep, table
from fedjax_rai.terminal import plural

NOTHING = "dry run: nothing was written"
WIDTH = 24  # of the names in lists


def preview_run(config: ExperimentConfig) -> Iterator[str]:
    """A run in blocks of text: config, data, memory, folder. Raises InputError as the run would."""
    check_inputs([config])
    yield dump_config(config)
    yield from _shared_by([config])
    yield from ("", folders([config]), NOTHING)


def preview_table(config: ExperimentConfig, arms: Sequence[str] | None, seeds: int) -> Iterator[str]:
    """A table in blocks of text, as of `preview_run`; and what its arms share."""
    chosen = table.choose(arms)
    folder = Path(config.output or "runs/table")
    table.check_table(folder, config)
    configs = []
    for seed in range(config.seed, config.seed + seeds):
        configs += [table.arm_config(config, arm, seed, folder) for arm in chosen]
    check_inputs(configs)
    yield dump_config(config)
    yield from _shared_by(configs)
    yield from ("", folders(configs), NOTHING)


def preview_sweep(points: Sequence[Point], together: bool) -> Iterator[str]:
    """A sweep in blocks of text, as of `preview_run`; and what its points share."""
    configs = [point.config for point in points]
    check_inputs(configs)
    if together:
        sweep.check_together(points)
    sweep.check_sweep(points)
    yield dump_config(sweep.base_config(points))
    lines = ["swept:"]
    for key in points[0].values:
        values = dict.fromkeys(point.values[key] for point in points)  # each once
        lines.append(f"  {key}: {', '.join(values)}")
    yield "\n".join(lines) + "\n"
    yield from _shared_by(configs)
    if together:
        families = grouped(configs, but_numbers)
        yield f"\n{plural(len(families), 'group')} of points that go together, as many of each at once as memory allows"
    else:
        families = grouped(configs, sweep.but_iterations)
        if len(families) < len(configs):
            yield f"\n{plural(len(families), 'group')} of points that share all up to the end of the first CAI phase"
    yield from ("", folders(configs), NOTHING)


def preview_set(config: ExperimentConfig, out: Path, prompts: int | None, adapter: Path | None) -> Iterator[str]:
    """A set of revisions to prepare in blocks of text: config, data, memory, folder."""
    config, setting, asked = prepare.read_request(config, out, prompts, adapter)
    is_finished = prepare.finished(out, asked)
    yield dump_config(config)
    yield summary(setting)
    yield f"  {'conversations':<{WIDTH}}{asked['prompts']:,}\n"
    writer = prepare.Writer(setting, config, prepare.policy(setting, adapter), asked["prompts"])
    yield from memory(writer.shard_config, sizes.preparing(setting))
    yield from ("", f"folders:\n  {out}: {set_state(out, is_finished)}", NOTHING)


def set_state(out: Path, is_finished: bool) -> str:
    """What `cai generate` would do with its folder."""
    if is_finished:
        return "finished: would be kept"
    if not out.is_dir() or not any(out.iterdir()):
        return "new"
    shards = len(list(out.glob("pairs-*.jsonl")))
    return f"begun, {plural(shards, 'shard')} done: would be gone on with"


def summary(setting: Setting) -> str:
    """What an arm would have of its data; the filter's guard is not asked."""
    return "\n".join(lines(describe(setting)))


def memory(config: ExperimentConfig, known: Sizes) -> Iterator[str]:
    """The memory plan; raises InputError where it does not fit, as a run does."""
    limit = advice.device_limit()
    advice.check_lengths(config, known)
    needed = plan(config, known)
    yield "\n".join(advice.described(config, known, limit))
    if limit is not None and needed.need(needed.peak) > limit:
        raise InputError(advice.refusal(config, known, limit))


def folders(configs: Sequence[ExperimentConfig]) -> str:
    """A line for each run folder: new, begun or finished. Raises InputError for one that holds something else."""
    lines = [f"  {run_folder(config)}: {state(config)}" for config in configs]
    return "\n".join(["folders:", *lines])


def state(config: ExperimentConfig) -> str:
    """What a run would do with its folder."""
    folder = run_folder(config)
    if check_folder(folder, config):
        return "finished: would be kept"
    if not folder.is_dir() or not any(folder.iterdir()):
        return "new"
    done = len(files.read_rows(folder / METRICS))
    rounds = plural(config.federated.rounds, "round")
    return f"begun, {done} of {rounds} done: would be gone on with"


def grouped(
    configs: Sequence[ExperimentConfig], key: Callable[[ExperimentConfig], Any]
) -> list[list[ExperimentConfig]]:
    """The configs that agree in `key`, together; in the order of the first of each."""
    groups: dict[str, list[ExperimentConfig]] = {}
    for config in configs:
        groups.setdefault(repr(key(config)), []).append(config)
    return list(groups.values())


def _shared_by(configs: Sequence[ExperimentConfig]) -> Iterator[str]:
    """Data and memory of the first seed's configs, at the one of the greatest need; and how much all of them share."""
    greatest = None
    setting = None
    settings = []
    for config in configs:
        if config.seed != configs[0].seed:
            continue
        is_first = setting is None
        setting = Setting(config, setting, pins([config]))
        setting.check_values()
        if is_first:
            yield summary(setting) + "\n"
            yield f"harm is judged by {', '.join(setting.judge_names) or 'nobody: there are no requests'}\n"
        settings.append(setting)
    choose_mesh(settings)
    for setting in settings:
        known = sizes.sizes(setting)
        needed = plan(setting.planned, known)
        need = needed.need(needed.peak)
        if greatest is None or need > greatest[0]:
            greatest = need, setting.planned, known
    assert greatest is not None
    _, largest, known = greatest
    if len(configs) > 1:
        yield f"the greatest need is that of {run_folder(largest)}:"
    yield from memory(largest, known)
    if len(configs) > 1:
        yield f"\n{shared(configs)}"


def shared(configs: Sequence[ExperimentConfig]) -> str:
    """How many of each part several runs need: those that read the same keys of it share one."""
    counts: dict[str, list[Any]] = {}
    for config in configs:
        for part, view in views(config).items():
            known = counts.setdefault(part.lower(), [])
            if view not in known:
                known.append(view)
    lines = [f"  {part:<{WIDTH}}{len(known):,}" for part, known in counts.items()]
    return "\n".join([f"made once, and shared by {plural(len(configs), 'run')}:", *lines])
