"""The one reader of YAML: what a file holds, the line of every key, and what is wrong with it."""

from pathlib import Path

import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.yaml_lines import Repeated, read_yaml


def read(folder: Path, text: str):
    path = folder / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def test_every_key_and_item_has_its_line(tmp_path: Path) -> None:
    document = read(tmp_path, "# first\na: 1\nb:\n  c:\n  - x\n  - y: 2\n")
    assert document.data == {"a": 1, "b": {"c": ["x", {"y": 2}]}}
    assert document.lines == {
        (): 2, ("a",): 2, ("b",): 3, ("b", "c"): 4, ("b", "c", 0): 5, ("b", "c", 1): 6, ("b", "c", 1, "y"): 6,
    }  # fmt: skip
    assert (document.line(("b", "c", 7)), document.line(("z",)), document.line(())) == (4, 2, 2)


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    for text in ("", "# a remark\n", "\ufeff"):
        assert read(tmp_path, text).data is None and read(tmp_path, text).line(("a",)) == 1


def test_a_key_that_stands_twice_keeps_its_first_value_and_is_reported(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\nb: {c: 2,\n c: 3}\na: 4\n")
    assert document.data == {"a": 1, "b": {"c": 2}}
    assert document.repeated == [Repeated(("b", "c"), 3, 2), Repeated(("a",), 4, 1)]


def test_keys_are_read_as_written_and_those_that_are_no_text_are_known(tmp_path: Path) -> None:
    document = read(tmp_path, "on: 1\n3: 2\n? [x]\n: 3\n'no': 4\n")
    assert document.data == {"on": 1, "3": 2, "?": 3, "no": 4}
    assert document.no_text == {("on",), ("3",), ("?",)}


def test_what_is_merged_gives_way_to_what_is_written(tmp_path: Path) -> None:
    document = read(tmp_path, "a: &a {x: 1, y: 2}\nb:\n  y: 3\n  <<: *a\n")
    assert document.data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}} and not document.repeated


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "a.yaml:1:5: not valid YAML: "),
        ("a: 1\nb: 2024-99-99", "a.yaml:2:4: not valid YAML: month must be in 1..12"),
        ("a: 1\nb: \x01", "a.yaml:2: not valid YAML: unacceptable character"),
        ("a: &x\n- *x\n", "a.yaml:1:4: not valid YAML: found unconstructable recursive"),
        ("a: !of_mine x", "a.yaml:1:4: not valid YAML: could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_is_refused_where_it_stands(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_what_is_no_text_is_refused_with_line_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(InputError, match="a.yaml:2: byte 8 is not UTF-8; must be a text file in UTF-8"):
        read_yaml(tmp_path / "a.yaml")
