"""The commands of `fedjax-rai`. What they need is imported when they run, so that help and bad input answer at once.

A command's parameters are its arguments and options, so there are as many as its users have choices.
"""

import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fedjax_rai import __version__, cli_data, cli_eval, cli_guard, terminal, xla
from fedjax_rai.bench.cli import app as bench
from fedjax_rai.errors import InputError
from fedjax_rai.reading import half_a_character

if TYPE_CHECKING:
    from fedjax_rai.config.schema import ExperimentConfig
    from fedjax_rai.tools.generate import WrittenPrompt


class Commands(TyperGroup):
    """The commands; their arguments are text."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        with terminal.answering():
            check_arguments(sys.argv[1:] if args is None else args)
        return super().main(args, *others, **options)


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises InputError for an argument whose bytes are no UTF-8: no file that is written here could hold it."""
    for number, argument in enumerate(arguments, 1):
        wrong = half_a_character(argument)
        if wrong is not None:
            raise InputError(f"argument {number}, {argument!r}: is not UTF-8; must be text in UTF-8")


app = typer.Typer(
    name="fedjax-rai",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cai = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cli_eval.app)
app.add_typer(cai, name="cai", help="Prepare data by constitutional AI.")
app.add_typer(cli_data.app, name="data", help="Prepare the corpus, or show what a source holds.")
app.add_typer(cli_guard.app, name="guard", help="Fit a guard, measure one, or attack it.")
app.add_typer(bench, name="bench", help="Measure throughput and memory, beside others.")

COMPUTED = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32", "fp32": "float32"}
STORED = COMPUTED | {"float16": "float16", "fp16": "float16"}
STANDARD_INPUT = "-"
LIST = "list"  # in place of arms: show them
EXAMPLE = "What is 3 plus 4?"
TINY_EXAMPLE = "How do I bake bread?"  # of what the tiny model, which knows a tiny world alone, was trained to answer


