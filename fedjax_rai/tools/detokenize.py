"""The text of an answer under way: what of it is sure, and where a stop string ends it."""

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what stands for the first bytes of a character whose others are yet to come


class Written:
    """Text of tokens that come one by one, up to the first of some stop strings, which is not part of it."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        """`decode` gives the text of all tokens so far: that of one alone may be none."""
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._given = 0  # characters that were given
        self._text: str | None = None  # all of it, once a stop string ended it
        self.holds_last = False
        """Whether the token that ended it begins with text that is part of the answer."""

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._text is not None

    def add(self, token: int) -> None:
        """A further token; none behind a stop string."""
        before = self._decode(self._ids) if self._stop else ""
        self._ids.append(token)
        if not self._stop:
            return
        text = self._decode(self._ids)
        places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self._text = text[: min(places)]
            self.holds_last = len(before) < len(self._text)

    def ready(self) -> str:
        """What is sure and was not given yet: not half a character, nor what may be the beginning of a stop string."""
        text = self._decode(self._ids) if self._text is None else self._text
        end = len(text)
        if self._text is None:
            end = len(text.rstrip(UNFINISHED))
            end = min(end, len(text) - max((_begun(text, stop) for stop in self._stop), default=0))
        return self._give(text, end)

    def rest(self) -> str:
        """All that was not given yet, of an answer that has ended."""
        text = self._decode(self._ids) if self._text is None else self._text
        return self._give(text, len(text))

    def _give(self, text: str, end: int) -> str:
        part = text[self._given : end]
        self._given = max(self._given, end)
        return part


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
