"""Eight devices compute what one does, and the clients lie where they should. In processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROUND = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Mapper
from fedjax_rai.mesh import base_shardings, make_mesh, over_clients, replicated
from fedjax_rai.model.decoder import LM, abstract_base
from tests import small

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

algorithm = small.algorithm(sys.argv[1], Mapper(8, across, constrain))
state = jax.device_put(algorithm.init(small.adapter()), replicated(mesh))
batch = RoundBatch(small.corpus(), small.cohort([0, 1, 2, 3, 4, 5, 7]), jnp.float32(3e-2))
for _ in range(2):
    state, metrics = jax.jit(algorithm.round)(state, LM(small.MODEL, base), batch)
if across > 1:
    assert seen and all(s.spec[0] == "clients" for s in seen), seen
# control variates are deltas divided by local steps times learning rate, and so is their rounding
state = state._replace(memory=jax.tree.map(lambda c: 3 * 3e-2 * c, state.memory))
np.savez(sys.argv[2], *map(np.asarray, jax.tree.leaves(state)), loss=np.asarray(metrics["train_loss"]))
"""


LOADED = """
import collections, sys
from dataclasses import replace
from math import prod
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P, SingleDeviceSharding
from fedjax_rai.fed.aggregate import weighted_mean
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Mapper
from fedjax_rai.fed.fedavg import fedavg
from fedjax_rai.mesh import base_shardings, make_mesh, over_clients, replicated
from fedjax_rai.model import decoder, families, weights
from fedjax_rai.model.lora import Lora, init_adapter
from tests import small

mesh = make_mesh(fsdp=2, tensor=2)
assert dict(mesh.shape) == {"clients": 2, "fsdp": 2, "tensor": 2}
read, seen = weights.Stored.read, collections.Counter()

def recorded(stored, index=...):
    sizes = [range(size)[own] for size, own in zip(stored.shape, index, strict=True)]
    seen[stored.name, tuple(sizes), prod(stored.shape)] += 1
    return read(stored, index)

weights.Stored.read = recorded

def load(folder, config):
    \"\"\"On one device and on eight, which hold the same.\"\"\"
    lie = base_shardings(mesh, decoder.abstract_base(config))
    one = weights.load_base(folder, config)
    seen.clear()
    eight = weights.load_base(folder, config, lie)
    jax.tree.map(np.testing.assert_array_equal, eight, one)
    jax.tree.map(lambda leaf, own: check(leaf.sharding, own), eight, lie)
    assert jax.tree.leaves(one)[0].sharding == SingleDeviceSharding(jax.devices()[0])
    return one, eight

def check(got, expected):
    assert got.is_equivalent_to(expected, len(expected.spec)) and got.spec == expected.spec, (got, expected)

def share(leaf):
    \"\"\"What one device holds of it.\"\"\"
    shares = {shard.data.size / leaf.size for shard in leaf.addressable_shards}
    assert len(shares) == 1
    return shares.pop()
"""

QUARTERS = """
for folder, kind in (("plain_untied", "none"), ("gemma2", "int8"), ("plain_untied", "nf4")):
    folder = Path("tests/fixtures/models") / folder
    config = families.read_config(folder, quantize=kind)
    one, eight = load(folder, config)
    assert eight["embed_tokens"].sharding.spec == P("tensor", "fsdp") and share(eight["embed_tokens"]) == 1 / 4
    for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
        rows, columns = ("tensor", "fsdp") if name in ("o_proj", "down_proj") else ("fsdp", "tensor")
        values = jax.tree.leaves(kernel := eight["layers"][name])[0]
        assert values.sharding.spec == P(None, rows, columns) and share(values) == 1 / 4
        if kind != "none":  # an odd number of scales in a column is not split along it
            even = kernel.scales.shape[1] % 2 == 0
            assert kernel.scales.sharding.spec == P(None, rows if even else None, columns)
    assert len(seen) > 50
    for (name, places, size), times in seen.items():
        if len(places) == 2:
            assert prod(map(len, places)) == size / 4, (name, places)
        assert times == 1, f"{name}: one part read {times} times"

model = decoder.Decoder(config, Lora(config.targets, rank=2, alpha=3.0))
adapter = init_adapter(config, model.lora, jax.random.key(0))
adapter = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), adapter)
ends = []
for base, own in ((one, {}), (eight, {"chunk": 2, "constrain": over_clients(mesh)})):
    algorithm = fedavg(small.SGD, weighted_mean(), Mapper(8, **own))
    state = algorithm.init(adapter)
    state = jax.device_put(state, replicated(mesh)) if own else state
    batch = RoundBatch(small.corpus(), small.cohort([0, 1, 4]), jnp.float32(1e-2))
    ends.append(jax.jit(algorithm.round)(state, decoder.LM(model, base), batch))
jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5), *ends)
assert small.distance(ends[0][0].adapter, adapter) > 1e-3
"""

