"""The commands of `fedjax-rai guard`: fit a guard, and measure one.

What they need is imported when they run. A command's parameters are its arguments and options.
"""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedjax_rai import terminal
from fedjax_rai.errors import InputError

if TYPE_CHECKING:
    from fedjax_rai.config.schema import ExperimentConfig

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, like guard.epochs=5.")]


@app.command()
def fit(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file; what it does not name is the default.")
    ],
    overrides: Overrides = None,
) -> None:
    """Fit a config's guard on labelled pairs, or go on with it; a released one (guard.path) in its own form.

    \b
    fedjax-rai guard fit configs/tiny_cpu.yaml guard.held_out=0.2 guard.epochs=5 guard.patience=2
    """
    with terminal.answering(resumable=True):
        loaded = load(config, overrides)
        from fedjax_rai.tools import guard_fit

        made = guard_fit.fit(loaded)
        for line in guard_fit.report(made):
            typer.echo(line)
        used = [*terminal.program(), "run", str(config), *_of_a_run(overrides or []), f"guard.adapter={made.folder}"]
        if loaded.guard.fit:
            used.append("guard.fit=null")
        measured = [*terminal.program(), "guard", "eval", str(loaded.output)]
        terminal.say(f"next: {shlex.join(measured)}; {shlex.join(used)}")


@app.command("eval")
def evaluate(
    target: Annotated[
        Path,
        typer.Argument(metavar="TARGET", help="A config, or the folder of a run or of guard fit."),
    ],
    overrides: Overrides = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Choose it on the held-out questions of the fit: max-hmean, recall=0.9 or drop=0.05.",
        ),
    ] = None,
    questions: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Measure on so many questions, at random; all if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the result; beside the guard if not given.")
    ] = None,
) -> None:
    """Measure a guard on labelled questions that it was not fitted on, before and after its fit."""
    with terminal.answering(resumable=True):
        rule = None if threshold is None else _rule(threshold)
        _check_target(target)
        quiet()
        from fedjax_rai.config.files import check_files
        from fedjax_rai.tools import guard_eval

        config = guard_eval.target_config(target, overrides or ())
        check_files(config)
        evaluated = guard_eval.evaluate(config, guard_eval.Request(rule, questions, out))
        for line in guard_eval.report(evaluated):
            typer.echo(line)
        terminal.say(f"look at {evaluated.folder / 'guard.json'}, {evaluated.folder / 'roc.png'}")


def _of_a_run(overrides: list[str]) -> list[str]:
    """The overrides of a fit that a run with its guard takes, too."""
    return [override for override in overrides if override.partition("=")[0].strip() not in ("output", "guard.fit")]


def _rule(text: str):
    from fedjax_rai.config.threshold_rule import parse_rule

    try:
        return parse_rule(text)
    except ValueError as error:
        raise InputError(f"--threshold {text}: {error}") from None


def _check_target(target: Path) -> None:
    if not target.exists():
        raise InputError(f"{target}: no such file or folder; must be a config, or the folder of a run or of guard fit")


def load(path: Path, overrides: list[str] | None) -> "ExperimentConfig":
    """The checked config of a command on guards; its output is `runs/<name>-guard`, unless it says otherwise."""
    from fedjax_rai.config.files import check_files
    from fedjax_rai.config.load import load_config

    config = load_config(path, overrides or (), "runs/{stem}-guard")
    check_files(config)
    quiet()
    return config


def quiet() -> None:
    """Silence what libraries say about themselves, unless the user asked otherwise; before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
