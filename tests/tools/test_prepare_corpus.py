"""`fedjax-rai data prepare`: the set is there whole, made of what was given, or not there at all."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedjax_rai.cli import app
from fedjax_rai.config.files import rows_digest
from fedjax_rai.data import records
from fedjax_rai.data.records import Records
from tests.data.test_corpus import pair

RUNNER = CliRunner()
PAIRS = [pair(q, 10 * q + a, acceptable=int(a > 2)) for q in range(30) for a in range(10)]  # 3 + 7 a question
QUESTIONS = [{"question": f"질문 {i}", "question_en": f"Q {i}", "sensitive?": 1, "category": "etc"} for i in range(4)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of SQuARe's files, and the place where sets go by default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
    monkeypatch.setattr(sys, "argv", ["fedjax-rai"])
    path = tmp_path / "SQuARe"
    path.mkdir()
    write(path / "response_train.json", PAIRS)
    write(path / "response_test.json", [pair(3, 1, 1), pair(40, 1, 0)])
    write(path / "question_train.json", QUESTIONS)
    return path


def write(path: Path, rows: list) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def prepare(*arguments: str, code: int = 0) -> str:
    """What the command says, on either stream."""
    done = RUNNER.invoke(app, ["data", "prepare", *arguments])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.output


def prepared() -> list[str]:
    """The sets that are there, and whatever is left beside them."""
    found = [*Path("default").glob("square/*"), *Path("default").glob(".*")]
    return sorted(path.name for path in found)


def test_a_folder_gives_every_split_that_it_has_a_file_of() -> None:
    output = prepare("square20k_ko", "SQuARe", "--partial")
    assert prepared() == ["square20k_ko"]
    train, test = (Records("tfds:square/square20k_ko", split) for split in ("train", "test"))
    assert [row["acceptable?"] for row in test] == [1, 0]
    red = sum(not row["acceptable?"] for row in train)
    assert red > 0 and 10 * red == 3 * len(train)  # whole questions of 3 + 7, but for those that test asks
    assert "질문 3" not in {row["question"] for row in train}
    lines = output.splitlines()
    assert lines.pop(0) == "preparing square20k_ko of response_train.json, response_test.json"
    assert lines[1].startswith(
        f"  train  {len(train)} rows: {red} red, {len(train) - red} acceptable; of 300 of response"
    )
    assert lines[1].endswith("; 10 held out")
    assert lines[2].startswith("  test  2 rows: 1 red, 1 acceptable; of 2 of response_test.json (sha256 ")
    ask = "next: fedjax-rai data show tfds:square/square20k_ko"
    assert lines[-1] == f"{ask}; fedjax-rai run CONFIG data.train=tfds:square/square20k_ko data.language=ko"


def test_a_file_is_the_split_train_and_another_folder_is_named() -> None:
    output = prepare("tfds:square/questions_en", "SQuARe/question_train.json", "--data-dir", "else where")
    assert prepared() == []
    assert [row["question_en"] for row in Records("tfds:else where/square/questions_en")] == [
        f"Q {i}" for i in range(4)
    ]
    shown = "fedjax-rai data show 'tfds:else where/square/questions_en'"
    asked = "fedjax-rai run CONFIG 'cai.red_prompts=tfds:else where/square/questions_en'"
    assert output.splitlines()[-1] == f"next: {shown}; {asked}"


def test_the_same_again_is_no_work_and_another_needs_to_be_asked_for() -> None:
    prepare("questions_ko", "SQuARe")
    [records] = Path("default").rglob("*.array_record*")
    first = records.stat().st_mtime_ns
    assert "already prepared of the same" in prepare("questions_ko", "SQuARe")
    assert records.stat().st_mtime_ns == first
    write(Path("SQuARe/question_train.json"), QUESTIONS[:2])
    assert "already prepared of other files or options; --overwrite" in prepare("questions_ko", "SQuARe", code=2)
    assert len(Records("tfds:square/questions_ko")) == 4
    prepare("questions_ko", "SQuARe", "--overwrite")
    assert len(Records("tfds:square/questions_ko")) == 2
    assert prepared() == ["questions_ko"]


def test_sets_of_the_same_have_one_digest_and_others_another() -> None:
    found = []
    for place in ("one", "two", "three"):
        if place == "three":
            write(Path("SQuARe/question_train.json"), QUESTIONS[::-1])
        prepare("questions_ko", "SQuARe", "--data-dir", place)
        found.append(rows_digest(f"tfds:{place}/square/questions_ko"))
    assert found[0] == found[1] != found[2]


def test_a_damaged_set_is_made_again() -> None:
    prepare("questions_ko", "SQuARe")
    [records] = Path("default").rglob("*.array_record*")
    records.write_bytes(records.read_bytes()[:100])
    assert "is changed; to prepare it again" in prepare("questions_ko", "SQuARe", code=2)
    next(Path("default").rglob("metadata.json")).write_text("{")
    assert "--overwrite puts this in its place" in prepare("questions_ko", "SQuARe", code=2)
    prepare("questions_ko", "SQuARe", "--overwrite")
    assert len(Records("tfds:square/questions_ko")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["square20k_fr", "SQuARe"], "square20k_fr: no such corpus; must be one of square20k_en"),
        (["square20k_en", "SQuAre"], "SQuAre: no such file or folder; must be SQuARe's, or a URL with --checksum; did"),
        (["square20k_en", "SQuARe"], "6,000 red + 14,000 acceptable pairs are wanted, and "),
        (["square20k_en", "https://a/b.json"], "https://a/b.json: a URL needs --checksum sha256:HEX"),
        (["square20k_en", "SQuARe", "--checksum", "0" * 64], "SQuARe is a folder; must be of a file"),
        (["questions_en", "SQuARe/question_train.json", "--checksum", "0" * 64], "its contents are sha256:"),
        (["questions_en", "SQuARe/response_train.json"], "response_train.json:1: row 0: field 'sensitive?' is null"),
        (["questions_en", "."], ".: no question_train.json in it; must be that file, or a folder that has it"),
        (["questions_en", "empty.json"], "question_train.json: no rows"),
        (["questions_en", "broken.json"], "broken.json:1:"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(arguments: list[str], message: str) -> None:
    write(Path("empty.json"), [])
    Path("broken.json").write_text('[{"question": ')
    output = prepare(*arguments, code=2)
    assert message in output.splitlines()[-1] and len(output.splitlines()) <= 2
    assert not Path("default").exists()


def test_a_place_that_cannot_be_is_one_message() -> None:
    Path("file").write_text("")
    output = prepare("questions_en", "SQuARe", "--data-dir", "file", code=2)
    assert "file" in output.splitlines()[-1]


def test_what_cannot_be_put_in_its_place_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("questions_en", "SQuARe")
    monkeypatch.setattr(records, "write_checksums", lambda built: built.rename(built.parent / "gone"))
    assert RUNNER.invoke(app, ["data", "prepare", "questions_en", "SQuARe", "--overwrite"]).exit_code != 0
    assert len(Records("tfds:square/questions_en")) == 4


def test_what_is_interrupted_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedjax_rai.data import square

    prepare("questions_en", "SQuARe")
    write(Path("SQuARe/question_train.json"), QUESTIONS[:2])

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(square, "prepare_splits", interrupt)
    assert "interrupted" in prepare("questions_en", "SQuARe", "--overwrite", code=130)
    assert prepared() == ["questions_en"]
    assert len(Records("tfds:square/questions_en")) == 4


def test_a_checksum_that_fits_is_taken() -> None:
    path = Path("SQuARe/question_train.json")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    prepare("questions_en", str(path), "--checksum", f"sha256:{digest}")
    assert len(Records("tfds:square/questions_en")) == 4


def test_the_parts_of_square_at_hand_are_prepared(shared_data: Path) -> None:
    """160 red and 113 acceptable pairs of 147 questions, of which each set takes its half's at 3 to 7."""
    source = shared_data / "square" / "response_dev.json"
    assert "of 160 + 113 in all" in prepare("square20k_en", str(source), code=2)
    rows = {}
    for name in ("square20k_en", "slg20k_en"):
        prepare(name, str(source), "--partial")
        rows[name] = list(Records(f"tfds:square/{name}"))
    clients = {row["question_en"] for row in rows["square20k_en"]}
    guard = {row["messages"][0]["content"] for row in rows["slg20k_en"]}
    assert not clients & guard
    originals = json.loads(source.read_text(encoding="utf-8"))
    known = {(row["question_en"], row["response_en"]): row["acceptable?"] for row in originals}
    assert all(known[row["question_en"], row["response_en"]] == row["acceptable?"] for row in rows["square20k_en"])
    for name, label in (("square20k_en", "acceptable?"), ("slg20k_en", "verdict")):
        red = sum(row[label] in (0, "unsafe") for row in rows[name])
        assert 10 * red == 3 * len(rows[name]) > 0
    taken = sum(len(each) for each in rows.values())
    assert 113 - 2 * 6 <= 0.7 * taken <= 113  # all acceptable ones but what is left of a seven in each half
