"""`guard fit`: the folder of something else stays as it is."""

from pathlib import Path

import pytest

from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.errors import InputError
from fedjax_rai.runs.folder import CONFIG, SUMMARY, VERSIONS
from fedjax_rai.studies.sweep import SWEEP
from fedjax_rai.studies.table import TABLE
from fedjax_rai.tools import guard_fit
from fedjax_rai.tools.guard_fit import OF_RUNS, check_folder, fit, to_be_fitted
from tests.tiny_runs import vary


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder; nothing is fitted into it, as no setting is ever made."""
    monkeypatch.setattr(guard_fit, "Setting", None)
    found = tmp_path / "out"
    found.mkdir()
    return found


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize(("name", "kind"), [(VERSIONS, "run"), (SUMMARY, "run"), (TABLE, "table"), (SWEEP, "sweep")])
def test_the_folder_of_runs_is_refused_and_stays_as_it_is(config, folder, name, kind):
    """Of the very config, too: what it would fit is not what the run there says that it began with."""
    config = to_be_fitted(vary(config, output=str(folder)))
    (folder / CONFIG).write_text(dump_config(config))
    (folder / name).write_text("{}")
    before = contents(folder)
    with pytest.raises(InputError, match=f"holds a {kind}; give the guard a folder of its own by another output="):
        fit(config)
    assert contents(folder) == before and name in OF_RUNS


def test_the_guard_of_another_config_is_refused_and_stays_as_it_is(config, folder):
    """The config of a run differs at least in guard.fit."""
    config = vary(config, output=str(folder))
    (folder / CONFIG).write_text(dump_config(config))
    before = contents(folder)
    with pytest.raises(InputError, match=r"give another output=, or undo\n  guard.fit: None there, True now"):
        fit(config)
    assert contents(folder) == before


def test_a_new_folder_and_one_of_the_same_config_are_taken(config, folder):
    config = to_be_fitted(vary(config, output=str(folder)))
    check_folder(folder / "new", config)
    check_folder(folder, config)
    (folder / CONFIG).write_text(dump_config(config))
    check_folder(folder, config)
    assert load_config(folder / CONFIG).guard.fit is True
