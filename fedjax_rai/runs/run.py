"""One run, in one folder: train its rounds, evaluate the final adapter, and be able to go on after any interruption."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedjax_rai import terminal
from fedjax_rai.aliases import Adapter
from fedjax_rai.config.files import digests
from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.layout import choose_mesh
from fedjax_rai.experiment.round import Federation
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory import advice
from fedjax_rai.model.peft import load_adapter, save_adapter
from fedjax_rai.runs import compiled, files
from fedjax_rai.runs.conclude import conclude
from fedjax_rai.runs.data import announce, keep
from fedjax_rai.runs.folder import (
    ADAPTER,
    CONFIG,
    VERSIONS,
    began_with,
    check_folder,
    entered,
    note_versions,
    pins,
    run_folder,
)
from fedjax_rai.runs.guards import KeptGuards, study_of
from fedjax_rai.runs.held import memory_before, memory_of, take_up
from fedjax_rai.runs.inputs import check_inputs, check_unchanged
from fedjax_rai.runs.loop import train
from fedjax_rai.runs.picture import PICTURE, draw_run
from fedjax_rai.runs.record import METRICS
from fedjax_rai.runs.rows import read_rounds


def run(config: ExperimentConfig, setting: Setting | None = None, siblings: Sequence[ExperimentConfig] = ()) -> Path:
    """The run folder of a config, finished: started, resumed, or found done.

    Nothing is written before config, data and model have been read. `setting`: the config's own, with what it shares
    with other arms. `siblings` have fewer `cai.iterations`, ascending, and differ in nothing else: on the way their
    folders are filled up to the end of the first CAI phase, which is all that they share, so that their own runs go on
    from there.
    """
    check_inputs([config])
    folder = run_folder(config)
    if check_folder(folder, config):
        terminal.say(f"{folder}: already finished")
        if not (folder / PICTURE).is_file():
            draw_run(folder)
        return folder
    compiled.keep_compiled()
    setting = setting or Setting(config, pins=pins([config]), store=KeptGuards(study_of(folder)))
    choose_mesh([setting])
    advice.announce(setting.planned, sizes.sizes(setting))
    announce(setting)
    setting.check()
    with entered(folder, config, setting) as finished:
        if not finished:
            resumed = take_up(folder)
            federation = Federation(setting)
            keep(federation)
            (state,) = train([federation], siblings)
            finish(setting, state.adapter, resumed)
    return folder


def finish(setting: Setting, adapter: Adapter, resumed: bool) -> None:
    """What comes after the last round: the adapter is written and evaluated, and the run's picture drawn.

    `resumed`: whether rounds of the run were there when this process took it up (`held.take_up`).
    """
    config = setting.config
    folder = run_folder(config)
    save_adapter(folder / ADAPTER, *setting.shapes, adapter, config.model.path, setting.commits.get("model_commit"))
    conclude(setting, adapter, partial(memory_of, setting, resumed))
    draw_run(folder)


def evaluate_run(folder: Path) -> None:
    """Evaluate the adapter of a run folder once more, as its config says; rewrites its evaluation and summary.

    What the run held stays as it was measured. The folder may have been moved since its run. Raises InputError where
    files that the config names are not what they were when the run began, and where another process is at work in the
    folder.
    """
    if not (folder / CONFIG).is_file() or not (folder / ADAPTER).is_dir():
        raise InputError(f"{folder}: not a run folder with {CONFIG} and {ADAPTER}/ (is the run finished?)")
    files.check_writable(folder, str(folder))
    with files.alone(folder):
        config = load_config(folder / CONFIG).model_copy(update={"output": str(folder)})
        check_inputs([config])
        check_unchanged(config, folder, began_with(folder).get("files", {}))
        read_rounds(folder / METRICS)  # what is wrong with them is said before anything is computed
        kept = memory_before(folder)
        compiled.keep_compiled()
        setting = Setting(config, pins=pins([config]), store=KeptGuards(study_of(folder)))
        choose_mesh([setting])
        _, adapter = load_adapter(folder / ADAPTER, setting.models.architecture)
        _ = setting.models.not_computed  # said before anything is computed
        setting.check_logits(adapter)
        setting.check_judge()
        note_versions(folder / VERSIONS, setting.commits | {"files": digests(config)})
        conclude(setting, adapter, lambda: kept)
        draw_run(folder)
