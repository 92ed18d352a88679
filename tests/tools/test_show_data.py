"""`fedjax-rai data show`: counts worked out by hand, and lines that fit the terminal."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedjax_rai.cli import app
from fedjax_rai.data.sources import Pair
from fedjax_rai.text.prompts import Turn
from fedjax_rai.tools.show_data import columns, cut, lengths, row_lines
from tests.data.test_corpus import pair

RUNNER = CliRunner()
KOREAN = {name: value for name, value in pair(1, 1, 1).items() if not name.endswith("_en")}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.setattr(sys, "argv", ["fedjax-rai"])


def show(*arguments: str, width: int = 80, code: int = 0) -> str:
    done = RUNNER.invoke(app, ["data", "show", *arguments], env={"COLUMNS": str(width)})
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def test_a_source_is_shown_in_numbers_and_rows() -> None:
    rows = [
        pair(1, 1, 1, question_en="Why?", response_en="So."),
        pair(1, 2, 0, question_en="Why?", response_en="Because."),
        pair(2, 3, 0, question_en="Who?", response_en="He did it."),
    ]
    Path("a.json").write_text(json.dumps(rows))
    lines = show("a.json", "--rows", "1").splitlines()
    assert {line.split()[0]: " ".join(line.split()[1:]) for line in lines[:8]} == {
        "source": "a.json, split train",
        "columns": "square, recognised; language en",
        "rows": "3: 3 pairs, 0 refused, 0 duplicates",
        "labels": "2 harmful, 1 acceptable, 0 unlabelled (66.7 % harmful)",
        "prompts": "2 distinct",
        "categories": "objective 1, contentious 1, ethical 1",
        "prompt": "4 characters at the median, 4 at 95 %, 4 at most",
        "response": "8 characters at the median, 10 at 95 %, 10 at most",
    }
    assert lines[8:] == ["", "1. acceptable, objective", "   prompt: Why?", "   response: So."]
    assert len(show("a.json", "--rows", "0").splitlines()) == 8


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_fit_the_terminal_whatever_they_hold(width: int) -> None:
    texts = {"question": "한국어 질문 " * 40, "response": "답\x1b[31m\n\n답" * 60}
    rows = [pair(i, i, acceptable=1) | texts for i in range(3)]
    Path("a.json").write_text(json.dumps(rows))
    lines = show("a.json", "--language", "ko", width=width).splitlines()
    assert width - 1 <= max(map(columns, lines)) <= width  # a wide character may not fit into the last column
    assert "\x1b" not in "".join(lines)
    assert sum(line.endswith("…") for line in lines) >= 6


def test_a_line_is_cut_by_what_it_takes_on_a_terminal() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"
    assert cut("가나다라", 8) == "가나다라"
    assert cut("가나다라", 7) == "가나다…"
    assert cut("a\x1b[0m\nb", 20) == "a [0m b"
    assert columns("e\u0301") == 1  # an accent takes no column


def test_lengths_are_of_characters() -> None:
    assert lengths(["a" * n for n in (1, 2, 3, 1004)]) == "2 characters at the median, 854 at 95 %, 1,004 at most"


def test_earlier_turns_and_rows_without_labels_are_shown() -> None:
    spoken = Pair("And then?", "Nothing.", None, before=(Turn("user", "What?"), Turn("assistant", "This.")))
    assert list(row_lines([spoken])) == [
        "",
        "1. unlabelled, none or etc",
        "   user: What?",
        "   assistant: This.",
        "   prompt: And then?",
        "   response: Nothing.",
    ]


def test_columns_may_be_named_and_what_holds_no_pair_is_shown() -> None:
    rows = [{"q": "Why?", "a": "So."}, {"q": "Who?", "a": ""}, {"q": "Why?", "a": "So."}]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = show("a.jsonl", "--columns", "{prompt: q, response: a}")
    assert "columns     prompt: q, response: a; language en" in output
    assert "rows        3: 2 pairs, 1 refused, 1 duplicate\n" in output
    assert "refused     the first: a.jsonl:2: row 1: " in output
    assert "labels      0 harmful, 0 acceptable, 2 unlabelled\n" in output


def test_the_tiny_world_and_questions_are_shown() -> None:
    assert "labels      1,800 harmful, 4,200 acceptable, 0 unlabelled (30.0 % harmful)" in show("tiny")
    rows = [{"question": f"질문 {i}", "sensitive?": int(i < 2), "category": None} for i in range(3)]
    Path("question_train.json").write_text(json.dumps(rows))
    done = RUNNER.invoke(app, ["data", "prepare", "questions_ko", "question_train.json"])
    assert done.exit_code == 0, done.output
    lines = show("tfds:square/questions_ko", "--rows", "1").splitlines()
    assert lines[1:4] == [
        "columns     category, question, sensitive?; no answers, so no pairs to train on",
        "rows        3, 2 sensitive",
        "categories  none or etc 3",
    ]
    assert lines[-1] == '1. {"category": "", "question": "질문 0", "sensitive?": 1}'


def test_a_prepared_corpus_is_shown_in_its_language_with_what_it_was_made_of() -> None:
    rows = [pair(q, 10 * q + a, acceptable=int(a > 2)) for q in range(10) for a in range(10)]
    Path("response_train.json").write_text(json.dumps(rows))
    done = RUNNER.invoke(app, ["data", "prepare", "square20k_ko", "response_train.json", "--partial"])
    assert done.exit_code == 0, done.output
    output = show("tfds:square/square20k_ko", "--rows", "1")
    assert "language ko" in output and "(30.0 % harmful)" in output and "prompt: 질문 " in output
    wrong = show("tfds:square/square20k_ko", "--language", "en", code=2)
    assert "another language than --language = 'en'; must be 'ko'" in wrong
    assert "made of     train: 100 rows of response_train.json (sha256 " in output


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"q": "Why?", "a": "So."}, (), "--columns must say what they hold, as --columns='{prompt: q, response: a}'"),
        ({"q": "Why?", "a": "So."}, ("--columns", "{prompt: q, response: b}"), "no column 'b', which --columns names"),
        (KOREAN, (), "square does with --language=ko; --columns must say"),
    ],
)
def test_columns_are_asked_for_by_the_option(row: dict, columns: tuple[str, ...], message: str) -> None:
    Path("a.json").write_text(json.dumps([row]))
    output = show("a.json", *columns, code=2)
    assert message in output and "data." not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.json"], "absent.json"),
        (["tfds:square/slg20k_en"], "to prepare it: fedjax-rai data prepare slg20k_en SOURCE"),
        (["a.json", "--columns", "{prompt: a"], "--columns {prompt: a: "),
        (["a.json", "--columns", "{prompt: a}"], "--columns {prompt: a}: must name a prompt and a response"),
        (["a.json", "--columns", "squar"], "did you mean square?"),
        (["a.json", "--language", "fr"], "--language fr: must be one of en, ko"),
    ],
)
def test_bad_input_is_a_message(arguments: list[str], message: str) -> None:
    output = show(*arguments, code=2)
    assert message in output and "Traceback" not in output
