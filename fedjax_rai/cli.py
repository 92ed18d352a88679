"""The commands of `fedjax-rai`. What they need is imported when they run, so that help and bad input answer at once."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedjax_rai.errors import InputError

if TYPE_CHECKING:
    from fedjax_rai.config import ExperimentConfig

app = typer.Typer(
    name="fedjax-rai",
    help="Responsible federated fine-tuning of language models: safety filters and constitutional AI.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file; what it does not name is the default")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="overrides, like federated.rounds=3")]


@app.command()
def run(config: ConfigFile, overrides: Overrides = None) -> None:
    """Run one experiment, or go on with it."""
    with _answering():
        loaded = _load(config, overrides)
        from fedjax_rai.run import experiment

        typer.echo(experiment.report(experiment.run(loaded)))


@app.command("eval")
def evaluate(folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="folder of a finished run")]) -> None:
    """Evaluate a finished run once more."""
    with _answering():
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; must be that of a finished run")
        _quiet()
        from fedjax_rai.run import experiment

        experiment.evaluate_run(folder)
        typer.echo(experiment.report(folder))


@app.command()
def table(
    config: ConfigFile,
    overrides: Overrides = None,
    arms: Annotated[str | None, typer.Option(help="arms, with commas between; the paper's if not given")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="seeds of each arm, counting up from the config's")] = 1,
) -> None:
    """Run the arms of the paper's table and print it."""
    with _answering():
        loaded = _load(config, overrides, "runs/{stem}-table")
        from fedjax_rai.run.table import run_table

        run_table(loaded, arms=None if arms is None else [arm.strip() for arm in arms.split(",")], seeds=seeds)


@app.command("config")
def show_config(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the config in full, or what is wrong with it."""
    with _answering():
        from fedjax_rai.config_file import dump_config

        typer.echo(dump_config(_load(config, overrides)), nl=False)


def _load(path: Path, overrides: list[str] | None, output: str = "runs/{stem}") -> "ExperimentConfig":
    """The checked config; raises InputError before anything heavy is imported or written."""
    from fedjax_rai.config_file import check_files, load_config

    config = load_config(path, overrides or (), output)
    check_files(config)
    _quiet()
    return config


def _quiet() -> None:
    """Silence what libraries say about themselves, unless the user asked otherwise; before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextmanager
def _answering() -> Iterator[None]:
    """Turn bad input into its message and exit code 2, an interrupt into how to go on and exit code 130."""
    try:
        yield
    except InputError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; to go on: {shlex.join(['fedjax-rai', *sys.argv[1:]])}", err=True)
        raise typer.Exit(130) from None
