"""Sweeps: what is swept, that a point is an ordinary run however much it shares, and what is written."""

import csv
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedjax_rai.cai.align import align_in_place
from fedjax_rai.cai.programs import generate_rollout, pool_of_rollout
from fedjax_rai.cli import app
from fedjax_rai.config.grid import Point, load_sweep, split_values
from fedjax_rai.config.load import dump_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.phase import Phase
from fedjax_rai.experiment.round import play_round
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.together import federated_round
from fedjax_rai.runs import conclude, files, loop
from fedjax_rai.runs.run import run
from fedjax_rai.studies import sweep
from fedjax_rai.studies.sweep import run_sweep
from tests import small
from tests.processes import succeed
from tests.tiny_runs import adapter_bytes, after_rows, dies_when, vary


@pytest.fixture(autouse=True)
def shared_parts(arm, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests share what their configs agree in."""
    monkeypatch.setattr(sweep, "Setting", arm)


def grid(config: ExperimentConfig, *overrides: str) -> list[Point]:
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "small.yaml"
        path.write_text(dump_config(config))
        return load_sweep(path, overrides)


def content(folder: Path) -> dict[str, Any]:
    """All that a run says but how long it took."""
    rows = files.read_rows(folder / "metrics.jsonl")
    return {
        "adapter": adapter_bytes(folder),
        "rows": [{key: value for key, value in row.items() if "seconds" not in key} for row in rows],
        "revisions": files.read_rows(folder / "revisions.jsonl"),
        "answers": (folder / "answers.jsonl").read_text(),
    }


@pytest.fixture
def phased(config: ExperimentConfig) -> ExperimentConfig:
    """Four rounds, a phase after every second one."""
    return vary(config, federated={"rounds": 4}, cai={"every": 2})


@pytest.fixture(scope="module")
def apart(arm, tmp_path_factory: pytest.TempPathFactory):
    """Runs by themselves, each once, evaluated or not as the test would have it: config -> content."""
    known: dict[str, dict[str, Any]] = {}

    def content_of(config: ExperimentConfig) -> dict[str, Any]:
        key = f"{conclude.evaluate.__name__} {vary(config, output=None)!r}"
        if key not in known:
            own = vary(config, output=str(tmp_path_factory.mktemp("apart") / "run"))
            known[key] = content(run(own, arm(own)))
        return known[key]

    return content_of


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0,10, 25", ["0", "10", "25"]),
        ("[q_proj,k_proj],[v_proj]", ["[q_proj,k_proj]", "[v_proj]"]),
        ("{a: 1, b: [2, 3]},{}", ["{a: 1, b: [2, 3]}", "{}"]),
        ('\'a,b\',"c,\\"d",e', ["'a,b'", '"c,\\"d"', "e"]),
        ("'it''s, so'", ["'it''s, so'"]),
        ("[a,b]", ["[a,b]"]),
        ("0,", ["0", ""]),
        ("", [""]),
    ],
)
def test_commas_within_brackets_braces_and_quotes_separate_nothing(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_every_combination_is_a_point_named_by_its_values(config: ExperimentConfig) -> None:
    points = grid(config, "cai.iterations=0,10", "lora.rank=3", "lora.targets=[q_proj],[q_proj, v_proj]", "seed=0,1")
    names = [sweep.output(point).name for point in points]
    assert len(names) == 8 and names[:3] == [
        "cai.iterations=0,lora.targets=q_proj,seed=0",
        "cai.iterations=0,lora.targets=q_proj,seed=1",
        "cai.iterations=0,lora.targets=q_proj_v_proj,seed=0",
    ]
    last = points[-1].config
    assert (last.cai.iterations, last.seed, last.lora.rank) == (10, 1, 3) and last.lora.targets == ("q_proj", "v_proj")
    assert points[-1].values == {"cai.iterations": "10", "lora.targets": "[q_proj, v_proj]", "seed": "1"}
    assert {sweep.output(point).parent for point in points} == {Path(config.output or "")}
    named = grid(vary(config, output=None), "seed=0,1")
    assert sweep.output(named[0]) == Path("runs/small-sweep/seed=0")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to sweep: must be given values with commas between, like cai.iterations=0,10,25"),
        (["seed=1", "lora.targets=[q_proj,v_proj]"], "nothing to sweep"),
        (["seed=0,1", "seed=2"], "override 'seed=2': this key is swept; must stand once"),
        (["seed=0,1", "seed=2,3"], "override 'seed=2,3': seed is swept twice"),
        (["seed=0,1,"], "override 'seed=0,1,': no value between two commas, or at an end"),
        (["seed=0,1", "output=a,b"], "override 'output=a,b': must be one folder"),
        (["seed=0,0"], "two points are named seed=0"),
        (["eval.advbench=a/b.csv,a:b.csv"], "no file or folder of rows"),
        (["seed=0,x", "cai.iteration=1,2"], "cai.iteration: no such key; did you mean cai.iterations"),
        (["seed=0,x", "cai.iteration=1,2"], "override 'seed=x': seed = 'x': must be a whole number"),
        (["cai.target=response,revision", "cai.method=sft,dpo"], "cai.target = 'response': needs cai.method = sft"),
        (["cai.beta=0.5,0.1,1e-1"], "cai.beta=0.1 and cai.beta=1e-1 are the same config: each must stand once"),
        (["data.train=absent.json,tiny"], "data.train = 'absent.json': no file or folder of rows"),
        (["seed=0,1", "cai.probe=2", "cai.trigger=0.5", "--together"], "--together: a cai.trigger decides for each"),
        (["seed=0,1", "model.answering=merged", "--together"], "model.answering = merged: must be apart"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(config, tmp_path, overrides, message) -> None:
    (tmp_path / "a.yaml").write_text(dump_config(config))
    done = CliRunner().invoke(app, ["sweep", str(tmp_path / "a.yaml"), *overrides])
    assert (done.exit_code, done.stdout) == (2, "") and message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_mistake_is_said_once_however_many_points_make_it(config) -> None:
    with pytest.raises(InputError) as raised:
        grid(config, "seed=0,1,2", "lora.rank=0", "cai.prompts=4,-1")
    assert [line.partition(":")[0] for line in str(raised.value).split("\n")] == [
        "override 'lora.rank=0'", "override 'cai.prompts=-1'",
    ]  # fmt: skip


def test_bad_input_loads_nothing_heavy(config, tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("lora: {rank: 0}\n")
    for arguments in (["sweep", "--help"], ["sweep", str(tmp_path / "a.yaml"), "seed=0,1"]):
        succeed("loaded_modules", "jax,numpy,matplotlib", *arguments)


def test_the_command_runs_the_points_it_was_given(config, tmp_path, monkeypatch) -> None:
    (tmp_path / "a.yaml").write_text(dump_config(config))
    given: list[Any] = []

    def noted(*arguments: Any) -> Path:
        given.append(arguments)
        return tmp_path

    monkeypatch.setattr(sweep, "run_sweep", noted)
    points = load_sweep(tmp_path / "a.yaml", ["seed=0,1", "output=b"])
    for options, others in (((), (False, None)), (("--together",), (True, None)), (("--margin", "3"), (False, 3.0))):
        asked = ["sweep", str(tmp_path / "a.yaml"), "seed=0,1", "output=b", *options]
        assert CliRunner().invoke(app, asked).exit_code == 0
        assert given.pop() == (points, *others)


@pytest.mark.slow
def test_points_are_the_runs_that_they_would_be_apart_and_share_the_way_to_the_first_phase(
    phased, apart, monkeypatch, capsys
) -> None:
    collected, rounds, collect = [], [], Phase.collect
    monkeypatch.setattr(Phase, "collect", lambda self, a, t: collected.append(t) or collect(self, a, t))
    monkeypatch.setattr(loop, "play_round", lambda f, s, t, fewer: rounds.append(t) or play_round(f, s, t, fewer))
    points = grid(phased, "cai.iterations=0,2,5")
    folder = run_sweep(points)
    assert rounds == [0, 1, 2, 3, 2, 3, 2, 3] and collected == [1, 3, 3]
    monkeypatch.undo()
    for point in points:
        assert content(sweep.output(point)) == apart(vary(phased, cai={"iterations": point.config.cai.iterations}))
    zero, *_, five = (content(sweep.output(point)) for point in points)
    assert zero == apart(vary(phased, cai={"enabled": False})) and five["adapter"] != zero["adapter"]
    assert [row.get("cai_iterations") for row in five["rows"]] == [None, 5, None, 5]
    printed = capsys.readouterr()
    assert "SYNTHETIC tiny world" in printed.out and printed.out.strip().endswith(str(folder))
    assert "[1 to 3 of 3] cai.iterations=0, cai.iterations=2, cai.iterations=5" in printed.err


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [1, 4, 10])
def test_an_interrupted_sweep_goes_on_to_the_same_end(phased, apart, unevaluated, killed_at: int) -> None:
    """Rows of metrics are written in this order: round 1 of the largest; in round 2 of 0, 2 and 5 iterations; its
    rounds 3 and 4; the same of the others.
    """
    points = grid(phased, "cai.iterations=0,2,5")
    with dies_when(after_rows(killed_at - 1)):
        run_sweep(points)
    assert not (sweep.output(points[0]).parent / "sweep.md").exists()
    folder = run_sweep(points)
    for point in points:
        assert content(sweep.output(point)) == apart(vary(phased, cai={"iterations": point.config.cai.iterations}))
    table = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert {row["cai.iterations"] for row in table} == {"0", "2", "5"}


@pytest.mark.slow
def test_more_values_later_cost_their_own_runs_alone_and_no_program(config, arm, unevaluated, monkeypatch) -> None:
    first = grid(config, "cai.iterations=0,2")
    folder = run_sweep(first)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*=*/**/*") if path.is_file()}
    compiled_once = (align_in_place, generate_rollout, pool_of_rollout, federated_round)
    compiled = [small.compilations(program) for program in compiled_once]
    begun: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(loop, "play_round", lambda f, s, t, fewer: begun.append(t) or play_round(f, s, t, fewer))
        further = grid(config, "cai.iterations=0,3,2,7")
        assert run_sweep(further) == folder
    assert begun == [0, 1, 1], "7, from whose first round 3 goes on"
    assert compiled == [small.compilations(program) for program in compiled_once]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for point, cai in ((further[0], {"enabled": False}), (further[1], {"iterations": 3})):
        alone = vary(config, output=str(folder.parent / f"apart {[*cai]}"), cai=cai)
        assert content(sweep.output(point)) == content(run(alone, arm(alone)))


def test_a_folder_of_something_else_is_refused(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sweep, "run", lambda *_: pytest.fail("must not run"))
    folder, points = Path(config.output or ""), grid(config, "cai.iterations=0,2")
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a sweep's folder"):
        run_sweep(points)
    (folder / "thesis.tex").unlink()
    changed = grid(vary(config, lora={"rank": 3}), "cai.iterations=5,6")
    message = r"a sweep of another config, which differs in lora.rank \(3 there, 2 now\)"
    (folder / "sweep.yaml").write_text(dump_config(sweep.base_config(changed)))
    with pytest.raises(InputError, match=message):
        run_sweep(points)
    assert sweep.check_sweep(changed) == sweep.check_sweep(grid(vary(config, lora={"rank": 3}), "cai.iterations=7,9"))
    patterns = grid(vary(config, lora={"rank": 3}), "lora.rank_pattern={q_proj: 1},{}", "cai.iterations=1,2")
    assert sweep.check_sweep(patterns) == folder, "swept keys may be of any kind"


def test_seeds_share_their_base_and_nothing_else(config) -> None:
    points = grid(config, "seed=0,1", "model.dtype=float32,bfloat16")
    own, other_type, other_seed = [point.config for point in points][:3]
    first = Setting(own)
    second = Setting(other_seed, first)
    assert second.models is first.models and second.config.seed == 1
    assert "base" not in vars(first.models), "one that was never asked for is not read"
    assert second.texts is not first.texts and second.guarding is not first.guarding
    assert Setting(other_type, second).models is not first.models, "another model"


@pytest.mark.slow
def test_a_grid_with_seeds_has_a_row_for_every_other_combination(config, apart, capsys) -> None:
    config = vary(config, cai={"probe": 4})
    points = grid(config, "cai.method=sft,dpo", "seed=0,1", "cai.iterations=0,3")
    folder = run_sweep(points)
    point = points[-1]
    assert content(sweep.output(point)) == apart(vary(config, seed=1, cai={"method": "dpo", "iterations": 3}))
    rows = sweep.collect(points)
    assert [row.label for row in rows] == ["sft, 0", "sft, 3", "dpo, 0", "dpo, 3"]
    assert all([summary["seed"] for summary in row.summaries] == [0, 1] for row in rows)
    printed = capsys.readouterr().out
    assert printed.startswith("\n| cai.method | cai.iterations | harmless ")
    assert "over prompts and 2 seeds (bootstrap)" in printed
    assert "harmless (rule), sft, 3 minus sft, 0: " in printed and "by seed " in printed
    lines = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert list(lines[0]) == ["cai.method", "cai.iterations", "seed", "name", "mean", "low", "high", "prompts"]
    found = {(line["cai.method"], line["cai.iterations"], line["seed"]) for line in lines}
    assert found == {(m, i, s) for m in ("sft", "dpo") for i in "03" for s in "01"}
    names = {line["name"] for line in lines if line["cai.iterations"] == "3"}
    assert {"harmless", "synthetic_choice", "seconds.training", "cost.cai.flops", "cost.cai.seconds"} <= names
    assert all(float(line["mean"]) >= 0 for line in lines if "share" not in line["name"])
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert [set(sweep.probed(row)) for row in rows] == [{1, 2}] * 4
    assert (folder / "sweep.md").read_text().startswith("| cai.method ")
