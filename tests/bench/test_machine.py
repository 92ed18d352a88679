"""What a machine's limits are measured by."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from fedjax_rai.bench import machine


def test_copies_are_passes_in_place_that_map_no_new_memory() -> None:
    x = jax.ShapeDtypeStruct((2**20,), jnp.float32)

    held = machine.passes.lower(x, 10).compile().memory_analysis()

    assert held is not None
    # A result of its own measures, on a CPU, how fast the system hands out memory: 6 GB/s where passes reach 55.
    assert held.alias_size_in_bytes == 4 * 2**20
    assert held.output_size_in_bytes == held.alias_size_in_bytes
    assert held.temp_size_in_bytes < 2**10


def test_each_pass_is_made() -> None:
    assert machine.passes(jnp.array([1.0, 2.0]), 3).tolist() == [4.0, 5.0]


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (lambda: machine.copy_bandwidth(4096), 10 * 2 * 4096 / 0.5),  # ten passes, read and written
        (lambda: machine.matmul_peak("float32", 16), 10 * 2 * 16**3 / 0.5),  # ten products, multiplied and added
    ],
)
def test_a_limit_is_that_of_the_fastest_run(
    measure: Callable[[], float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def seconds(run: Callable[[], jax.Array], *_: int) -> list[float]:
        made.append(run())
        return [2.0, 0.5, 1.0]

    monkeypatch.setattr(machine, "seconds", seconds)

    assert measure() == pytest.approx(expected)
    assert len(made) == 1
