"""Benchmarks: python -m fedjax_rai.bench round | generate | load | sweep

A command's parameters are its options, so there are as many as its users have choices.
"""

import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from fedjax_rai import terminal
from fedjax_rai.errors import InputError, did_you_mean

app = typer.Typer(
    name="python -m fedjax_rai.bench",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
QUANTIZED = ("none", "int8", "nf4")
GIB = 2**30


@app.callback()
def main() -> None:
    """Throughput and memory, measured on this machine."""


Model = Annotated[str, typer.Option(metavar="NAME", help="One of tiny, 135M, 1B, 8B: random weights of that shape.")]
Dtype = Annotated[str, typer.Option(metavar="NAME", help="bfloat16 or float32.")]
Peer = Annotated[bool, typer.Option("--peer", help="Measure transformers and PEFT in torch beside it.")]
Compile = Annotated[bool, typer.Option("--compile", help="The peer compiles its model (torch.compile).")]
Repeats = Annotated[int, typer.Option(min=1, metavar="N", help="How often, after one that compiles.")]


@app.command("round")
def federated_round(
    model: Model = "tiny",
    clients: Annotated[int, typer.Option(min=1, help="Clients of the round.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Local steps of each.")] = 25,
    batch: Annotated[int, typer.Option(min=1, help="Examples of a step.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens of an example.")] = 512,
    chunk: Annotated[int, typer.Option(min=1, help="Clients that are mapped at once.")] = 1,
    dtype: Dtype = "bfloat16",
    attention: Annotated[str, typer.Option(metavar="NAME", help="One of xla, chunked, cudnn, splash.")] = "xla",
    remat: Annotated[str, typer.Option(metavar="NAME", help="none or full.")] = "none",
    repeats: Repeats = 3,
    peer: Peer = False,
    compiled: Compile = False,
) -> None:
    """Measure a federated round of LoRA: tokens a second and the share of this machine's matrix products."""
    with terminal.answering():
        check_shape(model, dtype)
        shape = {"clients": clients, "steps": steps, "batch": batch, "length": length}
        ours = {"work": "round", "model": model, "shape": {**shape, "chunk": chunk}, "repeats": repeats}
        _measure(ours | {"computed": {"dtype": dtype, "attention": attention, "remat": remat}})
        if peer:
            theirs = {"work": "round", "model": model, "dtype": dtype, "shape": shape}
            _measure_peer(theirs | {"repeats": repeats, "compile": compiled})


@app.command()
def generate(
    model: Model = "tiny",
    rows: Annotated[int, typer.Option(min=1, help="Prompts that are answered at once.")] = 16,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 64,
    new: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    dtype: Dtype = "bfloat16",
    repeats: Repeats = 3,
    peer: Peer = False,
) -> None:
    """Measure greedy decoding with an adapter: tokens a second and the share of this machine's copies."""
    with terminal.answering():
        check_shape(model, dtype)
        shape = {"rows": rows, "prompt": prompt, "new": new}
        ours = {"work": "generate", "model": model, "shape": shape, "repeats": repeats}
        _measure(ours | {"computed": {"dtype": dtype}})
        if peer:
            theirs = {"work": "generate", "model": model, "dtype": dtype, "shape": shape}
            _measure_peer(theirs | {"repeats": repeats, "compile": False})


def check_shape(model: str, dtype: str) -> None:
    """Raises InputError for a shape or a type that has no row."""
    from fedjax_rai.bench.shapes import MODELS

    if model not in MODELS:
        raise InputError(f"--model {model}: must be one of {', '.join(MODELS)}{did_you_mean(model, MODELS)}")
    if dtype not in ("bfloat16", "float32"):
        raise InputError(f"--dtype {dtype}: must be one of bfloat16, float32")


def _measure(request: dict[str, Any]) -> None:
    """Ours, in a process of its own so that its peak memory is its alone; the result as one line of JSON."""
    _printed([sys.executable, "-m", "fedjax_rai.bench.work", json.dumps(request)])


def _measure_peer(request: dict[str, Any]) -> None:
    for name in ("torch", "transformers", "peft"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--peer: needs {name}; pip install torch peft")
    _printed([sys.executable, "-m", "fedjax_rai.bench.torch_peer", json.dumps(request)])


def _printed(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"the measurement ended with exit code {done.returncode}; its message stands above")
    typer.echo(done.stdout.strip().splitlines()[-1])


@app.command()
def load(
    quantize: Annotated[str, typer.Option(metavar="NAME", help="One of none, int8 and nf4.")] = "none",
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A checkpoint; a random 1B Llama if not given.")
    ] = None,
) -> None:
    """Measure the peak memory of loading a checkpoint.

    In bfloat16, by a process that does nothing else, against the checkpoint's size.
    """
    with terminal.answering():
        if quantize not in QUANTIZED:
            raise InputError(f"--quantize {quantize}: must be one of {', '.join(QUANTIZED)}")
        if folder is not None:
            check_checkpoint(folder)
            return _report(folder, quantize)
        with tempfile.TemporaryDirectory() as made:
            from fedjax_rai.bench.shapes import MODELS

            random_checkpoint(Path(made), MODELS["1B"])
            _report(Path(made), quantize)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Of an experiment.")] = Path("configs/tiny_cpu.yaml"),
    counts: Annotated[
        str, typer.Option(metavar="N,N,...", help="Values of cai.iterations, with commas between.")
    ] = "0,10,25,50,100",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An override for all points.")
    ] = None,
) -> None:
    """Measure what a sweep of iteration counts costs.

    Against its largest point alone, and against separate runs.
    """
    with terminal.answering():
        points = read_counts(counts)
        others = overrides or []
        check_config(config, others)
        _sweep_phase(config, points, others)
        _sweep_runs(config, points, others)


