"""A base is read into quarters, each part once, by who holds it; a round on the nf4 base is that of one device."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from fedjax_rai.aliases import Base
from fedjax_rai.fed.aggregate import weighted_mean
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Mapper, laid_out
from fedjax_rai.fed.fedavg import fedavg
from fedjax_rai.mesh import replicated
from fedjax_rai.model import decoder, families
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.lora import Lora, init_adapter
from tests import small
from tests.programs.split_bases import MESH, READ, load, share


def check_quarters(folder: Path, kind: str) -> tuple[DecoderConfig, Base, Base]:
    """Each device holds and reads a quarter of every matrix; the base on one device and on eight."""
    config = families.read_config(folder, quantize=kind)
    one, eight = load(folder, config)
    assert eight["embed_tokens"].sharding.spec == P("tensor", "fsdp")
    assert share(eight["embed_tokens"]) == 1 / 4
    for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
        rows, columns = ("tensor", "fsdp") if name in ("o_proj", "down_proj") else ("fsdp", "tensor")
        kernel = eight["layers"][name]
        values = jax.tree.leaves(kernel)[0]
        assert values.sharding.spec == P(None, rows, columns)
        assert share(values) == 1 / 4
        if kind != "none":  # an odd number of scales in a column is not split along it
            even = kernel.scales.shape[1] % 2 == 0
            assert kernel.scales.sharding.spec == P(None, rows if even else None, columns)
    assert len(READ) > 50
    for (name, places, size), times in READ.items():
        assert times == 1, f"{name}: one part read {times} times"
        if len(places) == 2:
            assert len(places[0]) * len(places[1]) == size / 4, (name, places)
    return config, one, eight


models = Path("tests/fixtures/models")
check_quarters(models / "plain_untied", "none")
check_quarters(models / "gemma2", "int8")
config, one, eight = check_quarters(models / "plain_untied", "nf4")

model = decoder.Decoder(config, Lora(config.targets, rank=2, alpha=3.0))
adapter = init_adapter(config, model.lora, jax.random.key(0))
adapter = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), adapter)
batch = RoundBatch(small.corpus(), small.cohort([0, 1, 4]), jnp.float32(1e-2))
alone = fedavg(small.SGD, weighted_mean(), Mapper(8))
expected = jax.jit(alone.round)(alone.init(adapter), decoder.LM(model, one), batch)
spread = fedavg(small.SGD, weighted_mean(), Mapper(8, chunk=2, constrain=laid_out(MESH, in_turn=False)))
state = jax.device_put(spread.init(adapter), replicated(MESH))
found = jax.jit(spread.round)(state, decoder.LM(model, eight), batch)
jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5), found, expected)
assert small.distance(expected[0].adapter, adapter) > 1e-3
