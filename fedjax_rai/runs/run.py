"""One run, in one folder: train its rounds, evaluate the final adapter, and be able to go on after any interruption."""

import time
from collections.abc import Sequence
from pathlib import Path

from fedjax_rai import terminal
from fedjax_rai.aliases import Adapter
from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.round import Federation, Outcome
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.fed.algorithm import ServerState
from fedjax_rai.memory import advice
from fedjax_rai.model.peft import load_adapter, save_adapter
from fedjax_rai.runs.conclude import conclude
from fedjax_rai.runs.folder import (
    ADAPTER,
    CONFIG,
    began_with,
    check_folder,
    open_folder,
    pinned,
    run_folder,
)
from fedjax_rai.runs.inputs import check_inputs
from fedjax_rai.runs.record import Record, timed


def run(config: ExperimentConfig, setting: Setting | None = None, siblings: Sequence[ExperimentConfig] = ()) -> Path:
    """The run folder of a config, finished: started, resumed, or found done.

    Nothing is written before config, data and model have been read. `setting`: one that the config's arm may use.
    `siblings` have fewer `cai.iterations`, ascending, and differ in nothing else: on the way their folders are filled
    up to the end of the first CAI phase, which is all that they share, so that their own runs go on from there.
    """
    check_inputs([config])
    folder = run_folder(config)
    if check_folder(folder, config):
        terminal.say(f"{folder}: already finished")
        return folder
    setting = setting or make_setting([config])
    advice.announce(config, sizes.sizes(setting, config))
    setting.check(config)
    open_folder(folder, config, setting)
    state = train(Federation(setting, config), folder, siblings)
    finish(setting, config, state.adapter)
    return folder


def finish(setting: Setting, config: ExperimentConfig, adapter: Adapter) -> None:
    """What comes after the last round: the adapter is written and evaluated."""
    folder, commit = run_folder(config), setting.commits.get("model_commit")
    save_adapter(folder / ADAPTER, *setting.shapes, adapter, config.model.path, commit)
    conclude(setting, config, folder, adapter)


def make_setting(configs: Sequence[ExperimentConfig], previous: Setting | None = None) -> Setting:
    """One for runs that agree in what it depends on, with the commits that the first one to begin began with."""
    begun = next((own for own in configs if began_with(run_folder(own))), configs[0])
    return Setting(pinned(run_folder(begun), begun), previous)


def train(federation: Federation, folder: Path, siblings: Sequence[ExperimentConfig] = ()) -> ServerState:
    """All rounds that are still to do, a record of each.

    The metrics of a round are read after the next one was dispatched, so the device never waits for the host.
    """
    rounds, iterations = federation.config.federated.rounds, federation.config.cai.iterations
    with Record(folder, federation.setting) as record:
        done, state = record.restore(federation.init())
        if done:
            terminal.say(f"{folder}: going on after round {done} of {rounds}")
        if any("cai_iterations" in row for row in record.rows):
            siblings = ()  # where their ways part lies behind
        with terminal.progress(folder.name, rounds, done) as advance:
            pending, began = None, time.perf_counter()

            def settle(t: int, ends: list[tuple[ServerState, Outcome]], parting: Sequence[ExperimentConfig]) -> None:
                nonlocal began
                for config, (other, outcome) in zip(parting, ends, strict=False):
                    part(record, config, t, other, outcome, timed(outcome, began)[0])
                seconds, began = timed(ends[-1][1], began)
                row = record.add(t, *ends[-1], seconds)
                advance(f"loss {row['train_loss']:.3f}")

            for t in range(done, rounds):
                ends = federation.fork(state, t, [*(own.cai.iterations for own in siblings), iterations])
                if pending:
                    settle(*pending)
                state, outcome = ends[-1]
                parting = siblings if outcome.cai is not None or t + 1 == rounds else ()
                siblings = () if parting else siblings
                pending = (t, ends, parting)
            if pending:
                settle(*pending)
    return state


def part(
    record: Record, config: ExperimentConfig, t: int, state: ServerState, outcome: Outcome, seconds: dict[str, float]
) -> None:
    """Fill a sibling's folder as if it had run by itself to the end of round t."""
    folder = run_folder(config)
    open_folder(folder, config, record.setting)
    with Record(folder, record.setting) as theirs:
        theirs.begin_as(record)
        theirs.add(t, state, outcome, seconds)


def evaluate_run(folder: Path) -> None:
    """Evaluate the adapter of a run folder once more, as its config says; rewrites its evaluation and summary."""
    if not (folder / CONFIG).is_file() or not (folder / ADAPTER).is_dir():
        raise InputError(f"{folder}: not a run folder with {CONFIG} and {ADAPTER}/ (is the run finished?)")
    config = load_config(folder / CONFIG)
    check_inputs([config])
    setting = Setting(pinned(folder, config))
    _, adapter = load_adapter(folder / ADAPTER, setting.model.config)
    conclude(setting, config, folder, adapter)
