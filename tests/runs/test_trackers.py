"""Trackers get the rows that are written, and can neither move a number nor end a run."""

import sys
from pathlib import Path
from types import SimpleNamespace

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
    with pytest.raises(
        InputError,
        match="tracker = 'nome': must be one of none, tensorboard, wandb, or package.module:attribute; did you",
    ):
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


ROW = {"round": 3, "train_loss": 0.5, "cai_diverged": False, "probe_harmless": None, "delta_norm": float("nan")}


class Writer:
    """In the place of tensorboardX's."""

    def __init__(self, logdir: str):
        self.written: list[tuple] = [("logdir", logdir)]
        made.append(self)

    def add_scalar(self, *scalar: object) -> None:
        self.written.append(scalar)

    def flush(self) -> None:
        self.written.append(("flush",))


made: list[Writer] = []


def test_tensorboard_gets_the_numbers_of_a_row_by_its_round(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    made.clear()
    sink = track("tensorboard", tmp_path)
    assert not made, "a run that does not start leaves nothing"
    sink(ROW)
    sink({**ROW, "round": 4})
    (writer,) = made
    three = [("train_loss", 0.5, 3), ("cai_diverged", 0.0, 3), ("flush",)]
    four = [("train_loss", 0.5, 4), ("cai_diverged", 0.0, 4), ("flush",)]
    assert writer.written == [("logdir", str(tmp_path / "tensorboard")), *three, *four]


def test_wandb_gets_a_run_that_is_gone_on_with(monkeypatch, tmp_path):
    begun, logged = [], []
    fake = SimpleNamespace(log=lambda numbers, step: logged.append((numbers, step)))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: begun.append(given) or fake))
    for _ in range(2):  # another process
        track("wandb", tmp_path)(ROW)
    assert logged == [({"train_loss": 0.5, "cai_diverged": 0.0}, 3)] * 2
    assert begun[0] == begun[1] and begun[0]["resume"] == "allow" and begun[0]["name"] == tmp_path.name
    track("wandb", tmp_path / "other")(ROW)
    assert begun[2]["id"] != begun[0]["id"]


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_package_that_is_missing_is_named_before_a_run(config, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"^tracker = {name}: needs the package {package} .*'fedjax-rai\[track\]'$"):
        check_inputs([vary(config, tracker=name)])


def test_a_service_that_cannot_be_reached_ends_no_run(monkeypatch, tmp_path, capsys):
    def refuse(**given: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    sink = track("wandb", tmp_path)
    sink(ROW)
    sink(ROW)
    assert capsys.readouterr().err == (
        "tracker = wandb: failed and is left out from now on (ConnectionError: no route)\n"
    )


def test_tensorboards_own_writer_takes_them(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra track")
    track("tensorboard", tmp_path)(ROW)
    (written,) = (tmp_path / "tensorboard").iterdir()
    assert written.stat().st_size > 0


def test_wandbs_own_run_takes_them(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb", reason="needs the extra track")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    track("wandb", tmp_path)(ROW)
    assert "failed" not in capsys.readouterr().err
