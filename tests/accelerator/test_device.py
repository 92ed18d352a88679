"""What an accelerator computes is what a CPU computes: by tpu_scripts/accelerator.sh, skipped where there is none."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fedjax_rai.data.examples import Prompts
from fedjax_rai.model.quantize import dequantize, matmul, quantize
from fedjax_rai.train.generate import Decoding, Sampling, generate
from tests.processes import ROOT
from tests.small import LM, VOCAB, adapter

pytestmark = pytest.mark.skipif(jax.default_backend() == "cpu", reason="jax has no accelerator here")
SMALL = (
    "federated.rounds=2", "federated.clients=8", "federated.cohort=4", "federated.local_steps=5", "guard.steps=5",
    "eval.prompts=8", "eval.samples=1", "cai.prompts=16", "cai.iterations=5", "cai.replay=16", "eval.temperature=0",
    "cai.temperature=0", "filter.action=keep",  # a score near the threshold may fall on either side of it
)  # fmt: skip


def distance(ours, expected) -> float:
    """||ours - expected|| / ||expected||."""
    ours, expected = (np.asarray(x, np.float64).ravel() for x in (ours, expected))
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))


@pytest.fixture
def on_cpu():
    """Arrays of a tree, on the host's CPU."""
    cpu = jax.devices("cpu")[0]
    return lambda tree: jax.device_put(tree, cpu)


@pytest.mark.parametrize("kind", ("int8", "nf4"))
def test_a_quantised_product_is_that_of_the_cpu(kind, on_cpu):
    g = np.random.default_rng(0)
    kernel, x = g.standard_normal((256, 384), np.float32), g.standard_normal((32, 256), np.float32)
    with jax.default_matmul_precision("highest"):
        ours = matmul(jnp.asarray(x), quantize(jnp.asarray(kernel), kind))
        expected = np.asarray(x, np.float64) @ np.asarray(dequantize(quantize(on_cpu(kernel), kind), "float32"))
    assert distance(ours, expected) < 1e-6


def test_greedy_answers_are_those_of_the_cpu(on_cpu):
    g = np.random.default_rng(1)
    tokens = g.integers(1, VOCAB, (6, 9)).astype(np.int32)
    valid = np.arange(9) >= g.integers(0, 8, (6, 1))
    prompts = Prompts(jnp.asarray(tokens), jnp.asarray(valid))
    decoding = Decoding(Sampling(np.float32(0)), np.array([0], np.int32), 24)
    inputs = (LM, adapter(), prompts, jax.random.split(jax.random.key(0), 6), decoding)
    with jax.default_matmul_precision("highest"):
        ours = generate(*inputs)
        expected = generate(*on_cpu(inputs))
    np.testing.assert_array_equal(ours.tokens, expected.tokens)
    np.testing.assert_array_equal(ours.valid, expected.valid)


def run(folder: Path, **environment: str) -> Path:
    """Two rounds of the tiny config with guard and constitutional AI, all greedy, in float32 products."""
    command = [sys.executable, "-m", "fedjax_rai", "run", "configs/tiny_cpu.yaml", *SMALL, f"output={folder}"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    others = {"PYTHONPATH": path, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **others, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_rounds_with_both_guards_are_those_of_the_cpu(tmp_path):
    """Adapters, and the metrics of every round, up to rounding that Adam blows up. Both are computed at once."""
    with ThreadPoolExecutor() as pool:
        on_device = pool.submit(run, tmp_path / "device")
        on_cpu = pool.submit(run, tmp_path / "cpu", JAX_PLATFORMS="cpu")
        ours, expected = on_device.result(), on_cpu.result()
    adapters = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (ours, expected)]
    off = distance(*(np.concatenate([x.ravel() for _, x in sorted(found.items())]) for found in adapters))
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (ours, expected)
    ]
    print(f"adapters differ by {off:.2e} of their norm")
    for mine, theirs in zip(*rows, strict=True):
        for key in ("train_loss", "delta_norm", "cai_loss"):
            assert mine[key] == pytest.approx(theirs[key], rel=2e-2), (mine["round"], key)
    assert off < 2e-2
