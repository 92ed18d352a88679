"""The snippets of docs/api.md run, one after the other, on a config so small that it takes minutes to compile and
seconds to run."""

import linecache
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedjax_rai as rai
from fedjax_rai.config.load import dump_config

ROOT = Path(__file__).parents[2]
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE | re.DOTALL)


def test_each_is_shown_in_under_ten_lines() -> None:
    lines = [len([line for line in snippet.splitlines() if line]) for snippet in SNIPPETS]
    assert len(SNIPPETS) >= 9 and max(lines) < 10, lines


@pytest.mark.slow
def test_the_snippets_do_what_the_page_says(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny_cpu.yaml").write_text(dump_config(config.model_copy(update={"output": None})))
    found: dict[str, Any] = {}
    for number, snippet in enumerate(SNIPPETS):
        name = f"docs/api.md, snippet {number}"
        linecache.cache[name] = (len(snippet), None, snippet.splitlines(keepends=True), name)  # as a notebook does
        exec(compile(snippet, name, "exec"), found)
    first, same = rai.open_run("runs/first"), rai.open_run("runs/same")
    assert repr(first).startswith("Run('runs/first': 3 rounds, harmless (by rule) ")
    assert [row["round"] for row in first.metrics] == [1, 2, 3] and first.answers and first.finished
    assert {*found["table"].runs} == {("base", 0), ("fl+cai", 0)} and "fl+cai" in found["table"].text
    assert [*found["sweep"].runs] == ["cai.iterations=0", "cai.iterations=2"]
    assert {(row["arm"], type(row["mean"])) for row in found["table"].rows} == {("base", float), ("fl+cai", float)}
    assert len(found["answers"]) == 1 and isinstance(found["answers"][0], str)
    # a client that trains on as many pairs as every other weighs the same: the rule of one's own is the mean
    for ours, theirs in zip(leaves(first.adapter), leaves(same.adapter), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert any(np.any(leaf != other) for leaf, other in zip(*map(leaves, halves()), strict=True))
    assert found["run"].config.eval.judge.startswith("given:silence_is_safe_")
    assert same.config.federated.aggregator.startswith("given:each_counts_the_same_")


def leaves(adapter: Any) -> list[np.ndarray]:
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(adapter)]


def halves() -> tuple[Any, Any]:
    return rai.open_run("runs/first").adapter, rai.open_run("runs/half_way").adapter
