"""The commands of `fedjax-rai`. What they need is imported when they run, so that help and bad input answer at once."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedjax_rai.errors import InputError

if TYPE_CHECKING:
    from fedjax_rai.config.schema import ExperimentConfig

app = typer.Typer(
    name="fedjax-rai",
    help="Responsible federated fine-tuning of language models: safety filters and constitutional AI.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cai = typer.Typer(help="Constitutional AI apart from runs.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cai, name="cai")
COMPUTED = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32", "fp32": "float32"}
STORED = COMPUTED | {"float16": "float16", "fp16": "float16"}
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file; what it does not name is the default")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="overrides, like federated.rounds=3")]
Swept = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=V1,V2,...", help="keys to sweep; other overrides as for run")
]


@app.command()
def run(config: ConfigFile, overrides: Overrides = None) -> None:
    """Run one experiment, or go on with it."""
    with _answering(resumable=True):
        loaded = _load(config, overrides)
        from fedjax_rai.runs import report, run

        typer.echo(report.report(run.run(loaded)))


@app.command("eval")
def evaluate(folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="folder of a finished run")]) -> None:
    """Evaluate a finished run once more."""
    with _answering():
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; must be that of a finished run")
        _quiet()
        from fedjax_rai.runs import report, run

        run.evaluate_run(folder)
        typer.echo(report.report(folder))


@app.command()
def table(
    config: ConfigFile,
    overrides: Overrides = None,
    arms: Annotated[str | None, typer.Option(help="arms, with commas between; the paper's if not given")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="seeds of each arm, counting up from the config's")] = 1,
) -> None:
    """Run the arms of the paper's table and print it."""
    with _answering(resumable=True):
        loaded = _load(config, overrides, "runs/{stem}-table")
        from fedjax_rai.studies.table import run_table

        run_table(loaded, arms=None if arms is None else [arm.strip() for arm in arms.split(",")], seeds=seeds)


@app.command()
def sweep(
    config: ConfigFile,
    overrides: Swept = None,
    together: Annotated[
        bool,
        typer.Option("--together", help="points that differ in numbers alone as one vmapped axis, as memory allows"),
    ] = False,
) -> None:
    """Run a config at every combination of some keys' values, and print the table.

    \b
    fedjax-rai sweep configs/tiny_cpu.yaml cai.iterations=0,10,25,50 seed=0,1,2 output=runs/iterations
    """
    with _answering(resumable=True):
        from fedjax_rai.config.grid import load_sweep

        points = load_sweep(config, overrides or ())
        _quiet()
        from fedjax_rai.studies.sweep import keep_programs, run_sweep

        keep_programs(points)
        run_sweep(points, together)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a Hugging Face folder, owner/name of a hub, or tiny")],
    prompts: Annotated[Path, typer.Option(help="JSON lines, each with `prompt` (text) or `token_ids`")],
    max_new: Annotated[int, typer.Option(min=1, help="tokens of an answer, at most")] = 128,
    adapter: Annotated[Path | None, typer.Option(help="a folder in PEFT's format")] = None,
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of a hub name")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="the likeliest token each time; the default")] = False,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="sample at this temperature")] = None,
    top_p: Annotated[float | None, typer.Option(max=1.0, help="sample from the likeliest tokens of this mass")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="sample from this many likeliest tokens")] = None,
    min_p: Annotated[
        float | None, typer.Option(min=0.0, help="sample from tokens at least this times as likely as the likeliest")
    ] = None,
    dtype: Annotated[str, typer.Option(help="of weights and activations: bfloat16, float32")] = "bfloat16",
    raw: Annotated[bool, typer.Option("--raw", help="take prompts as they are, without the chat template")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print an object a row: token_ids, text")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="of sampling")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="rows generated at once")] = 16,
) -> None:
    """Answer prompts with a model, or a model and an adapter."""
    with _answering():
        chosen = _sampling(greedy, temperature, top_p, top_k, min_p)
        precise = _dtype(dtype, COMPUTED)
        if not prompts.is_file():
            raise InputError(f"{prompts}: no such file; must be JSON lines with `prompt` or `token_ids`")
        from fedjax_rai.text.hub import resolve

        resolve(model, revision)
        _quiet()
        from fedjax_rai.tools.generate import answers

        found = answers(
            model, revision, adapter, prompts, max_new=max_new, **chosen, dtype=precise, raw=raw, seed=seed,
            batch_size=batch_size,
        )  # fmt: skip
        for i, answer in enumerate(found):
            if as_json:
                typer.echo(json.dumps(answer._asdict(), ensure_ascii=False))
            else:
                shown = answer.text if answer.text is not None else " ".join(map(str, answer.token_ids))
                typer.echo(shown if i == 0 else f"\n{shown}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="folder of a finished run")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a new folder")],
    merged: Annotated[bool, typer.Option("--merged", help="base and adapter as one checkpoint")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 (bf16) or float16")] = None,
) -> None:
    """Write a run's adapter, or the merged model, as a folder that PEFT and transformers load."""
    with _answering():
        chosen = None if dtype is None else _dtype(dtype, STORED)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; must be that of a finished run")
        _quiet()
        from fedjax_rai.runs.export import export as write

        write(folder, out, merged, chosen)
        typer.echo(out)


