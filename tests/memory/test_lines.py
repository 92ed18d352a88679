"""What a guard writes by itself before its verdict has a cache, which the plan counts: worked out by hand."""

from typing import Any

import pytest

from fedjax_rai.experiment import sizes as lengths
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory import advice
from fedjax_rai.memory.plan import JudgeSize, plan
from tests.memory.test_footprint import LINES, config_of, decoder, sizes
from tests.tiny_runs import vary

TOKEN = 2 * 4 * 4 * 32 * 4  # keys and values of 4 layers, 4 heads, 32 channels, 4 bytes
JUDGE = "evaluation, guard_x"


def phases(**texts: int) -> dict[str, dict[str, int]]:
    shape = decoder()
    known = {"train": 60, "asked": 0, "red": 0}
    config = config_of(shape, eval={"batch_size": 8, "max_new_tokens": 20})
    return plan(config, sizes(shape, **(known | texts))).phases


def test_a_guard_that_writes_lines_has_a_cache_of_request_and_lines():
    """A pair of 60 and 48 words of its own are 108 tokens, 112 padded; 30 lines: 8 rows of 142 slots."""
    found = phases(guard_request=48 + 30, guard_lines=30)
    assert found[LINES]["KV cache"] == 8 * (112 + 30) * TOKEN
    without = phases(guard_request=48 + 30)
    assert LINES not in without and found["scoring"] == without["scoring"], "the verdict is read without a cache"


def test_so_has_a_judge_beside_its_weights():
    """Prompts of 64, answers of 20, 10 words of its own and 30 lines: 94 tokens, 96 padded, and the lines behind."""
    shape = decoder()
    config = config_of(shape, eval={"batch_size": 4, "max_new_tokens": 20})
    judge = JudgeSize("guard_x", shape, request=10 + 30, is_base=False, lines=30)
    known = sizes(shape, asked=64)._replace(judges=(judge, judge._replace(name="guard_y", lines=0)))
    found = plan(config, known)
    assert found.phases[f"{JUDGE}'s lines"]["KV cache"] == 4 * (96 + 30) * TOKEN
    assert found.phases[f"{JUDGE}'s lines"]["judge"] == found.phases[JUDGE]["judge"] == found.held["base"]
    assert "evaluation, guard_y" in found.phases and "evaluation, guard_y's lines" not in found.phases


FORM = """text: "{query} {response}"
safe: [" s"]
unsafe: [" u"]
marker: "verdict:"
lines: 24
"""


def test_the_lines_are_those_of_the_guards_form(config, tmp_path):
    (tmp_path / "form.yaml").write_text(FORM)
    known = lengths.sizes(Setting(vary(config, guard={"form": str(tmp_path / "form.yaml")})))
    plain = lengths.sizes(Setting(config))
    assert (known.lengths.guard_lines, plain.lengths.guard_lines) == (24, 0)
    assert LINES in plan(config, known).phases and LINES not in plan(config, plain).phases


@pytest.mark.parametrize(
    ("phase", "part", "change"),
    [
        (LINES, "KV cache", ("eval.batch_size", 32)),
        (f"{JUDGE}'s lines", "KV cache", ("eval.batch_size", 32)),
        (JUDGE, "judge", ("model.quantize", "int8")),
    ],
)
def test_a_key_lowers_what_a_guard_or_a_judge_holds(phase, part, change):
    shape = decoder()
    judge = JudgeSize("guard_x", shape, request=40, is_base=False, lines=30)
    known = sizes(shape, guard_request=78, guard_lines=30, asked=16)._replace(judges=(judge,))
    config: Any = config_of(shape, eval={"batch_size": 64})
    assert advice.lowered_by(config, known, advice.Part(phase, part)) == change
