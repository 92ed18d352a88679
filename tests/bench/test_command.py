"""`fedjax-rai bench` refuses bad input by a message, and measures in processes that import what exists."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedjax_rai.bench import loading, measure, sweeping
from fedjax_rai.bench.__main__ import app as module
from fedjax_rai.cli import app
from fedjax_rai.errors import InputError
from tests.bench.test_report import row
from tests.model.common import FIXTURES

RUNNER = CliRunner()


@pytest.fixture
def nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a folder with one empty config, what would measure fails."""
    for place, name in ((measure, "measure"), (loading, "measure_loading"), (sweeping, "measure_phase")):
        monkeypatch.setattr(place, name, lambda *arguments: pytest.fail(f"measured {arguments}"))
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rond"], "No such command 'rond'. Did you mean 'round'?"),
        (["round", "--clients", "1,x"], "--clients 1,x: 'x' is no whole number; must be like 16"),
        (["generate", "--rows", "0"], "--rows 0: 0 is too small; must be at least 1"),
        (["generate", "--order", "queue"], "--order queue: must stand beside --answers N"),
        (
            ["generate", "--answers", "9", "--order", "que"],
            "--order que: must be one of queue, batches; did you mean queue",
        ),
        (["cai", "--model", "1b"], "did you mean 1B?"),
        (["score", "--peer", "torc"], "--peer torc: must be one of torch, trl, flower, vllm; did you mean torch?"),
        (["all", "--peer", "torc"], "--peer torc: must be one of torch, trl, flower, vllm; did you mean torch?"),
        (["round", "--config", "b.yaml"], "b.yaml: no such file; must be a YAML config; did you mean a.yaml?"),
        (["round", "--config", "a.yaml", "--set", "sed=1"], "sed: no such key; did you mean seed?"),
        (["round", "--set", "seed=1"], "--set seed=1: must stand beside --config FILE"),
        (["round", "--output", "a.yaml"], "--output a.yaml: is a file; must be a folder"),
        (["sweep", "absent.yaml"], "absent.yaml: no such file; must be a YAML config"),
        (["sweep", "a.yaml", "--counts", "0,ten"], "--counts 0,ten: 'ten' is no whole number; must be like 0,10,25"),
        (["sweep", "a.yaml", "--counts", "5,"], "--counts 5,: '' is no whole number"),
        (["sweep", "a.yaml", "--counts", "0"], "--counts 0: must hold a number above 0"),
        (["sweep", "a.yaml", "--set", "sed=1"], "sed: no such key; did you mean seed?"),
        (["sweep", "a.yaml", "--set", "cai.enabled=false"], "cai.enabled = false: must be true"),
        (["load", "--quantize", "int3"], "--quantize int3: must be one of none, int8, nf4; did you mean int8?"),
        (["load", "--folder", "absent"], "--folder absent: no config.json there; must be a Hugging Face folder"),
    ],
)
@pytest.mark.parametrize("command", ["fedjax-rai bench", "python -m fedjax_rai.bench"])
def test_bad_input_is_a_message(command: str, arguments: list[str], message: str, nothing_is_measured: Path) -> None:
    done = RUNNER.invoke(module, arguments) if "python" in command else RUNNER.invoke(app, ["bench", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in nothing_is_measured.iterdir()] == ["a.yaml"]


def test_counts_are_read_in_order() -> None:
    assert sweeping.read_counts("25, 0,10,10") == [0, 10, 25]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], list[str]]]:
    """(request, peers) of all that is measured, in place of measuring it."""
    made = []

    def fake(request: dict[str, Any], sides: list[Any]) -> list[dict[str, Any]]:
        made.append((request, [side.name for side in sides]))
        return [row(work=request["work"], **request["shape"])]

    monkeypatch.setattr(measure, "measure", fake)
    monkeypatch.setattr("fedjax_rai.bench.peers.importlib.util.find_spec", lambda name: name)
    return made


