"""A worker of `bench.protocol` that computes nothing: what its request calls for, it counts, refuses or fails at."""

import sys
from typing import Any

from fedjax_rai.bench.protocol import Prepared, serve
from fedjax_rai.errors import InputError

runs = 0
FLOOR = [["train", 1000, 10]]
ABOUT = {"device": "cpu", "devices": 1, "versions": "counter 1"}
WORK = {} if sys.argv[1:] else {"tokens": 4, "floor": FLOOR}
LIMITS = {} if sys.argv[1:] else {"matmul_flops": 50.0, "copy_bytes": 2.0}


def prepare(request: dict[str, Any]) -> Prepared:
    if request["what"] == "refuse":
        raise InputError("--x: is wrong")
    if request["what"] == "fail":
        sys.exit(7)
    return Prepared(run, lambda: ABOUT | WORK | {"runs": runs}, lambda: LIMITS | {"runs": runs})


def run() -> None:
    global runs
    runs += 1
    print("a library prints")


serve(prepare)
