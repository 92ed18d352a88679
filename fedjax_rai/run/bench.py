"""Benchmarks: python -m fedjax_rai.run.bench load"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)
GIB = 2**30
# A Llama of 1.24 billion parameters: the shape of Llama 3.2 1B.
BILLION: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}


@app.callback()
def main() -> None:
    """Throughput and memory, measured on this machine."""


@app.command()
def load(
    quantize: Annotated[str, typer.Option(help="none, int8 or nf4")] = "none",
    folder: Annotated[Path | None, typer.Option(help="a checkpoint; a random 1B Llama if not given")] = None,
) -> None:
    """Peak memory of a process that loads a checkpoint in bfloat16, against the checkpoint's size."""
    if folder is not None:
        return _report(folder, quantize)
    with tempfile.TemporaryDirectory() as made:
        random_checkpoint(Path(made), BILLION)
        _report(Path(made), quantize)


def random_checkpoint(folder: Path, raw: dict[str, Any]) -> None:
    """A bfloat16 checkpoint of one random block, repeated."""
    import jax.numpy as jnp

    from fedjax_rai.model.families import decoder_config, places
    from fedjax_rai.model.weights import save_model

    block = (0.02 * np.random.default_rng(0).standard_normal(2**20, np.float32)).astype(jnp.bfloat16)
    shapes = {name: place.shape for name, place in places(decoder_config(raw, "benchmark")).items()}
    save_model(folder, raw, shapes, "bfloat16", lambda name: np.resize(block, shapes[name]))


def _report(folder: Path, quantize: str) -> None:
    """In a process of its own, so that nothing else is in its peak."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    code = f"from fedjax_rai.run.bench import measure_load; measure_load({str(folder)!r}, {quantize!r})"
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
    import jax

    from fedjax_rai.model.families import read_config
    from fedjax_rai.model.weights import load_base

    config = read_config(Path(folder), dtype="bfloat16", quantize=quantize)
    jax.block_until_ready(jax.numpy.zeros(1))
    before, began = _peak(), time.perf_counter()
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    app()
