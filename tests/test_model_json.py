"""JSON of models is read, or refused with its file; a Git LFS pointer is called one."""

from pathlib import Path

import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.reading import one_line, read_object, refuse_pointer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def written(folder: Path, data: bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": ' + b"9" * 4500 + b"}", "a number of thousands of digits"),
        (b"[" * 200_000 + b"]" * 200_000, "within each other"),
        (b'{"a": ' + b'{"a": ' * 100_000 + b"1" + b"}" * 100_001, "within each other"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'{"a": "\\ud800"}', "half of a character"),
        (b'{"\\udc00": 1}', "half of a character"),
        ('{"a": 1}'.encode("utf-16"), "must be in UTF-8"),
        (b"[1]", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b"null", "not a JSON object"),
        (POINTER, "is a pointer of Git LFS"),
    ],
)
def test_what_is_no_json_object_is_refused_with_its_file(data, message, tmp_path):
    path = written(tmp_path, data)
    with pytest.raises(InputError, match=message) as caught:
        read_object(path)
    assert str(caught.value).startswith(f"{path}:")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_an_object_is_read_whatever_stands_before_it(tmp_path):
    assert read_object(written(tmp_path, b'\xef\xbb\xbf {"a": "\xed\x95\x9c"}')) == {"a": "\ud55c"}
    assert read_object(written(tmp_path, b'{"a": "\\ud83d\\ude00"}')) == {"a": "\U0001f600"}


def test_what_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_object(tmp_path / "absent.json")
    with pytest.raises(InputError, match="is a folder"):
        read_object(tmp_path)


def test_only_a_pointer_is_called_one(tmp_path):
    refuse_pointer(tmp_path / "absent")
    refuse_pointer(written(tmp_path, b"version 3"))
    with pytest.raises(InputError, match="git lfs pull"):
        refuse_pointer(written(tmp_path, POINTER))


def test_what_another_library_says_takes_one_line():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 1000))) == 303
