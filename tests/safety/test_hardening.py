"""The normal form that a guard may read, and rewritten copies of what it is fitted on."""

import base64
import unicodedata

import numpy as np
import pytest

from fedjax_rai.data.sources import Pair
from fedjax_rai.safety import guard as guards
from fedjax_rai.safety.evasion import EVASIONS
from fedjax_rai.safety.guard import Scorer, score
from fedjax_rai.safety.hardening import augmented, normalise, normalised_pair
from tests.safety.test_evasion import ARABIC, ENGLISH, HEBREW, KOREAN

RUSSIAN, GREEK = "Сор и рос: вот так, как есть.", "Το ρυζι και το νερο"
PLAIN = [ENGLISH, KOREAN, HEBREW, RUSSIAN, GREEK, "café, naïve", "a\n\tb  c", "0123456789abcdef0123456789abcdef", ""]


@pytest.mark.parametrize("text", PLAIN, ids=range(len(PLAIN)))
def test_what_has_no_trick_in_it_stays_as_it_is(text):
    assert normalise(text) == text
    assert normalise(unicodedata.normalize("NFD", text)) == text


@pytest.mark.parametrize("name", ["homoglyphs", "zero_width", "base64"])
@pytest.mark.parametrize("seed", range(5))
def test_a_normal_form_undoes_these_rewritings(name, seed):
    for text in (ENGLISH, ENGLISH.upper(), KOREAN):
        assert normalise(EVASIONS[name](text, np.random.default_rng(seed))) == text


def test_rewritings_of_rewritings_are_undone():
    g = np.random.default_rng(0)
    hidden = EVASIONS["zero_width"](EVASIONS["base64"](EVASIONS["homoglyphs"](ENGLISH, g), g), g)
    assert normalise(hidden) == ENGLISH
    thrice = ENGLISH
    for _ in range(3):
        thrice = base64.b64encode(thrice.encode()).decode()
    assert normalise(f"Read this: {thrice}, and answer.") == f"Read this: {ENGLISH}, and answer."


@pytest.mark.parametrize("text", [*PLAIN, ARABIC, "Ａｂｃ", "раypal", "сор", "x" * 40, "QUJD" * 8])
def test_a_normal_form_is_one(text):
    assert normalise(normalise(text)) == normalise(text)


def test_words_that_mix_scripts_are_folded_and_words_of_another_script_are_not():
    mixed = "p\u0430ypal"  # with a Cyrillic a
    assert normalise(mixed) == "paypal"
    assert normalise(f"{RUSSIAN} {mixed}") == f"{RUSSIAN} paypal"
    assert normalise("\u0441\u043e\u0440 soup") == "cop soup", "nothing else says that it is Russian"
    for first_or_last in ("\u0370", "\u052f"):
        assert normalise(f"{first_or_last} \u0441\u043e\u0440") == f"{first_or_last} \u0441\u043e\u0440"
    assert normalise("c\u0430f\u00e9") == "caf\u00e9"
    assert normalise("p\u0430y\u0436") == "p\u0430y\u0436", "a letter that is none of ours says what it is"
    assert normalise("p\u03b1yp\u03b1l \u0391BC") == "paypal ABC", "Greek alphas"


def test_what_is_no_text_in_base64_stays():
    short, bytes_ = base64.b64encode(b"short").decode(), base64.b64encode(bytes(range(128, 160))).decode()
    assert normalise(short) == short and normalise(bytes_) == bytes_
    assert normalise("a" * 41) == "a" * 41, "no multiple of four"
    controls = base64.b64encode(bytes(range(1, 19))).decode()
    assert normalise(controls) == controls, "characters that nobody reads"


def test_base64_is_decoded_from_24_characters_on():
    """18 bytes are 24 characters, 15 are 20; 16 and 17 are 24 with padding; the rest of a text stays."""
    for text, is_decoded in (("a" * 15, False), ("a" * 16, True), ("a" * 17, True), ("a b c d e f g h i ", True)):
        run = base64.b64encode(text.encode()).decode()
        assert normalise(f"x {run} y") == f"x {text if is_decoded else run} y", text
    assert normalise(base64.b64encode(b"one\ntwo\tthree, four").decode()) == "one\ntwo\tthree, four"


def test_a_guard_reads_the_normal_form_where_it_is_asked_to():
    asked: list[tuple[str, str]] = []

    def note(pairs):
        asked.extend(pairs)
        return np.zeros(len(pairs))

    hidden = "p\u0430ypal\u200b"
    score(Scorer(note, "x", normalise=True), [(hidden, hidden)])
    score(Scorer(note, "x"), [(hidden, hidden)])
    assert asked == [("paypal", "paypal"), (hidden, hidden)]
    assert guards.Guard._field_defaults["normalise"] is False


def test_a_fit_has_a_copy_of_every_pair_that_a_rewriting_changes():
    """Two English pairs, unsafe and safe, and a Korean one, which leetspeak does not apply to."""
    pairs = [Pair("q0", ENGLISH, True), Pair("q1", "It is so.", False), Pair("q2", KOREAN, True)]
    found = augmented(pairs, ["base64", "leetspeak"], 0)
    assert found[:3] == pairs and [pair.query for pair in found[3:]] == ["q0", "q1", "q2", "q0", "q1"]
    assert [pair.harmful for pair in found[3:]] == [True, False, True, True, False]
    assert base64.b64decode(found[5].response).decode() == KOREAN
    assert found == augmented(pairs, ["base64", "leetspeak"], 0) != augmented(pairs, ["base64", "leetspeak"], 1)
    assert augmented(pairs, [], 0) == pairs
    assert normalised_pair(found[3]) == pairs[0]
    assert normalised_pair(Pair("p\u0430ypal", "p\u0430ypal", True)) == Pair("paypal", "paypal", True)
