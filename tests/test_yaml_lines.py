"""The one reader of YAML: what a file holds, the line of every key, and what is wrong with it."""

from pathlib import Path

import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.yaml_lines import Repeated, parse_value, read_yaml


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


@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ("  y: 3\n  <<: *a\n", {"x": 1, "y": 3}),
        ("  <<: *a\n  y: 3\n", {"x": 1, "y": 3}),
        ("  <<: [*c, *a]\n  y: 3\n", {"x": 5, "y": 3}),
        ("  <<: *a\n  <<: *c\n", {"x": 1, "y": 2}),
        ("  <<: *d\n  y: 3\n", {"x": 5, "y": 3}),
        ("  <<: {y: 4, x: 0}\n", {"x": 0, "y": 4}),
    ],
)
def test_what_is_merged_gives_way_to_what_is_written(tmp_path: Path, text: str, merged: dict) -> None:
    """Wherever the mapping that is merged stands as well, and however often; of several, the first one's value."""
    given = "a: &a {x: 1, y: 2}\nc: &c {x: 5}\nd: &d {<<: [*c, *a]}\n"
    document = read(tmp_path, f"{given}b:\n{text}e: *d\nf:\n{text}")
    assert not document.repeated
    assert document.data["b"] == document.data["f"] == merged
    assert document.data["e"] == document.data["d"] == {"x": 5, "y": 2}


def test_a_key_that_stands_twice_beside_what_is_merged_is_reported(tmp_path: Path) -> None:
    document = read(tmp_path, "a: &a {x: 1}\nb:\n  x: 2\n  <<: *a\n  x: 3\n")
    assert document.data["b"] == {"x": 2} and document.repeated == [Repeated(("b", "x"), 5, 3)]


def test_keys_have_lines_and_stand_once_at_any_depth(tmp_path: Path) -> None:
    document = read(tmp_path, "a: {b: {c: {d: {e:\n 1, e: 2}}}}\n")
    assert document.repeated == [Repeated(("a", "b", "c", "d", "e"), 2, 1)]


@pytest.mark.parametrize("text", ["010", "-017", "+0_7", "00", "1:30", "190:20:30.5", "1:30:15", "08", "0o10"])
def test_a_number_that_yaml_reads_in_another_base_is_the_text_that_is_written(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"a: {text}\n").data == {"a": text}
    assert parse_value(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("1_000", 1000), ("0x10", 16), ("0b11", 3), ("0", 0), ("-0", 0), ("00.5", 0.5), ("0.10", 0.1), ("1.", 1.0)],
)
def test_other_numbers_are_read_as_they_are_written(tmp_path: Path, text: str, value: float) -> None:
    assert read(tmp_path, f"a: {text}\n").data == {"a": value}
    assert parse_value(text) == value


def test_two_escapes_of_a_character_are_that_character(tmp_path: Path) -> None:
    """As in JSON, which YAML is meant to hold."""
    smile = "\U0001f600"
    assert read(tmp_path, '"a\\ud83d\\ude00": "b\\ud83d\\ude00c"\n').data == {f"a{smile}": f"b{smile}c"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "a.yaml:1:5: not valid YAML: "),
        ("a: 1\nb: 2024-99-99", "a.yaml:2:4: not valid YAML: month must be in 1..12"),
        ("a: 1\nb: \x01", "a.yaml:2: not valid YAML: unacceptable character"),
        ("a: &x\n- *x\n", "a.yaml:1:4: not valid YAML: found unconstructable recursive"),
        ("a: &x {<<: *x}\n", "a.yaml:1:4: not valid YAML: found unconstructable recursive"),
        ("b: 1\na: &x {b: {c: {d: {e: *x}}}}\n", "a.yaml:2:4: not valid YAML: found unconstructable recursive"),
        ("b: 1\na: " + "[" * 25_000, "a.yaml:2: not valid YAML: lists and mappings within each other"),
        ("b: 1\na: " + "{a: " * 25_000, "a.yaml:2: not valid YAML: lists and mappings within each other"),
        ("b: 1\na: " + "[" * 110 + "]" * 110, "a.yaml:2:103: not valid YAML: lists and mappings within each other"),
        (
            "a: &0 1\n" + "".join(f"a{i}: &{i} [*{i - 1}]\n" for i in range(1, 1000)),
            "a.yaml:100:6: not valid YAML: lists",
        ),
        (
            "a0: &0 1\n" + "".join(f"a{i}: &{i} [{', '.join(10 * [f'*{i - 1}'])}]\n" for i in range(1, 9)),
            "a.yaml:6:5: not valid YAML: aliases stand for more than 100,000 values",
        ),
        (
            "a0: &0 {x: 1}\n" + "".join(f"a{i}: &{i} {{<<: [{', '.join(10 * [f'*{i - 1}'])}]}}\n" for i in range(1, 9)),
            "a.yaml:",
        ),
        ("a: {<<: 3}", "a.yaml:1:9: not valid YAML: what is merged by << must be a mapping"),
        ("b:\na: " + "9" * 4500, "a.yaml:2:4: not valid YAML: Exceeds the limit"),
        ('a: "b\\ud83d"', "a.yaml:1:4: not valid YAML: text holds half of a character, U+D83D at character 1"),
        ('"b\\ude00\\ud83d": 1', "a.yaml:1:1: not valid YAML: text holds half of a character, U+DE00 at character 1"),
        ('a: "b\\0"', "a.yaml:1:4: not valid YAML: text holds the character U+0000"),
        ("a: !!int 010", "a.yaml:1:4: not valid YAML: 010 is in base 8 or 60"),
        ("a: !!int ''", "a.yaml:1:4: not valid YAML: string index out of range"),
        ("a: !!bool maybe", "a.yaml:1:4: not valid YAML: "),
        ("a: !!timestamp then", "a.yaml:1:4: not valid YAML: "),
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("runs/exp #1", "runs/exp #1"),
        ("#1", "#1"),
        ("a: b", "a: b"),
        ("- a", "- a"),
        ("it's", "it's"),
        (" runs/a ", "runs/a"),
        ("' a #1 '", " a #1 "),
        ('"a\\n\\u00e9"', "a\n\u00e9"),
        ("&a", "&a"),
        ("*a", "*a"),
        ("!a b", "!a b"),
        ("|", "|"),
        ("@a", "@a"),
        ("%a", "%a"),
        ("`a`", "`a`"),
        ("=", "="),
        ("<<", "<<"),
        ("a, b", "a, b"),
        ("2024-01-01", "2024-01-01"),
        ("---", "---"),
        ("null", None),
        ("~", None),
        ("true", True),
        ("3", 3),
        ("1e-3", "1e-3"),
        ("[a, 'b #1']", ["a", "b #1"]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_a_value_of_the_command_line_is_taken_whole(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no value; null is written null"),
        (" \t", "there is no value; null is written null"),
        ("'a' #1", "something stands behind its end"),
        ("'a' b", "cannot be read as YAML"),
        ("[a] # b", "something stands behind its end"),
        ("{a: 1} b", "cannot be read as YAML"),
        ("[a", "cannot be read as YAML"),
        ("{a: 1, a: 2}", "the key a stands twice"),
        ("{1: 2}", "YAML reads the key 1 as no text"),
        ("[" * 25_000, "lists and mappings within each other"),
        ("9" * 4500, "Exceeds the limit"),
        ("'a\udcff'", "text holds half of a character, U\\+DCFF at character 2"),
        ('"\\ud83d"', "text holds half of a character, U\\+D83D at character 0"),
        ("a\0", "text holds the character U\\+0000"),
    ],
)
def test_a_value_of_the_command_line_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_value(text)
