"""Runs on a prepared set: they train on its pairs, and generate nothing."""

from pathlib import Path

import pytest

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment import phase
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import files
from fedjax_rai.runs.run import run
from tests.texts import write_lines
from tests.tiny_runs import adapter_bytes, after_round, dies_when, vary


@pytest.fixture
def prepared(config, tmp_path) -> ExperimentConfig:
    """A config that trains on a set."""
    pairs = [{"prompt": f"question {i}?", "chosen": f"no, {i}", "rejected": f"yes {i}"} for i in range(9)]
    write_lines(tmp_path / "pairs.jsonl", pairs)
    return vary(config, cai={"data": str(tmp_path / "pairs.jsonl")})


def trained(config: ExperimentConfig, setting: Setting, folder: str) -> bytes:
    config = vary(config, folder)
    return adapter_bytes(run(config, Setting(config, setting)))


@pytest.mark.slow
def test_a_run_trains_on_a_set(prepared, unevaluated, monkeypatch):
    """By each method: something is learnt, nothing is generated, and a run killed in its second round is the same."""
    shared = Setting(prepared)
    none = trained(vary(prepared, cai={"enabled": False}), shared, "none")
    assert trained(vary(prepared, cai={"iterations": 0}), shared, "zero") == none
    monkeypatch.setattr(phase, "rollout_batch", None)
    ends = {none}
    for method in ("sft", "dpo", "sft+dpo"):
        own = vary(prepared, cai={"method": method})
        whole = trained(own, shared, f"{method}-whole")
        with dies_when(after_round(1)):
            trained(own, shared, method)
        assert trained(own, shared, method) == whole
        metrics = files.read_rows(Path(f"{prepared.output}{method}") / "metrics.jsonl")
        assert [row["cai_pairs"] for row in metrics] == [prepared.cai.prompts] * 2
        assert not any(row["cai_generated_tokens"] for row in metrics)
        ends.add(whole)
    assert len(ends) == 4, "no two methods learn the same"
