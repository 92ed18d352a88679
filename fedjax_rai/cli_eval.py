"""The commands `fedjax-rai eval` and `fedjax-rai serve`. What they need is imported when they run.

A command's parameters are its arguments and options, so there are as many as its users have choices.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedjax_rai import terminal
from fedjax_rai.errors import InputError

app = typer.Typer(rich_markup_mode=None)

COMPUTED = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32", "fp32": "float32"}
TARGET = "A run's folder, an adapter in PEFT's format, a Hugging Face folder, owner/name on the hub, or tiny."
TargetName = Annotated[str, typer.Argument(metavar="TARGET", help=TARGET)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="What is to differ, like eval.samples=1; output=DIR names the folder."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The config that a model or an adapter is evaluated by."),
]


@app.command("eval")
def evaluate(
    target: TargetName,
    overrides: Overrides = None,
    config: ConfigFile = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", help="Tasks of lm-evaluation-harness instead of our own sets."),
    ] = None,
    include: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --tasks: a folder of tasks in YAML, besides its own.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="With --tasks: rows of each, at most.")] = None,
    fewshot: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="With --tasks: examples before each row; as the task says.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="With --tasks: prompts in the chat template.")] = False,
) -> None:
    """Evaluate a run, an adapter or a model.

    On other sets, by other judges, or once more. Results lie beside each other in
    RUN/evals; nothing is written over, and the same request is found again.

    \b
    fedjax-rai eval runs/mine eval.advbench=harmful.csv eval.samples=1
    fedjax-rai eval runs/mine/adapter model.path=owner/name output=runs/other
    fedjax-rai eval runs/mine --tasks arc_easy --limit 100
    """
    with terminal.answering():
        terminal.quiet_libraries()
        if tasks is not None:
            return _evaluate_tasks(target, overrides or (), config, (tasks, include, limit, fewshot, chat))
        _refuse_without_tasks({"--include": include, "--limit": limit, "--fewshot": fewshot, "--chat": chat or None})
        from fedjax_rai.tools import evaluate as evaluations

        asked = evaluations.request(target, overrides or (), config)
        run = asked.target.run
        if run is not None and not overrides and not (run / "summary.json").is_file():
            from fedjax_rai.runs import report
            from fedjax_rai.runs.run import evaluate_run

            evaluate_run(run)  # which its interruption left to be done
            return typer.echo(report.report(run))
        folder = evaluations.evaluate(asked)
        typer.echo(evaluations.report(evaluations.read(folder, asked.target), folder))


def _refuse_without_tasks(options: dict[str, Any]) -> None:
    """Raises InputError for an option that belongs to tasks."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name}: belongs to --tasks; must be left out, or a key be given, like eval.prompts=10")


def _evaluate_tasks(target: str, overrides: Sequence[str], config: Path | None, options: tuple[Any, ...]) -> None:
    """Evaluate by tasks of lm-evaluation-harness; `options` are those of the command, as they were given."""
    from fedjax_rai.runs.target import read_target
    from fedjax_rai.tools import harness
    from fedjax_rai.tools.evaluate import take_out

    if config is not None:
        raise InputError("--config: belongs to our own sets; must be left out with --tasks")
    keys = ("output", "model.path", "model.revision", "model.dtype", "eval.batch_size", "data.max_length")
    single, others = take_out(overrides, keys)
    if others:
        raise InputError(f"override {others[0]!r}: is not read with --tasks; must be of {', '.join(keys)}")
    names, include, limit, fewshot, chat = options
    asked = harness.Request(
        target=read_target(target, single.get("model.path"), single.get("model.revision")),
        tasks=tuple(name.strip() for name in names.split(",")),
        include=include,
        limit=limit,
        fewshot=fewshot,
        chat=chat,
        dtype=_computed("model.dtype", single.get("model.dtype")),
        batch_size=_count("eval.batch_size", single, 16),
        max_length=_count("data.max_length", single, 4096),
        output=Path(single["output"]) if "output" in single else None,
    )
    typer.echo(harness.report(harness.evaluate(asked)))


def _count(key: str, given: dict[str, str], default: int) -> int:
    """A whole number > 0; raises InputError."""
    text = given.get(key, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{key} = {text}: must be a whole number >= 1")
    return int(text)


def _computed(name: str, dtype: str | None) -> str | None:
    """A dtype by any of its usual names; raises InputError."""
    if dtype is not None and dtype not in COMPUTED:
        raise InputError(f"{name} {dtype}: must be one of {', '.join(COMPUTED)}")
    return None if dtype is None else COMPUTED[dtype]


@app.command()
def serve(
    target: TargetName,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0: any that is free.")] = 8000,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compute in bfloat16 or float32; as the run did, or bfloat16, if not given."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a model on the hub.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Add the adapter to the weights first; answers change by rounding.")
    ] = False,
    max_new: Annotated[
        int, typer.Option(metavar="N", min=1, help="The most tokens of an answer whose request names no limit.")
    ] = 512,
    max_length: Annotated[
        int, typer.Option(metavar="N", min=2, help="The most tokens of prompt and answer together.")
    ] = 4096,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Answers computed at once, at most.")] = 16,
) -> None:
    """Serve a run or a model at an OpenAI-compatible endpoint.

    Until Ctrl-C; TARGET may be an adapter, too.

    \b
    fedjax-rai serve runs/mine
    fedjax-rai serve tiny --port 8001 --dtype float32
    """
    with terminal.answering():
        computed = _computed("--dtype", dtype)
        terminal.quiet_libraries()
        from fedjax_rai.tools import serve as serving

        serving.serve(target, serving.Options(host, port, computed, revision, merged, max_new, max_length, batch_size))
