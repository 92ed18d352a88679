"""Eight devices compute what one does, and the clients lie where they should. In processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROUND = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import PartitionSpec as P
from fedjax_rai.fed.aggregate import weighted_mean
from fedjax_rai.fed.algorithm import ALGORITHMS, RoundBatch
from fedjax_rai.mesh import base_shardings, make_mesh, over_clients, replicated
from fedjax_rai.model.decoder import abstract_base
from fedjax_rai.train import step
from tests import small

step.optimizer = optax.identity  # Adam blows rounding up
mesh = make_mesh(fsdp=int(sys.argv[3]))
across = mesh.shape["clients"]
base = jax.device_put(small.BASE, base_shardings(mesh, abstract_base(small.CONFIG)))
if int(sys.argv[3]) > 1:
    assert base["embed_tokens"].sharding.spec == P("tensor", "fsdp"), base["embed_tokens"].sharding
seen = []

def constrain(tree):
    tree = over_clients(mesh)(tree)
    for leaf in jax.tree.leaves(tree):
        jax.debug.inspect_array_sharding(leaf, callback=seen.append)
    return tree

algorithm = ALGORITHMS[sys.argv[1]](small.MODEL, weighted_mean(), 8, across, constrain)
state = jax.device_put(algorithm.init(small.adapter()), replicated(mesh))
batch = RoundBatch(small.corpus(), small.cohort([0, 1, 2, 3, 4, 5, 7]), jnp.float32(3e-2))
for _ in range(2):
    state, metrics = jax.jit(algorithm.round)(state, base, batch)
if across > 1:
    assert seen and all(s.spec[0] == "clients" for s in seen), seen
np.savez(sys.argv[2], *map(np.asarray, jax.tree.leaves(state)), loss=np.asarray(metrics["train_loss"]))
"""


def play(devices: int, name: str, fsdp: int, path: Path) -> dict[str, np.ndarray]:
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = [sys.executable, "-c", ROUND, name, str(path), str(fsdp)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(path))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fsdp"), [("fedavg", 1), ("fedavg", 2), ("scaffold", 1)])
def test_eight_devices_are_one_device(name, fsdp, tmp_path):
    eight, one = play(8, name, fsdp, tmp_path / "8.npz"), play(1, name, 1, tmp_path / "1.npz")
    assert eight.keys() == one.keys()
    for key, value in one.items():
        np.testing.assert_allclose(eight[key], value, atol=1e-6, rtol=1e-5)
