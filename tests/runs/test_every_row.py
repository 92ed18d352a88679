"""Every row of every table that a config names goes through a whole tiny run."""

from typing import Any

import pytest

from fedjax_rai.cai.options import METHODS
from fedjax_rai.data.partition import PARTITIONS
from fedjax_rai.evals.judge import AUTO, JUDGES
from fedjax_rai.evals.suite import EVALUATIONS
from fedjax_rai.fed.aggregate import AGGREGATORS
from fedjax_rai.fed.algorithm import ALGORITHMS
from fedjax_rai.model.cache import CACHES
from fedjax_rai.model.quantize import QUANTIZATIONS
from fedjax_rai.runs import conclude, files
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
ROWS = [(key, name) for key, table in TABLES.items() for name in table]


@pytest.mark.slow
@pytest.mark.parametrize(("key", "name"), ROWS)
def test_every_row_goes_through_a_whole_run(config, arm, monkeypatch, key, name):
    """Three clients of four a round, so that a trimmed mean trims; what is evaluated has a test of its own."""
    monkeypatch.setattr(conclude, "evaluate", lambda *_: ({"harmless": None}, []))
    monkeypatch.setattr(conclude, "critique_of", lambda *_: None)
    section, field = key.split(".")
    fields: dict[str, Any] = {
        "federated": {"cohort": 3, "rounds": 2},
        "cai": {"iterations": 1, "temperature": 2.0},
        "trimmed_mean": {"share": 0.34},
        "natural": {"column": "category"},  # of the tiny world's rows, which name no client
    }
    fields[section] = fields.get(section, {}) | {field: name}
    if key == "cai.preference":
        fields["cai"]["method"] = "sft+dpo"
    config = vary(config, **fields)
    folder = run(config, arm(config))
    rows = files.read_rows(folder / "metrics.jsonl")
    assert [row["clients"] for row in rows] == [3, 3] and not any(row["diverged"] for row in rows)
    assert all(row["delta_norm"] > 0 and row["trained_tokens"] > 0 and row["cai_iterations"] == 1 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("judge", [AUTO, *JUDGES])
def test_every_judge_gives_the_headline_rate_and_every_evaluation_is_measured(config, arm, judge):
    config = vary(config, federated={"rounds": 0}, cai={"enabled": False}, eval={"judge": judge, "drift_prompts": 4})
    folder = run(config, arm(config))
    rates = files.read_json(folder / "summary.json")["rates"]
    assert rates["harmless"]["judge"] == ("rule" if judge == AUTO else judge)
    tiny = {"advbench", "synthetic_choice", "utility", "over_refusal", "drift", "perplexity"}
    assert {row["set"] for row in files.read_rows(folder / "answers.jsonl")} == tiny < set(EVALUATIONS)
