"""What this machine can do at most, measured: matrix products and copies; and what jax compiled."""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # what jax times of a program, compiled or found
FOUND = "/jax/compilation_cache/cache_hits"  # what jax counts a program that it found on disk as


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


@partial(jax.jit, static_argnums=1, donate_argnums=0)
def passes(x: jax.Array, times: int) -> jax.Array:
    """`x` with one added so many times, each a pass that reads it and writes it, in place."""
    return jax.lax.fori_loop(0, times, lambda _, x: x + 1, x)


def copy_bandwidth(size: int) -> float:
    """Bytes a second, read and written, of passes over an array of `size` bytes; the best of several runs of ten.

    The passes are in place: to write a new array would measure, on a CPU, how fast the system hands out memory.
    """
    x = jax.random.normal(jax.random.key(0), (size // 4,))
    moved = 2 * x.nbytes
    times = 10

    def run() -> jax.Array:
        nonlocal x
        x = passes(x, times)
        return x

    return moved * times / min(seconds(run, 10))


def peaks(dtype: str) -> dict[str, float]:
    """FLOP/s and bytes/s of this machine: those of one device, times their number where each is a device of its own."""
    on_cpu = jax.default_backend() == "cpu"
    devices = 1 if on_cpu else jax.device_count()  # those of a CPU share its cores
    return {
        "matmul_flops": devices * matmul_peak(dtype, 2048 if on_cpu else 8192),
        "copy_bytes": devices * copy_bandwidth(2**28 if on_cpu else 2**31),
    }


def description() -> dict[str, Any]:
    """The device and the versions that a number was measured with."""
    device = jax.devices()[0]
    return {"device": device.device_kind, "devices": jax.device_count(), "versions": f"jax {jax.__version__}"}


class Compilations:
    """Counts programs that are compiled, or found on disk, since it was made or last cleared."""

    def __init__(self) -> None:
        self._events: Counter[str] = Counter()
        jax.monitoring.register_event_listener(lambda event, **_: self._events.update([event]))
        jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: self._events.update([event]))

    def clear(self) -> None:
        """Count from now on."""
        self._events.clear()

    @property
    def found(self) -> int:
        """Programs that an earlier process had compiled."""
        return self._events[FOUND]

    @property
    def compiled(self) -> int:
        """Programs that this process compiled."""
        return self._events[COMPILED] - self.found
