"""Layouts of columns: pairs worked out by hand, labels by exact rules; what fits none is told what nearly does."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.config.column_names import LAYOUTS, label_text
from fedjax_rai.config.load import load_config
from fedjax_rai.data.columns import COLUMNS, Pair
from fedjax_rai.data.sources import Read, Source, notes, read_pairs
from fedjax_rai.errors import InputError
from fedjax_rai.text.prompts import Turn


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(folder: Path, *rows: Any, columns: Any = None, language: Any = "en") -> Read:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read_pairs(Source(str(path), columns=columns, language=language))


def pairs(folder: Path, *rows: Any, columns: Any = None, language: Any = "en") -> list[tuple[Any, ...]]:
    """(query, response, harmful, category, turns before) of every pair."""
    return [pair[:5] for pair in read(folder, *rows, columns=columns, language=language).pairs]


SQUARE = {"question": "물음", "question_en": "q", "response": "대답", "response_en": "a", "acceptable?": 0}
PKU = {"prompt": "q", "response_0": "a", "response_1": "b", "is_response_0_safe": True, "is_response_1_safe": False}
HH = {
    "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: good",
    "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: bad",
}
BEFORE = (Turn("user", "q"), Turn("assistant", "a"))
ROWS: dict[str, tuple[dict[str, Any], list[tuple[Any, ...]]]] = {
    "square": ({**SQUARE, "question_category": None, "category": ["x", "y"]}, [("q", "a", True, "x", ())]),
    "alpaca": (
        {"instruction": "do", "input": "this", "output": "done", "text": "all"},
        [("do\n\nthis", "done", None, "etc", ())],
    ),
    "messages": (
        {"messages": [{"role": "system", "content": "s"}, user("q"), assistant("a"), user("r"), assistant("b")]},
        [("r", "b", None, "etc", (Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a")))],
    ),
    "prompt_completion": ({"prompt": "q", "completion": " a"}, [("q", "a", None, "etc", ())]),
    "safe_pairs": (
        {"prompt": "q", "response": "a", "is_safe": False, "category": {"one": False, "two": True}},
        [("q", "a", True, "two", ())],
    ),
    "pku_pairs": (PKU, [("q", "a", False, "etc", ()), ("q", "b", True, "etc", ())]),
    "hh": (
        HH,
        [
            ("r", "good", False, "etc", BEFORE),
            ("r", "bad", True, "etc", BEFORE),
        ],
    ),
}  # fmt: skip


def test_the_key_and_the_table_name_the_same_layouts() -> None:
    assert tuple(COLUMNS) == LAYOUTS == tuple(ROWS)


@pytest.mark.parametrize("layout", ROWS)
def test_a_layout_gives_these_pairs_named_or_recognised(tmp_path: Path, layout: str) -> None:
    row, expected = ROWS[layout]
    assert pairs(tmp_path, row, row, columns=layout) == expected * 2
    found = read(tmp_path, row)
    assert [pair[:5] for pair in found.pairs] == expected
    assert (found.columns, found.recognised, found.rows) == (layout, True, 1)
    assert f"rows.jsonl: read as {layout}, by its columns" in notes(found, "rows.jsonl")[0]


def test_square_is_read_in_either_language(tmp_path: Path) -> None:
    assert pairs(tmp_path, SQUARE, language="ko") == [("물음", "대답", True, "etc", ())]


@pytest.mark.parametrize("empty", ["", None, " "])
def test_an_instruction_without_input_stands_alone(tmp_path: Path, empty: Any) -> None:
    assert pairs(tmp_path, {"instruction": "do", "input": empty, "output": "x"})[0][0] == "do"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": [user("q")], "completion": [assistant("a")]}, ("q", "a", ())),
        (
            {"prompt": [user("q"), assistant("a"), user("r")], "completion": [assistant("b")]},
            ("r", "b", BEFORE),
        ),
        ({"messages": [user("q"), user("r"), assistant("a"), assistant("b"), user("end")]}, ("q\n\nr", "a\n\nb", ())),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ("q", "a", ())),
        ({"messages": [user("q"), {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}, ("q", "a", ())),
        ({"messages": json.dumps([user("q"), assistant("a")])}, ("q", "a", ())),
        ({"messages": str([user("q"), assistant("a")])}, ("q", "a", ())),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, ("q", "a", ())),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ("q", "a", ())),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"}, ("q", "a", ())),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", **{kind: HH[kind] for kind in HH}}, ("r", "good", BEFORE)),
        ({"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [assistant("b")]}, ("q", "a", ())),
    ],
)  # fmt: skip
def test_turns_in_their_usual_spellings(tmp_path: Path, row: Any, expected: tuple[Any, ...]) -> None:
    query, response, _, _, before = pairs(tmp_path, row)[0]
    assert (query, response, before) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, "has a turn of \"tool\"; must be of user, human"),
        ({"messages": [user("q"), {"role": "system", "content": "x"}, assistant("a")]}, "a system turn in its midst"),
        ({"messages": "q"}, "field 'messages' is \"q\"; must be a list of turns"),
        ({"messages": ["q"]}, "field 'messages' holds \"q\"; must be a list of turns"),
        ({"messages": [{"role": "user", "content": 3}]}, "is 3; must be text"),
        ({"prompt": 3, "completion": "x"}, "field 'prompt' is 3; must be text"),
        ({"instruction": "do", "input": 3, "output": "x"}, "field 'input' is 3; must be text"),
        ({"instruction": ["do"], "output": "x"}, r"field 'instruction' is \[\"do\"\]; must be text"),
        ({**PKU, "is_response_1_safe": "unknown"}, "field 'is_response_1_safe' is \"unknown\"; must be 1 or 0"),
        ({"prompt": "q", "response": "a", "is_safe": None}, "field 'is_safe' is null; must be 1 or 0"),
        ({**SQUARE, "response_en": None}, "field 'response_en' is null; must be text, not empty"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_as_its_layout_is_refused_with_its_place(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"rows.jsonl:1: row 0: .*{message}"):
        read(tmp_path, row)


def test_rows_without_an_answer_are_left_out_counted_and_said(tmp_path: Path) -> None:
    made = [{"instruction": "do", "output": text} for text in ("x", "", None, "\u200b\u3164", "y")]
    found = read(tmp_path, *made)
    assert (len(found.pairs), found.rows, found.refused) == (2, 5, 3)
    assert found.first_refused.endswith("rows.jsonl:2: row 1: field 'output' is \"\"")
    assert "3 of 5 rows have an answer that makes no pair; the first: " in notes(found, "p")[1]
    with pytest.raises(InputError, match="no pair in 1 rows, of which the first: .*field 'output' is null"):
        read(tmp_path, made[2])
    half = {**HH, "chosen": "\n\nHuman: q\n\nAssistant:"}
    assert read(tmp_path, HH, half).refused == 1
    empty = {**PKU, "response_0": ""}
    assert pairs(tmp_path, PKU, empty, {**empty, "response_1": None})[2:] == [("q", "b", True, "etc", ())]
    assert read(tmp_path, PKU, empty, {**empty, "response_1": None}).refused == 2
    assert pairs(tmp_path, HH, half)[2:] == [("r", "bad", True, "etc", BEFORE)]
    begun = {"messages": [assistant("a"), user("q"), assistant("b")]}
    assert read(tmp_path, ROWS["messages"][0], begun, {"messages": [user("q")]}, {"messages": []}).refused == 3


def test_pairs_that_are_the_same_to_a_reader_are_counted_and_kept(tmp_path: Path) -> None:
    made = [{"prompt": text, "completion": "x"} for text in ("café", "cafe\u0301", "caf\u200bé", "cafe")]
    found = read(tmp_path, *made)
    assert (len(found.pairs), found.duplicates, found.unlabelled) == (4, 2, 4)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (True, "1"), (1, "1"), (1.0, "1"), ("1", "1"), ("1.0", "1"), ("true", "1"), ("TRUE", "1"), (" yes ", "1"),
        (False, "0"), (0, "0"), (0.0, "0"), ("0", "0"), ("False", "0"), ("no", "0"),
        (2, "2"), ("Toxic", "toxic"), ("", None), (" ", None), (None, None), (float("nan"), None), (0.5, None),
        (float("inf"), None), ([1], None), ({}, None),
    ],
)  # fmt: skip
def test_labels_are_compared_by_what_they_say(value: Any, label: str | None) -> None:
    assert label_text(value) == label


@pytest.mark.parametrize(
    ("value", "harmful"), [(1, False), ("1", False), ("true", False), (0, True), (False, True), ("False", True)]
)
def test_is_safe_false_is_harmful_however_it_is_written(tmp_path: Path, value: Any, harmful: bool) -> None:
    assert pairs(tmp_path, {"prompt": "q", "response": "a", "is_safe": value})[0][2] is harmful


@pytest.mark.parametrize(
    ("names", "value", "harmful"),
    [
        ({"harmful": [1, "yes"]}, True, True),
        ({"harmful": [1, "yes"]}, "no", False),
        ({"harmful": "toxic", "acceptable": ["ok", "fine"]}, "Fine", False),
        ({"harmful": "toxic", "acceptable": ["ok", "fine"]}, "toxic", True),
        ({"acceptable": "safe"}, "unsafe", True),
        ({"acceptable": True}, 0, True),
        ({"harmful": [2, 3], "acceptable": [0, 1]}, "3", True),
    ],
)
def test_one_s_own_names_and_values(tmp_path: Path, names: dict[str, Any], value: Any, harmful: bool) -> None:
    columns = {"prompt": "q", "response": "a", "label": "l", "category": "topic", **names}
    row = {"q": "asked", "a": "answered", "l": value, "topic": "weather", "category": "other"}
    assert pairs(tmp_path, row, columns=columns) == [("asked", "answered", harmful, "weather", ())]


def test_a_value_that_nobody_named_is_refused(tmp_path: Path) -> None:
    columns = {"prompt": "q", "response": "a", "label": "l", "harmful": "toxic"}
    with pytest.raises(InputError) as caught:
        read(tmp_path, {"q": "x", "a": "y", "l": "Toxik"}, columns=columns)
    message = "row 0: field 'l' is \"Toxik\"; must be a value that is named (harmful: toxic; acceptable: none named)"
    assert message in str(caught.value)
    with pytest.raises(InputError, match=r"\(harmful: true / yes / 1; acceptable: false / no / 0\)"):
        read(tmp_path, {"q": "x", "a": "y", "l": "maybe"}, columns=columns | {"harmful": "yes"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "q", "response": "a"}, "the columns instruction, response fit no layout; alpaca nearly does, "
         "but for 'output'; data.columns must say what they hold, as "
         "data.columns='{prompt: instruction, response: response}'"),
        ({"question": "q", "response": "a", "acceptable?": 1}, "square does with data.language=ko"),
        ({"conversation": [user("q")], "toxic": True}, "as data.columns='{messages: conversation}'"),
        ({"x": 1}, r"the columns x fit no layout; data.columns must say .*or one of square, alpaca, messages"),
        ({**PKU, "response": "a", "is_safe": True}, "fit safe_pairs and pku_pairs; data.columns must say which"),
        ({"chosen": "a", "rejected": "b"}, "the columns chosen, rejected fit no layout"),
    ],
)  # fmt: skip
def test_columns_that_fit_no_layout_are_told_what_nearly_fits(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"rows.jsonl:1: row 0: .*{message}"):
        read(tmp_path, row)


def test_columns_that_are_named_and_not_there_are_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'q', which data.columns names, among prompt, completion; prompt"):
        read(tmp_path, {"prompt": "x", "completion": "y"}, columns={"prompt": "q", "response": "completion"})
    with pytest.raises(
        InputError,
        match="'instruction', 'output', which alpaca needs, among prompt, completion; prompt_completion fits",
    ):
        read(tmp_path, {"prompt": "x", "completion": "y"}, columns="alpaca")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("alpacca", "must be one of square, .*; did you mean alpaca?"),
        ("{prompt: q}", "must name a prompt and a response, or messages"),
        ("{promt: q, response: a}", "'promt': no such key; .*; did you mean prompt?"),
        ("{prompt: yes, response: a}", "prompt: must be the name of a column, as text"),
        ("{messages: m, response: a}", "messages holds whole conversations: must stand without response"),
        ("{prompt: q, response: a, label: l}", "label: needs harmful or acceptable"),
        ("{prompt: q, response: a, harmful: 1}", "harmful: needs label"),
        ("{prompt: q, response: a, label: l, harmful: 1, acceptable: true}", "1: stands under harmful and acceptable"),
        ("{prompt: q, response: a, label: l, harmful: []}", "must be values of the label"),
        ("3", "must be the name of a layout, or names of columns"),
    ],
)  # fmt: skip
def test_the_key_is_checked_before_anything_is_read(value: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"data.columns = .*{message}"):
        load_config({}, [f"data.columns={value}"])


def test_a_row_s_other_plain_values_are_kept_as_text(tmp_path: Path) -> None:
    row = {
        "prompt": "q",
        "completion": "a",
        "user": 7,
        "score": 0.5,
        "ok": True,
        "none": None,
        "list": [1],
        "empty": "",
    }
    assert read(tmp_path, row).pairs[0].columns == {"user": "7", "score": "0.5", "ok": "true"}


@pytest.mark.parametrize(
    ("value", "category"),
    [("x", "x"), (["x", "y"], "x"), ("['x', 'y']", "x"), ('["x"]', "x"), ({"x": False, "y": True}, "y"), ([], "etc"),
     (None, "etc"), (float("nan"), "etc"), ("nan", "etc"), (" ", "etc"), ({"x": False}, "etc")],
)  # fmt: skip
def test_a_category_is_text_or_absent(tmp_path: Path, value: Any, category: str) -> None:
    assert pairs(tmp_path, {**SQUARE, "category": value})[0][3] == category


@pytest.mark.parametrize("value", [3, True, [3], {"x": 1}, 0.5])
def test_another_category_is_refused(tmp_path: Path, value: Any) -> None:
    for field in ("category", "question_category"):
        with pytest.raises(InputError, match=f"row 0: field '{field}' is .*; must be text, a list of text, or null"):
            read(tmp_path, {**SQUARE, field: value})


def test_a_function_of_one_s_own_reads_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows_of_mine.py").write_text(
        "from fedjax_rai.data.columns import Pair\n"
        "def pair(row):\n    return Pair(row['x'], row['y'], None) if row['y'] else None\n"
    )
    monkeypatch.chdir(tmp_path)
    columns = "rows_of_mine:pair"
    found = read(tmp_path, {"x": "q", "y": "a"}, {"x": "q", "y": ""}, columns=columns)
    assert found.pairs == [Pair("q", "a", None)] and found.refused == 1
    with pytest.raises(InputError, match="row 0: data.columns = rows_of_mine:pair failed: KeyError: 'y'"):
        read(tmp_path, {"x": "q"}, columns=columns)


def test_real_transcripts_give_two_pairs_a_row(shared_data: Path) -> None:
    """1,156 rows, two of which have one answer without text (counted with a shell)."""
    found = read_pairs(Source(str(shared_data / "hh" / "harmless_dev.jsonl.gz")))
    assert (found.rows, found.refused, len(found.pairs), found.columns) == (1156, 2, 2310, "hh")
    for pair in found.pairs:
        assert [turn.role for turn in pair.before] == ["user", "assistant"] * (len(pair.before) // 2)
