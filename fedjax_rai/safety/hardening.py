"""Against evasion: the normal form that a guard may read, and rewritten copies of the pairs that it is fitted on."""

import base64
import binascii
import re
import unicodedata
from collections.abc import Sequence

from fedjax_rai import rng
from fedjax_rai.data.columns import Pair
from fedjax_rai.safety.evasion import LOOKALIKES, make_evasion
from fedjax_rai.text.compare import is_invisible

LONG_RUN = 24
"""Characters of base64 from which on a run is decoded: no word of a language is as long."""
# Greek letters that look like Latin ones, beside the Cyrillic ones of `homoglyphs`.
_GREEK = dict(zip("αοινρυΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aoivpuABEZHIKMNOPTYX", strict=True))
LATIN = {lookalike: letter for letter, lookalike in LOOKALIKES.items()} | _GREEK
"""The Latin letter that each look-alike stands for."""
_WORD = re.compile(r"[^\W\d_]+")
_RUN = re.compile(rf"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{{{LONG_RUN - 2},}}={{0,2}}(?![A-Za-z0-9+/=])")


def normalise(text: str) -> str:
    """The form of a text that a guard reads with `guard.normalise`; texts without a trick in them stay as they are.

    NFKC; nothing invisible but white space; in words of Latin letters and look-alikes the letters that are meant; runs
    of at least LONG_RUN characters of base64 whose bytes are text, as that text. `normalise(normalise(x))` is
    `normalise(x)`.
    """
    form = _RUN.sub(_decoded, _plain(text))
    while form != text:  # what was decoded may be encoded once more, and is shorter
        text = form
        form = _RUN.sub(_decoded, _plain(text))
    return form


def _plain(text: str) -> str:
    """Without invisible characters and look-alikes, in NFKC."""
    seen = "".join(character for character in unicodedata.normalize("NFKC", text) if not is_invisible(character))
    return _folded(unicodedata.normalize("NFKC", seen))


def _folded(text: str) -> str:
    """With the Latin letters that look-alikes stand for.

    A word of look-alikes alone may be Russian or Greek: it is folded where no letter of the text is of these scripts
    without looking like a Latin one.
    """
    if text.isascii():
        return text
    foreign = any(map(_is_foreign, text))

    def fold(match: re.Match[str]) -> str:
        word = match[0]
        has_latin = any(character.isascii() for character in word)
        if any(map(_is_foreign, word)) or (foreign and not has_latin):
            return word
        return "".join(LATIN.get(character, character) for character in word)

    return _WORD.sub(fold, text)


def _is_foreign(character: str) -> bool:
    """Whether a letter is Cyrillic or Greek, and no look-alike."""
    return character not in LATIN and (0x0370 <= ord(character) <= 0x052F) and character.isalpha()


def _decoded(match: re.Match[str]) -> str:
    """A run of base64 as the text that it holds; as it is where it is none."""
    run = match[0]
    if len(run) < LONG_RUN or len(run) % 4:
        return run
    try:
        text = base64.b64decode(run, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return run
    readable = sum(character.isprintable() or character.isspace() for character in text)
    return text if readable == len(text) else run


def normalised(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(query, response) pairs in the form that a guard reads."""
    return [(normalise(query), normalise(response)) for query, response in pairs]


def normalised_pair(pair: Pair) -> Pair:
    """A labelled pair in that form."""
    return pair._replace(query=normalise(pair.query), response=normalise(pair.response))


def augmented(pairs: Sequence[Pair], names: Sequence[str], seed: int) -> list[Pair]:
    """The pairs, then copies of all of them with their answers rewritten in each of these ways, unsafe and safe alike.

    What a rewriting leaves as it is has no copy. The same seed gives the same copies.
    """
    found = list(pairs)
    for name in names:
        evasion = make_evasion(name, "guard.augment")
        for row, pair in enumerate(pairs):
            response = evasion(pair.response, rng.host(seed, f"augment {name}", row=row))
            if response != pair.response:
                found.append(pair._replace(response=response))
    return found
