"""The commands: help and bad input answer without jax, with the right exit code, and write nothing."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedjax_rai.cli import app
from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.runs import report, run
from fedjax_rai.studies import table

HEAVY = ("jax", "flax", "transformers", "datasets", "numpy", "orbax", "matplotlib")
RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts in a folder with one config, and must leave it so: what would write is faked."""
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("seed: 1\n")
    for variable in ("TRANSFORMERS_VERBOSITY", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(variable, "3")  # a default of the commands must not outlive the test
    yield
    assert [path.name for path in tmp_path.rglob("*")] == ["a.yaml"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the commands called, instead of calling it."""
    made: list[tuple] = []
    monkeypatch.setattr(run, "run", lambda config: made.append(("run", config)))
    monkeypatch.setattr(report, "report", lambda folder: "reported")
    monkeypatch.setattr(run, "evaluate_run", lambda folder: made.append(("eval", folder)))
    monkeypatch.setattr(table, "run_table", lambda config, arms, seeds: made.append(("table", config, arms, seeds)))
    return made


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["table", "--help"], ["run", "absent.yaml"], ["config", "a.yaml"]]
)
def test_help_and_bad_input_load_nothing_heavy(arguments: list[str]) -> None:
    root = str(Path(__file__).parents[1])
    code = f"""import sys
sys.path.insert(0, {root!r})
from fedjax_rai.cli import app
try: app({arguments!r})
except SystemExit: pass
sys.exit(', '.join(sorted(set({HEAVY!r}) & set(sys.modules))) or None)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"loaded: {done.stderr}"


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "fedjax_rai", "run", "b.yaml", "lora.rank=[red]0[/red]"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "b.yaml: no such file; must be a YAML config; did you mean a.yaml?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "a.yaml", "lora.rank=[bold]"], "override 'lora.rank=[bold]': lora.rank = ['bold']: must be"),
        (["run", "a.yaml", "sed=1"], "sed: no such key; did you mean seed?"),
        (["run", "a.yaml", "eval.advbench=absent.csv"], "eval.advbench = 'absent.csv': no CSV file"),
        (["table", "a.yaml", "data.train=absent.json"], "data.train = 'absent.json': no SQuARe JSON file"),
        (["config", "a.yaml", "model.path=absent"], "model.path = 'absent': no Hugging Face folder"),
        (["eval", "absent"], "absent: no such folder; must be that of a finished run"),
        (["eval", "."], "not a run folder"),
        (["table", "a.yaml", "--arms", "fl,[b]"], "--arms [b]: no such arm"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = RUNNER.invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["run"], ["nothing"], ["table", "a.yaml", "--seeds", "0"], ["config", "--x"]])
def test_bad_usage_has_exit_code_2(calls: list, arguments: list[str]) -> None:
    assert RUNNER.invoke(app, arguments).exit_code == 2
    assert not calls


def test_commands_pass_on_what_they_were_given(calls: list, tmp_path: Path) -> None:
    for arguments in (
        ["run", "a.yaml", "lora.rank=2", "output=b"],
        ["eval", str(tmp_path)],
        ["table", "a.yaml"],
        ["table", "a.yaml", "--arms", "fl, base", "--seeds", "3", "seed=5"],
    ):
        assert RUNNER.invoke(app, arguments).exit_code == 0
    path = Path("a.yaml")
    assert calls == [
        ("run", load_config(path, ["lora.rank=2", "output=b"])),
        ("eval", tmp_path),
        ("table", load_config(path, output="runs/{stem}-table"), None, 1),
        ("table", load_config(path, ["seed=5"], "runs/{stem}-table"), ["fl", "base"], 3),
    ]


def test_config_prints_what_loads_back() -> None:
    done = RUNNER.invoke(app, ["config", "a.yaml", "guard.steps=3"])
    assert (done.exit_code, done.stdout) == (0, dump_config(load_config(Path("a.yaml"), ["guard.steps=3"])))


def test_bad_input_found_late_is_reported_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: ExperimentConfig) -> None:
        raise InputError("data.red = 7: [more] than there are")

    monkeypatch.setattr(run, "run", refuse)
    done = RUNNER.invoke(app, ["run", "a.yaml"])
    assert (done.exit_code, done.stderr) == (2, "data.red = 7: [more] than there are\n")


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(config: ExperimentConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupt)
    monkeypatch.setattr(sys, "argv", ["/somewhere/fedjax-rai", "run", "a.yaml", "output=a b"])
    done = RUNNER.invoke(app, ["run", "a.yaml", "output=a b"])
    assert done.exit_code == 130
    assert "to go on: fedjax-rai run a.yaml 'output=a b'" in done.stderr


def test_a_fault_of_ours_is_not_dressed_as_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: ExperimentConfig) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(run, "run", fail)
    assert isinstance(RUNNER.invoke(app, ["run", "a.yaml"]).exception, ValueError)