def read_counts(text: str) -> list[int]:
    """Numbers of iterations, ascending, each once; raises InputError for anything else."""
    values = [value.strip() for value in text.split(",")]
    for value in values:
        if not value.isdecimal():
            raise InputError(f"--counts {text}: {value!r} is no whole number; must be like 0,10,25")
    counts = sorted({int(value) for value in values})
    if counts[-1] == 0:
        raise InputError(f"--counts {text}: must hold a number above 0, which a phase can be measured at")
    return counts


def check_config(path: Path, overrides: list[str]) -> None:
    """Raises InputError for a config that cannot be swept: with mistakes, or without phases."""
    from fedjax_rai.config.files import check_files
    from fedjax_rai.config.load import load_config

    config = load_config(path, overrides)
    check_files(config)
    if not config.cai.enabled:
        raise InputError(f"{path}: cai.enabled = false: must be true, as it is the CAI phases that are measured")


def check_checkpoint(folder: Path) -> None:
    """Raises InputError for a folder without a config or without weights."""
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise InputError(f"--folder {folder}: no {pattern} there; must be a Hugging Face folder")


def _sweep_phase(config: Path, points: list[int], others: list[str], repeats: int = 5) -> None:
    """One CAI phase with a snapshot at each of the counts, against one for the largest alone; both compiled."""
    import jax

    from fedjax_rai.config.load import load_config
    from fedjax_rai.experiment.round import Federation
    from fedjax_rai.experiment.setting import Setting
    from fedjax_rai.runs.compiled import keep_compiled

    keep_compiled()
    loaded = load_config(config, others)
    federation = Federation(Setting(loaded))
    adapter = federation.init().adapter

    def phase_seconds(snapshots: list[int]) -> float:
        began = time.perf_counter()
        collected = federation.phase.collect(adapter, 0)
        jax.block_until_ready(list(federation.phase.align(adapter, collected, 0, snapshots)))
        return time.perf_counter() - began

    phase_seconds(points)  # compiles
    seconds_alone = []
    seconds_shared = []
    for _ in range(repeats):  # in turn, so that both meet the same neighbours
        seconds_alone.append(phase_seconds(points[-1:]))
        seconds_shared.append(phase_seconds(points))
    alone = float(np.median(seconds_alone))
    shared = float(np.median(seconds_shared))
    typer.echo(
        f"a phase of {points[-1]} iterations: {alone:.2f} s; with snapshots at {points}: {shared:.2f} s; "
        f"ratio {shared / alone:.3f} (medians of {repeats})"
    )


