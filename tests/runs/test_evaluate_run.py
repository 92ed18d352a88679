"""A finished run is evaluated once more where it lies now, on the files that it began with, by one process."""

import shutil
from pathlib import Path

import pytest

from fedjax_rai.config.files import CONSTITUTION
from fedjax_rai.errors import InputError
from fedjax_rai.model.peft import save_adapter
from fedjax_rai.runs import conclude, files, folder
from fedjax_rai.runs.run import evaluate_run
from tests.conftest import nothing_measured
from tests.tiny_runs import vary


@pytest.fixture(autouse=True)
def unevaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation gives no numbers."""
    monkeypatch.setattr(conclude, "evaluate", nothing_measured)


@pytest.fixture
def trained(config, arm, tmp_path) -> Path:
    """The folder of a run on a constitution of its own whose last evaluation is still to come."""
    shutil.copy(CONSTITUTION, tmp_path / "own.yaml")
    config = vary(config, cai={"constitution": str(tmp_path / "own.yaml")})
    setting = arm(config)
    model, lora = setting.shapes
    there = folder.run_folder(config)
    with folder.entered(there, config, setting):
        save_adapter(there / "adapter", model, lora, setting.fresh_adapter("adapter"), "tiny")
    return there


def test_a_moved_folder_is_evaluated_where_it_is(trained, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(trained, copied)
    before = sorted(trained.rglob("*"))
    evaluate_run(copied)
    assert {path.name for path in copied.iterdir()} >= {"eval.json", "answers.jsonl", "summary.json", "run.png"}
    summary = files.read_json(copied / "summary.json")
    assert summary["memory"] is None, "no process that trained it said what it held"
    kept = {"plan": {"need": 7, "phase": "training", "held": {}, "phases": {}}, "process": 5, "devices": []}
    kept |= {"other_runs": 0, "resumed": False}
    files.write_json(copied / "summary.json", summary | {"memory": kept})
    evaluate_run(copied)
    assert files.read_json(copied / "summary.json")["memory"] == kept, "not that of a process that evaluates alone"
    assert sorted(trained.rglob("*")) == before
    trained.rename(tmp_path / "moved")
    evaluate_run(tmp_path / "moved")
    assert (tmp_path / "moved" / "summary.json").is_file() and not trained.exists()


def test_a_changed_file_gives_no_rates(trained, tmp_path):
    text = (tmp_path / "own.yaml").read_text()
    (tmp_path / "own.yaml").write_text(f"{text}\n# more\n")
    with pytest.raises(InputError, match="run: began with other contents of\n  cai.constitution = "):
        evaluate_run(trained)
    assert not (trained / "eval.json").exists()


def test_versions_that_evaluate_once_more_are_noted(trained, monkeypatch):
    (began,) = files.read_json(trained / "versions.json")
    evaluate_run(trained)
    assert files.read_json(trained / "versions.json") == [began]
    others = folder.versions() | {"python": "3.99.0"}
    monkeypatch.setattr(folder, "versions", lambda: others)
    evaluate_run(trained)
    assert files.read_json(trained / "versions.json") == [began, began | {"python": "3.99.0"}]


def test_a_folder_at_which_another_process_works_is_not_evaluated(trained):
    before = sorted(trained.rglob("*"))
    with files.alone(trained), pytest.raises(InputError, match="another process is at work there"):
        evaluate_run(trained)
    assert sorted(trained.rglob("*")) == before
