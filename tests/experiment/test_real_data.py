"""The command on real SQuARe pairs and AdvBench prompts, both languages; skipped where the data are absent."""

import json

import pytest
from typer.testing import CliRunner

from fedjax_rai.cli import app

SMALL = [
    "federated.rounds=1", "federated.local_steps=1", "federated.batch_size=2", "guard.steps=1", "guard.batch_size=2",
    "cai.prompts=2", "cai.replay=2", "cai.iterations=1", "cai.max_new_tokens=4", "cai.batch_size=2",
    "eval.prompts=3", "eval.samples=1", "eval.max_new_tokens=4", "eval.batch_size=32", "data.max_length=512",
    "eval.cut_off=judged",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_whole_loop_on_real_data(shared_data, tmp_path, language):
    (tmp_path / "a.yaml").write_text("")
    real = [f"data.train={shared_data / 'square/response_dev.json'}", f"data.language={language}"]
    real += [f"eval.advbench={shared_data / 'advbench/advbench_dev.csv'}", f"output={tmp_path / 'out'}"]
    result = CliRunner().invoke(app, ["run", str(tmp_path / "a.yaml"), *real, *SMALL])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    rates = summary["rates"]
    assert summary["synthetic"] == ["model"]
    assert rates["harmless"]["prompts"] == 3 and rates["harmless_by_rule"] is None
    assert rates["square_choice"]["prompts"] >= 3 and rates["drift"]["prompts"] > 0 and rates["perplexity"]["mean"] > 1
    assert all(rates[name] is None for name in ("hhh", "utility", "over_refusal", "contrast_refusal"))
    asked = [json.loads(line)["prompt"] for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert asked[0] in (shared_data / "advbench/advbench_dev.csv").read_text()
