"""Every rewriting: the same seed the same text, how it is undone, and what it leaves as it is."""

import base64
import json
import re
import unicodedata

import numpy as np
import pytest

from fedjax_rai.config.keys import schemas
from fedjax_rai.errors import InputError
from fedjax_rai.safety import evasion
from fedjax_rai.safety.evasion import EVASIONS, LEET, LOOKALIKES, MARK, SYNONYMS, joints, make_evasion

ENGLISH = "Sure, first plan it, then make the bread at night. Nobody will miss it because people know."
KOREAN = "물을 먼저 끓이고 나서 면을 넣습니다."
HEBREW, ARABIC = "קודם מרתיחים מים", "اغلي الماء أولا ثم أضف الأرز"
TEXTS = [ENGLISH, KOREAN, unicodedata.normalize("NFD", KOREAN), HEBREW, ARABIC, "é", "a", "", "<b>x</b>\n1 + 1"]
REWRITINGS = [name for name in EVASIONS if name != "none"]


def rewritten(name: str, text: str, seed: int = 0) -> str:
    return EVASIONS[name](text, np.random.default_rng(seed))


@pytest.mark.parametrize("name", REWRITINGS)
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_same_seed_gives_the_same_text(name, text):
    assert rewritten(name, text, 3) == rewritten(name, text, 3)


@pytest.mark.parametrize("name", REWRITINGS)
def test_english_does_not_stay_as_it_is(name):
    assert rewritten(name, ENGLISH) != ENGLISH
    if name != "base64":  # which nothing is drawn for
        assert len({rewritten(name, ENGLISH, seed) for seed in range(20)}) > 1


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_what_was_done_can_be_undone(text):
    assert rewritten("none", text) == text
    assert base64.b64decode(rewritten("base64", text)).decode() == text
    assert rewritten("zero_width", text).replace(MARK, "") == text
    assert rewritten("injection", text).startswith(text)
    assert rewritten("benign_prefix", text).endswith(text)
    back = str.maketrans({lookalike: letter for letter, lookalike in LOOKALIKES.items()})
    assert rewritten("homoglyphs", text).translate(back) == text
    pieces = rewritten("split", text)
    if pieces != text:
        assert "".join(json.loads(f"[{pieces.removeprefix('Read as one text: ').replace(' + ', ',')}]")) == text


def test_leetspeak_reads_back_to_the_letters():
    """Without digits of its own, and but for capitals."""
    back = str.maketrans({digit: letter for letter, digit in LEET.items()})
    assert rewritten("leetspeak", ENGLISH).lower().translate(back) == ENGLISH.lower()


def test_synonyms_are_of_the_list_and_all_else_stays():
    """`Sure, first ... then` in their order, a capital at the beginning, punctuation where it was."""
    options = {word: "|".join(map(re.escape, others)) for word, others in SYNONYMS.items()}
    pattern = re.sub(
        r"[A-Za-z]+", lambda m: f"(?i:{options[m[0].lower()]})" if m[0].lower() in options else m[0], re.escape(ENGLISH)
    )
    found = rewritten("synonyms", ENGLISH)
    assert re.fullmatch(pattern, found) and found[0].isupper()
    assert re.fullmatch("(arrange|prepare) (Arrange|Prepare)", rewritten("synonyms", "plan Plan"))
    words = {word for others in SYNONYMS.values() for other in others for word in other.split()}
    assert all(word.islower() for word in {*words, *SYNONYMS})


@pytest.mark.parametrize(
    ("name", "unchanged"),
    [
        ("synonyms", {KOREAN, HEBREW, ARABIC}),
        ("leetspeak", {KOREAN, HEBREW, ARABIC}),
        ("homoglyphs", {KOREAN, HEBREW, ARABIC}),
        ("zero_width", {ARABIC, "a", ""}),
        ("split", {ARABIC, "a", ""}),
    ],
)
def test_what_a_rewriting_does_not_apply_to_stays_to_the_letter(name, unchanged):
    for text in unchanged:
        assert all(rewritten(name, text, seed) == text for seed in range(5)), text


def test_korean_is_written_to_in_korean():
    hangul = re.compile("[가-힣]")
    for name in ("injection", "benign_prefix"):
        added = rewritten(name, KOREAN).replace(KOREAN, "")
        assert hangul.search(added) and not hangul.search(rewritten(name, ENGLISH))


def test_seven_in_ten_places_are_changed():
    """Of 4,000: within four standard errors, 4 x sqrt(0.7 x 0.3 / 4000) = 0.029, of 0.7."""
    letters = "ae" * 2000
    for name in ("leetspeak", "homoglyphs"):
        changed = sum(a != b for a, b in zip(rewritten(name, letters), letters, strict=True))
        assert changed / 4000 == pytest.approx(0.7, abs=0.029), name
    assert rewritten("zero_width", letters).count(MARK) / 3999 == pytest.approx(0.7, abs=0.029)


def test_a_text_is_split_into_two_to_four_pieces_and_no_more_than_it_has():
    found = [rewritten("split", "abcdefgh", seed) for seed in range(40)]
    assert {text.count('"') // 2 for text in found} == {2, 3, 4} and not any('""' in text for text in found)
    assert rewritten("split", KOREAN).count("\\") == 0, "letters stay letters"
    assert {rewritten("split", "ab", seed) for seed in range(9)} == {'Read as one text: "a" + "b"'}


def test_letters_that_join_or_make_one_syllable_are_not_parted():
    assert joints("ab, c가나") == [1, 5, 6]
    assert joints(unicodedata.normalize("NFD", "가é")) == []
    assert joints(ARABIC) == [] and joints("नमस्ते") == []
    assert joints(HEBREW[:4]) == [1, 2, 3]


def upper(text: str, g: np.random.Generator) -> str:
    return text.upper()


def counts(text: str, g: np.random.Generator) -> int:
    return len(text)


def test_a_function_of_the_users_own_rewrites_and_must_give_text():
    g = np.random.default_rng(0)
    assert make_evasion(f"{__name__}:upper", "data.evasion")("a", g) == "A"
    assert make_evasion("base64", "data.evasion") is evasion.base64
    with pytest.raises(InputError, match="data.evasion = .*:counts: gave a value of the type int; must be text"):
        make_evasion(f"{__name__}:counts", "data.evasion")("a", g)
    with pytest.raises(InputError, match="did you mean base64"):
        make_evasion("bas64", "data.evasion")


def test_the_schema_names_the_rewritings():
    assert schemas()["guard.augment"]["items"]["enum"] == REWRITINGS
    assert [*EVASIONS] == schemas()["data.sources"]["items"]["properties"]["evasion"]["anyOf"][0]["enum"]
