"""A run whose texts are generated with the adapter merged is the run with it beside the base."""

import pytest

from fedjax_rai.runs.run import run
from tests.tiny_runs import adapter_bytes, timeless, vary


@pytest.mark.slow
def test_a_run_with_merged_answers_is_the_run_with_the_adapter_apart(config):
    """In float32, greedy: every answer, every metric and the adapter that is left."""
    greedy = {"cai": {"temperature": 0.0}, "eval": {"temperature": 0.0, "samples": 1}}
    apart, merged = (
        run(vary(config, f"-{answering}", model={"answering": answering}, **greedy))
        for answering in ("apart", "merged")
    )
    assert timeless(merged) == timeless(apart)
    assert (merged / "answers.jsonl").read_text() == (apart / "answers.jsonl").read_text()
    assert adapter_bytes(merged) == adapter_bytes(apart)
