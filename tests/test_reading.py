"""Readers of users' files: text is Unicode, JSON is what JSON can hold, and what is wrong is said with its place."""

from pathlib import Path

import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.reading import checked_text, decode_text, parse_json, parse_json_at, read_json, read_text

HALF = "holds half of a character, U+D83D at character 2; must be Unicode text"


def refusal(text: str, line: int = 1) -> str:
    with pytest.raises(InputError) as caught:
        parse_json(text, "a.jsonl", line)
    return str(caught.value)


def test_a_value_is_read_with_a_mark_and_spaces_around_it() -> None:
    assert parse_json('\ufeff {"a": [1, 2.5, null, "\\ud83d\\ude00"]}\r\n', "a.json") == {
        "a": [1, 2.5, None, "\U0001f600"]
    }
    assert parse_json_at('[{"a": 1}, {"a": 2}]', 10, "a.json") == ({"a": 2}, 19)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n\n'a': 1}", "a.jsonl:9:1: not valid JSON: Expecting property name enclosed in double quotes"),
        ('{"a": 1}\n }', "a.jsonl:8:2: not valid JSON: nothing may stand behind the value"),
        ("", "a.jsonl:7:1: not valid JSON: Expecting value"),
        ('\n"a\\ud83d"', "a.jsonl:8: the text holds half of a character, U+D83D at character 1; must be Unicode text"),
        ('{"a": {"b": [1, "ab\\ud83d"]}}', f"a.jsonl:7: field 'a.b[1]' {HALF}"),
        ('{"a": {"ab\\ud83d": 1}}', f"a.jsonl:7: the name of a field {HALF}"),
        (f'{{"a": {"9" * 4500}}}', "a.jsonl:7: holds a number of thousands of digits"),
        (f'{{"a": -{"9" * 4500}}}', "a.jsonl:7: holds a number of thousands of digits"),
    ],
)  # fmt: skip
def test_what_is_no_json_or_no_text_is_refused_with_its_line(text: str, message: str) -> None:
    assert refusal(text, 7).startswith(message)


@pytest.mark.parametrize("depth", [101, 1_000, 25_000, 1_000_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ("[[],", "]")])
def test_lists_and_objects_within_each_other_are_refused_however_deep(depth: int, opening: str, closing: str) -> None:
    """Whether their ends are there, too, or not."""
    message = "a.jsonl:3: lists and objects within each other, more than 100 levels"
    assert refusal(opening * depth + "1" + closing * depth, 3) == message
    assert refusal(opening * depth)


def test_a_hundred_levels_are_read() -> None:
    value = parse_json("[" * 100 + "]" * 100, "a.json")
    for _ in range(99):
        (value,) = value
    assert value == []


def test_a_text_of_a_row_is_checked_by_place_and_field() -> None:
    assert checked_text("\U0001f600", "a:1", "prompt") == "\U0001f600"
    with pytest.raises(InputError, match=r"^a:1: field 'prompt' holds half of a character, U\+DE00 at character 0;"):
        checked_text("\ude00", "a:1", "prompt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\xff", "a.txt:2: byte 3 is not UTF-8; must be a text file in UTF-8"),
        (b"\xed\xa0\xbd", "a.txt:1: byte 0 is not UTF-8; must be a text file in UTF-8"),
        (b"\xff\xfea\x00", "a.txt: is text in UTF-16; must be in UTF-8"),
        (b"\xfe\xff\x00a", "a.txt: is text in UTF-16; must be in UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a.txt: is a pointer of Git LFS"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_text_are_named(content: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_text(content, "a.txt")
    assert str(caught.value).startswith(message)


def test_a_file_is_read_or_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_text(path) == '{"a": 1}' and read_json(path) == {"a": 1}
    for wrong, reason in {
        tmp_path: "is a folder; must be a JSON file",
        tmp_path / "pair.json": f"no such file; must be a JSON file; did you mean {path}?",
        path / "inside": "cannot be read: Not a directory",
        tmp_path / ("a" * 300): "cannot be read: File name too long",
        tmp_path / "a\0b": "cannot be read: embedded null byte",
    }.items():
        with pytest.raises(InputError) as caught:
            read_json(wrong)
        assert str(caught.value) == f"{wrong}: {reason}"