# No size but the embedding's is even, or a kernel's only on one side; with 66 rows, codes split and scales do not.
UNEVEN = """
raw = {"model_type": "llama", "vocab_size": 33, "hidden_size": 66, "intermediate_size": 15, "num_hidden_layers": 2,
       "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "tie_word_embeddings": False}
plain = families.decoder_config(raw, "raw")
base = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, decoder.init_base(plain, jax.random.key(0)))
weights.save_base(Path(sys.argv[1]), raw, base, "float32")
tokens = jnp.arange(24).reshape(2, 12)
for kind in ("none", "int8"):
    model = decoder.Decoder(replace(plain, quantize=kind))
    one, eight = load(Path(sys.argv[1]), model.config)
    assert eight["embed_tokens"].sharding.spec == P(None, "fsdp") and share(eight["embed_tokens"]) == 1 / 2
    assert eight["lm_head"].sharding.spec == P("fsdp", None)
    down, up = (jax.tree.leaves(eight["layers"][name])[0] for name in ("down_proj", "gate_up_proj"))
    assert down.sharding.spec == P(None, None, "fsdp") and up.sharding.spec == P(None, "fsdp", "tensor")

    @jax.jit
    def logits(base):
        lm = decoder.LM(model, base)
        return decoder.unembed(lm, decoder.forward(lm, None, tokens, tokens >= 0))

    np.testing.assert_allclose(logits(eight), logits(one), atol=1e-5, rtol=1e-5)
"""

SETTING = """
import sys
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.setting import Setting
from jax.sharding import PartitionSpec as P

def setting(**mesh):
    data = {"red": 12, "acceptable": 28, "max_length": 64}
    raw = {"output": sys.argv[1], "mesh": mesh, "data": data, "filter": {"enabled": False}, "cai": {"enabled": False},
           "federated": {"clients": 4, "cohort": 2}}
    config = ExperimentConfig.model_validate(raw)
    return Setting(config)

split = setting(fsdp=2, tensor=2)
assert dict(split.models.mesh.shape) == {"clients": 2, "fsdp": 2, "tensor": 2}
assert split.models.base["embed_tokens"].sharding.spec == P("tensor", "fsdp")
assert split.models.base["layers"]["o_proj"].sharding.spec == P(None, "tensor", "fsdp")
wrong = setting(fsdp=3)
try:
    wrong.check()
except InputError as error:
    assert str(error) == "mesh.fsdp * mesh.tensor = 3: must divide the 8 devices here", error
else:
    raise AssertionError("three ways on eight devices")
"""

REVISED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from fedjax_rai.cai import options as compiled_for
from fedjax_rai.cai.align import align, begin
from fedjax_rai.cai.options import METHODS, Numbers
from fedjax_rai.cai.programs import OnlineSource, generate_rollout, pool_of_rollout
from fedjax_rai.cai.revise import RolloutBatch
from fedjax_rai.mesh import make_mesh, over_clients, replicated
from fedjax_rai.train.generate import Sampling
from tests import small
from fedjax_rai.train.losses import sigmoid
from tests.cai.common import REQUESTS, SPEAKER, on_device, options

mesh, seen = make_mesh(), {}
across, stage = mesh.shape["clients"], None

