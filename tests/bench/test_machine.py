"""What a machine's limits are measured by."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from fedjax_rai.bench import machine


def test_copies_are_passes_in_place_that_map_no_new_memory() -> None:
    x = jax.ShapeDtypeStruct((2**20,), jnp.float32)

    program = machine.passes.lower(x, 10).compile()

    held = program.memory_analysis()
    assert held is not None
    # A result of its own measures, on a CPU, how fast the system hands out memory.
    assert held.alias_size_in_bytes == 4 * 2**20
    assert held.output_size_in_bytes == held.alias_size_in_bytes
    assert held.temp_size_in_bytes < 2**10
    assert '"known_trip_count":{"n":"10"}' in (program.as_text() or ""), "ten passes, not one that adds ten"


def test_each_pass_is_made_and_the_array_is_used_up() -> None:
    x = jnp.array([1.0, 2.0])

    assert machine.passes(x, 3).tolist() == [4.0, 5.0]
    assert x.is_deleted()


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


def test_as_many_passes_are_made_as_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(machine, "seconds", lambda run, *_: [made.append(run()) or 1.0])

    machine.copy_bandwidth(4096)

    assert jnp.allclose(made[0], jax.random.normal(jax.random.key(0), (1024,)) + 10)
