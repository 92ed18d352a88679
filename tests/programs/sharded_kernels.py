"""A quantised kernel that is split over eight devices is that on one: its codes, its products, their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_rai.mesh import make_mesh
from fedjax_rai.model import quantize as q

mesh = make_mesh(fsdp=2, tensor=4)
split = NamedSharding(mesh, P("fsdp", "tensor"))
kernel = jax.random.normal(jax.random.key(0), (256, 24)) / 16
x = jax.random.normal(jax.random.key(1), (6, 256)) / 16


def check_close(one: jax.Array, other: jax.Array) -> None:
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


for kind in q.QUANTIZATIONS:
    whole = jax.jit(q.quantize, static_argnums=1)(kernel, kind)
    parts = jax.device_put(whole, split)
    assert {shard.data.shape for shard in parts.values.addressable_shards} == {(whole.values.shape[0] // 2, 6)}
    quantize = jax.jit(q.quantize, static_argnums=1, out_shardings=split)
    jax.tree.map(np.testing.assert_array_equal, quantize(jax.device_put(kernel, split), kind), whole)
    product = jax.jit(jax.value_and_grad(lambda x, kernel: jnp.sum(jnp.sin(q.matmul(x, kernel)))))
    jax.tree.map(check_close, product(x, parts), product(x, whole))
