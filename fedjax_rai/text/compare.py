"""Which texts are the same to a reader. Text is compared by this form, and stored and trained on as it came."""

import functools
import unicodedata

# What a reader does not see, beside the categories Cf and Cc: Unicode's Default_Ignorable_Code_Point, as ranges.
_IGNORABLE = (
    (0x034F, 0x034F),  # combining grapheme joiner
    (0x115F, 0x1160),  # fillers of Hangul, U+3164 and U+FFA0 once they are decomposed
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2065, 0x2065),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),  # variation selectors
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0xE0000, 0xE0FFF),
)
_BLANK = "\u2800"  # the Braille pattern without dots: no white space by its category, and nothing to be seen


def same(text: str) -> str:
    """The form by which questions are compared: texts that a reader cannot tell apart have one.

    Canonical and compatibility equivalents are one (NFKC, Unicode Standard Annex 15: composed and decomposed Hangul,
    full-width letters), what is invisible is left out (categories Cf and Cc, and whatever else Unicode calls default
    ignorable), any run of white space is one space, and none stands at the ends. Case, punctuation and accents stay. A
    text that is in this form is unchanged, so `same(same(text)) == same(text)`.
    """
    if text.isascii() and text.isprintable():  # of which nothing but white space changes
        return " ".join(text.split())
    spaced = text.replace(_BLANK, " ")
    normal = unicodedata.normalize("NFKC", spaced)
    seen = "".join(character for character in normal if not is_invisible(character))
    # what stood apart may now meet its accent, and compose with it
    return " ".join(unicodedata.normalize("NFKC", seen).split())


@functools.cache
def is_invisible(character: str) -> bool:
    """Whether a reader does not see it, though it is no white space."""
    if character.isspace():
        return False
    if unicodedata.category(character) in ("Cf", "Cc"):
        return True
    return any(first <= ord(character) <= last for first, last in _IGNORABLE)
