"""What a sweep of iteration counts costs: against its largest point alone, and against separate runs."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedjax_rai.errors import InputError

REPEATS = 5


def read_counts(text: str) -> list[int]:
    """Numbers of iterations, ascending, each once; raises InputError for anything else."""
    values = [value.strip() for value in text.split(",")]
    for value in values:
        if not value.isdecimal():
            raise InputError(f"--counts {text}: {value!r} is no whole number; must be like 0,10,25")
    counts = sorted({int(value) for value in values})
    if counts[-1] == 0:
        raise InputError(f"--counts {text}: must hold a number above 0, which a phase can be measured at")
    return counts


def check_config(path: Path, overrides: list[str]) -> None:
    """Raises InputError for a config that cannot be swept: with mistakes, or without phases."""
    from fedjax_rai.config.files import check_files
    from fedjax_rai.config.load import load_config

    config = load_config(path, overrides)
    check_files(config)
    if not config.cai.enabled:
        raise InputError(f"{path}: cai.enabled = false: must be true, as it is the CAI phases that are measured")


def measure_phase(config: Path, points: list[int], others: list[str]) -> dict[str, Any]:
    """One CAI phase with a snapshot at each of the counts, against one for the largest alone; both compiled."""
    import statistics

    import jax

    from fedjax_rai.config.load import load_config
    from fedjax_rai.experiment.layout import choose_mesh
    from fedjax_rai.experiment.round import Federation
    from fedjax_rai.experiment.setting import Setting
    from fedjax_rai.runs.compiled import keep_compiled

    keep_compiled()
    setting = Setting(load_config(config, others))
    choose_mesh([setting])
    federation = Federation(setting)
    adapter = federation.init().adapter

    def phase_seconds(snapshots: list[int]) -> float:
        began = time.perf_counter()
        collected = federation.phase.collect(adapter, 0)
        jax.block_until_ready(list(federation.phase.align(adapter, collected, 0, snapshots)))
        return time.perf_counter() - began

    phase_seconds(points)  # compiles
    seconds_alone = []
    seconds_shared = []
    for _ in range(REPEATS):  # in turn, so that both meet the same neighbours
        seconds_alone.append(phase_seconds(points[-1:]))
        seconds_shared.append(phase_seconds(points))
    alone = statistics.median(seconds_alone)
    shared = statistics.median(seconds_shared)
    row = {"work": "sweep", "measured": "phase", "counts": points, "alone": seconds_alone, "shared": seconds_shared}
    line = (
        f"a phase of {points[-1]} iterations: {alone:.2f} s; with snapshots at {points}: {shared:.2f} s; "
        f"ratio {shared / alone:.3f} (medians of {REPEATS})"
    )
    return row | {"ratio": shared / alone, "line": line}


def measure_runs(config: Path, points: list[int], others: list[str]) -> Iterator[dict[str, Any]]:
    """`fedjax-rai sweep` against a `fedjax-rai run` for each point, every one a process of its own.

    The runs have one compilation cache, which the first of them fills; the sweep begins with an empty one, too.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        counts = ",".join(map(str, points))
        arguments = ["sweep", str(config), f"cai.iterations={counts}", *others, f"output={folder / 's'}"]
        swept = _timed(folder / "a", arguments)
        yield _row("sweep", swept, f"sweep of {len(points)} points: {swept:.1f} s")
        apart = []
        same = True
        for n in points:
            arguments = ["run", str(config), f"cai.iterations={n}", *others, f"output={folder / str(n)}"]
            apart.append(_timed(folder / "b", arguments))
            yield _row("run", apart[-1], f"run with {n} iterations: {apart[-1]:.1f} s")
            same &= _adapter(folder / "s" / f"cai.iterations={n}") == _adapter(folder / str(n))
    ratio = swept / sum(apart)
    line = f"all runs: {sum(apart):.1f} s; ratio {ratio:.3f}; same adapters: {same}"
    yield _row("all runs", sum(apart), line) | {"ratio": ratio, "same_adapters": same}


def _row(measured: str, seconds: float, line: str) -> dict[str, Any]:
    return {"work": "sweep", "measured": measured, "seconds": seconds, "line": line}


def _timed(cache: Path, arguments: list[str]) -> float:
    began = time.perf_counter()
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "fedjax_rai", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)  # progress and errors are seen
    return time.perf_counter() - began


def _adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()
