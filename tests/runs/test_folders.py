"""Folders: what will be written to is tried before anything else, and what is damaged is named, with a way out."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.config.grid import Point, folder_name
from fedjax_rai.config.load import dump_config
from fedjax_rai.errors import InputError
from fedjax_rai.runs import export, files, prepare, rows, run
from fedjax_rai.runs.folder import check_folder, differences
from fedjax_rai.runs.record import METRICS, REVISIONS, Record
from fedjax_rai.studies import sweep, table
from tests.tiny_runs import ROUND, SUMMARY, vary


def refused(call: Callable, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


# --- what will be written to --------------------------------------------------------------------------------------


def test_a_folder_that_can_be_made_is_tried_without_a_trace(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "a" / "b", tmp_path / ("a" * 255)):
        files.check_writable(folder, "output")
    assert not [*tmp_path.iterdir()]


def impossible(folder: Path) -> dict[str, Path]:
    """Folders that cannot be made, by the reason."""
    (folder / "file").touch()
    (folder / "nowhere").symlink_to(folder / "absent")
    (folder / "loop").symlink_to(folder / "loop")
    return {
        f"{folder / 'file'} is no folder": folder / "file" / "sub" / "run",
        f"{folder / 'nowhere'} is no folder": folder / "nowhere",
        f"{folder / 'loop'} is no folder": folder / "loop" / "run",
        f"({folder}: File name too long)": folder / ("a" * 256),
        f"({folder}: File name too long) ": folder / "b" / ("\ud55c" * 86),
        f"({folder}: File name too long)  ": folder / "/".join(["a" * 200] * 20),
    }


def test_a_folder_that_cannot_be_made_is_named_with_the_reason(tmp_path: Path) -> None:
    for reason, folder in impossible(tmp_path).items():
        assert reason.strip() in refused(files.check_writable, folder, f"output = {folder}")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_takes_no_file_is_named_with_the_reason(tmp_path, monkeypatch, number) -> None:
    def fail(**_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    message = refused(files.check_writable, tmp_path / "run", "output = run")
    assert message == (f"output = run: cannot be written to ({tmp_path}: {os.strerror(number)}); name another folder")


def test_every_command_that_writes_tries_its_folder_first(tmp_path, config, monkeypatch) -> None:
    """Before a model or data are read, and however the folder cannot be written to."""
    for name in ("Setting", "load_adapter", "check_inputs", "resolve"):
        for module in (run, table, sweep, prepare, export):
            monkeypatch.setattr(module, name, pytest.fail, raising=False)
    monkeypatch.setattr(run, "check_inputs", lambda _: None)
    for folder in impossible(tmp_path).values():
        configured = vary(config, output=str(folder))
        assert f"output = {folder}: " in refused(run.run, configured)
        assert f"output = {folder}: " in refused(table.check_table, folder, configured)
        assert f"{folder}: " in refused(prepare.check_config, folder, configured)
        point = Point({}, vary(config, output=str(folder / "seed=0")))
        assert f"output = {folder}: " in refused(sweep.check_sweep, [point])
        finished = tmp_path / "finished"
        finished.mkdir(exist_ok=True)
        for name in ("summary.json", "config.yaml"):
            (finished / name).touch()
        assert f"{folder}: " in refused(export.export, finished, folder)


def test_a_file_in_place_of_a_folder_is_named(tmp_path, config) -> None:
    (tmp_path / "file").touch()
    assert "exists and is not a table's folder" in refused(table.check_table, tmp_path / "file", config)
    assert "exists and is not a run folder" in refused(check_folder, tmp_path / "file", config)


def test_names_of_points_that_are_too_long_are_cut_and_stay_different() -> None:
    short = {"data.train": "a/b.json", "seed": "0"}
    assert folder_name(short) == "data.train=a_b.json,seed=0"
    letters = ("a", "\ud55c")
    long = [{"data.train": letter * 300, "seed": str(seed)} for letter in letters for seed in (0, 1)]
    names = [folder_name(values) for values in long]
    assert len({*names}) == 4 and names == [folder_name(values) for values in long]
    assert max(len(name.encode()) for name in names) <= 200 and names[0].startswith("data.train=aaa")


# --- what is damaged ----------------------------------------------------------------------------------------------

GARBAGE = (b"", b"{", b"\xff\xfe\x00", b"[]", b"3", b"null", b'{"a": "\\ud800"}', b"[" * 25_000, b"\0" * 20)


def begun(folder: Path, config: Any) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    return folder


@pytest.mark.parametrize("content", GARBAGE)
@pytest.mark.parametrize("name", ["versions.json", "summary.json"])
def test_a_damaged_file_of_a_run_is_named_with_a_way_out(tmp_path, config, name, content) -> None:
    folder = begun(tmp_path / "run", config)
    (folder / name).write_bytes(content)
    message = refused(check_folder, folder, config)
    assert message.startswith(str(folder / name))
    assert message.endswith(
        "remove it and run again, which evaluates anew and writes it"
        if name == "summary.json"
        else "restore it from a copy, or name another output"
    )


@pytest.mark.parametrize("content", ["{}", '{"rates": 3}'])
def test_a_run_whose_summary_is_of_another_form_is_no_finished_one(tmp_path, config, content) -> None:
    config = vary(config, output=str(begun(tmp_path / "run", config)))
    (tmp_path / "run" / "summary.json").write_text(content)
    message = refused(run.run, config)
    assert message.startswith(f"{tmp_path / 'run' / 'summary.json'}: ") and "missing: " in message
    assert message.endswith("remove it and run again, which evaluates anew and writes it")


def test_what_two_configs_differ_in_is_told_of_the_keys_of_both() -> None:
    old = {"a": 1, "b": {"x": 1, "y": 2}, "c": {"x": 1}, "d": None}
    new = {"e": 5, "b": {"x": 1, "y": 3}, "c": {"z": 1}, "a": 1, "f": None}
    assert differences(old, new) == [("b.y", 2, 3), ("c", {"x": 1}, {"z": 1}), ("e", None, 5)]


@pytest.mark.parametrize("content", [b"", b"\xff", b"a: [", b"seed: 7", b"- 1"])
def test_a_damaged_config_of_a_run_is_named(tmp_path, config, content) -> None:
    folder = begun(tmp_path / "run", config)
    (folder / "config.yaml").write_bytes(content)
    assert str(folder) in refused(check_folder, folder, config)


def metrics(folder: Path, rounds: int) -> bytes:
    for t in range(1, rounds + 1):
        files.append_row(folder / METRICS, rows.flat(ROUND._replace(round=t)))
    return (folder / METRICS).read_bytes()


def restored(folder: Path, done: int) -> int:
    """What a record goes on from, where there is a state after that many rounds."""

    class States:
        def restore(self, like: Any) -> tuple[int, Any]:
            return done, like

    record = Record.__new__(Record)
    record.folder = folder
    record._checkpoints = States()  # pyright: ignore
    return record.restore(None)[0]


def test_a_row_that_was_cut_off_or_is_ahead_of_the_state_is_taken_off(tmp_path) -> None:
    whole = metrics(tmp_path, 3)
    for more in (b'{"round": 4, "clie', b"\xed\x95", b"\0\0\0"):
        (tmp_path / METRICS).write_bytes(whole + more)
        assert restored(tmp_path, 2) == 2
        assert [row.round for row in rows.read_rounds(tmp_path / METRICS)] == [1, 2]


@pytest.mark.parametrize("line", [b"{", b"", b"\xff", b"3", b"{}", b'{"round": "2"}', b'"\\ud800"', b"[" * 25_000])
@pytest.mark.parametrize("name", [METRICS, REVISIONS])
def test_a_damaged_row_is_named_with_its_line(tmp_path, name, line) -> None:
    first, *others = metrics(tmp_path, 3).splitlines(keepends=True)
    if name == REVISIONS:
        first, others = b'{"round": 1}\n', [b'{"round": 1}\n']
    (tmp_path / name).write_bytes(first + line + b"\n" + b"".join(others))
    message = refused(restored, tmp_path, 3)
    assert message.startswith(str(tmp_path / name)) and ("2" in message or "'round'" in message)


@pytest.mark.parametrize("left", [(), (1,), (1, 3), (2, 3), (1, 1, 2, 3)])
def test_rounds_whose_rows_are_gone_are_named(tmp_path, left) -> None:
    """And never counted as if they had not been: the costs are sums over rows."""
    whole = metrics(tmp_path, 3).splitlines(keepends=True)
    (tmp_path / METRICS).write_bytes(b"".join(whole[t - 1] for t in left))
    message = refused(restored, tmp_path, 3)
    assert "is not the row of round" in message and f"remove {tmp_path / 'checkpoints'} to begin anew" in message
    assert (tmp_path / METRICS).read_bytes() == b"".join(whole[t - 1] for t in left)


def test_a_summary_of_another_form_is_named(tmp_path) -> None:
    files.write_json(tmp_path / "summary.json", SUMMARY)
    assert rows.read_summary(tmp_path / "summary.json") == SUMMARY
    (tmp_path / "summary.json").write_text("{}")
    assert "summary.json: missing: rates" in refused(rows.read_summary, tmp_path / "summary.json")
