"""A dry run tells what a command would do, and leaves every file as it was."""

from pathlib import Path
from typing import Any

import jax
import pytest
from typer.testing import CliRunner

from fedjax_rai.cli import app
from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.memory import advice
from fedjax_rai.runs import files
from fedjax_rai.studies.table import arm_config
from tests.tiny_runs import SUMMARY

SET = ["cai", "generate", "a.yaml", "set", "--prompts", "700"]
COMMANDS = (
    ["run", "a.yaml"],
    ["table", "a.yaml", "--arms", "base,fl", "--seeds", "2", "output=table"],
    ["sweep", "a.yaml", "cai.iterations=0,2", "lora.rank=1,2", "output=sweep"],
    SET,
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one small config in it."""
    monkeypatch.chdir(tmp_path)
    for variable in ("TRANSFORMERS_VERBOSITY", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(variable, "3")  # a default of the commands must not outlive the test
    Path("a.yaml").write_text(dump_config(config.model_copy(update={"output": "run"})))
    return tmp_path


def tree(folder: Path) -> dict[str, Any]:
    """Every file with its contents and time, and every folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def dry(arguments: list[str]) -> str:
    done = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert done.exit_code == 0, done.output
    return done.stdout


def begin(folder: str, config: ExperimentConfig, rounds: int, is_finished: bool = False) -> None:
    """A run folder as an interrupted run leaves it, as far as a dry run reads it."""
    Path(folder).mkdir(parents=True)
    files.write_text(Path(folder) / "config.yaml", dump_config(config))
    files.write_rows(Path(folder) / "metrics.jsonl", [{"round": t + 1} for t in range(rounds)])
    if is_finished:
        files.write_json(Path(folder) / "summary.json", SUMMARY)


def shares(told: str) -> dict[str, int]:
    """How many of each part, by what was told."""
    lines = told.split(" runs:\n")[1].split("\n\n")[0].splitlines()
    return {part: int(number) for part, number in map(str.split, lines)}


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_nothing_is_written(arguments: list[str], here: Path) -> None:
    before, cache = tree(here), jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    assert dry(arguments).endswith("dry run: nothing was written\n")
    assert tree(here) == before
    assert jax.config.jax_compilation_cache_dir == cache  # pyright: ignore[reportAttributeAccessIssue]


def test_a_run_tells_its_config_its_data_and_its_memory() -> None:
    """12 of the 40 pairs are red, which is 30 %."""
    told = dry(["run", "a.yaml", "seed=3"])
    assert told.startswith(dump_config(load_config(Path("a.yaml"), ["seed=3"])))
    lines = [" ".join(line.split()) for line in told.splitlines()]
    for line in (
        "data: made by the synthetic tiny world",
        "clients: 40 pairs, 30.0 % harmful",
        "guard: 8 pairs, 50.0 % harmful",
        "run: new",
    ):
        assert line in lines
    (asked,) = [line for line in lines if line.startswith("prompts: red")]
    assert "; replay 4; advbench 4; synthetic_choice 12; utility 20; over_refusal 6" in asked
    (clients,) = [line for line in lines if line.startswith("4 clients of 10 pairs, harmful ")]
    assert "kept" not in told
    assert any(line.startswith("memory a device: ") for line in lines)


def test_a_table_tells_what_is_shared_and_gone_on_with() -> None:
    table = load_config(Path("a.yaml"), ["output=table"])
    folder = Path("table")
    begin("table/seed0/base", arm_config(table, "base", 0, folder), 0, is_finished=True)
    begin("table/seed0/fl", arm_config(table, "fl", 0, folder), 1)
    told = dry(["table", "a.yaml", "--arms", "base,fl,fl+cai", "--seeds", "2", "output=table"])
    assert told.split("folders:\n")[1].splitlines() == [
        "  table/seed0/base: finished: would be kept",
        "  table/seed0/fl: begun, 1 of 2 rounds done: would be gone on with",
        "  table/seed0/fl+cai: new",
        "  table/seed1/base: new",
        "  table/seed1/fl: new",
        "  table/seed1/fl+cai: new",
        "dry run: nothing was written",
    ]
    assert shares(told) == {"models": 1, "texts": 2, "revising": 2, "guarding": 2, "replay": 2, "baseline": 2}


def test_a_sweep_tells_its_points_and_what_they_share() -> None:
    told = dry(["sweep", "a.yaml", "cai.iterations=0,2", "lora.rank=1,2", "output=sweep"])
    assert "swept:\n  cai.iterations: 0, 2\n  lora.rank: 1, 2\n" in told
    assert shares(told)["models"] == 1 and "2 groups of points that share all up to" in told
    assert told.count(": new") == 4
    assert "the greatest need is that of sweep/cai.iterations=2,lora.rank=2:" in told
    together = dry(["sweep", "a.yaml", "cai.iterations=0,2", "lora.rank=1,2", "output=sweep", "--together"])
    assert "2 groups of points that go together" in together


def test_a_set_tells_its_conversations_and_its_folder() -> None:
    told = dry(SET)
    assert "conversations 700" in " ".join(told.split()) and "\n  set: new\n" in told


@pytest.mark.slow
def test_what_a_command_would_refuse_is_refused(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(arguments: list[str]) -> str:
        done = CliRunner().invoke(app, [*arguments, "--dry-run"])
        assert done.exit_code == 2
        return done.stderr

    begin("run", config.model_copy(update={"output": "run", "seed": 5}), 1)
    assert "holds a run of another config" in refused(["run", "a.yaml"])
    assert "a cai.trigger decides" in refused(
        ["sweep", "a.yaml", "seed=0,1", "cai.probe=2", "cai.trigger=0.5", "--together"]
    )
    assert "must be 'online' to prepare a set" in refused([*SET, "cai.data=a.yaml"])
    monkeypatch.setattr(advice, "device_limit", lambda: 1000)
    assert "nothing was started" in refused(["table", "a.yaml", "--arms", "fl", "output=table"])


WRONG = {
    "judge": ["eval.judge=os:getcwd"],
    "method": ["cai.method=os:getcwd"],
    "preference": ["cai.preference=os:getcwd", "cai.method=dpo"],
    "tracker": ["tracker=os:getcwd"],
    "guard": ["guard.scorer=os:getcwd"],
    "schedule": ["federated.schedule=os:getcwd"],
}


@pytest.mark.parametrize("options", [["--dry-run"], []], ids=["dry", "real"])
@pytest.mark.parametrize("value", WRONG)
def test_a_function_that_fails_is_refused_before_anything_is_written(
    value: str, options: list[str], here: Path
) -> None:
    before = tree(here)
    done = CliRunner().invoke(app, ["run", "a.yaml", *WRONG[value], *options])
    told = done.stderr.strip().splitlines()[-1]
    assert done.exit_code == 2 and told.startswith(f"{WRONG[value][0].partition('=')[0]} = "), done.output
    assert tree(here) == before
