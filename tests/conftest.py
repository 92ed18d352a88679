"""What all tests share: strict shapes and types, and the real data where they are at hand."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

# Before their first import: every annotated shape and type is checked on every call of every test. Those left out hold
# no arrays, or protocols that cannot be checked at run time.
UNCHECKED = {"__init__", "__main__", "aliases", "api", "config", "errors", "terminal", "text"}
UNCHECKED |= {"cli", "cli_data", "cli_eval", "cli_guard"}
PACKAGE = Path(__file__).parents[1] / "fedjax_rai"
CHECKED = sorted(
    {path.stem for path in (*PACKAGE.glob("*.py"), *PACKAGE.glob("*/"))} - {*UNCHECKED, "__pycache__", "assets"}
)
install_import_hook([f"fedjax_rai.{name}" for name in CHECKED], "beartype.beartype")

# Tests compile much and compute little: without this, half of their time goes into making good machine code.
QUICK_TO_COMPILE = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11):  # later ones know no such flag, and abort
    QUICK_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK_TO_COMPILE))
# What was compiled once is found again: by the next module, by processes that tests start, and the next time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Two devices, so that what is laid out over a mesh is laid out in every test; before jax is imported.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# As many threads as cores are too few for them: where each waits for the other's part of a sum, none is left to compute
# it, and XLA gives up after 40 seconds ("Fatal Python error: Aborted").
os.environ.setdefault("NPROC", "8")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    beside = Path(__file__).parents[2] / "shared"
    path = Path(os.environ.get("FEDJAX_RAI_SHARED", beside)) / "data"
    if not path.is_dir():
        pytest.skip("the real data (SQuARe, AdvBench) are absent: no ../shared/data")
    return path


# Files that take minutes where slow tests run. They come first, as each stays whole in one of the processes that share
# the tests: else one of them would be at work while the other has nothing left.
LONG_FILES = (
    "test_lockstep.py", "test_sweep.py", "test_mesh.py", "test_docs_api.py", "test_every_row.py", "test_algorithm.py",
    "test_real_data.py", "test_guards.py", "test_run.py", "test_phase.py", "test_prepared.py", "test_beside.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, the others as they come."""

    def place(item: pytest.Item) -> int:
        name = item.path.name
        return LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)

    items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def _programs_are_dropped():
    """Every compiled program keeps parts of the address space mapped, of which a process has so many (65,530 on Linux):
    XLA crashes where it gets no more.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > 30_000:
        jax.clear_caches()


def small_config(output: Path):
    """An experiment so small that two whole rounds take seconds once compiled; on the shipped tiny base."""
    from fedjax_rai.config.schema import ExperimentConfig

    return ExperimentConfig.model_validate(
        {
            "output": str(output),
            "model": {"dtype": "float32"},
            "lora": {"rank": 2, "alpha": 4},
            "data": {"red": 12, "acceptable": 28, "max_length": 64},
            "federated": {"clients": 4, "cohort": 2, "rounds": 2, "local_steps": 2, "batch_size": 2},
            "guard": {"pairs": 8, "steps": 2, "batch_size": 4},
            "filter": {"enabled": False},
            "cai": {"iterations": 2, "prompts": 4, "replay": 4, "batch_size": 4, "max_new_tokens": 24},
            "eval": {
                "prompts": 4,
                "samples": 2,
                "max_new_tokens": 8,
                "cut_off": "judged",
                "batch_size": 8,
                "drift_prompts": 0,
            },
        }
    )


FEW_ITEMS = {"hhh_like": 12, "utility": 20, "over_refusal": 6}
"""Items of the tiny world's evaluations; all of them would take several times as long as the small experiment."""


@contextmanager
def few_items() -> Iterator[None]:
    """The tiny world's evaluations ask less; those that ask for more answers than a batch has rows still do."""
    from fedjax_rai.data import tiny_world

    def asks_less(made: Any, most: int) -> Any:
        return lambda n, *others: made(min(n, most), *others)

    with pytest.MonkeyPatch.context() as patch:
        for name, most in FEW_ITEMS.items():
            patch.setattr(tiny_world, name, asks_less(getattr(tiny_world, name), most))
        yield


@pytest.fixture
def config(tmp_path) -> Iterator[Any]:
    """The small experiment, its folder still to be made."""
    with few_items():
        yield small_config(tmp_path / "run")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """The folder of a finished small experiment without rounds: to be copied, and not changed."""
    from fedjax_rai.runs.run import run

    fields = small_config(tmp_path_factory.mktemp("finished") / "run").model_dump()
    fields["federated"]["rounds"] = 0
    with few_items():
        return run(small_config(Path(fields["output"])).model_validate(fields))


def nothing_measured(*_: Any) -> tuple[dict[str, None], list[Any]]:
    """In place of `evaluate`."""
    return {"harmless": None}, []


@pytest.fixture
def unevaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without an evaluation, which takes longer than they do."""
    from fedjax_rai.runs import conclude

    monkeypatch.setattr(conclude, "evaluate", nothing_measured)
    monkeypatch.setattr(conclude, "critique_of", lambda *_: None)


@pytest.fixture(scope="module")
def arm():
    """Makes the setting of a config, with what it shares with those made before in the module."""
    from tests.tiny_runs import Arms

    return Arms()
