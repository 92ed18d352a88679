"""Our models under lm-evaluation-harness: its own numbers on the same checkpoint, and tasks without a network."""

import json
import math
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from fedjax_rai.cli import app
from fedjax_rai.errors import InputError
from fedjax_rai.runs.target import read_target
from fedjax_rai.text.hub import resolve
from fedjax_rai.text.tokenizer import encode_text
from fedjax_rai.tools import harness
from fedjax_rai.tools.sampler import Model, Token

TEXTS = ["What is 3 plus 4?", "The town is old.", "Who broke it?\nNobody knows. ", "3 plus 4 is 7, and 3 더하기 4는 7."]
PAIRS = [
    ("What is 3 plus 4?", " It is 7."), ("What is 3 plus 4?", " It is"), ("The town ", "is old"), ("", "Nobody knows."),
    ("Once upon a time " * 30, "it rained."),
]  # fmt: skip
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: DATA}
test_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
metric_list: [{metric: acc}]
"""


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"--tasks: needs lm-evaluation-harness: pip install 'fedjax-rai\[eval\]'"):
        harness.imported()


@pytest.mark.parametrize(
    ("wanted", "drawn"),
    [
        ({}, (256, 0.0, None, ())),
        ({"until": "\n", "max_gen_toks": 5, "do_sample": False, "temperature": 0.7}, (5, 0.0, None, ("\n",))),
        ({"until": ["a", "b"], "do_sample": True, "temperature": 0.7, "top_p": 0.9}, (256, 0.7, 0.9, ("a", "b"))),
        ({"do_sample": True}, (256, 1.0, None, ())),
        ({"temperature": 0.5, "num_beams": 1}, (256, 0.5, None, ())),
    ],
)
def test_how_a_task_wants_answers_drawn(wanted, drawn):
    settings = harness.drawn_by(wanted, [3])
    assert (settings.limit, settings.temperature, settings.top_p, settings.stop) == drawn and settings.end_ids == (3,)


def test_what_is_not_computed_is_refused():
    with pytest.raises(InputError, match="num_beams = 4 is not computed here"):
        harness.drawn_by({"num_beams": 4}, [])


def test_special_tokens_are_added_once():
    def encode(text: str, add_special_tokens: bool, verbose: bool) -> list[int]:
        return [0] * add_special_tokens + [len(text)]

    tokenizer = SimpleNamespace(bos_token="<s>", bos_token_id=0, eos_token_id=1, encode=encode, name_or_path="t")
    assert encode_text(tokenizer, "ab", None) == [0, 2] and encode_text(tokenizer, "<s>ab", None) == [5]
    assert encode_text(tokenizer, "ab", False) == [2] and harness.prefix(tokenizer) == 0
    tokenizer.bos_token_id = None
    assert harness.prefix(tokenizer) == 1
    tokenizer.eos_token_id = None
    with pytest.raises(InputError, match="neither a bos nor an eos token"):
        harness.prefix(tokenizer)


@pytest.mark.parametrize(("limit", "longest", "kept"), [(3, 8, [2, 3, 4, 5, 6]), (7, 8, [6]), (1, 64, [*range(7)])])
def test_a_prompt_loses_what_leaves_no_room_for_its_answer(limit, longest, kept):
    assert list(harness.fitted(range(7), limit, longest)) == kept


@pytest.mark.parametrize("limit", [0, 8, 9])
def test_an_answer_leaves_room_for_a_prompt(limit):
    with pytest.raises(InputError, match=rf"answers of up to {limit} tokens \(max_gen_toks\); must be 1 to 7"):
        harness.fitted([1, 2, 3], limit, 8)


NO_MODEL: Any = Model(*[None] * len(Model._fields))  # pyright: ignore[reportArgumentType]
"""In place of a model that is not asked."""


def with_logps(monkeypatch: pytest.MonkeyPatch, *logps: float | None) -> None:
    """In place of a model: the last tokens of each text have these log p."""

    def score(model: object, texts: list[list[int]]) -> Iterator[list[Token]]:
        for ids in texts:
            of_text = [None, *(-1.0 for _ in ids), *logps][-len(ids) :]
            yield [Token(id, logp, ((id, -1.0),)) for id, logp in zip(ids, of_text, strict=True)]

    monkeypatch.setattr(harness, "score", score)


def test_a_model_without_numbers_has_no_score(monkeypatch):
    """NaN of the continuation is refused; log 0 is a number; what comes before the continuation is not asked for."""
    with_logps(monkeypatch, math.nan)
    with pytest.raises(InputError, match="no log p of a text"):
        list(harness.likelihoods(NO_MODEL, [([1, 2], [3])], 8))
    with_logps(monkeypatch, -math.inf)
    assert list(harness.likelihoods(NO_MODEL, [([1, 2], [3])], 8)) == [(-math.inf, True)]
    with_logps(monkeypatch, math.nan, -2.0)
    assert list(harness.likelihoods(NO_MODEL, [([1, 2], [3])], 8)) == [(-2.0, True)]


def test_a_continuation_is_scored_whole_or_not_at_all(monkeypatch):
    """As long as the model takes it keeps one token of its context; longer it would lose its own beginning."""
    with_logps(monkeypatch, -1.0)
    assert list(harness.likelihoods(NO_MODEL, [([1, 2], [3] * 4)], 4)) == [(-4.0, True)]
    with pytest.raises(InputError, match="a continuation of a task has 5 tokens; must be at most 4"):
        list(harness.likelihoods(NO_MODEL, [([1, 2], [3]), ([1], [3] * 5)], 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "3"], "--limit: belongs to --tasks"),
        (["--chat"], "--chat: belongs to --tasks"),
        (["--tasks", "a", "eval.samples=3"], "'eval.samples=3': is not read with --tasks; must be of output"),
        (["--tasks", "a", "model.dtype=int4"], "model.dtype int4: must be one of bfloat16"),
        (["--tasks", "a", "eval.batch_size=0"], "eval.batch_size = 0: must be a whole number >= 1"),
    ],
)
def test_options_of_tasks(arguments, message):
    done = CliRunner().invoke(app, ["eval", "tiny", *arguments])
    assert done.exit_code == 2 and message in done.stderr


def instances(arguments: list[tuple]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.mark.parity
def test_our_numbers_are_those_of_its_own_model():
    """Likelihoods, rolling likelihoods of texts longer than the model takes, and greedy answers, in float32."""
    pytest.importorskip("torch")
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    theirs = HFLM(pretrained=str(resolve("tiny")), dtype="float32", device="cpu", batch_size=2, max_length=64)
    asked = harness.Request(read_target("tiny"), (), dtype="float32", max_length=64, batch_size=3)
    ours = harness.language_model(*harness.load(asked), asked)
    got = ours.loglikelihood(instances(PAIRS), disable_tqdm=True)
    expected = theirs.loglikelihood(instances(PAIRS), disable_tqdm=True)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert [logp for logp, _ in got] == pytest.approx([logp for logp, _ in expected], abs=1e-4)
    long = [(text,) for text in (*TEXTS, " ".join(TEXTS * 5))]
    rolled = ours.loglikelihood_rolling(instances(long), disable_tqdm=True)
    assert rolled == pytest.approx(theirs.loglikelihood_rolling(instances(long), disable_tqdm=True), abs=1e-3)
    wanted = [(text, {"until": ["."], "max_gen_toks": 8, "do_sample": False}) for text in TEXTS]
    assert ours.generate_until(instances(wanted)) == theirs.generate_until(instances(wanted), disable_tqdm=True)


@pytest.mark.parity
def test_a_task_of_ones_own_needs_no_network(tmp_path, monkeypatch):
    """Its accuracy is that of our likelihoods, counted by hand; the same request is found again."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = []
    for a, b in ((3, 4), (2, 2), (5, 1)):
        rows.append({"question": f"{a} plus {b} is", "choices": [f"{a + b}", f"{a + b + 1}"], "right": 0})
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "sums.yaml").write_text(TASK.replace("DATA", str(data)))
    out = tmp_path / "out"
    command = ["eval", "tiny", "--tasks", "sums", "--include", str(tasks), f"output={out}", "model.dtype=float32"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    asked = harness.Request(read_target("tiny"), (), dtype="float32")
    ours = harness.language_model(*harness.load(asked), asked)
    right = 0
    for row in rows:
        pairs = [(row["question"], f" {choice}") for choice in row["choices"]]
        (first, _), (second, _) = ours.loglikelihood(instances(pairs), disable_tqdm=True)
        right += first > second
    results = json.loads((out / "results.json").read_text())["results"]["sums"]
    assert results["acc,none"] == pytest.approx(right / 3)
    assert len((out / "samples.jsonl").read_text().splitlines()) == 3
    assert "already evaluated" in CliRunner().invoke(app, command).stderr
    assert (
        "no such task" in CliRunner().invoke(app, ["eval", "tiny", "--tasks", "sumz", "--include", str(tasks)]).stderr
    )