def _sweep_runs(config: Path, points: list[int], others: list[str]) -> None:
    """`fedjax-rai sweep` against a `fedjax-rai run` for each point, every one a process of its own.

    The runs have one compilation cache, which the first of them fills; the sweep begins with an empty one, too.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        counts = ",".join(map(str, points))
        arguments = ["sweep", str(config), f"cai.iterations={counts}", *others, f"output={folder / 's'}"]
        swept = _timed(folder / "a", arguments)
        typer.echo(f"sweep of {len(points)} points: {swept:.1f} s")
        apart = []
        same = True
        for n in points:
            arguments = ["run", str(config), f"cai.iterations={n}", *others, f"output={folder / str(n)}"]
            apart.append(_timed(folder / "b", arguments))
            typer.echo(f"run with {n} iterations: {apart[-1]:.1f} s")
            same &= _adapter(folder / "s" / f"cai.iterations={n}") == _adapter(folder / str(n))
    typer.echo(f"all runs: {sum(apart):.1f} s; ratio {swept / sum(apart):.3f}; same adapters: {same}")


def _timed(cache: Path, arguments: list[str]) -> float:
    began = time.perf_counter()
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "fedjax_rai", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)  # progress and errors are seen
    return time.perf_counter() - began


def _adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def random_checkpoint(folder: Path, raw: dict[str, Any]) -> None:
    """A bfloat16 checkpoint of one random block, repeated."""
    import jax.numpy as jnp

    from fedjax_rai.model.families import decoder_config, places
    from fedjax_rai.model.weights import save_model

    block = (0.02 * np.random.default_rng(0).standard_normal(2**20, np.float32)).astype(jnp.bfloat16)
    shapes = {name: place.shape for name, place in places(decoder_config(raw, "benchmark")).items()}
    save_model(folder, raw, shapes, "bfloat16", lambda name: np.resize(block, shapes[name]))


def _report(folder: Path, quantize: str) -> None:
    """Measure loading in another process, so that nothing else is in its peak, and print what was found."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    code = f"from fedjax_rai.bench.__main__ import measure_load; measure_load({str(folder)!r}, {quantize!r})"
    found = json.loads(
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout
    )
    bound = 1.15 * size + GIB
    typer.echo(
        f"checkpoint {size / GIB:.2f} GiB; loaded ({quantize}) {found['base'] / GIB:.2f} GiB in "
        f"{found['seconds']:.1f} s; peak of the process {found['peak'] / GIB:.2f} GiB "
        f"({found['before'] / GIB:.2f} before loading); 1.15 x checkpoint + 1 GiB = {bound / GIB:.2f} GiB"
    )


def measure_load(folder: str, quantize: str) -> None:
    """Load a base; print its bytes, the seconds, and this process's peak before and after, as a JSON object."""
    import jax

    from fedjax_rai.model.families import read_config
    from fedjax_rai.model.weights import load_base
    from fedjax_rai.runs.compiled import keep_compiled

    keep_compiled()
    config = read_config(Path(folder), dtype="bfloat16", quantize=quantize)
    jax.block_until_ready(jax.numpy.zeros(1))
    before = _peak()
    began = time.perf_counter()
    base = jax.block_until_ready(load_base(Path(folder), config))
    seconds = time.perf_counter() - began
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    print(json.dumps({"base": size, "seconds": seconds, "peak": _peak(), "before": before}))


def _peak() -> int:
    """Bytes of memory that this process held at most. Linux's getrusage would count its parent's, too."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    app()
