"""A TARGET is what lies there: a run, an adapter, a model; anything else is named, with what is allowed."""

import json

import pytest

from fedjax_rai.config.load import dump_config
from fedjax_rai.errors import InputError
from fedjax_rai.runs.target import Target, read_target
from tests.conftest import small_config


@pytest.fixture
def run(tmp_path):
    """What tells that a folder is a run's."""
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(small_config(folder)))
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "tiny"}))
    return folder


def test_a_run_brings_its_base(run):
    assert read_target(str(run)) == Target(str(run), "tiny", None, run / "adapter", run)


def test_a_run_is_of_the_commit_that_it_began_with(run):
    (run / "versions.json").write_text(json.dumps([{"model_commit": "abc"}, {"model_commit": "def"}]))
    assert read_target(str(run)).revision == "abc"


def test_an_adapter_names_its_base_unless_another_is_given(run):
    adapter = run / "adapter"
    assert read_target(str(adapter)) == Target(str(adapter), "tiny", None, adapter)
    assert read_target(str(adapter), "owner/name", "main") == Target(str(adapter), "owner/name", "main", adapter)


def test_a_model_is_a_folder_a_name_or_tiny(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert read_target(str(tmp_path)) == Target(str(tmp_path), str(tmp_path))
    assert read_target("owner/name", revision="main") == Target("owner/name", "owner/name", "main")
    assert read_target("tiny").adapter is None


def test_what_is_none_of_them_is_refused(run, tmp_path):
    (run / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="names no base; must be given: model.path=FOLDER"):
        read_target(str(run / "adapter"))
    (run / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="this run is not finished"):
        read_target(str(run))
    with pytest.raises(InputError, match="model.path = x: .* is a run, which has its base"):
        read_target(str(run), "x")
    with pytest.raises(InputError, match="model.path = x: tiny is a model"):
        read_target("tiny", "x")
    with pytest.raises(InputError, match=r"rum: no such folder; must be the folder .*; did you mean .*run\?"):
        read_target(str(tmp_path / "rum"))
    (tmp_path / "table.yaml").write_text("")
    with pytest.raises(InputError, match=r"holds many runs \(table.yaml\); must be the folder of one of them"):
        read_target(str(tmp_path))
