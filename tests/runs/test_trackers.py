"""Trackers get the rows that are written, and can neither move a number nor end a run."""

import sys
from pathlib import Path

import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import files
from fedjax_rai.runs.inputs import check_inputs
from fedjax_rai.runs.run import run
from fedjax_rai.runs.trackers import check_tracker, track
from tests.tiny_runs import adapter_bytes, timeless, vary

TEXT = """
seen = []


def keep(folder):
    return lambda row: seen.append((folder.name, dict(row)))


def break_down(folder):
    def sink(row):
        seen.append(row)
        raise OSError("the network is down")

    return sink
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_tracker.py").write_text(TEXT)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("my_tracker")
    del sys.modules["my_tracker"]


@pytest.mark.slow
def test_a_tracked_run_is_the_run_and_every_row_is_seen(config, mine):
    config = vary(config, cai={"enabled": False})
    plain = vary(config, "plain")
    tracked = vary(config, "tracked", tracker="my_tracker:keep")
    first = Setting(plain)
    folders = run(plain, first), run(tracked, Setting(tracked, first))
    assert adapter_bytes(folders[0]) == adapter_bytes(folders[1]) and timeless(folders[0]) == timeless(folders[1])
    rows = files.read_rows(folders[1] / "metrics.jsonl")
    assert mine.seen == [(folders[1].name, row) for row in rows] and len(rows) == 2


def test_a_tracker_that_fails_is_named_once_and_left_out(mine, capsys):
    sink = track("my_tracker:break_down", Path("run"))
    for number in (1, 2, 3):
        sink({"round": number})
    assert mine.seen == [{"round": 1}]
    assert capsys.readouterr().err == (
        "tracker = my_tracker:break_down: failed and is left out from now on (OSError: the network is down)\n"
    )


def test_a_name_of_no_tracker_is_refused():
    with pytest.raises(InputError, match="tracker = 'nome': must be one of none, or package.module:attribute; did you"):
        track("nome", Path("run"))


def test_what_is_no_tracker_is_refused_and_a_check_calls_none(tmp_path):
    with pytest.raises(InputError, match=r"^tracker = os:getcwd: cannot be called with a folder \(.*\); must be a"):
        check_tracker("os:getcwd")
    with pytest.raises(InputError, match="^tracker = os:fspath: gives a value of the type str; must be a function of"):
        track("os:fspath", tmp_path)
    check_tracker("os:rmdir")
    assert tmp_path.is_dir()


def test_a_tracker_is_checked_before_a_run(config):
    with pytest.raises(InputError, match="^tracker = os:getcwd"):
        check_inputs([vary(config, tracker="os:getcwd")])
