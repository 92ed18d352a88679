"""What is compiled is kept for the next process, in the user's folder and within a bound; what the user set is left."""

import inspect
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedjax_rai.bench import loading, sweeping, work
from fedjax_rai.runs import compiled, export, prepare
from fedjax_rai.runs import run as runs
from fedjax_rai.studies import sweep, table
from fedjax_rai.tools import evaluate, generate, guard_attack, guard_eval, guard_fit
from tests.processes import run_program, succeed

DEFAULTS = {
    "jax_compilation_cache_dir": None,
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_max_size": -1,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
}


@pytest.fixture
def caches(tmp_path, monkeypatch) -> Iterator[Path]:
    """The user's folder of caches; nothing is set for jax."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    for name in DEFAULTS:
        monkeypatch.delenv(name.upper(), raising=False)
    compiled.writable_folder.cache_clear()
    yield tmp_path / "caches"
    compiled.writable_folder.cache_clear()


def kept(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict[str, Any]:
    """What jax is told, where it was set to this."""
    config = SimpleNamespace(**(DEFAULTS | settings))
    told: dict[str, Any] = {}
    config.update = told.__setitem__
    monkeypatch.setattr(compiled, "jax", SimpleNamespace(config=config))
    compiled.keep_compiled()
    return told


def test_programs_are_kept_under_the_users_folder(caches, monkeypatch) -> None:
    told = kept(monkeypatch)
    folder = caches / "fedjax_rai" / "jax"
    assert told["jax_compilation_cache_dir"] == str(folder / compiled.machine())
    assert told["jax_persistent_cache_min_compile_time_secs"] == 0.0
    assert folder.stat().st_mode & 0o777 == 0o700 and not list(folder.iterdir())


@pytest.mark.parametrize("named", ["", "relative/caches"])
def test_without_a_folder_of_caches_they_are_kept_under_home(tmp_path, monkeypatch, named) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiled.user_folder() == tmp_path / ".cache" / "fedjax_rai" / "jax"


@pytest.mark.parametrize(
    "settings",
    [
        {"jax_compilation_cache_dir": "elsewhere"},
        {"jax_compilation_cache_dir": ""},
        {"jax_enable_compilation_cache": False},
        {"jax_compilation_cache_max_size": 0},
    ],
)
def test_what_jax_was_told_is_left_alone(caches, monkeypatch, settings) -> None:
    assert kept(monkeypatch, **settings) == {} and not caches.exists()


def test_a_shortest_time_that_the_user_set_is_left_alone(caches, monkeypatch) -> None:
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5")
    assert "jax_persistent_cache_min_compile_time_secs" not in kept(monkeypatch)


def test_a_folder_that_cannot_be_written_is_said_once_and_nothing_is_kept(caches, monkeypatch, capsys) -> None:
    caches.write_text("a file, where a folder would have to be")
    assert kept(monkeypatch) == {} and kept(monkeypatch) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compiled programs are not kept: ") and str(caches) in line
    assert line.endswith("; JAX_COMPILATION_CACHE_DIR can name another folder")


def sized(folder: Path, name: str, size: int, read: int, written: int) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (read, written))
    return path


def test_the_least_recently_used_are_deleted_until_the_rest_fits(tmp_path) -> None:
    old = sized(tmp_path, "machine/old-cache", 40, 100, 100)
    read = sized(tmp_path, "machine/read-cache", 40, 300, 50)
    new = sized(tmp_path, "other/new-cache", 40, 200, 200)
    compiled.prune(tmp_path, 120)
    assert old.exists() and read.exists() and new.exists()
    compiled.prune(tmp_path, 119)
    assert not old.exists() and read.exists() and new.exists()
    compiled.prune(tmp_path, 40)
    assert read.exists() and not new.exists()


@pytest.mark.parametrize(("settings", "left"), [({}, True), ({"jax_compilation_cache_max_size": 10}, False)])
def test_the_bound_holds_at_the_start_of_a_process(caches, monkeypatch, settings, left) -> None:
    """jax's own bound is not asked for: it stops all writing once a file that it keeps beside each entry is missing."""
    path = sized(caches, "fedjax_rai/jax/machine/a-cache", 11, 1, 1)
    told = kept(monkeypatch, **settings)
    assert path.exists() is left and told["jax_compilation_cache_max_size"] == -1


def test_machines_of_different_features_share_no_programs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compiled, "CPUINFO", tmp_path / "cpuinfo")
    names = [compiled.machine()]
    for flags in ("sse avx2", "sse avx2 avx512f"):
        compiled.CPUINFO.write_text("".join(f"processor : {i}\nflags : {flags}\ncpu MHz : {i}\n" for i in range(2)))
        names.append(compiled.machine())
        compiled.CPUINFO.write_text(f"processor : 0\nflags : {flags}\ncpu MHz : 7\n")
        assert names[-1] == compiled.machine()
    assert len(set(names)) == 3


@pytest.mark.slow
def test_two_processes_at_once_keep_what_a_third_finds(caches) -> None:
    with ThreadPoolExecutor() as pool:
        together = list(pool.map(lambda _: run_program("compile_twice"), range(2)))
    third = run_program("compile_twice")
    for done in (*together, third):
        assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    counts = json.loads(third.stdout)
    assert counts["compiled"] == 0 and counts["found"] >= 2
    assert all(sum(json.loads(done.stdout).values()) == counts["found"] for done in together)


@pytest.mark.parametrize(
    "command",
    [
        runs.run,
        runs.evaluate_run,
        table.run_table,
        sweep.run_sweep,
        prepare.prepare,
        export.export,
        generate.load,
        work.prepare,
        loading.measure_load,
        sweeping.measure_phase,
        evaluate.evaluate,
        guard_fit.fit,
        guard_eval.evaluate,
        guard_attack.attack,
    ],
    ids=lambda command: f"{command.__module__}.{command.__name__}",
)
def test_whatever_computes_keeps_what_it_compiles(command) -> None:
    assert "keep_compiled" in inspect.unwrap(command).__code__.co_names


def test_a_run_keeps_before_anything_is_computed(config, monkeypatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(compiled, "keep_compiled", lambda: called.append("kept"))

    def setting(*_: Any, **__: Any) -> None:
        assert called == ["kept"]
        raise InterruptedError

    monkeypatch.setattr(runs, "Setting", setting)
    with pytest.raises(InterruptedError):
        runs.run(config)


@pytest.mark.slow
def test_another_seed_and_another_arm_of_a_table_compile_nothing(tmp_path: Path) -> None:
    succeed("compiles_once", tmp_path)
