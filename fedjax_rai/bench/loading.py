"""The peak memory of loading a checkpoint, in a process that does nothing else."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedjax_rai.bench.shapes import MODELS
from fedjax_rai.errors import InputError
from fedjax_rai.memory import measured

GIB = 2**30
MADE = "1B"  # the shape of the checkpoint that is made where none is given


def check_checkpoint(folder: Path) -> None:
    """Raises InputError for a folder without a config or without weights."""
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise InputError(f"--folder {folder}: no {pattern} there; must be a Hugging Face folder")


def measure_loading(folder: Path | None, quantize: str) -> dict[str, Any]:
    """Bytes and seconds of loading the checkpoint in a folder; None: a random one of 1.24 billion parameters."""
    if folder is not None:
        return _loaded(folder, quantize)
    with tempfile.TemporaryDirectory() as made:
        random_checkpoint(Path(made), MODELS[MADE])
        return _loaded(Path(made), quantize)


def _loaded(folder: Path, quantize: str) -> dict[str, Any]:
    """In another process, so that nothing else is in its peak."""
    command = [sys.executable, "-m", "fedjax_rai.bench.loading", str(folder), quantize]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        raise InputError(f"loading ended with exit code {done.returncode}; its message stands above")
    checkpoint = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"work": "load", "quantize": quantize, "checkpoint": checkpoint, **json.loads(done.stdout.splitlines()[-1])}


def line(row: dict[str, Any]) -> str:
    """What was found, for a person."""
    bound = 1.15 * row["checkpoint"] + GIB
    return (
        f"checkpoint {row['checkpoint'] / GIB:.2f} GiB; loaded ({row['quantize']}) {row['base'] / GIB:.2f} GiB in "
        f"{row['seconds']:.1f} s; peak of the process {row['peak'] / GIB:.2f} GiB "
        f"({row['before'] / GIB:.2f} before loading); 1.15 x checkpoint + 1 GiB = {bound / GIB:.2f} GiB"
    )


def random_checkpoint(folder: Path, raw: dict[str, Any]) -> None:
    """A bfloat16 checkpoint of one random block, repeated."""
    import jax.numpy as jnp
    import numpy as np

    from fedjax_rai.model.families import decoder_config, places
    from fedjax_rai.model.weights import save_model

    block = (0.02 * np.random.default_rng(0).standard_normal(2**20, np.float32)).astype(jnp.bfloat16)
    shapes = {name: place.shape for name, place in places(decoder_config(raw, "benchmark")).items()}
    save_model(folder, raw, shapes, "bfloat16", lambda name: np.resize(block, shapes[name]))


def measure_load(folder: str, quantize: str) -> dict[str, Any]:
    """Load a base: its bytes, the seconds, and this process's peak before and after."""
    import jax

    from fedjax_rai.model.families import read_config
    from fedjax_rai.model.weights import load_base
    from fedjax_rai.runs.compiled import keep_compiled

    keep_compiled()
    config = read_config(Path(folder), dtype="bfloat16", quantize=quantize)
    jax.block_until_ready(jax.numpy.zeros(1))
    before = measured.process_peak()
    began = time.perf_counter()
    base = jax.block_until_ready(load_base(Path(folder), config))
    seconds = time.perf_counter() - began
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    return {"base": size, "seconds": seconds, "peak": measured.process_peak(), "before": before}


if __name__ == "__main__":
    print(json.dumps(measure_load(sys.argv[1], sys.argv[2])))