def watched(mesh):
    \"\"\"The constraint, which notes where what it is put on lies.\"\"\"
    def constrain(tree):
        tree = over_clients(mesh)(tree)
        for leaf in jax.tree.leaves(tree):
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                jax.debug.inspect_array_sharding(leaf, callback=seen.setdefault(stage, []).append)
        return tree
    return constrain

compiled_for.over_clients = watched
rows = 12  # not divided by the chunk
prompts = on_device([[1 + row, 3, 5 * row % 23, 7][: 2 + row % 3] for row in range(rows)])
principles = jnp.arange(rows * 2, dtype=jnp.int32).reshape(rows, 2) % 3
batch = RolloutBatch(jnp.arange(rows), prompts, None, principles, jax.random.split(jax.random.key(0), rows))
own = options(mesh=mesh, chunk=8, batch_size=8, objective=METHODS["sft+dpo"](sigmoid), trainer=small.SGD)
lm, adapter, replay = jax.device_put((SPEAKER, small.adapter(), small.corpus(4)), replicated(mesh))
found = {}
for name, heat in (("greedy", 0.0), ("sampled", 1.0)):
    stage = "rollout"
    rollout = generate_rollout(lm, own, adapter, batch, REQUESTS, Sampling(jnp.float32(heat)))
    pool, metrics = pool_of_rollout(lm, own, adapter, OnlineSource(batch, REQUESTS, replay), rollout)
    stage = "steps"
    numbers = Numbers(jnp.int32(4), jnp.float32(3e-2), jnp.float32(0.3), jnp.float32(0.3), {})
    end = align(lm, own, begin(adapter, small.SGD), pool, numbers, jax.random.key(1))
    assert small.distance(end.state.adapter, adapter) > 1e-3
    parts = {"rollout": rollout, "pool": pool, "metrics": metrics, "end": end}
    for part, tree in parts.items():
        found |= {f"{part} {name} {i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
jax.effects_barrier()
if across > 1:
    assert set(seen) == {"rollout", "steps"}, seen
    for name, places in seen.items():
        assert places and all(lies.spec[0] == "clients" for lies in places), (name, places)
np.savez(sys.argv[1], **found)
"""


def run(code: str, *arguments: str, devices: int = 8) -> None:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]


def play(devices: int, name: str, fsdp: int, path: Path) -> dict[str, np.ndarray]:
    run(ROUND, name, str(path), str(fsdp), devices=devices)
    return dict(np.load(path))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fsdp"), [("fedavg", 1), ("fedavg", 2), ("scaffold", 1)])
def test_eight_devices_are_one_device(name, fsdp, tmp_path):
    eight, one = play(8, name, fsdp, tmp_path / "8.npz"), play(1, name, 1, tmp_path / "1.npz")
    assert eight.keys() == one.keys()
    for key, value in one.items():
        np.testing.assert_allclose(eight[key], value, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_what_is_said_and_learnt_in_a_phase_is_the_same_on_eight_devices(tmp_path):
    """Every token of a greedy chain and of a sampled one, the pool that it gives, and the adapters trained on it."""
    found = []
    for devices in (8, 1):
        run(REVISED, str(tmp_path / f"{devices}.npz"), devices=devices)
        found.append(dict(np.load(tmp_path / f"{devices}.npz")))
    eight, one = found
    assert eight.keys() == one.keys()
    for key, value in one.items():
        if key.startswith(("said", "pool")):
            np.testing.assert_array_equal(eight[key], value)
        else:
            np.testing.assert_allclose(eight[key], value, atol=1e-5, rtol=1e-5)
    assert (one["said greedy 0"] != one["said sampled 0"]).any()


@pytest.mark.slow
def test_a_base_is_read_into_quarters_and_trained_on():
    """Each part of a tensor is read once, by who holds it; a federated round on the nf4 base is that of one device."""
    run(LOADED + QUARTERS)


@pytest.mark.slow
def test_an_axis_that_the_mesh_does_not_divide_is_whole(tmp_path):
    run(LOADED + UNEVEN, str(tmp_path))


@pytest.mark.slow
def test_the_mesh_of_a_config(tmp_path):
    run(SETTING, str(tmp_path))
