"""Numbers of the benchmarks, worked out by hand from seconds that are given; nothing is measured."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from fedjax_rai.bench import machine, shapes, torch_peer, work
from fedjax_rai.bench.shapes import DecodingShape, RoundShape

# One layer of width 8: q 8 x 8, k and v 8 x 4 each, o 8 x 8, gate and up 8 x 16 each, down 16 x 8; a vocabulary of 32.
MICRO = shapes._llama(8, 16, 1, 2, 1, vocab_size=32, tie_word_embeddings=True)
KERNELS = 8 * (8 + 4 + 4) + 8 * 8 + 8 * 32 + 16 * 8 + 32 * 8
ADAPTER = 16 * ((8 + 8) + 2 * (8 + 4) + (8 + 8) + 2 * (8 + 16) + (16 + 8))  # rank 16


@pytest.fixture(autouse=True)
def half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is measured takes half a second, on a machine of 1e6 FLOP/s and 1e5 bytes/s."""
    monkeypatch.setitem(shapes.MODELS, "micro", MICRO)
    monkeypatch.setattr(machine, "seconds", lambda run, repeats: [0.25, 0.5, 0.75])
    monkeypatch.setattr(machine, "peaks", lambda dtype: {"matmul_flops": 1e6, "copy_bytes": 1e5})
    monkeypatch.setattr(work, "federated_round", lambda *arguments: jnp.zeros(1))


def test_a_rounds_rate_is_of_all_tokens_of_all_clients() -> None:
    found = work.measure_round("micro", RoundShape(clients=2, steps=3, batch=4, length=5), dtype="float32")
    tokens = 2 * 3 * 4 * 5
    flops = tokens * (4 * KERNELS + 6 * ADAPTER) / 0.5
    assert found["tokens_per_second"] == tokens / 0.5
    assert found["flops_per_second"] == pytest.approx(flops)
    assert found["share_of_matmul"] == pytest.approx(flops / 1e6)


def test_decoding_reads_weights_and_cache_for_every_token() -> None:
    found = work.measure_decoding("micro", DecodingShape(rows=3, prompt=4, new=5), dtype="float32")
    norms = 3 * 8
    weights = KERNELS + norms + ADAPTER  # embeddings and unembedding are one
    cache = 3 * (4 + 5) * 2 * 4  # rows, slots, keys and values, one head of width 4
    assert found["tokens_per_second"] == 3 * 5 / 0.5
    assert found["bytes_per_second"] == pytest.approx(5 * 4 * (weights + cache) / 0.5)
    assert found["share_of_copy"] == pytest.approx(found["bytes_per_second"] / 1e5)
    assert found["flops_per_second"] == pytest.approx((3 * 5 + 3 * 4) * 2 * (KERNELS + ADAPTER) / 0.5)


def test_compiling_is_what_the_first_round_took_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 13.5])
    monkeypatch.setattr(work, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = work.measure_round("micro", RoundShape(clients=1, steps=1, batch=1, length=4), dtype="float32")
    assert found["compile_seconds"] == 3.5 - 0.5


@pytest.mark.parametrize("measure", ["round", "generate"])
def test_memory_is_what_was_held_before_the_limits_were_measured(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [700]
    monkeypatch.setattr(machine, "peak_memory", lambda: held[-1])
    limits = machine.peaks("float32")
    monkeypatch.setattr(machine, "peaks", lambda dtype: held.append(9000) or limits)
    shape = {"clients": 1, "steps": 1, "batch": 1, "length": 4} if measure == "round" else {"rows": 1, "new": 2}
    request = {"work": measure, "model": "micro", "shape": shape, "repeats": 3, "computed": {"dtype": "float32"}}
    assert work.measure(request)["peak_memory"] == 700


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT's own calls
@pytest.mark.parametrize(
    ("measure", "shape", "tokens"),
    [
        ("round", {"clients": 2, "steps": 3, "batch": 4, "length": 5}, 2 * 3 * 4 * 5),
        ("generate", {"rows": 3, "prompt": 4, "new": 5}, 3 * 5),
    ],
)
def test_the_peers_rate_is_of_the_same_tokens_and_its_median(
    measure: str, shape: dict[str, int], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = iter([0.75, 0.25])
    monkeypatch.setattr(torch_peer, "_timed", lambda run: run() or next(spent))
    request = {"work": measure, "model": "micro", "dtype": "float32", "shape": shape, "repeats": 2, "compile": False}
    found = torch_peer.measure(request)
    assert found["tokens_per_second"] == tokens / 0.5
    assert found["seconds"] == [0.75, 0.25]
