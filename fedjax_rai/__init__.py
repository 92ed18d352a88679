"""Responsible federated fine-tuning of language models in JAX: safety filters and constitutional AI.

`import fedjax_rai as rai` offers `load_config`, `run`, `table`, `sweep`, `evaluate`, `generate` and `open_run`
(docs/api.md); each loads what it needs when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_rai.api import (
        Evaluation,
        Run,
        Sweep,
        Table,
        evaluate,
        generate,
        load_config,
        open_run,
        run,
        sweep,
        table,
    )
    from fedjax_rai.errors import InputError

__version__ = "0.1.0"
__all__ = [
    "Evaluation", "InputError", "Run", "Sweep", "Table", "evaluate", "generate", "load_config", "open_run", "run",
    "sweep", "table",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fedjax_rai' has no attribute {name!r}")
    return getattr(import_module("fedjax_rai.errors" if name == "InputError" else "fedjax_rai.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
