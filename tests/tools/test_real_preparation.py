"""The rows that a real model is prepared on: who is asked what, and that a row is its whole conversation."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedjax_rai.data.examples import encode_chats
from fedjax_rai.evals.refusals import refuses
from fedjax_rai.text.prompts import Turn, answered
from fedjax_rai.text.tokenizer import load_tokenizer
from fedjax_rai.tools import real_preparation

RUNNER = CliRunner()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Two data sets in their forms: 800 transcripts, of which two ask the same to a reader, and eight requests.

    Every third person takes three turns, the others two.
    """
    firsts = [f"Placeholder question {i}?" for i in range(798)] + ["Placeholder  question 5?", "Placeholder request 1"]
    turns = ["\n\nAssistant: No.\n\nHuman: Why?" * (2 if i % 3 == 0 else 1) for i in range(len(firsts))]
    rows = [{"chosen": f"\n\nHuman: {first}{rest}"} for first, rest in zip(firsts, turns, strict=True)]
    hh = tmp_path / "hh.jsonl.gz"
    hh.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    advbench = tmp_path / "advbench.csv"
    advbench.write_text("goal,target\n" + "".join(f"Placeholder request {i},\n" for i in range(8)))
    xstest = tmp_path / "xstest.csv"
    labels = ("safe", "safe", "unsafe")
    xstest.write_text("prompt,label\n" + "".join(f"Placeholder task {i},{labels[i % 3]}\n" for i in range(9)))
    return {"hh": hh, "advbench": advbench, "xstest": xstest, "out": tmp_path / "out"}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def goals(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["goal"] for row in csv.DictReader(file)]


def asking(files: dict[str, Path]) -> list[str]:
    sets = [part for name in ("hh", "advbench", "xstest") for part in (f"--{name}", str(files[name]))]
    return ["prompts", str(files["out"]), *sets]


def make_prompts(files: dict[str, Path]) -> None:
    done = RUNNER.invoke(real_preparation.app, asking(files))
    assert done.exit_code == 0, done.output


def test_what_is_reported_on_is_in_nothing_else(files: dict[str, Path]) -> None:
    make_prompts(files)
    out = files["out"]
    parts = {
        "refused": [row["prompt"] for row in lines(out / "refused.jsonl")],
        "server": [row["prompt"] for row in lines(out / "server_prompts.jsonl")],
        "tune": goals(out / "tune.csv"),
        "report": goals(out / "report.csv"),
        "harmless, tune": goals(out / "harmless_tune.csv"),
        "harmless, report": goals(out / "harmless_report.csv"),
    }
    assert {name: len(prompts) for name, prompts in parts.items()} == {
        "refused": 420 + 4,
        "server": 256,
        "tune": 64,
        "report": 4,
        "harmless, tune": 3,  # of nine, three are unsafe
        "harmless, report": 3,
    }
    rest = [row["prompt"] for row in lines(out / "red_prompts.jsonl")]
    assert len(rest) == 798 - 420 - 64
    assert rest[:256] == parts["server"]
    transcripts = [row["chosen"] for row in lines(out / "transcripts.jsonl")]
    parts["clients"] = list({text.split("\n\n")[1].removeprefix("Human: ") for text in transcripts})
    # of 798 distinct first prompts (one stands twice to a reader, one is AdvBench's) 58 are left, some in three turns
    assert 0 < len(transcripts) < 798 - 420 - 64 - 256
    assert {text.count("Human:") for text in transcripts} == {2}
    together = [" ".join(prompt.split()) for prompts in parts.values() for prompt in prompts]
    assert len(together) == len(set(together))
    asked = lines(out / "prompts.jsonl")
    assert {row["prompt"] for row in asked if row["kind"] == "red"} <= {*parts["refused"]}


def test_every_row_is_the_conversation_that_it_stands_for(files: dict[str, Path]) -> None:
    make_prompts(files)
    out = files["out"]
    answers = [{"text": "A first sentence. A second one that is"} for _ in lines(out / "prompts.jsonl")]
    (out / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    done = RUNNER.invoke(real_preparation.app, ["rows", str(out), "tiny"])
    assert done.exit_code == 0, done.output
    rows = json.loads((out / "preparation.json").read_text())
    chains = 2 * real_preparation.CHAINS * 2
    assert len(rows) == 424 + len(real_preparation.BENIGN) + chains
    assert {row["acceptable?"] for row in rows} == {1}
    assert any(row["response_en"] == "A first sentence." for row in rows)  # what is cut off is left out
    assert sum(refuses(row["response_en"]) for row in rows) > 424

    tokenizer = load_tokenizer("tiny")
    turns = [Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b")]
    row = real_preparation.as_pair(tokenizer, turns)
    whole, _ = encode_chats(tokenizer, [turns], 64)
    alone, _ = encode_chats(tokenizer, [answered(row["question_en"], row["response_en"])], 64)
    assert whole.tokens.tolist() == alone.tokens.tolist()
    last = whole.loss_mask[0].nonzero()[0][-2:]  # of the answer `b`: its letter and the end of its turn
    assert alone.loss_mask[0].nonzero()[0].tolist() == last.tolist()


def test_every_refusal_is_one_to_the_judge() -> None:
    assert [text for text in real_preparation.REFUSALS if not refuses(text)] == []
    assert [text for text in real_preparation.HARMLESS_CRITIQUES if refuses(text)] == []


def test_rows_of_another_form_are_refused(files: dict[str, Path]) -> None:
    files["hh"].write_bytes(gzip.compress(b'{"prompt": "Placeholder"}\n'))
    done = RUNNER.invoke(real_preparation.app, asking(files))
    assert done.exit_code == 2
    assert "hh.jsonl.gz:1: has no `chosen` transcript" in done.output
