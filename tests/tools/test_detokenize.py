"""Text under way: nothing is given that a later token may change, and everything in the end."""

import pytest

from fedjax_rai.tools.detokenize import Written

LETTERS = {i: letter.encode() for i, letter in enumerate("abcd")} | {7: b"\xea\xb0", 8: b"\x80", 9: b"b\nQ:"}


def decode(ids) -> str:
    """Bytes of tokens as text; 7 and 8 are one Hangul syllable together."""
    return b"".join(LETTERS[i] for i in ids).decode("utf-8", "replace")


def pieces(ids, stop=()) -> tuple[list[str], Written]:
    written = Written(decode, stop)
    found = []
    for token in ids:
        written.add(token)
        found.append(written.ready())
    return [*found, written.rest()], written


def test_half_a_character_waits_for_its_other_half():
    assert pieces([0, 7, 8, 1])[0] == ["a", "", "가", "b", ""]


def test_half_a_character_at_the_end_is_given_as_it_is():
    assert pieces([0, 7])[0] == ["a", "", "\ufffd"]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["bc"], ["a", "", "", ""]),  # the b waits, as it may begin the stop string
        (["bd"], ["a", "", "bc", ""]),
        (["x"], ["a", "b", "c", ""]),
        (["abc", "b"], ["", "a", "", ""]),  # ends at the b, and no abc comes
    ],
)
def test_what_may_begin_a_stop_string_waits(stop, expected):
    ids = [0, 1] if "b" in stop else [0, 1, 2]
    found, _ = pieces(ids, stop)
    assert found == expected[: len(ids)] + expected[-1:]


def test_a_stop_string_within_a_token_keeps_what_stands_before_it():
    found, written = pieces([0, 9], ["\nQ:"])
    assert "".join(found) == "ab" and written.is_stopped and written.holds_last
    _, written = pieces([0, 1], ["b"])
    assert written.is_stopped and not written.holds_last
