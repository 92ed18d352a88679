"""`fedjax-rai bench`, which is also python -m fedjax_rai.bench.

A command's parameters are its options, so there are as many as its users have choices. What they need is imported when
they run.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedjax_rai import terminal

app = typer.Typer(
    name="python -m fedjax_rai.bench",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
QUANTIZED = ("none", "int8", "nf4")


@app.callback()
def main() -> None:
    """Measure throughput and memory on this machine.

    An option takes several values with commas between: a row for each combination.
    """


def numbers(text: str) -> Any:
    """An option that takes whole numbers."""
    return typer.Option(metavar="N,...", show_default=False, help=text)


def names(text: str) -> Any:
    """An option that takes names."""
    return typer.Option(metavar="NAME,...", show_default=False, help=text)


Given = str | None
Model = Annotated[
    Given, names("tiny (the default), 135M, 1B, 8B, or a Hugging Face folder; without weights, random ones.")
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="A config; its model and sizes, but for options.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An override of the config.")]
Batch = Annotated[Given, numbers("Examples of a step or an iteration; pairs that are scored at once.")]
Length = Annotated[Given, numbers("Tokens of an example; of a pair in the mean.")]
New = Annotated[Given, numbers("Tokens of an answer.")]
Prompt = Annotated[Given, numbers("Tokens of a prompt.")]
Rank = Annotated[Given, numbers("The adapters' rank.")]
Adapter = Annotated[Given, names("apart (the default), or merged into a copy of the base to generate.")]
Dtype = Annotated[Given, names("bfloat16 (the default), float32.")]
Attention = Annotated[Given, names("xla (the default), chunked, cudnn, splash.")]
Remat = Annotated[Given, names("none (the default), full.")]
Unroll = Annotated[Given, names("none (the default), full.")]
Quantize = Annotated[Given, names("none (the default), int8, nf4.")]
KvCache = Annotated[Given, names("model (the default), bfloat16, int8.")]
MicroBatch = Annotated[Given, numbers("Examples of a step that are computed at once; all if not given.")]
Devices = Annotated[Given, numbers("How many devices; all if not given. A CPU is split into so many.")]
Fsdp = Annotated[Given, numbers("Ways in which the base and the rows are split, as of mesh.fsdp.")]
Tensor = Annotated[Given, numbers("Ways in which heads and columns are split, as of mesh.tensor.")]
Warmup = Annotated[int, typer.Option(min=0, metavar="N", help="Runs that are not timed, after one that compiles.")]
Repeats = Annotated[int, typer.Option(min=1, metavar="N", help="Runs that are timed.")]
Peers = Annotated[
    list[str] | None,
    typer.Option("--peer", metavar="NAME", help="Measure the same beside it, in turns: torch, trl, flower, vllm."),
]
Compile = Annotated[bool, typer.Option("--compile", help="Peers compile their model (torch.compile).")]
FlowerPython = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The Python of the environment that has Flower; this one if not given."),
]
VllmPython = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The Python of the environment that has vLLM; this one if not given."),
]
Json = Annotated[bool, typer.Option("--json", help="Print a line of JSON for each row, as soon as it is known.")]
Output = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A new folder for results.jsonl, a table and a picture.")
]


@app.command("round")
def federated_round(
    model: Model = None,
    config: Config = None,
    overrides: Set = None,
    clients: Annotated[Given, numbers("Clients of the round; 5 without a config.")] = None,
    steps: Annotated[Given, numbers("Local steps of each; 25 without a config.")] = None,
    batch: Batch = None,
    length: Length = None,
    chunk: Annotated[Given, numbers("Clients that are mapped at once; 1 without a config.")] = None,
    rank: Rank = None,
    dtype: Dtype = None,
    attention: Attention = None,
    remat: Remat = None,
    unroll: Unroll = None,
    quantize: Quantize = None,
    micro_batch: MicroBatch = None,
    devices: Devices = None,
    fsdp: Fsdp = None,
    tensor: Tensor = None,
    warmup: Warmup = 1,
    repeats: Repeats = 3,
    peer: Peers = None,
    compiled: Compile = False,
    flower_python: FlowerPython = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Measure a federated round.

    \b
    fedjax-rai bench round --model tiny --dtype float32 --clients 1,5,50 --peer torch
    """
    given = {"clients": clients, "steps": steps, "batch": batch, "length": length, "chunk": chunk}
    given |= {"model": model, "rank": rank, "dtype": dtype, "attention": attention, "remat": remat, "unroll": unroll}
    given |= {"quantize": quantize, "micro_batch": micro_batch, "devices": devices, "fsdp": fsdp, "tensor": tensor}
    with terminal.answering():
        from fedjax_rai.bench.requests import Asked

        asked = Asked("round", given, config, overrides or (), warmup, repeats)
        _measure([asked], as_json, output, peer or (), compiled, {"flower": flower_python})