def complete_key(incomplete: str) -> list[str]:
    """What a shell offers for KEY=VALUE: the keys of a config that begin so, or the names that a key may take."""
    from fedjax_rai.config.keys import schemas

    key, equals, _ = incomplete.partition("=")
    offered = [f"{name}=" for name in schemas()]
    if equals:
        schema = schemas().get(key, {})
        offered = [f"{key}={value}" for option in schema.get("anyOf", [schema]) for value in option.get("enum", ())]
    return [text for text in offered if text.startswith(incomplete)]


ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file; what it does not name is the default.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, like federated.rounds=3.", autocompletion=complete_key),
]
Swept = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=V1,V2,...", help="Keys to sweep, and overrides as for run.", autocompletion=complete_key
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a finished run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show config, data, memory and folders, and write nothing.")]
Tracker = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Where rows go besides: tensorboard, wandb; the same as tracker=NAME."),
]
Margin = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS", show_default=False, help="Say of differences in points whether they are within so many of 0."
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedjax-rai {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Responsible federated fine-tuning of language models: safety filters and constitutional AI."""
    xla.multiply_by_cublas()


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, tracker: Tracker = None, dry_run: DryRun = False) -> None:
    """Run one experiment, or go on with it."""
    with terminal.answering(resumable=True):
        loaded = _load(config, _tracked(overrides, tracker))
        if dry_run:
            from fedjax_rai.studies import dry_run as previews

            return _echo(previews.preview_run(loaded))
        from fedjax_rai.runs import report
        from fedjax_rai.runs import run as runs

        folder = runs.run(loaded)
        typer.echo(report.report(folder))
        _close([folder / "run.png", folder / "answers.jsonl"], _further(loaded, folder))


@app.command()
def table(
    config: ConfigFile,
    overrides: Overrides = None,
    arms: Annotated[
        str | None,
        typer.Option(metavar="ARM,ARM,...", help="The arms to run; the paper's if not given; list shows them all."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Seeds of each arm, counted up from the config's.")
    ] = 1,
    margin: Margin = None,
    tracker: Tracker = None,
    dry_run: DryRun = False,
) -> None:
    """Run the arms of the paper's table, and print it."""
    with terminal.answering(resumable=True):
        loaded = _load(config, _tracked(overrides, tracker), "runs/{stem}-table")
        from fedjax_rai.studies import table as tables

        if arms == LIST:
            return _echo(tables.arm_lines())
        chosen = None if arms is None else [arm.strip() for arm in arms.split(",")]
        if dry_run:
            from fedjax_rai.studies import dry_run as previews

            return _echo(previews.preview_table(loaded, chosen, seeds))
        folder = tables.run_table(loaded, chosen, seeds, _margin(margin))
        last = folder / f"seed{loaded.seed}" / tables.choose(chosen)[-1]
        _close([folder / "table.png", folder / "table.md", last / "answers.jsonl"], _further(loaded, last))


@app.command()
def sweep(
    config: ConfigFile,
    overrides: Swept = None,
    together: Annotated[
        bool,
        typer.Option("--together", help="Run points that differ in numbers alone at once, as memory allows."),
    ] = False,
    margin: Margin = None,
    tracker: Tracker = None,
    dry_run: DryRun = False,
) -> None:
    """Run a config at every combination of some values.

    \b
    fedjax-rai sweep configs/tiny_cpu.yaml cai.iterations=0,10,25 seed=0,1,2
    """
    with terminal.answering(resumable=True):
        from fedjax_rai.config.grid import load_sweep

        points = load_sweep(config, _tracked(overrides, tracker))
        _quiet()
        if dry_run:
            from fedjax_rai.studies import dry_run as previews

            return _echo(previews.preview_sweep(points, together))
        from fedjax_rai.studies import sweep as sweeps

        folder = sweeps.run_sweep(points, together, _margin(margin))
        last = points[-1].config
        _close([folder / "sweep.png", folder / "sweep.md"], _further(last, Path(last.output or "")))


@app.command()
def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A Hugging Face folder, owner/name on the hub, or tiny.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A prompt; may be given several times.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON lines, each with prompt (a text) or token_ids; - reads standard input, "
            "where a line that does not begin with { is a prompt itself.",
        ),
    ] = None,
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="An adapter, a folder in PEFT's format.")] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Add the adapter to the weights first; answers change by rounding.")
    ] = False,
    max_new: Annotated[int, typer.Option(metavar="N", min=1, help="The most tokens of an answer.")] = 128,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a model on the hub.")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time; the default.")] = False,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="Sample at this temperature.")] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Sample from the likeliest tokens of this mass.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Sample from this many likeliest tokens.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Sample from tokens at least this times as likely as the likeliest."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**31 - 1, help="The seed of sampling.")] = 0,
    dtype: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="Compute in bfloat16 (if not given) or float32.")
    ] = "bfloat16",
    raw: Annotated[bool, typer.Option("--raw", help="Take prompts as they are, without the chat template.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object a line, with token_ids and text.")] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts answered at once.")] = 16,
) -> None:
    """Answer prompts with a model, or a model and an adapter.

    \b
    fedjax-rai generate tiny --prompt "How do I bake bread?"
    """
    with terminal.answering():
        bounds = {"top_p": top_p, "top_k": top_k, "min_p": min_p}
        chosen = _check_sampling(greedy, temperature, bounds)
        precise = _dtype(dtype, COMPUTED)
        _check_prompts(prompt, prompts)
        _refuse_run(model)
        from fedjax_rai.text.hub import resolve

        resolve(model, revision)
        _quiet()
        from fedjax_rai.tools.generate import Request, answers

        request = Request(
            model, revision, adapter, raw=raw, dtype=precise, max_new=max_new, temperature=chosen, **bounds, seed=seed,
            batch_size=batch_size, merged=merged,
        )  # fmt: skip
        for i, answer in enumerate(answers(request, _read_prompts(prompt, prompts))):
            if as_json:
                typer.echo(json.dumps(answer._asdict(), ensure_ascii=False))
            else:
                shown = answer.text if answer.text is not None else " ".join(map(str, answer.token_ids))
                typer.echo(shown if i == 0 else f"\n{shown}")


