"""What of measurements is shown: columns, sizes, curves."""

from typing import Any

from fedjax_rai.bench import report
from fedjax_rai.bench.shapes import SHAPES

MEASURED: dict[str, Any] = {
    "model": "tiny",
    "by": "fedjax_rai",
    "rank": 16,
    "dtype": "float32",
    "attention": "xla",
    "remat": "none",
    "unroll": "none",
    "quantize": "none",
    "kv_cache": "model",
    "micro_batch": None,
    "fsdp": 1,
    "tensor": 1,
    "seconds": [2.0, 2.1],
    "median_seconds": 2.05,
    "spread": 0.05,
    "tokens_per_second": 1234.5,
    "share_of_matmul": 0.75,
    "share_of_copy": 0.1,
    "share_of_floor": 0.8,
    "matmul_flops": 2e11,
    "copy_bytes": 6e10,
    "compile_seconds": 3.0,
    "compilations": 4,
    "programs_found": 1,
    "recompilations": 0,
    "host_memory": 3 * 2**29,
    "device_memory": None,
    "device": "cpu",
    "devices": 1,
    "versions": "jax 1",
}


def row(work: str = "round", **others: Any) -> dict[str, Any]:
    """A row of a work; of sizes, those that are not given are the defaults."""
    return {"work": work, **MEASURED, **SHAPES[work]._field_defaults, **others}


def test_a_table_aligns_what_is_known() -> None:
    rows = [row(clients=1, ratio_to_torch=1.456), row(clients=200, by="torch", versions="torch 2", compilations=None)]
    common, head, first, second, *_, machine = report.table(rows).splitlines()
    assert common == "steps 25, batch 16, length 512, chunk 1, rank 16, dtype float32"
    assert "device GiB" not in head and "host GiB" in head
    for shown in ("clients 1", "0.75", "1,234", "1.50", "torch 1.46", "4, 1", "5%"):
        assert shown in first, shown
    assert "clients 200" in second and "torch" in second and "steps" not in first + second
    assert first.index("0.75") == second.index("0.75")
    assert "200 GFLOP/s" in machine and "60.0 GB/s" in machine and "jax 1; torch 2" in machine


def test_heads_that_do_not_speak_for_themselves_are_said_below() -> None:
    rows = [row(clients=1), row(clients=2)]
    lines = report.table(rows).splitlines()
    legend = " ".join(lines[4:-1])
    assert "of floor: share reached of what no program can be faster than here" in legend
    assert "compiled, found: programs that were compiled, and those found in the cache" in legend
    assert "times the peer" not in legend, "there is no such column"
    assert all(len(line) <= 100 for line in lines[4:-1])


def test_how_it_was_computed_is_said_where_it_is_not_usual() -> None:
    assert report.sizes(row("generate")) == ["rows 16", "prompt 64", "new 128", "rank 16", "dtype float32"]
    assert report.sizes(row(remat="full", fsdp=2, devices=4))[-3:] == ["remat full", "fsdp 2", "devices 4"]
    assert "2 again" in report.table([row(recompilations=2)])


def test_a_job_has_its_steps() -> None:
    rows = [
        row("generate", answers=520, order="queue", steps=3099),
        row("generate", answers=520, order="batches", steps=8102),
    ]
    common, head, first, second, *_ = report.table(rows).splitlines()
    assert "answers 520" in common and "steps" in head
    assert "order queue" in first and "3,099" in first and "order batches" in second and "8,102" in second
    assert "steps" not in report.table([row("generate")]).splitlines()[1]


def test_one_run_has_no_spread() -> None:
    _, head, *_ = report.table([row(spread=None)]).splitlines()
    assert "spread" not in head


def test_curves_go_along_the_first_number_that_is_varied() -> None:
    rows = []
    for clients, rate in ((5, 50.0), (1, 10.0)):
        for dtype in ("float32", "bfloat16"):
            rows.append(row(clients=clients, dtype=dtype, tokens_per_second=rate))
        rows.append(row(clients=clients, by="torch", tokens_per_second=rate / 2))
    along, found = report.curves(rows)
    assert along == "clients"
    assert found["fedjax_rai, dtype float32"] == [(1, 10.0), (5, 50.0)]
    assert found["torch, dtype float32"] == [(1, 5.0), (5, 25.0)]
    assert len(found) == 3


def test_without_a_varied_number_there_are_bars(tmp_path) -> None:
    rows = [row(), row("generate")]
    assert report.curves(rows) == ("", {}) and report.curves([row(), row(by="torch")]) == ("", {})
    report.draw(tmp_path / "a.png", rows)
    assert (tmp_path / "a.png").stat().st_size > 1000
