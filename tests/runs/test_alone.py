"""A run's folder belongs to one process, from before anything is written until the run is finished."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fedjax_rai.config.load import dump_config
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory import advice
from fedjax_rai.runs import files, lockstep
from fedjax_rai.runs import run as single
from fedjax_rai.runs.folder import run_folder
from tests.tiny_runs import SUMMARY, vary

COMMANDS = {"run": single, "together": lockstep}


def go(command: str, config, arm) -> list[Path]:
    """The folders of the config's run by itself, or of two that go together."""
    if command == "run":
        return [single.run(config, arm(config))]
    return lockstep.run_together([arm(config), arm(vary(config, "-other", federated={"learning_rate": 1e-3}))])


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs compute nothing."""
    monkeypatch.setattr(advice, "announce", lambda *_: None)
    monkeypatch.setattr(Setting, "check", lambda _: None)
    for module in COMMANDS.values():
        monkeypatch.setattr(module, "train", lambda federations, *_: [SimpleNamespace(adapter=None)] * len(federations))
        monkeypatch.setattr(module, "finish", lambda *_: None)


def begin(config) -> dict[Path, bytes]:
    """Another process's run has begun; what is in its folder."""
    folder = run_folder(config)
    folder.mkdir()
    (folder / "config.yaml").write_text(f"# theirs\n{dump_config(config)}")
    return contents(folder)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_written_where_another_process_is_at_work(config, arm, command):
    theirs = begin(config)
    with files.alone(run_folder(config)), pytest.raises(InputError, match="another process is at work there"):
        go(command, config, arm)
    assert contents(run_folder(config)) == theirs


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_another_process_began_meanwhile_is_not_written_over(config, arm, command, monkeypatch):
    """It came while this one loaded its model, and has been killed since."""
    other = vary(config, federated={"local_steps": 3})
    theirs = {}
    monkeypatch.setattr(advice, "announce", lambda *_: theirs.update(begin(other)))
    with pytest.raises(InputError, match="federated.local_steps: 3 there, 2 now"):
        go(command, config, arm)
    assert contents(run_folder(config)) == theirs


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_another_process_finished_meanwhile_is_left_alone(config, arm, command, monkeypatch):
    theirs = {}

    def finish_theirs(*_) -> None:
        begin(config)
        files.write_json(run_folder(config) / "summary.json", SUMMARY)
        theirs.update(contents(run_folder(config)))

    monkeypatch.setattr(advice, "announce", finish_theirs)
    go(command, config, arm)
    assert contents(run_folder(config)) == theirs


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_is_held_until_its_run_is_finished(config, arm, command, monkeypatch):
    held = []

    def finish(setting, *_) -> None:
        with pytest.raises(InputError, match="another process"), files.alone(run_folder(setting.config)):
            pass
        held.append(setting.config.output)

    monkeypatch.setattr(COMMANDS[command], "finish", finish)
    folders = go(command, config, arm)
    assert held == [str(folder) for folder in folders]
    for folder in folders:
        with files.alone(folder):
            assert (folder / "versions.json").is_file()