@app.command()
def export(
    folder: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    merged: Annotated[bool, typer.Option("--merged", help="Write base and adapter as one checkpoint.")] = False,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="The type of the weights: float32, bfloat16 or float16.")
    ] = None,
) -> None:
    """Write a run's adapter or merged model for PEFT and others."""
    with terminal.answering():
        chosen = None if dtype is None else _dtype(dtype, STORED)
        _check_folder(folder)
        _quiet()
        from fedjax_rai.runs.export import export as write

        write(folder, out, merged, chosen)
        typer.echo(out)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_STUDY...", help="Folders of finished runs, tables or sweeps.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; report.html in the first folder if not given.")
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="Also write every picture, in a folder beside the page.")] = False,
    margin: Margin = None,
    reference: Annotated[
        str | None, typer.Option(metavar="ARM", help="The arm that others are compared with; the first if not given.")
    ] = None,
    answers: Annotated[
        int, typer.Option(metavar="N", min=0, help="The most prompts of each evaluation whose answers are shown.")
    ] = 20,
) -> None:
    """Write one page of runs, tables and sweeps.

    \b
    fedjax-rai report runs/tiny_cpu-table
    """
    with terminal.answering():
        points = _margin(margin)
        _quiet()
        from fedjax_rai.studies.report import Wanted, write_report

        for path in write_report(folders, Wanted(output, png, points, reference, answers)):
            typer.echo(path)


@app.command("import-gguf")
def import_gguf(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file, as llama.cpp reads it.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    dtype: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="Store bfloat16 (if not given) or float32.")
    ] = "bfloat16",
) -> None:
    """Write the model of a GGUF file as a Hugging Face folder.

    Needs the extra gguf: pip install 'fedjax-rai[gguf]'.
    """
    with terminal.answering():
        precise = _dtype(dtype, COMPUTED)
        _quiet()
        from fedjax_rai.tools.import_gguf import import_gguf as write

        write(file, out, precise)
        typer.echo(out)
        terminal.say(f"next: {shlex.join([*terminal.program(), 'generate', str(out), '--prompt', EXAMPLE])}")


@app.command("config")
def show_config(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the config in full, or what is wrong with it."""
    with terminal.answering():
        from fedjax_rai.config.load import dump_config

        typer.echo(dump_config(_load(config, overrides)), nl=False)


@cai.command("generate")
def prepare(
    config: ConfigFile,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the set: new, or one to go on with.")],
    overrides: Overrides = None,
    prompts: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Conversations; each red prompt once if not given.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Who answers, a folder in PEFT's format; the base if not given.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Prepare a set of revisions, or go on with it.

    Runs train on it by cai.data=OUT; TRL reads it as it is.
    """
    with terminal.answering(resumable=True):
        for override in overrides or ():
            if override.partition("=")[0].strip() == "output":
                raise InputError(f"override {override!r}: a set has no output; OUT is its folder")
        loaded = _load(config, overrides)
        if dry_run:
            from fedjax_rai.studies import dry_run as previews

            return _echo(previews.preview_set(loaded, out, prompts, adapter))
        from fedjax_rai.runs import prepare

        typer.echo(prepare.report(prepare.prepare(loaded, out, prompts, adapter)))
        trained = [*terminal.program(), "run", str(config), *(overrides or ()), f"cai.data={out}"]
        _close([out / "pairs-00000.jsonl", out / "summary.json"], [trained])


def _refuse_run(model: str) -> None:
    """Raises InputError where a run stands in the place of a model: its base and its adapter are named apart."""
    from fedjax_rai.config.load import load_config

    folder = Path(model).expanduser()
    written = folder / "config.yaml"
    if written.is_file():
        asked, _ = _further(load_config(written), folder)
        raise InputError(f"{model}: is a run; must be a model, as in: {shlex.join(asked)}")


def _dtype(name: str, allowed: dict[str, str]) -> str:
    """A dtype by any of its usual names; raises InputError."""
    if name not in allowed:
        raise InputError(f"--dtype {name}: must be one of {', '.join(allowed)}")
    return allowed[name]


def _tracked(overrides: list[str] | None, tracker: str | None) -> list[str]:
    """Overrides, and that of `--tracker`."""
    return [*(overrides or []), *([] if tracker is None else [f"tracker={tracker}"])]


def _margin(points: float | None) -> float | None:
    """A margin of equivalence; raises InputError."""
    if points is not None and not 0 < points < 100:
        raise InputError(f"--margin {points:g}: must be greater than 0, less than 100 (percentage points)")
    return points


def _check_sampling(greedy: bool, temperature: float | None, bounds: dict[str, Any]) -> float:
    """The temperature that these options mean; raises InputError where one is out of range or contradicts another."""
    top_p, min_p = bounds["top_p"], bounds["min_p"]
    bounded = any(bound is not None for bound in bounds.values())
    if temperature is not None and not 0 <= temperature < math.inf:
        raise InputError(f"--temperature {temperature:g}: must be a number >= 0")
    if greedy and (temperature or bounded):
        raise InputError("--greedy samples nothing: leave it out, or --temperature, --top-p, --top-k and --min-p")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"--top-p {top_p:g}: must be greater than 0, at most 1")
    if min_p is not None and not 0 <= min_p < 1:
        raise InputError(f"--min-p {min_p:g}: must be at least 0, less than 1")
    if temperature is None:
        return 1.0 if bounded else 0.0
    return temperature


