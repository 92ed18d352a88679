"""Measurements in processes of their own, which alternate: a line of JSON asks, a line of JSON answers.

A worker reads a request, prepares and warms up; then it runs once for each line that asks for it. So processes that are
compared pay for their starts once, take turns (A B A B), and each one's peak memory is its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from fedjax_rai.errors import InputError

RUN = "run"
END = "end"


class Prepared(NamedTuple):
    """A work that is ready for its first run."""

    run: Callable[[], Any]  # once; returns when all is computed
    ready: Callable[[], dict[str, Any]]  # what is known when it has run so often that it is warm
    end: Callable[[], dict[str, Any]]  # what is known at the end, peak memory among it


def serve(prepare: Callable[[dict[str, Any]], Prepared]) -> None:
    """Answer the lines of standard input until they end; what else is printed goes to standard error.

    The answer to the request has `first_seconds`, those of the first run, in which programs are compiled.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def reply(answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer), file=replies, flush=True)

    request = json.loads(sys.stdin.readline())
    try:
        prepared = prepare(request)
        first = timed(prepared.run)
    except InputError as error:
        return reply({"error": str(error)})
    for _ in range(request["warmup"]):
        prepared.run()
    reply({"first_seconds": first, **prepared.ready()})
    for line in iter(sys.stdin.readline, ""):
        if json.loads(line) == END:
            return reply(prepared.end())
        reply({"seconds": timed(prepared.run)})


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


class Worker:
    """A process that serves; use it as a context manager, which ends it."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]):
        """`environment`: variables besides this process's own."""
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def prepare(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What it knows when it is warm. Raises InputError for what it refuses, and where it ends."""
        return self._ask(request)

    def run(self) -> float:
        """Seconds of one run."""
        return self._ask(RUN)["seconds"]

    def end(self) -> dict[str, Any]:
        """What it knows at its end, which this is."""
        found = self._ask(END)
        self._process.communicate()
        return found

    def _ask(self, question: Any) -> dict[str, Any]:
        pipes: Any = self._process
        try:
            pipes.stdin.write(json.dumps(question) + "\n")
            pipes.stdin.flush()
            line = pipes.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise InputError(f"the measurement of {self.name} ended with exit code {code}; its message stands above")
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer


@runtime_checkable
class Runs(Protocol):
    """What can be run again and again."""

    def run(self) -> float:
        """Seconds of one run."""
        ...


def alternate(workers: Sequence[Runs], repeats: int) -> list[list[float]]:
    """Seconds of so many runs of each, taken in turns: A B A B."""
    seconds: list[list[float]] = [[] for _ in workers]
    for _ in range(repeats):
        for spent, worker in zip(seconds, workers, strict=True):
            spent.append(worker.run())
    return seconds
