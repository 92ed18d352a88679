"""What a summary says of memory: of which process its peaks are, and where nothing was measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory import measured
from fedjax_rai.memory.measured import DevicePeak
from fedjax_rai.memory.plan import Plan
from fedjax_rai.runs import files, held
from fedjax_rai.runs.held import memory_of, planned, take_up
from fedjax_rai.runs.rows import Memory, PlannedMemory
from tests.tiny_runs import ROUND

STATUS = "Name:\tpython\nVmPeak:\t  900000 kB\nVmHWM:\t    1500 kB\nVmRSS:\t    1200 kB\n"


def test_the_peak_of_a_process_is_its_resident_memory_in_bytes(tmp_path, monkeypatch):
    """1500 KiB at most, of 1200 now and 900000 of addresses; elsewhere than on Linux, what getrusage says."""
    (tmp_path / "status").write_text(STATUS)
    monkeypatch.setattr(measured, "STATUS", tmp_path / "status")
    assert measured.process_peak() == 1500 * 1024
    (tmp_path / "sandbox").write_text("Name:\tpython\nVmRSS:\t    1200 kB\n")
    monkeypatch.setattr(measured.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=7))
    monkeypatch.setattr(measured.sys, "platform", "linux")
    for name in ("sandbox", "nothing"):
        monkeypatch.setattr(measured, "STATUS", tmp_path / name)
        assert measured.process_peak() == 7 * 1024
    monkeypatch.setattr(measured.sys, "platform", "darwin")
    assert measured.process_peak() == 7


def device(kind: str, stats: dict[str, int] | None) -> Any:
    return SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)


def test_a_device_that_does_not_tell_has_no_peak_and_not_0(monkeypatch):
    told = {"peak_bytes_in_use": 9, "bytes_in_use": 4}
    devices = [device("gpu", told), device("gpu", {"bytes_in_use": 4}), device("cpu", None)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert measured.device_peaks() == [("gpu", 9), ("gpu", None), ("cpu", None)]


def test_devices_here_are_cpus_that_tell_nothing():
    assert measured.device_peaks() == [DevicePeak("cpu", None)] * jax.local_device_count()


@pytest.fixture
def _fresh(monkeypatch):
    """A process that was at work on no run yet."""
    monkeypatch.setattr(held, "_had_rounds", {})


@pytest.mark.usefixtures("_fresh")
def test_peaks_say_whose_they_are(config, tmp_path, monkeypatch):
    """Of the second run of a process, which was begun by another; the first, taken up twice, counts once."""
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.chdir(tmp_path)
    second.mkdir()
    files.append_row(second / "metrics.jsonl", ROUND)
    assert not take_up(first) and not take_up(Path("first")) and take_up(second)
    first.mkdir()
    files.append_row(first / "metrics.jsonl", ROUND)
    assert not take_up(first), "its rounds are this process's own"
    monkeypatch.setattr(held, "process_peak", lambda: 5)
    monkeypatch.setattr(held, "device_peaks", lambda: [DevicePeak("gpu", 3)])
    found = memory_of(Setting(config), resumed=True)
    assert found[1:] == (5, [("gpu", 3)], 1, True)
    assert found.plan.need > 0 and found.plan.phase in found.plan.phases
    assert files.typed(Memory, files.plain(found), "memory") == found


def test_a_plan_is_kept_by_the_phase_that_needs_most():
    """10 and 5 everywhere: 15 + 1 + 7 = 23 in training, 15 + 9 = 24 in scoring."""
    parts = {"base": 10, "data": 5}
    phases = {"training": {"activations": 1, "deltas": 7}, "scoring": {"activations": 9}}
    assert planned(Plan(parts, phases)) == PlannedMemory(24, "scoring", parts, phases)
