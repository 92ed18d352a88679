"""`fedjax-rai guard fit`: fit a config's guard on labelled pairs, and keep it with its calibration."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedjax_rai import terminal
from fedjax_rai.config.files import check_files
from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.guard_fit import of_numbers
from fedjax_rai.experiment.layout import choose_mesh
from fedjax_rai.experiment.setting import NEEDS_LABELS, Setting
from fedjax_rai.runs import compiled, files
from fedjax_rai.runs.folder import CONFIG, SUMMARY, VERSIONS, differences
from fedjax_rai.runs.guards import KeptGuards
from fedjax_rai.safety.calibration import Notes

OF_RUNS = {VERSIONS: "a run", SUMMARY: "a run", "table.yaml": "a table", "sweep.yaml": "a sweep"}
"""By file, what a folder that has it holds."""


class Made(NamedTuple):
    """A guard that was fitted, or found."""

    folder: Path
    """Of its adapter, which `guard.adapter` takes."""
    notes: Notes


def to_be_fitted(config: ExperimentConfig) -> ExperimentConfig:
    """The config with its guard fitted; raises InputError for one whose guard cannot be."""
    guard = config.guard
    if guard.adapter is not None or guard.scorer != "model":
        what = "guard.scorer is a function" if guard.scorer != "model" else "guard.adapter names a saved guard"
        raise InputError(f"{what}: there is nothing to fit; must be null, or left out")
    if guard.fit is False:
        raise InputError("guard.fit = false: must be true, or left out, to fit the guard")
    return config.model_copy(update={"guard": guard.model_copy(update={"fit": True})})


def fit(config: ExperimentConfig) -> Made:
    """Fit the guard of a config into its output folder, or find it there; an interrupted fit is gone on with.

    Nothing is written before config, data and model have been read, nor to a folder that is refused (`check_folder`).
    Raises InputError where there are no labelled pairs of both kinds, and for a fit that ends in numbers that are none.
    """
    config = to_be_fitted(config)
    check_files(config)
    folder = Path(config.output or "runs/guard")
    files.check_writable(folder, f"output = {folder}")
    check_folder(folder, config)
    compiled.keep_compiled()
    store = KeptGuards(folder)
    setting = Setting(config, store=store)
    choose_mesh([setting])
    check(setting)
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone(folder):
        check_folder(folder, config)  # another process may have been there meanwhile
        files.write_text(folder / CONFIG, dump_config(config))
        fitted = setting.guarding.fitted
    if not of_numbers(fitted.adapter):
        raise InputError("the fitted guard has numbers that are none (NaN); guard.learning_rate may be too high")
    return Made(store.place(setting.guarding.fit_origin), fitted.notes)


def check_folder(folder: Path, config: ExperimentConfig) -> None:
    """Raises InputError for the folder of a run, a table or a sweep, and for one that holds another config."""
    for name, what in OF_RUNS.items():
        if (folder / name).is_file():
            raise InputError(f"output = {folder}: holds {what}; give the guard a folder of its own by another output=")
    if not (folder / CONFIG).is_file():
        return
    changed = differences(relevant(load_config(folder / CONFIG)), relevant(config))
    if changed:
        listed = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed)
        raise InputError(f"output = {folder}: holds another config; give another output=, or undo\n{listed}")


def check(setting: Setting) -> None:
    """Raises InputError where the guard of a setting cannot be fitted or asked, before anything is computed."""
    if not setting.guarding.possible:
        raise InputError(f"the guard {NEEDS_LABELS}")
    for line in setting.texts.materials.notes:
        terminal.say(line)
    setting.check_guard()


def report(made: Made) -> Iterator[str]:
    """Lines on a fitted guard."""
    notes = made.notes
    share = 100 * notes.harmful / max(notes.pairs, 1)
    stopped = ", where it stopped early" if notes.stopped_early else ""
    yield f"guard       {made.folder}"
    yield f"fitted on   {terminal.plural(notes.pairs, 'pair')}, {share:.0f} % harmful, of {notes.base_name}"
    yield f"steps       {notes.steps:,}{stopped}"
    held_out = notes.calibration
    if held_out is None:
        yield "held out    nothing (guard.held_out): no threshold is chosen, and no temperature is known"
        return
    questions = terminal.plural(len(set(held_out.questions)), "question")
    without = f", {held_out.without_score:,} more without a score" if held_out.without_score else ""
    chosen = "none does what is asked" if held_out.threshold is None else f"{held_out.threshold:.4g}"
    yield f"held out    {terminal.plural(len(held_out.scores), 'answer')} to {questions}{without}"
    yield f"threshold   {chosen}, by {held_out.rule}"
    yield f"temperature {held_out.temperature:.3g}"