def test_every_row_is_a_line_of_json_where_it_is_asked_for(measured: list) -> None:
    done = RUNNER.invoke(app, ["bench", "round", "--clients", "1,5", "--json", "--peer", "trl,torch", "--compile"])
    assert done.exit_code == 0, done.stderr
    assert [json.loads(line)["clients"] for line in done.stdout.splitlines()] == [1, 5]
    assert [names for _, names in measured] == [["trl", "torch"], ["trl", "torch"]]
    assert all(request["compile"] for request, _ in measured)


def test_a_folder_has_rows_a_table_and_a_picture(measured: list, tmp_path: Path) -> None:
    arguments = ["bench", "score", "--pairs", "10,20", "--output", str(tmp_path / "out")]
    done = RUNNER.invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(written) == {"results.jsonl", "table.txt", "bench.png"}
    assert [json.loads(line)["pairs"] for line in written["results.jsonl"].splitlines()] == [10, 20]
    assert written["table.txt"].decode() == done.stdout and written["bench.png"].startswith(b"\x89PNG")
    again = RUNNER.invoke(app, arguments)
    assert again.exit_code == 2 and "holds results.jsonl of an earlier measurement" in again.stderr


def test_all_is_every_work_and_peers_have_those_that_they_can(measured: list) -> None:
    done = RUNNER.invoke(app, ["bench", "all", "--peer", "torch", "--peer", "trl", "--json"])
    assert done.exit_code == 0, done.stderr
    able = {request["work"]: names for request, names in measured}
    assert able == {"round": ["torch", "trl"], "generate": ["torch"], "cai": [], "score": ["torch"]}


def test_what_is_measured_before_a_failure_is_shown(measured: list, monkeypatch: pytest.MonkeyPatch) -> None:
    before = measure.measure

    def fails(request: dict[str, Any], sides: list[Any]) -> list[dict[str, Any]]:
        if request["shape"]["rows"] > 1:
            raise InputError("out of memory")
        return before(request, sides)

    monkeypatch.setattr(measure, "measure", fails)
    done = RUNNER.invoke(app, ["bench", "generate", "--rows", "1,1000"])
    assert done.exit_code == 2 and "rows 1," in done.stdout


@pytest.mark.slow
def test_a_checkpoint_is_measured_in_a_process_of_its_own(capfd: pytest.CaptureFixture) -> None:
    done = RUNNER.invoke(app, ["bench", "load", "--folder", str(FIXTURES / "models" / "phi3")])
    assert done.exit_code == 0, capfd.readouterr().err
    assert done.stdout.startswith("checkpoint ") and "peak of the process" in done.stdout


SMALLEST = "bench round --model tiny --steps 1 --batch 2 --length 16 --clients 1 --repeats 1 --dtype float32 --json"


def check_row(found: dict[str, Any]) -> None:
    assert found["tokens_per_second"] == pytest.approx(2 * 16 / found["median_seconds"])
    assert len(found["seconds"]) == 1 and found["host_memory"] > 2**27
    assert 0 < found["share_of_matmul"] < 2 and 0 < found["share_of_floor"] < 2
    assert (found["clients"], found["steps"], found["batch"], found["length"]) == (1, 1, 2, 16)


@pytest.mark.slow
def test_a_round_is_measured() -> None:
    done = RUNNER.invoke(app, SMALLEST.split())
    assert done.exit_code == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    check_row(found)
    assert found["by"] == "fedjax_rai" and found["recompilations"] == 0
    assert found["versions"].startswith("jax ")


@pytest.mark.slow
@pytest.mark.parity
def test_a_round_is_measured_beside_torch() -> None:
    done = RUNNER.invoke(app, [*SMALLEST.split(), "--peer", "torch"])
    assert done.exit_code == 0, done.stderr
    ours, theirs = map(json.loads, done.stdout.splitlines())
    for found in (ours, theirs):
        check_row(found)
    assert theirs["by"] == "torch" and theirs["versions"].startswith("torch ")
    assert ours["ratio_to_torch"] == pytest.approx(theirs["median_seconds"] / ours["median_seconds"])