@app.command()
def generate(
    model: Model = None,
    config: Config = None,
    overrides: Set = None,
    rows: Annotated[Given, numbers("Prompts that are answered at once; 16 without a config.")] = None,
    prompt: Prompt = None,
    new: New = None,
    answers: Annotated[Given, numbers("Sampled answers of different lengths, of --new tokens at most.")] = None,
    order: Annotated[Given, names("Of --answers: queue (the default), as a run answers, or batches.")] = None,
    rank: Rank = None,
    adapter: Adapter = None,
    dtype: Dtype = None,
    attention: Attention = None,
    unroll: Unroll = None,
    quantize: Quantize = None,
    kv_cache: KvCache = None,
    devices: Devices = None,
    fsdp: Fsdp = None,
    tensor: Tensor = None,
    warmup: Warmup = 1,
    repeats: Repeats = 3,
    peer: Peers = None,
    vllm_python: VllmPython = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Measure greedy decoding with an adapter; with --answers, a job of more prompts than rows.

    \b
    fedjax-rai bench generate --model 135M --rows 1,16 --new 32 --peer torch
    fedjax-rai bench generate --model 135M --answers 520 --new 256 --order queue,batches
    """
    given = {"rows": rows, "prompt": prompt, "new": new, "model": model, "rank": rank, "dtype": dtype}
    given |= {
        "answers": answers,
        "order": order,
        "adapter": adapter,
        "attention": attention,
        "unroll": unroll,
        "quantize": quantize,
        "kv_cache": kv_cache,
        "devices": devices,
        "fsdp": fsdp,
        "tensor": tensor,
    }
    with terminal.answering():
        from fedjax_rai.bench.requests import Asked

        asked = Asked("generate", given, config, overrides or (), warmup, repeats)
        _measure([asked], as_json, output, peer or (), pythons={"vllm": vllm_python})


@app.command()
def cai(
    model: Model = None,
    config: Config = None,
    overrides: Set = None,
    prompts: Annotated[Given, numbers("Prompts of the phase; 64 without a config.")] = None,
    chunk: Annotated[Given, numbers("Prompts that are answered at once; all if not given.")] = None,
    prompt: Prompt = None,
    new: New = None,
    revisions: Annotated[Given, numbers("How often an answer is criticised and revised.")] = None,
    iterations: Annotated[Given, numbers("Iterations of training; 50 without a config.")] = None,
    batch: Batch = None,
    rank: Rank = None,
    adapter: Adapter = None,
    dtype: Dtype = None,
    attention: Attention = None,
    remat: Remat = None,
    unroll: Unroll = None,
    quantize: Quantize = None,
    kv_cache: KvCache = None,
    micro_batch: MicroBatch = None,
    devices: Devices = None,
    fsdp: Fsdp = None,
    tensor: Tensor = None,
    warmup: Warmup = 1,
    repeats: Repeats = 3,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Measure a phase of constitutional AI: respond, critique, revise, and train.

    \b
    fedjax-rai bench cai --config configs/tiny_cpu.yaml --iterations 0,25,100
    """
    given = {"prompts": prompts, "chunk": chunk, "prompt": prompt, "new": new, "revisions": revisions}
    given |= {"iterations": iterations, "batch": batch, "model": model, "rank": rank, "dtype": dtype}
    given |= {
        "attention": attention,
        "remat": remat,
        "unroll": unroll,
        "quantize": quantize,
        "kv_cache": kv_cache,
        "micro_batch": micro_batch,
        "devices": devices,
    }
    given |= {"fsdp": fsdp, "tensor": tensor, "adapter": adapter}
    with terminal.answering():
        from fedjax_rai.bench.requests import Asked

        _measure([Asked("cai", given, config, overrides or (), warmup, repeats)], as_json, output)


@app.command()
def score(
    model: Model = None,
    config: Config = None,
    overrides: Set = None,
    pairs: Annotated[Given, numbers("Pairs that are scored; 1000 if not given.")] = None,
    length: Length = None,
    batch: Batch = None,
    rank: Rank = None,
    dtype: Dtype = None,
    attention: Attention = None,
    unroll: Unroll = None,
    quantize: Quantize = None,
    devices: Devices = None,
    fsdp: Fsdp = None,
    tensor: Tensor = None,
    warmup: Warmup = 1,
    repeats: Repeats = 3,
    peer: Peers = None,
    compiled: Compile = False,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Measure a guard's scores of pairs, sorted by length.

    \b
    fedjax-rai bench score --model tiny --dtype float32 --pairs 1000 --peer torch
    """
    given = {"pairs": pairs, "length": length, "batch": batch, "model": model, "rank": rank, "dtype": dtype}
    given |= {"attention": attention, "unroll": unroll, "quantize": quantize}
    given |= {"devices": devices, "fsdp": fsdp, "tensor": tensor}
    with terminal.answering():
        from fedjax_rai.bench.requests import Asked

        asked = Asked("score", given, config, overrides or (), warmup, repeats)
        _measure([asked], as_json, output, peer or (), compiled)


SMALL: dict[str, Mapping[str, str]] = {
    "round": {"clients": "2", "steps": "4", "length": "128"},
    "generate": {"new": "32"},
    "cai": {"prompts": "16", "new": "32", "iterations": "10"},
    "score": {"pairs": "200"},
}
"""What `all` measures: sizes that two cores are done with in a few minutes."""


@app.command("all")
def everything(
    model: Model = None,
    dtype: Dtype = None,
    repeats: Repeats = 3,
    peer: Peers = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Measure a small round, decoding, CAI phase and scoring.

    A peer is measured beside what it can do; each ends within a minute or two on two cores.
    """
    with terminal.answering():
        from fedjax_rai.bench.requests import Asked

        every = []
        for work, small in SMALL.items():
            every.append(Asked(work, {"model": model, "dtype": dtype, **small}, repeats=repeats))
        _measure(every, as_json, output, peer or (), is_every=True)


@app.command()
def load(
    quantize: Annotated[str, typer.Option(metavar="NAME", help="One of none, int8 and nf4.")] = "none",
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A checkpoint; a random 1B Llama if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the peak memory of loading a checkpoint.

    In bfloat16, by a process that does nothing else, against the checkpoint's size.
    """
    with terminal.answering():
        from fedjax_rai.bench import loading
        from fedjax_rai.bench.requests import check_name

        check_name("--quantize", quantize, QUANTIZED)
        if folder is not None:
            loading.check_checkpoint(folder)
        row = loading.measure_loading(folder, quantize)
        typer.echo(json.dumps(row) if as_json else loading.line(row))


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Of an experiment.")] = Path("configs/tiny_cpu.yaml"),
    counts: Annotated[
        str, typer.Option(metavar="N,N,...", help="Values of cai.iterations, with commas between.")
    ] = "0,10,25,50,100",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An override for all points.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what a sweep of iteration counts costs.

    Against its largest point alone, and against separate runs.
    """
    with terminal.answering():
        from fedjax_rai.bench import sweeping

        points = sweeping.read_counts(counts)
        others = overrides or []
        sweeping.check_config(config, others)
        _echo([sweeping.measure_phase(config, points, others)], as_json)
        _echo(sweeping.measure_runs(config, points, others), as_json)


def _echo(rows: Iterable[dict[str, Any]], as_json: bool) -> None:
    """Rows that have a line of their own."""
    for row in rows:
        line = row.pop("line")
        typer.echo(json.dumps(row) if as_json else line)


def _measure(
    every: Sequence[Any],
    as_json: bool,
    output: Path | None,
    names: Sequence[str] = (),
    compiled: bool = False,
    pythons: Mapping[str, str | None] | None = None,
    is_every: bool = False,
) -> None:
    """Measure all that was asked for, and say what was found.

    The parameters are what the commands have in common. All input is checked first; a row is printed, or written, when
    it is known, and the table also where a later one fails. `is_every`: a peer is left out of works that it cannot do.
    """
    from fedjax_rai.bench import measure, peers, report, requests

    report.check_output(output)
    planned = []
    known = peers.split(names)
    for asked in every:
        able = [name for name in known if not is_every or asked.work in peers.PEERS[name].works]
        sides = peers.chosen(able, asked.work, pythons)
        for request in requests.plan(asked):
            peers.check_same(request, sides)
            planned.append(({**request, "compile": compiled}, sides))
    rows: list[dict[str, Any]] = []
    try:
        for number, (request, sides) in enumerate(planned, 1):
            terminal.say(f"measuring {number} of {len(planned)}: {request['work']}, {request['model']}")
            for row in measure.measure(request, sides):
                rows.append(row)
                _keep(row, as_json, output)
    finally:
        if rows and not as_json:
            typer.echo(report.table(rows))
    if output is not None:
        report.finish(output, rows)
        terminal.say(f"look at {output / report.TABLE}, {output / report.PICTURE}")


def _keep(row: Mapping[str, Any], as_json: bool, output: Path | None) -> None:
    from fedjax_rai.bench import report

    if as_json:
        typer.echo(json.dumps(row))
    if output is not None:
        report.add(output, row)