@app.command("config")
def show_config(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the config in full, or what is wrong with it."""
    with _answering():
        from fedjax_rai.config.load import dump_config

        typer.echo(dump_config(_load(config, overrides)), nl=False)


@cai.command("generate")
def prepare(
    config: ConfigFile,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder of the set: a new one, or one to go on with")],
    overrides: Overrides = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="conversations; each red prompt once if not given")] = None,
    adapter: Annotated[Path | None, typer.Option(help="a folder in PEFT's format; the base if not given")] = None,
) -> None:
    """Prepare a set of revisions to train on, by cai.data=OUT or with TRL; or go on with it."""
    with _answering(resumable=True):
        if wrong := [own for own in overrides or () if own.partition("=")[0].strip() == "output"]:
            raise InputError(f"override {wrong[0]!r}: a set has no output; OUT is its folder")
        loaded = _load(config, overrides)
        from fedjax_rai.runs import prepare

        typer.echo(prepare.report(prepare.prepare(loaded, out, prompts, adapter)))


def _dtype(name: str, allowed: dict[str, str]) -> str:
    """A dtype by any of its usual names; raises InputError."""
    if name not in allowed:
        raise InputError(f"--dtype {name}: must be one of {', '.join(allowed)}")
    return allowed[name]


def _sampling(
    greedy: bool, temperature: float | None, top_p: float | None, top_k: int | None, min_p: float | None
) -> dict[str, Any]:
    """What `answers` takes of these options; raises InputError where they contradict each other or are out of range."""
    bounds = {"top_p": top_p, "top_k": top_k, "min_p": min_p}
    bounded = any(bound is not None for bound in bounds.values())
    if greedy and (temperature or bounded):
        raise InputError("--greedy samples nothing: leave it out, or --temperature, --top-p, --top-k and --min-p")
    if top_p is not None and top_p <= 0:
        raise InputError(f"--top-p {top_p:g}: must be greater than 0, at most 1")
    if min_p is not None and min_p >= 1:
        raise InputError(f"--min-p {min_p:g}: must be at least 0, less than 1")
    return {"temperature": 1.0 if temperature is None and bounded else temperature or 0.0, **bounds}


def _load(path: Path, overrides: list[str] | None, output: str = "runs/{stem}") -> "ExperimentConfig":
    """The checked config; raises InputError before anything heavy is imported or written."""
    from fedjax_rai.config.files import check_files
    from fedjax_rai.config.load import load_config

    config = load_config(path, overrides or (), output)
    check_files(config)
    _quiet()
    return config


def _quiet() -> None:
    """Silence what libraries say about themselves, unless the user asked otherwise; before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextmanager
def _answering(resumable: bool = False) -> Iterator[None]:
    """Turn bad input into its message and exit code 2, an interrupt into exit code 130 and, if it can, how to go on."""
    try:
        yield
    except InputError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        further = f"; to go on: {shlex.join(['fedjax-rai', *sys.argv[1:]])}" if resumable else ""
        typer.echo(f"\ninterrupted{further}", err=True)
        raise typer.Exit(130) from None
