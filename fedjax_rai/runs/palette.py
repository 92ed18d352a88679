"""The colours of every picture: of Okabe and Ito, told apart by colour-blind people too, each with a marker."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
"""In the order of `COLOURS`, as matplotlib calls them: two series differ in more than colour."""
ON_DARK = ("#56A8E8", "#F08A3C", "#2FBF93", "#E09BC4", "#F0B730", "#8FD0F5", "#E8E8E8")
"""The same colours on a dark ground, where black and dark blue would be lost."""


def colour(i: int) -> str:
    """Of the i-th series."""
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    """Of the i-th series."""
    return MARKERS[i % len(MARKERS)]
