"""Readers of users' files: what they read, and that whatever is wrong is refused with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.data.sources import read_square
from fedjax_rai.errors import InputError


def row(**changes: Any) -> dict[str, Any]:
    fields = {"question": "물음", "question_en": "asked", "response": "대답", "response_en": "answered"}
    return {**fields, "acceptable?": 0, "category": ["ethical", "etc"], "question_category": None, **changes}


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in row().items() if name != field}


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
    return path


def test_a_json_list_is_read_in_either_language(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", [row(), row(**{"acceptable?": 1, "question_category": "predictive"})])
    assert [pair[:4] for pair in read_square(path)] == [
        ("asked", "answered", True, "ethical"),
        ("asked", "answered", False, "predictive"),
    ]
    assert read_square(path, "ko")[0][:4] == ("물음", "대답", True, "ethical")


def test_json_lines_and_saved_data_sets_read_the_same(tmp_path: Path) -> None:
    import datasets

    rows = [row(question_en=f"asked {i}", **{"acceptable?": i % 2}) for i in range(4)]
    pairs = read_square(written(tmp_path, "a.json", rows))
    assert read_square(written(tmp_path, "a.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n")) == pairs
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict({"test": saved}).save_to_disk(tmp_path / "test_only")
    assert read_square(tmp_path / "saved") == pairs
    assert read_square(tmp_path / "splits") == pairs
    with pytest.raises(InputError, match="no split 'train', only test"):
        read_square(tmp_path / "test_only")


def test_a_byte_order_mark_and_odd_spaces_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(
        b"\xef\xbb\xbf \r\n[ " + json.dumps(row()).encode() + b"\r\n , \t" + json.dumps(row()).encode() + b" ] "
    )
    assert len(read_square(path)) == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without("acceptable?"), r"no field 'acceptable\?'; must be 1 or 0"),
        (row(**{"acceptable?": "maybe"}), r"field 'acceptable\?' is \"maybe\"; must be 1 or 0, or true or false"),
        (row(**{"acceptable?": 2}), r"field 'acceptable\?' is 2; must be 1 or 0"),
        (row(**{"acceptable?": None}), r"field 'acceptable\?' is null; must be 1 or 0"),
        (row(**{"acceptable?": 0.5}), r"field 'acceptable\?' is 0.5; must be 1 or 0"),
        (without("question_en"), "no field 'question_en'; must be text, not empty"),
        (row(response_en=" "), "field 'response_en' is \" \"; must be text, not empty"),
        (row(response_en=["a"]), "field 'response_en' is .*; must be text, not empty"),
        (row(category=3), "field 'category' is 3; must be text, a list of text, or null"),
        (row(category=[3]), r"field 'category' is \[3\]; must be text, a list of text, or null"),
        (row(question_category=True), "field 'question_category' is true; must be text"),
        (7, "7 is no object"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(tmp_path: Path, bad: Any, message: str) -> None:
    path = written(tmp_path, "a.json", [row(), row(), bad])
    lines = path.read_text(encoding="utf-8").split("\n")
    starts = [i for i, line in enumerate(lines, 1) if line in (" {", " 7")]
    with pytest.raises(InputError, match=rf"a\.json:{starts[2]}: row 2: {message}"):
        read_square(path)
    lined = written(tmp_path, "a.jsonl", "\n".join([json.dumps(row()), "", json.dumps(bad)]))
    with pytest.raises(InputError, match=rf"a\.jsonl:3: row 1: {message}"):
        read_square(lined)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.json: the file is empty"),
        (" \n", "a.json: the file is empty"),
        ("[]", "a.json: no rows"),
        ("\n{}", "a.json:2: row 0: no column 'question_en', 'response_en', 'acceptable\\?', which square needs"),
        ("[", r"a.json:1:2: not valid JSON"),
        ("[\n  {'a': 1}]", r"a.json:2:4: not valid JSON"),
        (f"[{json.dumps(row())},\n]", r"a.json:2:1: not valid JSON"),
        (f"[{json.dumps(row())}\n{json.dumps(row())}]", r"a.json:2:1: not valid JSON: must be a comma"),
        (f"[{json.dumps(row())}\n", r"a.json:2:1: not valid JSON: must be a comma or the closing bracket"),
        (f"[{json.dumps(row())}]\n x", r"a.json:2:2: not valid JSON: must be nothing after"),
    ],
)
def test_broken_json_is_refused_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_square(written(tmp_path, "a.json", text))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: cannot be read: No such file"):
        read_square(tmp_path / "absent.json")
    (tmp_path / "a.json").write_bytes(b"[\xff")
    with pytest.raises(InputError, match=r"a\.json:1: byte 1 is not UTF-8"):
        read_square(tmp_path / "a.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        InputError, match="folder: no file of JSON, JSON lines, CSV, Parquet or Arrow in it, at any depth"
    ):
        read_square(tmp_path / "folder")


def test_real_pairs_are_read_in_both_languages(shared_data: Path) -> None:
    path = shared_data / "square" / "response_dev.json"
    english, korean = read_square(path, "en"), read_square(path, "ko")
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert len(english) == len(korean) == len(raw) > 0
    assert [p.query for p in english] == [r["question_en"].strip() for r in raw]
    assert [p.response for p in korean] == [r["response"].strip() for r in raw]
    assert [p.harmful for p in korean] == [p.harmful for p in english] == [r["acceptable?"] == 0 for r in raw]
    assert {p.category for p in english} <= {"contentious", "ethical", "predictive", "etc"}
