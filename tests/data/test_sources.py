"""Readers of users' files: what they read, and that whatever is wrong is refused with its place."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.data.sources import Pair, read_advbench, read_square, recipe, split_by_question
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


def pool(red: int, acceptable: int) -> list[Pair]:
    return [Pair(f"q{i}", f"a{i}", i < red, "etc") for i in range(red + acceptable)]


@pytest.mark.parametrize(
    ("there", "asked", "drawn"),
    [
        ((30, 90), (None, None), (30, 70)),
        ((60, 70), (None, None), (30, 70)),
        ((60, 90), (6, 14), (6, 14)),
        ((60, 90), (6, None), (6, 14)),
        ((60, 90), (None, 14), (6, 14)),
        ((60, 90), (0, None), (0, 90)),
        ((60, 90), (None, 0), (60, 0)),
        ((60, 90), (60, 90), (60, 90)),
        ((0, 5), (None, None), (0, 5)),
    ],
)
def test_the_recipe_takes_what_is_asked(there: tuple, asked: tuple, drawn: tuple) -> None:
    pairs = pool(*there)
    made = recipe(pairs, *asked, seed=0)
    assert (sum(p.harmful is True for p in made), sum(p.harmful is False for p in made)) == drawn
    assert len(set(made)) == len(made) and set(made) <= set(pairs)


def test_the_recipe_is_shuffled_by_the_seed() -> None:
    pairs = pool(30, 70)
    first = recipe(pairs, 20, 40, 0)
    assert first == recipe(pairs, 20, 40, 0) != recipe(pairs, 20, 40, 1)
    harmful = [p.harmful for p in first]
    assert any(harmful[20:]) and not all(harmful[:20]), "red and acceptable pairs are mixed"
    assert set(first) != set(recipe(pairs, 20, 40, 1)), "the seed draws, too"


@pytest.mark.parametrize(
    ("there", "asked", "message"),
    [
        ((3, 7), (4, None), r"data\.red = 4: more than there are; must be at most 3, the red pairs"),
        ((3, 7), (None, 8), r"data\.acceptable = 8: more than there are; must be at most 7, the acceptable pairs"),
        ((3, 7), (0, 0), "no pairs to train on, of 3 red and 7 acceptable"),
        ((0, 0), (None, None), "no pairs to train on"),
    ],
)
def test_more_than_there_are_is_refused(there: tuple, asked: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(pool(*there), *asked, seed=0)


SHARES = {"clients": 0.6, "guard": 0.3, "eval": 0.1}


def test_questions_are_split_whole_and_in_proportion() -> None:
    questions = [f"Is question {i} like its neighbour?" for i in range(3000)]
    pairs = [Pair(question, answer, False, "etc") for question in questions for answer in ("yes", "no")]
    parts = split_by_question(pairs, SHARES, 0)
    assert sorted(p for part in parts.values() for p in part) == sorted(pairs)
    where = {name: {p.query for p in part} for name, part in parts.items()}
    assert sum(map(len, where.values())) == 3000, "a question is in one part"
    for name, share in SHARES.items():
        assert abs(len(where[name]) / 3000 - share) < 0.03


def test_a_split_depends_on_question_and_seed_alone() -> None:
    pairs = [Pair(f"question {i}", "yes", False, "etc") for i in range(300)]
    parts, fewer = split_by_question(pairs, SHARES, 0), split_by_question(pairs[::3], SHARES, 0)
    assert all(set(fewer[name]) <= set(parts[name]) for name in SHARES)
    assert split_by_question(pairs, SHARES, 1)["guard"] != parts["guard"]


def test_a_split_never_moves() -> None:
    """Reported numbers stand on it: these parts must be the same on every machine and in every version."""
    pairs = [Pair(f"question {i}", "yes", False, "etc") for i in range(8)]
    parts = split_by_question(pairs, SHARES, 0)
    assert {name: [p.query[-1] for p in part] for name, part in parts.items()} == {
        "clients": ["1", "2", "3", "6"],
        "guard": ["5", "7"],
        "eval": ["0", "4"],
    }


def test_advbench_goals_are_read(tmp_path: Path) -> None:
    text = 'target, goal\r\n"Sure,\nhere",do "this"\r\n\r\nSure,"do,\nthat"\r\n'
    assert read_advbench(written(tmp_path, "a.csv", text)) == ['do "this"', "do,\nthat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv: the file is empty"),
        ("goal,target\n", r"a\.csv: no rows"),
        ("goal,other\na,b\n", r"a\.csv:1: no column 'target'; the header must be goal,target"),
        ("a,b\n", r"a\.csv:1: no column 'goal'"),
        ('goal,target\n"a\nb",c\n ,d\n', r"a\.csv:4: goal is empty"),
        ('goal,target\n"a\nb",c\nd\n', r"a\.csv:4: 1 values; must be 2"),
        ('goal,target\na,b\n"c\n', r"a\.csv:3: not valid CSV"),
    ],
)
def test_a_bad_csv_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_advbench(written(tmp_path, "a.csv", text))


def test_real_requests_are_read(shared_data: Path) -> None:
    goals = read_advbench(shared_data / "advbench" / "advbench_dev.csv")
    assert len(goals) == 133 == len(set(goals)) and not any("Sure, here" in goal for goal in goals)
    assert Counter(goal == goal.strip() for goal in goals) == {True: 133}
