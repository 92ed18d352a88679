"""Prepared sets: read in any order and in hosts' parts, without tensorflow, and refused where they are not whole."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from fedjax_rai.data.files import read_rows
from fedjax_rai.data.records import Records, load_tfds, metadata
from fedjax_rai.data.sources import Source, read_pairs
from fedjax_rai.errors import InputError
from fedjax_rai.tools.prepare_corpus import Preparation, prepare
from tests.data.test_corpus import pair
from tests.processes import succeed

QUESTIONS = 11  # a prime: no number of hosts divides it


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two corpora of a small source: questions in English, and a guard's pairs in Korean."""
    path = tmp_path_factory.mktemp("data")
    rows = [
        {"question": f"질문 {i}", "question_en": f"Question {i}", "sensitive?": 1, "category": "etc"}
        for i in range(QUESTIONS)
    ]
    pairs = [pair(q, 10 * q + a, acceptable=int(a > 2)) for q in range(20) for a in range(10)]
    (path / "questions.json").write_text(json.dumps(rows), encoding="utf-8")
    (path / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    prepare(Preparation("questions_en", str(path / "questions.json"), path))
    prepare(Preparation("slg20k_ko", str(path / "pairs.json"), path, partial=True))
    return path


@pytest.fixture
def copied(data_dir: Path, tmp_path: Path) -> Path:
    """The folder of the questions in a data folder that a test may spoil."""
    shutil.copytree(data_dir / "square", tmp_path / "square")
    return tmp_path / "square" / "questions_en" / "1.0.0"


@pytest.mark.parametrize("hosts", [1, 3, 8, 16])
def test_hosts_parts_are_disjoint_and_complete_and_even(data_dir: Path, hosts: int) -> None:
    source = f"tfds:{data_dir}/square/questions_en"
    parts = [Records(source, "train", host, hosts) for host in range(hosts)]
    read = [row["question_en"] for part in parts for row in part]
    assert read == [f"Question {i}" for i in range(QUESTIONS)]
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == QUESTIONS


def test_rows_are_read_in_any_order_and_as_they_were_written(data_dir: Path) -> None:
    records = Records(f"tfds:{data_dir}/square/questions_en")
    assert records[7] == {"question_en": "Question 7", "sensitive?": 1, "category": "etc"}
    assert [row["question_en"] for row in (records[2], records[-1], records[2])] == [
        "Question 2", "Question 10", "Question 2",
    ]  # fmt: skip
    assert records[3:5] == [records[3], records[4]]
    with pytest.raises(IndexError):
        records[QUESTIONS]
    second_of_three = Records(f"tfds:{data_dir}/square/questions_en", "train", 1, 3)
    assert second_of_three[0]["question_en"] == "Question 3"  # 11 rows at 3 hosts: 3, 4 and 4
    with pytest.raises(IndexError):
        second_of_three[4]


def test_lists_of_objects_come_back_as_such(data_dir: Path) -> None:
    row = Records(f"tfds:{data_dir}/square/slg20k_ko")[0]
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    assert row["messages"][0]["content"].startswith("질문 ") and row["messages"][1]["content"].startswith("대답 ")
    assert row["category"] == (["contentious"] if row["verdict"] == "unsafe" else ["objective", "indirect"])


def test_nothing_of_tensorflow_is_imported(data_dir: Path) -> None:
    succeed("prepared_rows", f"tfds:{data_dir}/square/questions_en", QUESTIONS)


def test_a_prepared_set_is_a_source_of_rows(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    rows = list(read_rows("tfds:square/questions_en:1.0.0", split="train[4:6]"))
    source = "tfds:square/questions_en:1.0.0: split train[4:6]"
    assert [place for place, _ in rows] == [f"{source}: row 0", f"{source}: row 1"]
    assert [row["question_en"] for _, row in rows] == ["Question 4", "Question 5"]


def test_a_guard_s_corpus_is_read_as_labelled_pairs(data_dir: Path) -> None:
    read = read_pairs(Source(f"tfds:{data_dir}/square/slg20k_ko", language="ko"))
    red = sum(bool(pair.harmful) for pair in read.pairs)
    assert red > 0 and 10 * red == 3 * read.rows and read.unlabelled == 0
    for spoken in read.pairs:
        assert int(spoken.response.split()[1]) % 10 in (range(3) if spoken.harmful else range(3, 10))
    with pytest.raises(InputError, match="another language"):
        read_pairs(Source(f"tfds:{data_dir}/square/slg20k_ko"))


@pytest.mark.parametrize("option", [{"name": "other"}, {"revision": "main"}])
def test_what_is_of_a_hub_is_refused(data_dir: Path, option: dict[str, str]) -> None:
    with pytest.raises(InputError, match="must be left out"):
        read_rows(f"tfds:{data_dir}/square/questions_en", **option)


def test_what_it_was_made_of_is_kept(data_dir: Path) -> None:
    found = metadata(f"tfds:{data_dir}/square/slg20k_ko")
    assert found["partial"] and found["splits"]["train"]["file"] == "pairs.json"
    assert found["splits"]["train"]["read"] == 200


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("tran", "no split 'tran'; must be one of train; did you mean train?"),
        ("train[", "split 'train[': Error parsing split"),
        ("train[40:]", "split 'train[40:]'"),
        ("train[4:4]", "has no rows; must have one at least"),
    ],
)
def test_a_split_that_is_not_there_is_refused(data_dir: Path, split: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        Records(f"tfds:{data_dir}/square/questions_en", split)
    assert message in str(raised.value)


def test_what_is_damaged_is_refused_before_its_reader_ends_the_process(copied: Path) -> None:
    source = f"tfds:{copied.parents[2]}/square/questions_en"
    records = next(copied.glob("*.array_record*"))
    whole = records.read_bytes()
    spoilt = bytearray(whole)
    spoilt[200] ^= 255
    for contents in (whole[: len(whole) // 2], bytes(spoilt), b""):
        records.write_bytes(contents)
        with pytest.raises(InputError, match=r"damaged: .* is changed; .* --overwrite"):
            Records(source)
    records.unlink()
    with pytest.raises(InputError, match=r"damaged: .* is missing"):
        Records(source)
    (copied / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"damaged: dataset_info.json"):
        Records(source)


def test_another_format_is_refused(copied: Path) -> None:
    info = copied / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "parquet"))
    with pytest.raises(InputError, match="as parquet; must be array_record"):
        Records(f"tfds:{copied.parents[2]}/square/questions_en")


@pytest.mark.parametrize("missing", ["array_record", "importlib_resources"])
def test_what_is_not_installed_is_said(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match="which is not installed: pip install .* for Linux and for macOS"):
        load_tfds()
