"""What is the same to a reader is one text, and nothing else is."""

import hashlib
import random
import sys
import unicodedata

import pytest

from fedjax_rai.data.roles import part_of, share_out
from fedjax_rai.data.sources import Pair
from fedjax_rai.evals.held_out import both_ways
from fedjax_rai.text.compare import same
from tests.mixes import source

KOREAN = "\ud55c\uad6d\uc5b4 \uc9c8\ubb38"  # composed
DECOMPOSED = "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165 \u110c\u1175\u11af\u1106\u116e\u11ab"
SPELLINGS = {
    "decomposed Hangul": (DECOMPOSED, KOREAN),
    "half-width letters of Hangul": ("\uffbe\uffc2", "\ud558"),
    "a filler of Hangul": ("\ud55c\u3164\uad6d\uc5b4\uffa0 \uc9c8\ubb38", KOREAN),
    "full-width letters and digits": ("\uff37\uff48\uff41\uff54\uff1f \uff13", "What? 3"),
    "a ligature": ("\ufb01ne", "fine"),
    "a decomposed accent": ("cafe\u0301", "caf\u00e9"),
    "an accent behind something invisible": ("cafe\u200d\u0301", "caf\u00e9"),
    "marks in another order": ("a\u0323\u0302", "a\u0302\u0323"),
    "a no-break space": ("a\u00a0b", "a b"),
    "an ideographic space": ("a\u3000b", "a b"),
    "a line separator": ("a\u2028b", "a b"),
    "tabs and line breaks": ("\n a \t\r\n b\x85", "a b"),
    "a separator of files": ("a\x1cb", "a b"),
    "a blank in Braille": ("a\u2800b", "a b"),
    "a zero-width space": ("wh\u200bat", "what"),
    "a word joiner": ("wh\u2060at", "what"),
    "a soft hyphen": ("wh\u00adat", "what"),
    "a byte order mark": ("\ufeffwhat", "what"),
    "marks of direction": ("\u202awhat\u202c\u200f", "what"),
    "a tag": ("what\U000e0041", "what"),
    "a variation selector": ("what\ufe0f", "what"),
    "a grapheme joiner": ("wh\u034fat", "what"),
    "a control character": ("wh\x00at\x7f", "what"),
}


@pytest.mark.parametrize(("spelling", "plain"), SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_that_a_reader_cannot_tell_apart_are_one_text(spelling: str, plain: str) -> None:
    assert spelling != plain
    assert same(spelling) == same(plain)


@pytest.mark.parametrize("text", ["What is 3 plus 4?", KOREAN, "caf\u00e9", "\u4e2d\u6587", "a-b 'c' \"d\"", ""])
def test_a_text_in_normal_form_is_unchanged(text: str) -> None:
    assert same(text) == text


@pytest.mark.parametrize(
    ("one", "other"), [("a", "A"), ("ab", "a b"), ("resume", "r\u00e9sum\u00e9"), ("a?", "a"), ("1", "2")]
)
def test_what_a_reader_can_tell_apart_stays_apart(one: str, other: str) -> None:
    """Case, word breaks, accents and punctuation."""
    assert same(one) != same(other)


def test_the_form_of_the_form_is_the_form() -> None:
    """Of every character between letters and accents, and of random strings of those that normalisation moves."""
    moved = []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.normalize("NFKC", character) != character or unicodedata.category(character)[0] in "CMZ":
            moved.append(character)
    drawn = random.Random(0)
    texts = [f"a{character}\u0301" for character in moved[:20_000]]
    texts += ["".join(drawn.choices(moved[:5_000], k=8)) for _ in range(2_000)]
    for text in texts:
        form = same(text)
        assert same(form) == form, [hex(ord(character)) for character in text]


def test_no_character_of_the_category_of_formats_is_left() -> None:
    left = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cf" and same(chr(code))]
    assert not left


def in_two_spellings(n: int) -> list[Pair]:
    """n questions; the acceptable answer stands under the composed one, the unacceptable under the decomposed."""
    pairs = []
    for i in range(n):
        question = f"{KOREAN} {i}"
        pairs.append(Pair(question, "a", False, "etc"))
        pairs.append(Pair(unicodedata.normalize("NFD", question), "b", True, "etc"))
    return pairs


def test_all_spellings_of_a_question_are_in_one_part_and_stay_as_they_came() -> None:
    pairs = in_two_spellings(100)
    parts = [of_source for (of_source,) in share_out([source(pairs)], 0).values()]
    assert sorted(pair for part in parts for pair in part) == sorted(pairs)
    asked = [{same(pair.query) for pair in part} for part in parts]
    assert min(map(len, asked)) > 5
    assert sum(map(len, asked)) == 100


def test_the_part_of_a_question_in_normal_form_is_by_the_digest_of_its_text() -> None:
    """As it always was: the upper half of the first eight bytes is the second part."""
    pairs = [Pair(f"question {i}", "a", False, "etc") for i in range(50)]
    upper = [p for p in pairs if hashlib.sha256(f"7:{p.query}".encode()).digest()[0] >= 128]
    assert [p for p in pairs if part_of(p.query, {"lower": 0.5, "upper": 0.5}, 7) == "upper"] == upper


def test_answers_under_two_spellings_are_one_choice() -> None:
    choices = both_ways(in_two_spellings(3))
    assert [(choice.query, choice.good, choice.bad) for choice in choices] == [
        (f"{KOREAN} {i}", "a", "b") for i in range(3)
    ]
