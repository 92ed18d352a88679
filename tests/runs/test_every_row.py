"""Every row of every table that a config names goes through a whole tiny run."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import fedjax_rai
from fedjax_rai.cai.options import METHODS
from fedjax_rai.data.partition import PARTITIONS
from fedjax_rai.evals.judge import AUTO, JUDGES
from fedjax_rai.evals.suite import EVALUATIONS
from fedjax_rai.fed.aggregate import AGGREGATORS
from fedjax_rai.fed.algorithm import ALGORITHMS
from fedjax_rai.model.cache import CACHES
from fedjax_rai.model.quantize import QUANTIZATIONS
from fedjax_rai.runs import files
from fedjax_rai.runs.run import run
from fedjax_rai.train.losses import PREFERENCES
from fedjax_rai.train.optimizers import OPTIMIZERS, SCHEDULES
from tests.tiny_runs import vary

TABLES = {
    "federated.algorithm": ALGORITHMS,
    "federated.aggregator": AGGREGATORS,
    "federated.optimizer": OPTIMIZERS,
    "federated.schedule": SCHEDULES,
    "data.partition": PARTITIONS,
    "cai.method": METHODS,
    "cai.preference": PREFERENCES,
    "model.attention": ["xla", "chunked"],  # the others need an accelerator
    "model.quantize": QUANTIZATIONS,
    "model.kv_cache": CACHES,
}
TINY = Path(fedjax_rai.__file__).parent / "assets" / "tiny"
ROWS = {(key, name) for key, table in TABLES.items() for name in table}
# A run has a row of each table; the shorter tables begin anew. Of preferences another one then, so that each of them
# comes beside a method that has one.
SHIFTED = {"cai.preference": 1}
RUNS = [
    {key: list(table)[(i + SHIFTED.get(key, 0) * (i // 3)) % len(table)] for key, table in TABLES.items()}
    for i in range(max(map(len, TABLES.values())))
]


def test_every_row_is_in_some_run() -> None:
    assert {row for rows in RUNS for row in rows.items()} == ROWS
    assert {rows["cai.preference"] for rows in RUNS if rows["cai.method"] != "sft"} == set(PREFERENCES)


@pytest.mark.slow
@pytest.mark.parametrize("rows", RUNS, ids=lambda rows: "-".join(rows.values()))
def test_every_row_goes_through_a_whole_run(config, arm, unevaluated, rows):
    """Three clients of four a round, so that a trimmed mean trims; what is evaluated has a test of its own."""
    fields: dict[str, Any] = {
        "federated": {"cohort": 3, "rounds": 2},
        "cai": {"iterations": 1, "temperature": 2.0},
        "trimmed_mean": {"share": 0.34},
        "natural": {"column": "category"},  # of the tiny world's rows, which name no client
    }
    for key, name in rows.items():
        section, field = key.split(".")
        fields[section] = fields.get(section, {}) | {field: name}
    config = vary(config, **fields)
    folder = run(config, arm(config))
    metrics = files.read_rows(folder / "metrics.jsonl")
    assert [row["clients"] for row in metrics] == [3, 3] and not any(row["diverged"] for row in metrics)
    assert all(row["delta_norm"] > 0 and row["trained_tokens"] > 0 and row["cai_iterations"] == 1 for row in metrics)


@pytest.mark.slow
@pytest.mark.parametrize("judge", [AUTO, "guard"])
def test_every_judge_gives_a_rate_and_every_evaluation_is_measured(config, arm, judge, tmp_path):
    """Every row of the table, a function of the user's own and a model on the device, side by side."""
    model = tmp_path / "models" / "Another"
    shutil.copytree(TINY, model)
    others = [name for name in JUDGES if name != "guard"]
    judges = [*others, "guard", f"guard:{model}", "tests.runs.test_every_row:always"]
    fields = {"judge": judge, "judges": judges, "drift_prompts": 4}
    config = vary(config, federated={"rounds": 0}, cai={"enabled": False}, guard={"self_test": False}, eval=fields)
    folder = run(config, arm(config))
    summary = files.read_json(folder / "summary.json")
    rates = summary["rates"]
    assert rates["harmless"]["judge"] == ("rule" if judge == AUTO else judge)
    names = [*JUDGES, "guard_another", "always"]
    assert {f"harmless_by_{name}" for name in names} == {name for name in rates if name.startswith("harmless_by_")}
    assert {rates[f"harmless_by_{name}"]["judge"] for name in names if name != "korean"} == {*names} - {"korean"}
    assert rates["harmless_by_korean"] is None and rates["harmless_by_always"]["mean"] == 0
    assert len(summary["agreement"]) == len(names) * (len(names) - 1) // 2
    tiny = {"advbench", "synthetic_choice", "utility", "over_refusal", "drift", "perplexity"}
    assert {row["set"] for row in files.read_rows(folder / "answers.jsonl")} == tiny < set(EVALUATIONS)


def always(prompt: str, answer: str) -> bool:
    return True
