"""Files of rows: the same rows in every form give the same, forms are known by content, and a fault has its place."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.config.files import files_at, rows_digest
from fedjax_rai.data.files import read_rows
from fedjax_rai.errors import InputError

ROWS = [
    {"prompt": '안녕, "you"?', "response": "first line\nsecond; line", "n": "7"},
    {"prompt": "b,c", "response": "[x] {y}", "n": "8"},
    {"prompt": " spaced ", "response": "'single'\tand tab", "n": "9"},
]


def as_list(rows: Any) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def as_lines(rows: Any) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def as_printed(rows: Any) -> bytes:
    return "\n".join(json.dumps(row, indent=2) for row in rows).encode()


def as_csv(rows: Any, delimiter: str = ",", start: bytes = b"") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return start + text.getvalue().encode()


def as_parquet(rows: Any) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def as_arrow(rows: Any, new: str = "new_file") -> bytes:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    sink = pyarrow.BufferOutputStream()
    with getattr(pyarrow.ipc, new)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def zstandard(content: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def zipped(*contents: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("folder/", b"")
        for i, content in enumerate(contents):
            archive.writestr(f"folder/{i}", content)
    return made.getvalue()


FORMS: dict[str, Callable[[Any], bytes]] = {
    "list.json": as_list,
    "mark.json": lambda rows: b"\xef\xbb\xbf" + as_list(rows),
    "lines.jsonl": as_lines,
    "lines.json": as_lines,
    "list.jsonl": as_list,
    "printed.json": as_printed,
    "comma.csv": as_csv,
    "mark.csv": lambda rows: as_csv(rows, start=b"\xef\xbb\xbf"),
    "tab.tsv": lambda rows: as_csv(rows, "\t"),
    "semicolon.csv": lambda rows: as_csv(rows, ";"),
    "table.parquet": as_parquet,
    "file.arrow": as_arrow,
    "stream.arrow": lambda rows: as_arrow(rows, "new_stream"),
    "parquet.json": as_parquet,
    "no_suffix": as_csv,
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
    ".zip": zipped,
}


def rows_of(path: Path, **others: Any) -> list[Any]:
    return [row for _, row in read_rows(path, **others)]


def places(path: Path) -> list[str]:
    return [place.rpartition("/")[2] for place, _ in read_rows(path)]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_in_every_form_are_the_same_rows(tmp_path: Path, form: str, compression: str) -> None:
    content = COMPRESSIONS[compression](FORMS[form](ROWS))
    for name in (form + compression, (form + compression).upper(), f"{form}.misnamed"):
        (tmp_path / name).write_bytes(content)
        assert rows_of(tmp_path / name) == ROWS, name


def test_every_row_has_its_line_where_lines_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(as_csv(ROWS))
    assert places(tmp_path / "a.csv") == ["a.csv:2: row 0", "a.csv:4: row 1", "a.csv:5: row 2"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n" + as_lines(ROWS[:2])))
    assert places(tmp_path / "a.jsonl.gz") == ["a.jsonl.gz:2: row 0", "a.jsonl.gz:3: row 1"]
    (tmp_path / "a.json").write_bytes(as_printed(ROWS))
    assert places(tmp_path / "a.json") == ["a.json:1: row 0", "a.json:6: row 1", "a.json:11: row 2"]
    (tmp_path / "a.parquet").write_bytes(as_parquet(ROWS))
    assert places(tmp_path / "a.parquet") == ["a.parquet: row 0", "a.parquet: row 1", "a.parquet: row 2"]


def test_an_empty_value_of_a_csv_file_is_none_and_a_word_like_none_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(',prompt,response\n0,"",None\n\n1,NA,nan\n')
    assert rows_of(tmp_path / "a.csv") == [
        {"Unnamed: 0": "0", "prompt": None, "response": "None"},
        {"Unnamed: 0": "1", "prompt": "NA", "response": "nan"},
    ]


def test_a_very_long_value_is_read(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("a,b\n" + "x" * 200_000 + ",y\n")
    assert len(rows_of(tmp_path / "a.csv")[0]["a"]) == 200_000
    (tmp_path / "b.csv").write_text("x" * 200_000 + ",b\n1,2\n")
    assert rows_of(tmp_path / "b.csv") == [{"x" * 200_000: "1", "b": "2"}]
    assert csv.field_size_limit() == limit


def test_empty_lines_before_the_header_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("\n\r\na\tb,c\td\n1\t2\t3\n")
    assert rows_of(tmp_path / "a.tsv") == [{"a": "1", "b,c": "2", "d": "3"}]


def test_a_csv_header_may_begin_with_a_bracket(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("[id],text\n1,x\n")
    assert rows_of(tmp_path / "a.csv") == [{"[id]": "1", "text": "x"}]


def fill(folder: Path, names: dict[str, str]) -> Path:
    """Files of one row each, by name and what the row says."""
    for name, said in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"a": said}))
    return folder


def test_a_folder_is_read_at_any_depth_in_alphabetical_order(tmp_path: Path) -> None:
    folder = fill(tmp_path / "f", {"b.jsonl": "b", "a/z/deep.JSONL": "deep", "a/y.json": "y", ".hidden/c.jsonl": "no"})
    (folder / "README.md").write_text("not rows")
    (folder / "a" / "again").symlink_to(folder)  # a circle
    assert [row["a"] for row in rows_of(folder)] == ["y", "deep", "b"]


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/validation-00000.jsonl"], "train",
         ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]),
        (["r_train.json", "r_valid.json", "r_test_ood.json"], "validation", ["r_valid.json"]),
        (["train/a.jsonl", "dev/a.jsonl"], "dev", ["dev/a.jsonl"]),
        (["pairs.jsonl", "test.jsonl"], "train", ["pairs.jsonl"]),
        (["pairs.jsonl", "more.jsonl"], "train", ["more.jsonl", "pairs.jsonl"]),
        (["latest.jsonl", "strain.jsonl"], "train", ["latest.jsonl", "strain.jsonl"]),
        (["30k_train.jsonl", "330k_train.jsonl"], "30k_train", ["30k_train.jsonl"]),
        (["v1.train.jsonl", "v1.test.jsonl"], "train", ["v1.train.jsonl"]),
    ],
)  # fmt: skip
def test_a_folder_s_splits_are_told_by_names(tmp_path: Path, names: list[str], split: str, read: list[str]) -> None:
    folder = fill(tmp_path / "test", {name: name for name in names})
    assert [row["a"] for row in rows_of(folder, split=split)] == read


def test_files_of_no_split_beside_others_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path / "f", {"a/train.jsonl": "x", "b/more.jsonl": "y", "c/test.jsonl": "z"})
    assert rows_of(folder) == [{"a": "x"}]
    assert (
        "f: 1 file whose names say no split are not read, as others are of 'train': b/more.jsonl"
        in capsys.readouterr().err
    )
    assert rows_of(fill(tmp_path / "g", {"more.jsonl": "y", "test.jsonl": "z"})) == [{"a": "y"}]
    assert capsys.readouterr().err == ""


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    folder = fill(tmp_path / "f", {"train.jsonl": "x", "test.jsonl": "y"})
    with pytest.raises(InputError, match="f: no split 'validation', only test, train; must have it"):
        read_rows(folder, split="validation")
    for path in (folder / "train.jsonl", folder / "*.jsonl"):
        with pytest.raises(InputError, match="split = 'test': must be left out, as .* is files, which have no splits"):
            read_rows(path, split="test")


def test_a_folder_that_says_what_belongs_together_is_read_as_on_a_hub(tmp_path: Path) -> None:
    folder = fill(tmp_path / "f", {"small/part.jsonl": "small", "large/part.jsonl": "large"})
    parts = [f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("small", "large")]
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(parts) + "---\nA set.\n")
    assert rows_of(folder, name="small") == [{"a": "small"}]
    with pytest.raises(InputError, match="f: cannot be loaded: .*small.*large"):
        read_rows(folder)


def test_a_glob_is_read_and_one_without_matches_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a/1.jsonl": "1", "a/2.jsonl": "2", "a/3.csv": "no", "b/4.jsonl": "4"})
    assert [row["a"] for row in rows_of(folder / "a" / "*.jsonl")] == ["1", "2"]
    assert [row["a"] for row in rows_of(folder / "**" / "*.jsonl")] == ["1", "2", "4"]
    with pytest.raises(InputError, match=r"c/\*: no file matches"):
        list(read_rows(folder / "c" / "*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        (b"PK\x03\x04rest", "not a whole zip file"),
        (zipped(b"a", b"b"), "is a zip archive of 2 files"),
        (gzip.compress(as_lines(ROWS))[:-9], "not a whole gzip file"),
        (b"PAR1 and no more", "cannot be read"),
        (as_arrow(ROWS)[:50], "cannot be read"),
        (b"\xff\xfea\x00", "UTF-16"),
        (b"a,b\n1,2\n3\n", "3: 1 values; must be 2, as in the header"),
        (b'a,b\n1,"2\n', "2: not valid CSV"),
        (b"a,a\n1,2\n", "column 'a' stands twice"),
        (b"Dear all,\nthis is no table.", "must be .*, as in the header"),
        (b"word " * 40_000, "neither JSON, JSON lines, CSV, Parquet or Arrow"),
        (b"word\nword", "neither JSON, JSON lines, CSV, Parquet or Arrow"),
        (b'{"a": 1, "a": 2}', "1: field 'a' stands twice in an object"),
        (b'[{"a": 1},\n {"b": {"c": 1, "c": 2}}]', "2: field 'c' stands twice"),
        (b'{"data": [\n{"a": 1}]}', "1: row 0: is one object, which has a list of rows under 'data'"),
        (b'{"a": "\\ud83d"}', "1: field 'a' holds half of a character, U.D83D"),
        (b'{"a": 1}\n{"a": ' + b"7" * 4500 + b"}", "2: holds a number of thousands of digits"),
        (b'{"a": ' + b"[" * 25000 + b"]" * 25000 + b"}", "1: lists and objects within each other"),
        (b"", "is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=f"file:? ?.*{message}"):
        list(read_rows(tmp_path / "file"))


def test_what_is_here_is_never_looked_up_and_never_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {"owner/name": "here"})

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("looked up on a hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert rows_of(Path("owner/name")) == [{"a": "here"}]
    with pytest.raises(InputError, match="revision = 'main': must be left out, as owner/name is here"):
        read_rows("owner/name", revision="main")
    with pytest.raises(InputError, match="owner/nam: cannot be read: No such file.*; did you mean owner/name"):
        read_rows("owner/nam")  # the owner is a folder here
    with pytest.raises(InputError, match="gone/pairs.PARQUET: cannot be read: No such file"):
        read_rows("gone/pairs.PARQUET")


def test_a_name_on_the_hub_is_loaded_with_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(*given: Any, **named: Any) -> list[dict[str, str]]:
        asked.append((*given, named))
        return [{"a": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_rows("owner/set", "30k", "test", "v2")) == [("owner/set: row 0", {"a": "x"})]
    assert asked == [("owner/set", "30k", {"split": "test", "revision": "v2"})]


def test_the_digest_of_a_folder_holds_every_file_s_name_and_content(tmp_path: Path) -> None:
    folder = fill(tmp_path / "f", {"a.jsonl": "a", "b/c.parquet": "c", "b/d.csv": "d"})
    seen = {rows_digest(folder)}
    (folder / "b" / "c.parquet").write_text("other")
    seen.add(rows_digest(folder))
    (folder / "b" / "c.parquet").rename(folder / "b" / "cc.parquet")  # in the same order
    seen.add(rows_digest(folder))
    (folder / "b" / "cc.parquet").unlink()
    seen.add(rows_digest(folder))
    assert len(seen) == 4 and files_at(folder) == [folder / "a.jsonl", folder / "b" / "d.csv"]
    moved = folder.rename(tmp_path / "g")
    assert rows_digest(moved) in seen, "wherever the folder lies"
    assert rows_digest(moved / "b" / "*.csv") != rows_digest(moved / "b" / "d.csv")
