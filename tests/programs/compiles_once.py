"""A table of two arms and two seeds compiles for its first seed, and what arms share once: `compiles_once.py FOLDER`.

Between the seeds another seed's data and random numbers, other guards, scores and adapters; within each, rounds, CAI
phases and evaluations.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import jax

from fedjax_rai.studies import table
from tests.conftest import small_config
from tests.tiny_runs import vary

ARMS = ["fl+cai", "fl+filter+cai"]
compiled: list[str] = []  # since a run began
by_run: list[list[str]] = []


class Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Compiling "):
            compiled.append(message)


def run(*arguments: Any) -> Path:
    compiled.clear()
    folder = RUN(*arguments)
    by_run.append(list(compiled))
    return folder


RUN = table.run
table.run = run
logger = logging.getLogger("jax._src.interpreters.pxla")
logger.addHandler(Listener())
jax.config.update("jax_log_compiles", True)
config = vary(small_config(Path(sys.argv[1]) / "table"), federated={"rounds": 3})
table.run_table(config, ARMS, seeds=2)
first, second_arm, *second_seed = by_run
assert any("jit(federated_round)" in message for message in first), "what is compiled is heard of"
for name in ("federated_round", "generate_rollout", "pool_of_rollout", "align_in_place", "serve"):
    assert not any(f"jit({name})" in message for message in second_arm), name  # whose filter alone is another
assert not any(second_seed), "\n".join(message for messages in second_seed for message in messages)
