"""`fedjax-rai data show`: what a source holds, in numbers and a few rows, as a run would read it."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from fedjax_rai.config.prepared import is_prepared
from fedjax_rai.data import records
from fedjax_rai.data.sources import Pair, Read, Source, read_pairs
from fedjax_rai.terminal import plural
from fedjax_rai.text.compare import same

MOST_CATEGORIES = 8
LABELS = {True: "harmful", False: "acceptable", None: "unlabelled"}
ELLIPSIS = "…"


def show(source: Source, rows: int, width: int) -> Iterator[str]:
    """Lines of at most `width` columns: the summary of a source, and its first rows. Raises InputError."""
    read = read_pairs(source)
    for line in summary(source, read):
        yield cut(line, width)
    for line in row_lines(read.pairs[:rows]):
        yield cut(line, width)


def summary(source: Source, read: Read) -> Iterator[str]:
    """What was read of a source, a number or a few a line."""
    how = "recognised" if read.recognised else "asked for"
    yield f"source      {source.path}, split {source.split}"
    yield f"columns     {read.columns}, {how}; language {source.language}"
    yield f"rows        {read.rows:,}: {plural(len(read.pairs), 'pair')}, {read.refused:,} refused, " + (
        f"{plural(read.duplicates, 'duplicate')}"
    )
    labels = Counter(pair.harmful for pair in read.pairs)
    labelled = labels[True] + labels[False]
    share = f" ({100 * labels[True] / labelled:.1f} % harmful)" if labelled else ""
    yield f"labels      {', '.join(f'{labels[value]:,} {word}' for value, word in LABELS.items())}{share}"
    yield f"prompts     {len({same(pair.query) for pair in read.pairs}):,} distinct"
    turns = sum(bool(pair.before) for pair in read.pairs)
    if turns:
        yield f"turns       {plural(turns, 'pair')} with turns before the prompt"
    categories = Counter(pair.category for pair in read.pairs)
    named = [f"{name} {count:,}" for name, count in categories.most_common(MOST_CATEGORIES)]
    others = len(categories) - len(named)
    yield f"categories  {', '.join(named)}{f', and {others:,} more' if others else ''}"
    yield f"prompt      {lengths([pair.query for pair in read.pairs])}"
    yield f"response    {lengths([pair.response for pair in read.pairs])}"
    if is_prepared(source.path):
        for split, counts in records.metadata(source.path).get("splits", {}).items():
            file = f"{counts['file']} (sha256 {counts['sha256'][:12]}...)"
            yield f"made of     {split}: {counts['read']:,} rows of {file}"


def lengths(texts: Sequence[str]) -> str:
    """How long texts are, in characters."""
    counts = np.array([len(text) for text in texts])
    middle, most = np.percentile(counts, (50, 95))
    return f"{middle:.0f} characters at the median, {most:.0f} at 95 %, {counts.max():,} at most"


def row_lines(pairs: Sequence[Pair]) -> Iterator[str]:
    """Rows as a person reads them: label and category, the turns, the answer."""
    for number, pair in enumerate(pairs, 1):
        yield ""
        yield f"{number}. {LABELS[pair.harmful]}, {pair.category}"
        for turn in pair.before:
            yield f"   {turn.role}: {turn.text}"
        yield f"   prompt: {pair.query}"
        yield f"   response: {pair.response}"


def cut(line: str, width: int) -> str:
    """A line that a terminal of so many columns shows as one; what it could take for a command is left out."""
    shown = "".join(character if character.isprintable() else " " for character in line)
    if columns(shown) <= width:
        return shown
    while columns(shown) > width - 1:
        shown = shown[:-1]
    return shown + ELLIPSIS


def columns(text: str) -> int:
    """How many columns a text takes: two for wide characters, as of Hangul, none for combining ones."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    combining = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) + wide - combining
