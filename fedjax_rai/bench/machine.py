"""What this machine can do at most, measured: matrix products and copies."""

import time
from collections.abc import Callable
from typing import Any

import jax


def seconds(run: Callable[[], Any], repeats: int = 3) -> list[float]:
    """Seconds of each of `repeats` runs, after one that compiles."""
    jax.block_until_ready(run())
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    return found


def matmul_peak(dtype: str, size: int) -> float:
    """FLOP/s of a product of two square matrices of random numbers, the best of several times ten."""
    x, y = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    times = 10

    @jax.jit
    def products(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, times, lambda _, z: (z @ y) * (1 / size**0.5), x)

    return 2 * size**3 * times / min(seconds(lambda: products(x, y)))


def copy_bandwidth(size: int) -> float:
    """Bytes a second, read and written, of adding one to an array of `size` bytes; the best of several."""
    x = jax.random.normal(jax.random.key(0), (size // 4,))
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / min(seconds(lambda: add(x), 5))


def peaks(dtype: str) -> dict[str, float]:
    """FLOP/s and bytes/s of this machine's device."""
    on_cpu = jax.default_backend() == "cpu"
    return {
        "matmul_flops": matmul_peak(dtype, 2048 if on_cpu else 8192),
        "copy_bytes": copy_bandwidth(2**28 if on_cpu else 2**31),
    }


def description() -> dict[str, Any]:
    """The device and the versions that a number was measured with."""
    device = jax.devices()[0]
    return {"device": device.device_kind, "devices": jax.device_count(), "jax": jax.__version__}


def peak_memory() -> int | None:
    """Bytes of the device's memory that this process held at most; None where the device does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")