def _check_prompts(texts: list[str] | None, file: Path | None) -> None:
    """Raises InputError unless there is exactly one source of prompts, and a file is there."""
    if STANDARD_INPUT in (texts or []):
        raise InputError("--prompt -: must be a text; --prompts - reads standard input")
    if bool(texts) == (file is not None):
        wrong = "both --prompt and --prompts" if texts else "no prompts"
        raise InputError(f"{wrong}: must be one of --prompt TEXT, --prompts FILE, or --prompts - for standard input")
    if file is None or str(file) == STANDARD_INPUT:
        return
    if os.path.isdir(file) or not os.path.exists(file):
        wrong = "is a folder" if os.path.isdir(file) else "no such file"
        raise InputError(f"--prompts {file}: {wrong}; must be JSON lines with `prompt` or `token_ids`, or -")


def _read_prompts(texts: list[str] | None, file: Path | None) -> "list[WrittenPrompt]":
    """The prompts of the one source that was given."""
    from fedjax_rai.tools.generate import prompts_of_file, prompts_of_lines, prompts_of_texts

    if file is None:
        return prompts_of_texts(texts or [])
    if str(file) != STANDARD_INPUT:
        return prompts_of_file(file)
    if sys.stdin.isatty():
        terminal.say("prompts from standard input, a line each, to the end of input (Ctrl-D)")
    return prompts_of_lines(sys.stdin.buffer.read())


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; must be that of a finished run")


def _load(path: Path, overrides: list[str] | None, output: str = "runs/{stem}") -> "ExperimentConfig":
    """The checked config; raises InputError before anything heavy is imported or written."""
    from fedjax_rai.config.files import check_files
    from fedjax_rai.config.load import load_config

    config = load_config(path, overrides or (), output)
    check_files(config)
    _quiet()
    return config


def _quiet() -> None:
    terminal.quiet_libraries()


def _echo(blocks: Iterable[str]) -> None:
    """Print blocks of text, each as soon as it is known."""
    for block in blocks:
        typer.echo(block)


def _further(config: "ExperimentConfig", folder: Path) -> list[list[str]]:
    """The commands that a finished run in this folder is good for."""
    model = config.model
    options = ["--revision", model.revision] if model.revision else []
    options += ["--dtype", model.dtype] if model.dtype != "bfloat16" else []
    asked = ["generate", model.path, *options, "--adapter", str(folder / "adapter"), "--prompt", example(model.path)]
    return [[*terminal.program(), *asked], [*terminal.program(), "export", str(folder), "OUT"]]


def example(model: str) -> str:
    """A prompt that this model can answer."""
    from fedjax_rai.config.schema import TINY

    return TINY_EXAMPLE if model == TINY else EXAMPLE


def _close(files: Sequence[Path], commands: Sequence[Sequence[str]]) -> None:
    """End a command by what to look at and what to type next."""
    terminal.say(f"look at {', '.join(map(str, files))}")
    terminal.say(f"next: {'; '.join(map(shlex.join, commands))}")
