"""A request measured: our process and each peer's, in turns; a row of numbers for each of them."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from fedjax_rai.bench import summary
from fedjax_rai.bench.peers import BESIDE, Side
from fedjax_rai.bench.protocol import Worker, alternate

QUIET = {"TRANSFORMERS_VERBOSITY": "error"}  # it warns that torch is missing
COMMAND = [sys.executable, "-m", "fedjax_rai.bench.work"]


def measure(request: Mapping[str, Any], peers: Sequence[Side] = ()) -> list[dict[str, Any]]:
    """Our row, with the ratio to each peer, then theirs. Raises InputError for what a process refuses.

    A peer's shares are of the same limits, which our process measures when all others have ended.
    """
    ours = Side(summary.OURS, COMMAND, environment(request, bool(peers)))
    sides = [ours, *peers]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(*side)) for side in sides]
        ready = [worker.prepare(request) for worker in workers]
        seconds = alternate(workers, request["repeats"])
        ended = [worker.end() for worker in reversed(workers)][::-1]
    rows = []
    for side, known, spent, found in zip(sides, ready, seconds, ended, strict=True):
        row = {"by": side.name, **summary.stated(request), **summary.reached(spent, ready[0], ended[0])}
        rows.append(row | summary.about(known, found, spent))
    for side, spent in zip(sides[1:], seconds[1:], strict=True):
        rows[0][f"ratio_to_{side.name}"] = summary.ratio(seconds[0], spent)
    return rows


def environment(request: Mapping[str, Any], has_peers: bool) -> dict[str, str]:
    """Variables of our process: as many devices as asked for, and room on them for peers."""
    variables = {}
    count = request["devices"]
    if count is not None:
        variables = {"JAX_NUM_CPU_DEVICES": str(count), "CUDA_VISIBLE_DEVICES": _first_devices(count)}
    if count is not None and count > 1:  # of one CPU, devices wait for each other, and need more threads than cores
        variables["NPROC"] = str(max(4 * count, os.cpu_count() or 1))
    usual = QUIET | (BESIDE if has_peers else {})
    return variables | {name: value for name, value in usual.items() if name not in os.environ}


def _first_devices(count: int) -> str:
    """The first of the GPUs that may be used."""
    there = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = there.split(",") if there else [str(number) for number in range(count)]
    return ",".join(names[:count])
