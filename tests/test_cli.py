"""The commands: help and bad input answer without jax, with the right exit code, and write nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedjax_rai import __version__, cli
from fedjax_rai.cli import app
from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.runs import prepare, report, run
from fedjax_rai.studies import sweep, table
from fedjax_rai.tools import evaluate, serve
from tests.processes import succeed

HEAVY = ("jax", "flax", "transformers", "datasets", "numpy", "orbax", "matplotlib", "rich", "tensorflow_datasets")
RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts in a folder with one config, and must leave it so: what would write is faked."""
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("seed: 1\n")
    for variable in ("TRANSFORMERS_VERBOSITY", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(variable, "3")  # a default of the commands must not outlive the test
    monkeypatch.setattr(sys, "argv", ["fedjax-rai"])
    yield
    assert [path.name for path in tmp_path.rglob("*")] == ["a.yaml"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the commands called, instead of calling it."""
    made: list[tuple] = []

    def fake(module: object, name: str, folder: str) -> None:
        def called(*arguments: object, **options: object) -> Path:
            made.append((name, *arguments, *options.values()))
            return Path(folder)

        monkeypatch.setattr(module, name, called)

    fake(run, "run", "runs/a")
    fake(evaluate, "evaluate", "runs/a/evals/1")
    fake(serve, "serve", "")
    fake(table, "run_table", "runs/t")
    fake(sweep, "run_sweep", "runs/s")
    fake(prepare, "prepare", "set")
    monkeypatch.setattr(report, "report", lambda folder: "reported")
    monkeypatch.setattr(evaluate, "read", lambda *_: None)
    monkeypatch.setattr(evaluate, "report", lambda *_: "reported")
    monkeypatch.setattr(prepare, "report", lambda folder: "reported")
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["-V"],
        ["run", "-h"],
        ["run", "absent.yaml"],
        ["config", "a.yaml"],
        ["generate", "tiny"],
        ["data", "show", "-h"],
    ],
)
def test_help_and_bad_input_load_nothing_heavy(arguments: list[str]) -> None:
    succeed("loaded_modules", ",".join(HEAVY), *arguments, folder=Path.cwd())


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
        (["run", "a.yaml", "eval.advbench=absent.csv"], "eval.advbench = 'absent.csv': no file"),
        (["table", "a.yaml", "data.train=absent.json"], "data.train = 'absent.json': no file or folder of rows"),
        (["config", "a.yaml", "model.path=absent"], "model.path = 'absent': no Hugging Face folder"),
        (["eval", "absent"], "absent: no such folder; must be the folder of a finished run"),
        (["eval", "."], ".: none of these is there; must be the folder of a finished run"),
        (["serve", "absent"], "absent: no such folder; must be the folder of a finished run"),
        (["serve", "tiny", "--dtype", "int4"], "--dtype int4: must be one of bfloat16, bf16, float32, fp32"),
        (["import-gguf", "absent.gguf", "out"], "absent.gguf: no such file; must be a GGUF file"),
        (["table", "a.yaml", "--arms", "fl,[b]"], "--arms [b]: no such arm"),
        (["generate", "tiny", "--temperature", "nan"], "--temperature nan: must be a number >= 0"),
        (["generate", "tiny", "--temperature", "inf"], "--temperature inf: must be a number >= 0"),
        (["generate", "tiny", "--temperature", "-1"], "--temperature -1: must be a number >= 0"),
        (["generate", "tiny", "--top-p", "nan"], "--top-p nan: must be greater than 0, at most 1"),
        (["generate", "tiny", "--min-p", "nan"], "--min-p nan: must be at least 0, less than 1"),
        (["table", "a.yaml", "--arms", "fl, fl,base"], "--arms fl: stands twice; must stand once"),
        (["generate", "tiny", "--prompt", "-"], "--prompt -: must be a text; --prompts - reads standard input"),
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
        ["eval", "tiny", "eval.samples=3", "output=c"],
        ["serve", "tiny", "--port", "0", "--dtype", "fp32"],
        ["table", "a.yaml"],
        ["table", "a.yaml", "--arms", "fl, base", "--seeds", "3", "seed=5"],
        ["cai", "generate", "a.yaml", "set", "seed=3", "--prompts", "7", "--adapter", "b"],
    ):
        done = RUNNER.invoke(app, arguments)
        assert done.exit_code == 0, done.output
    path = Path("a.yaml")
    assert calls == [
        ("run", load_config(path, ["lora.rank=2", "output=b"])),
        ("evaluate", evaluate.request("tiny", ["eval.samples=3", "output=c"])),
        ("serve", "tiny", serve.Options(port=0, dtype="float32")),
        ("run_table", load_config(path, output="runs/{stem}-table"), None, 1, None),
        ("run_table", load_config(path, ["seed=5"], "runs/{stem}-table"), ["fl", "base"], 3, None),
        ("prepare", load_config(path, ["seed=3"]), Path("set"), 7, Path("b")),
    ]


ASK = "fedjax-rai generate tiny --dtype float32 --adapter {0}/adapter --prompt 'How do I bake bread?'"


@pytest.mark.parametrize(
    ("arguments", "look", "typed"),
    [
        (["run", "a.yaml", "model.dtype=float32"], "runs/a/run.png, runs/a/answers.jsonl", "runs/a"),
        (
            ["table", "a.yaml", "seed=4", "model.dtype=float32", "--arms", "base,fl"],
            "runs/t/table.png, runs/t/table.md, runs/t/seed4/fl/answers.jsonl",
            "runs/t/seed4/fl",
        ),
        (
            ["sweep", "a.yaml", "seed=4,5", "model.dtype=float32", "output=runs/s"],
            "runs/s/sweep.png, runs/s/sweep.md",
            "runs/s/seed=5",
        ),
    ],
)
def test_a_command_ends_by_what_to_look_at_and_what_to_type_next(
    calls: list, arguments: list[str], look: str, typed: str
) -> None:
    done = RUNNER.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    further = f"next: {ASK.format(typed)}; fedjax-rai export {typed} OUT"
    assert done.stderr.splitlines() == [f"look at {look}", further]


def test_the_tiny_model_is_asked_about_its_own_world() -> None:
    assert [cli.example(model) for model in ("tiny", "models/smollm2")] == ["How do I bake bread?", "What is 3 plus 4?"]


def test_a_run_in_the_place_of_a_model_is_told_how_to_ask_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "config.yaml").write_text("model: {dtype: float32}\n")
    done = RUNNER.invoke(app, ["generate", str(folder), "--prompt", "Hello"])
    assert done.exit_code == 2
    assert done.stderr == f"{folder}: is a run; must be a model, as in: {ASK.format(folder)}\n"


def test_a_prepared_set_ends_by_how_to_train_on_it(calls: list) -> None:
    done = RUNNER.invoke(app, ["cai", "generate", "a.yaml", "set", "seed=3"])
    assert done.stderr.splitlines() == [
        "look at set/pairs-00000.jsonl, set/summary.json",
        "next: fedjax-rai run a.yaml seed=3 cai.data=set",
    ]


COMMANDS = "run eval serve table sweep generate export config cai data".split()
NAMES = ("", *COMMANDS, "cai generate", "data prepare", "data show")


@pytest.mark.parametrize("command", NAMES)
def test_help_is_whole_at_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short, long = (RUNNER.invoke(app, [*command.split(), option]) for option in ("-h", "--help"))
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    lines = long.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    cut = [line for line in lines if line.endswith("...") and not line.startswith("Usage: ")]
    assert not cut


def test_every_command_and_option_has_a_sentence() -> None:
    import typer

    group = typer.main.get_command(app)
    commands: dict[str, object] = {**group.commands, **group.commands["cai"].commands}  # pyright: ignore
    commands |= group.commands["data"].commands  # pyright: ignore
    for name, command in commands.items():
        sentence = command.help.split("\n")[0]  # pyright: ignore
        assert sentence[0].isupper() and sentence.endswith("."), name
        for parameter in command.params:  # pyright: ignore
            text = parameter.help
            assert text and text[0].isupper() and text.endswith("."), (name, parameter.name)


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_told(option: str) -> None:
    done = RUNNER.invoke(app, [option])
    assert (done.exit_code, done.stdout) == (0, f"fedjax-rai {__version__}\n")


def test_completion_can_be_shown_and_installed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a home of its own, so that it leaves nothing behind; the tests' folder stays as it was."""
    home = tmp_path_factory.mktemp("home")
    environment = {"HOME": str(home), "SHELL": "/bin/bash", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "fedjax_rai"]
    shown = subprocess.run(
        [*command, "--show-completion", "bash"], capture_output=True, text=True, env=environment, check=False
    )
    assert shown.returncode == 0 and "COMPLETE" in shown.stdout
    assert not list(home.rglob("*"))
    done = subprocess.run([*command, "--install-completion", "bash"], capture_output=True, env=environment, check=False)
    assert done.returncode == 0 and (home / ".bashrc").is_file()


def test_keys_of_a_config_and_their_names_are_completed() -> None:
    assert cli.complete_key("cai.it") == ["cai.iterations="]
    assert cli.complete_key("se") == ["seed="]
    assert {"model.path=", "output="} < set(cli.complete_key(""))
    assert cli.complete_key("cai.method=s") == ["cai.method=sft", "cai.method=sft+dpo"]
    assert cli.complete_key("seed=") == cli.complete_key("absent=") == []


def test_arms_are_listed_with_a_line_each() -> None:
    done = RUNNER.invoke(app, ["table", "a.yaml", "--arms", "list"])
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*table.ARMS, *table.CONTROLS]
    assert all(len(line.split()) > 3 for line in lines)
    unknown = RUNNER.invoke(app, ["table", "a.yaml", "--arms", "fl,fl+filer"])
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "--arms fl+filer: no such arm; did you mean fl+filter?" in unknown.stderr
    assert done.stdout.strip() in unknown.stderr


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "a.yaml", "output=runs/\udcff"],
        ["config", "\udcff.yaml"],
        ["generate", "tiny", "--prompt", "a\udcff"],
        ["cai", "generate", "a.yaml", "\udcff"],
    ],
)
def test_an_argument_that_is_no_text_is_one_message(calls: list, arguments: list[str]) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2 and not calls
    assert "is not UTF-8; must be text in UTF-8" in result.stderr and "Traceback" not in result.stderr


def test_prompts_may_come_from_a_pipe(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a shell's `<(command)` gives them; what is there is never said to be missing."""
    folder = tmp_path_factory.mktemp("pipes")
    os.mkfifo(folder / "pipe")
    cli._check_prompts(None, folder / "pipe")
    with pytest.raises(InputError, match="is a folder"):
        cli._check_prompts(None, folder)
