"""Rows of numbers from the seconds that were measured."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_rai.bench.floors import Part, floor_seconds

OURS = "fedjax_rai"
MEASURED = ("compile_seconds", "compilations", "programs_found", "recompilations", "host_memory", "device_memory")
"""What a worker says of itself; a peer leaves out what it does not know."""


def spread(seconds: Sequence[float]) -> float | None:
    """How far apart the slowest and the fastest run are, as a share of the median; None of a single run."""
    if len(seconds) < 2:
        return None
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def ratio(seconds: Sequence[float], peer_seconds: Sequence[float]) -> float:
    """How many times our rate is the peer's: its median over ours."""
    return statistics.median(peer_seconds) / statistics.median(seconds)


def stated(request: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, flat."""
    sizes = dict(request["shape"])
    others = {"rank": request["lora"]["rank"], **request["computed"], **request["mesh"]}
    others["micro_batch"] = request["micro_batch"]
    return {"work": request["work"], "model": request["model"], **sizes, **others}


def reached(seconds: Sequence[float], work: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """Rates, and the shares of this machine's limits that they are.

    `work`: its tokens, its floor and whatever else it counted; `limits`: FLOP/s and bytes/s. `share_of_floor` is of the
    seconds that no program can do with fewer of.
    """
    median = statistics.median(seconds)
    parts = [Part(*part) for part in work["floor"]]
    flops = sum(part.flops for part in parts)
    moved = sum(part.bytes for part in parts)
    least = floor_seconds(parts, limits["matmul_flops"], limits["copy_bytes"])
    return {
        "seconds": list(seconds),
        "median_seconds": median,
        "spread": spread(seconds),
        "tokens_per_second": work["tokens"] / median,
        "flops": flops,
        "flops_per_second": flops / median,
        "share_of_matmul": flops / median / limits["matmul_flops"],
        "bytes": moved,
        "bytes_per_second": moved / median,
        "share_of_copy": moved / median / limits["copy_bytes"],
        "floor_seconds": least,
        "share_of_floor": least / median,
        "matmul_flops": limits["matmul_flops"],
        "copy_bytes": limits["copy_bytes"],
        **work.get("counts", {}),
    }


def about(ready: Mapping[str, Any], ended: Mapping[str, Any], seconds: Sequence[float]) -> dict[str, Any]:
    """What a worker says of itself: versions, device, compilations, memory.

    What the first run took longer than the others is taken for compiling, or for finding what was compiled before.
    """
    compiling = max(ready["first_seconds"] - statistics.median(seconds), 0.0)
    known = {"compile_seconds": compiling} | dict(ready) | dict(ended)
    found = {name: known.get(name) for name in MEASURED}
    return found | {name: known[name] for name in ("device", "devices", "versions")}
