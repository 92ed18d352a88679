"""`python -m fedjax_rai.bench` refuses bad input by a message, and measures in processes that import what exists."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedjax_rai.bench import __main__ as bench
from tests.model.common import FIXTURES


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_report", "_sweep_phase", "_sweep_runs", "random_checkpoint"):
        monkeypatch.setattr(bench, name, lambda *arguments: pytest.fail(f"measured {arguments}"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "absent.yaml"], "absent.yaml: no such file; must be a YAML config"),
        (["sweep", "a.yaml", "--counts", "0,ten"], "--counts 0,ten: 'ten' is no whole number; must be like 0,10,25"),
        (["sweep", "a.yaml", "--counts", "5,"], "--counts 5,: '' is no whole number"),
        (["sweep", "a.yaml", "--counts", "0"], "--counts 0: must hold a number above 0"),
        (["sweep", "a.yaml", "--set", "sed=1"], "sed: no such key; did you mean seed?"),
        (["sweep", "a.yaml", "--set", "cai.enabled=false"], "cai.enabled = false: must be true"),
        (["load", "--quantize", "int3"], "--quantize int3: must be one of none, int8, nf4"),
        (["load", "--folder", "absent"], "--folder absent: no config.json there; must be a Hugging Face folder"),
    ],
)
def test_bad_input_is_a_message(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("")
    done = CliRunner().invoke(bench.app, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_counts_are_read_in_order() -> None:
    assert bench.read_counts("25, 0,10,10") == [0, 10, 25]


def test_a_checkpoint_is_measured_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.undo()
    done = CliRunner().invoke(bench.app, ["load", "--folder", str(FIXTURES / "models" / "phi3")])
    assert done.exit_code == 0, capfd.readouterr().err
    assert done.stdout.startswith("checkpoint ") and "peak of the process" in done.stdout
