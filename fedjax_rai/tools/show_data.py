"""`fedjax-rai data show`: what a source holds, in numbers and a few rows, as a run would read it."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fedjax_rai.config.prepared import check_language, columns_of, is_prepared, language_of
from fedjax_rai.config.schema import TINY
from fedjax_rai.data import records, tiny_world
from fedjax_rai.data.columns import COLUMNS, ETC, Pair, shown_category
from fedjax_rai.data.corpus import TEXTS
from fedjax_rai.data.partition import LABELS
from fedjax_rai.data.sources import Read, Source, read_pairs
from fedjax_rai.terminal import plural
from fedjax_rai.text.compare import same

MOST_CATEGORIES = 8
TINY_RED, TINY_ACCEPTABLE = 1_800, 4_200  # what a run takes of the tiny world, if nothing else is said
ELLIPSIS = "…"


def show(source: Source, rows: int, width: int) -> Iterator[str]:
    """Lines of at most `width` columns: the summary of a source, and its first rows. Raises InputError."""
    for line in _lines(source, rows):
        yield cut(line, width)


def _lines(source: Source, rows: int) -> Iterator[str]:
    if language_of(source.path) and not columns_of(source.path):
        check_language(source.path, source.language, "--language")
        questions = records.Records(source.path, source.split)
        yield from question_lines(source, questions)
        yield from made_of(source)
        yield from ("", *(f"{i}. {_as_json(row)}" for i, row in enumerate(questions[:rows], 1)))
        return
    read = _tiny() if source.path == TINY else read_pairs(source, "--columns")
    yield from summary(source, read)
    yield from made_of(source)
    yield from row_lines(read.pairs[:rows])


def _tiny() -> Read:
    """Pairs of the tiny world, as a run with the seed 0 trains on."""
    pairs = tiny_world.square_like(TINY_RED, TINY_ACCEPTABLE, "test", 0)
    return Read(pairs, len(pairs), "the tiny world's own")


def summary(source: Source, read: Read) -> Iterator[str]:
    """What was read of a source, a number or a few a line."""
    pairs = read.pairs
    counts = f"{plural(len(pairs), 'pair')}, {read.refused:,} refused, {plural(read.duplicates, 'duplicate')}"
    turns = sum(bool(pair.before) for pair in pairs)
    yield f"source      {source.path}, split {source.split}"
    yield f"columns     {read.columns}{', recognised' if read.recognised else ''}; language {source.language}"
    if read.columns in COLUMNS and COLUMNS[read.columns].note:
        yield f"            {COLUMNS[read.columns].note}"
    yield f"rows        {read.rows:,}: {counts}"
    if read.refused:
        yield f"refused     the first: {read.first_refused}"
    yield f"labels      {_labels(pairs)}"
    yield f"prompts     {len({same(pair.query) for pair in pairs}):,} distinct"
    if turns:
        yield f"turns       {turns:,} of the pairs have turns before the prompt"
    yield f"categories  {_most_common(pair.category for pair in pairs)}"
    yield f"prompt      {lengths([pair.query for pair in pairs])}"
    yield f"response    {lengths([pair.response for pair in pairs])}"


def question_lines(source: Source, questions: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the corpus of questions holds, which have no answers."""
    text, _ = TEXTS[source.language]
    yield f"source      {source.path}, split {source.split}"
    yield f"columns     {', '.join(questions[0])}; no answers, so no pairs to train on"
    yield f"rows        {len(questions):,}, {sum(row['sensitive?'] for row in questions):,} sensitive"
    yield f"categories  {_most_common(row['category'] or ETC for row in questions)}"
    yield f"question    {lengths([row[text] for row in questions])}"


def made_of(source: Source) -> Iterator[str]:
    """Which files a prepared corpus was made of."""
    if not is_prepared(source.path):
        return
    for split, counts in records.metadata(source.path).get("splits", {}).items():
        file = f"{counts['file']} (sha256 {counts['sha256'][:12]}...)"
        yield f"made of     {split}: {counts['read']:,} rows of {file}"


def _labels(pairs: Sequence[Pair]) -> str:
    labels = Counter(pair.harmful for pair in pairs)
    labelled = labels[True] + labels[False]
    share = f" ({100 * labels[True] / labelled:.1f} % harmful)" if labelled else ""
    return ", ".join(f"{labels[value]:,} {word}" for value, word in LABELS.items()) + share


def _most_common(categories: Iterable[str]) -> str:
    counts = Counter(categories)
    named = [f"{shown_category(name)} {count:,}" for name, count in counts.most_common(MOST_CATEGORIES)]
    others = len(counts) - len(named)
    return ", ".join(named) + (f", and {others:,} more" if others else "")


def lengths(texts: Sequence[str]) -> str:
    """How long texts are, in characters."""
    counts = np.array([len(text) for text in texts])
    middle, most = np.percentile(counts, (50, 95))
    return f"{middle:.0f} characters at the median, {most:.0f} at 95 %, {counts.max():,} at most"


def row_lines(pairs: Sequence[Pair]) -> Iterator[str]:
    """Rows as a person reads them: label and category, the turns, the answer."""
    for number, pair in enumerate(pairs, 1):
        yield ""
        yield f"{number}. {LABELS[pair.harmful]}, {shown_category(pair.category)}"
        for turn in pair.before:
            yield f"   {turn.role}: {turn.text}"
        yield f"   prompt: {pair.query}"
        yield f"   response: {pair.response}"


def _as_json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def cut(line: str, width: int) -> str:
    """A line that a terminal of so many columns shows as one; what it could take for a command is left out."""
    shown = "".join(character if character.isprintable() else " " for character in line)
    if columns(shown) <= width:
        return shown
    shown = shown[:width]
    while columns(shown) > width - 1:
        shown = shown[:-1]
    return shown + ELLIPSIS


def columns(text: str) -> int:
    """How many columns a text takes: two for wide characters, as of Hangul, none for combining ones."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    combining = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) + wide - combining
