"""What each kernel of a benchmark's work takes on a GPU or TPU, by jax's profiler.

    kernel_times.py round --model 1B --clients 1 --steps 3 --attention cudnn
    kernel_times.py generate --model 1B

Options are those of `fedjax-rai bench`, each with one value. Times are of one run, after two others: kernel by kernel,
all calls of it added up. Programs are not launched as CUDA graphs while they are profiled, so more time passes between
kernels than otherwise; a run that is not profiled is timed, too.
"""

import glob
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from fedjax_rai.bench.requests import Asked, plan
from fedjax_rai.bench.work import WORKS, make_subject
from fedjax_rai.runs.compiled import keep_compiled

MOST = 40  # kernels that are listed


class Kernel(NamedTuple):
    name: str
    calls: int
    seconds: float


def kernels(planes: Iterable[Any]) -> list[Kernel]:
    """Of all streams of all devices, the longest first. Other lines of a profile tell of the same time again."""
    found: dict[str, Kernel] = {}
    for plane in planes:
        lines = plane.lines if plane.name.startswith("/device:") else ()
        for line in lines:
            events = line.events if line.name.startswith(("Stream", "XLA Ops")) else ()
            for event in events:
                before = found.get(event.name, Kernel(event.name, 0, 0.0))
                seconds = before.seconds + event.duration_ns / 1e9
                found[event.name] = Kernel(event.name, before.calls + 1, seconds)
    return sorted(found.values(), key=lambda kernel: -kernel.seconds)


def show(found: list[Kernel], run_seconds: float) -> None:
    total = sum(kernel.seconds for kernel in found)
    print(f"a run: {1e3 * run_seconds:.1f} ms; kernels when profiled: {1e3 * total:.1f} ms")
    for name, calls, seconds in found[:MOST]:
        print(f"{1e3 * seconds:10.3f} ms  {seconds / total:5.1%}  {calls:6} calls  {name[:90]}")


if __name__ == "__main__":
    work, *given = sys.argv[1:]
    keep_compiled()
    names = [name.removeprefix("--").replace("-", "_") for name in given[::2]]
    (request,) = plan(Asked(work, dict(zip(names, given[1::2], strict=True))))
    run = WORKS[work](request, make_subject(request)).run
    run()
    began = time.perf_counter()
    run()
    took = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        measured = kernels(jax.profiler.ProfileData.from_file(path).planes)
    if not measured:
        sys.exit("the profile names no kernels: this is for a GPU or TPU")
    show(measured, took)
