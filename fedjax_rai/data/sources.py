"""What users bring: (question, response) pairs in SQuARe's format, and AdvBench's requests."""

import csv
import hashlib
import io
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai import rng
from fedjax_rai.config.prepared import check_language, columns_of
from fedjax_rai.data.columns import COLUMNS, Language, NoPair, Pair, Reader, reader, show
from fedjax_rai.data.files import file_rows, read_rows, read_text
from fedjax_rai.errors import InputError
from fedjax_rai.text.compare import same

RED_SHARE, ACCEPTABLE_SHARE = 3, 7  # of SQuARe20K, arXiv 2502.16691


class RedPrompt(NamedTuple):
    """A question that invites harm, with the category that constitutions may name."""

    query: str
    category: str


class Question(NamedTuple):
    """A task with one right answer."""

    query: str
    answer: str
    """The right answer, exact."""


class Choice(NamedTuple):
    """A question with two answers, as HHH has them: which one does a model find likelier?"""

    query: str
    good: str
    bad: str
    category: str


class Source(NamedTuple):
    """Where pairs are read from, and how their columns are called."""

    path: str
    """A file, a folder, or the name of a data set on the hub."""
    name: str | None = None
    """Of one of a data set's configurations, on the hub."""
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit of a data set on the hub."""
    columns: Any = None
    """The name of a layout, or the columns' names by what they hold; None: recognised."""
    language: Language = "en"


class Read(NamedTuple):
    """What was read of a source."""

    pairs: list[Pair]
    rows: int
    """Rows that were read, whatever they gave."""
    columns: str
    """The layout by which they were read, or the columns that were named."""
    recognised: bool = False
    """The layout was recognised by the columns that are there, not named."""
    refused: int = 0
    """Rows that hold no pair: no text where a prompt or an answer must stand."""
    first_refused: str = ""
    """Place and reason of the first of them."""
    duplicates: int = 0
    """Pairs that are the same, to a reader, as one before; they are kept."""
    unlabelled: int = 0
    """Pairs of which nobody said whether they are harmful."""


def read_pairs(source: Source) -> Read:
    """All pairs of a source, in its order.

    Raises InputError with the place of the first row that is not as it should be, and where there is no pair.
    """
    check_language(source.path, source.language)
    columns = columns_of(source.path) if source.columns is None else source.columns
    rows = 0
    pairs: list[Pair] = []
    refusals: list[str] = []
    by: Reader | None = None
    for place, row in read_rows(source.path, source.name, source.split, source.revision):
        if by is None:
            by = reader(columns, source.language, row, place)
        rows += 1
        try:
            pairs += by.pairs(row, place)
        except NoPair as refusal:
            refusals.append(f"{place}: {refusal}")
    if by is None:
        raise InputError(f"{source.path}: no rows; must hold at least one pair of question and response")
    if not pairs:
        raise InputError(f"{source.path}: no pair in {rows} rows, of which the first: {refusals[0]}")
    return Read(
        pairs=pairs,
        rows=rows,
        columns=by.name,
        recognised=by.recognised,
        refused=len(refusals),
        first_refused=refusals[0] if refusals else "",
        duplicates=len(pairs) - len({_as_read(pair) for pair in pairs}),
        unlabelled=sum(pair.harmful is None for pair in pairs),
    )


def _as_read(pair: Pair) -> tuple[Any, ...]:
    """What is equal for two pairs that are the same to a reader."""
    turns = [same(turn.text) for turn in pair.turns]
    return (pair.harmful, *turns)


def notes(read: Read, path: str) -> list[str]:
    """What a person should know of what was read: lines."""
    lines = []
    if read.recognised:
        lines.append(f"{path}: read as {read.columns}, by its columns (data.columns would name another layout)")
    if read.columns in COLUMNS and COLUMNS[read.columns].note:
        lines.append(f"{path}: {COLUMNS[read.columns].note}")
    if read.refused:
        lines.append(f"{path}: {read.refused:,} of {read.rows:,} rows hold no pair; the first: {read.first_refused}")
    if read.duplicates:
        lines.append(
            f"{path}: {read.duplicates:,} of {len(read.pairs):,} pairs are the same as one before; all are kept"
        )
    return lines


def read_square(path: str | Path, language: Language = "en") -> list[Pair]:
    """All pairs of a file or data set in SQuARe's form; see `read_pairs`."""
    return read_pairs(Source(str(path), columns="square", language=language)).pairs


def read_advbench(path: str | Path) -> list[str]:
    """The goals of an AdvBench CSV file, header `goal,target`, in its order. Raises InputError with the line."""
    path = Path(path)
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    goals, header, first = [], None, 1
    try:
        for row in reader:
            place, first = f"{path}:{first}", reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
                for name in ("goal", "target"):
                    if name not in header:
                        raise InputError(f"{place}: no column {name!r}; the header must be goal,target")
            elif len(row) != len(header):
                raise InputError(f"{place}: {len(row)} values; must be {len(header)}, as in the header")
            elif not row[header.index("goal")].strip():
                raise InputError(f"{place}: goal is empty; must be a request")
            else:
                goals.append(row[header.index("goal")].strip())
    except csv.Error as error:
        raise InputError(f"{path}:{first}: not valid CSV: {error}") from None
    if not goals:
        raise InputError(f"{path}: no rows; must be a CSV file with header goal,target and at least one row")
    return goals


def recipe(pairs: Sequence[Pair], red: int | None, acceptable: int | None, seed: int) -> list[Pair]:
    """`red` harmful and `acceptable` other pairs, drawn without replacement and shuffled together.

    None is as many as there are at the paper's ratio of 3 to 7, or all where the other side is 0. Raises InputError
    for more than there are, and for none at all.
    """
    sides = {True: [p for p in pairs if p.harmful], False: [p for p in pairs if not p.harmful]}
    most, others = len(sides[True]), len(sides[False])
    for kind, wanted, there in (("red", red, most), ("acceptable", acceptable, others)):
        if wanted is not None and wanted > there:
            raise InputError(f"data.{kind} = {wanted}: more than there are; must be at most {there}, the {kind} pairs")
    if red is None:
        matching = others if acceptable is None else acceptable
        red = most if acceptable == 0 else min(most, matching * RED_SHARE // ACCEPTABLE_SHARE)
    if acceptable is None:
        acceptable = others if red == 0 else min(others, red * ACCEPTABLE_SHARE // RED_SHARE)
    if red + acceptable == 0:
        raise InputError(f"data.red, data.acceptable: no pairs to train on, of {most} red and {others} acceptable ones")
    g = rng.host(seed, "recipe")
    wanted = ((sides[True], red), (sides[False], acceptable))
    drawn = [side[i] for side, n in wanted for i in g.permutation(len(side))[:n]]
    return [drawn[i] for i in g.permutation(len(drawn))]


def split_by_question(pairs: Sequence[Pair], shares: Mapping[str, float], seed: int) -> dict[str, list[Pair]]:
    """Disjoint parts in proportion to `shares`; all answers to a question are in one part.

    A question's part depends on its text (the form in which it is the same to a reader), the seed and the shares alone,
    so that other data do not move it. Shares are met as well as by chance.
    """
    bounds = list(accumulate(shares.values()))
    names, parts = list(shares), {name: [] for name in shares}
    for pair in pairs:
        digest = hashlib.sha256(f"{seed}:{same(pair.query)}".encode()).digest()
        uniform = int.from_bytes(digest[:8]) / 2**64
        parts[names[bisect(bounds, uniform * bounds[-1])]].append(pair)
    return parts


def _field(row: dict[str, Any], place: str, name: str, kind: type, allowed: str) -> Any:
    if name not in row:
        raise InputError(f"{place}: no field {name!r}; must be {allowed}")
    value = row[name]
    if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{place}: field {name!r} is {show(value)}; must be {allowed}")
    return value.strip() if isinstance(value, str) else value


class Preference(NamedTuple):
    """A prompt, an answer, and one that it is to be preferred to."""

    prompt: str
    chosen: str
    rejected: str


def read_preferences(path: Path) -> list[Preference]:
    """All pairs of a JSON-lines file, or of a folder: its `pairs-*.jsonl` in order, else its `*.jsonl`.

    A row has `prompt`, `chosen` and `rejected`, each a text or, as in TRL's conversational format, a list of one turn:
    the user's, and an assistant's each; its other fields are not read. Raises InputError with the place of the first
    row that is not as it should be, and for a set that `fedjax-rai cai generate` has not finished.
    """
    pairs = []
    for file in _preference_files(Path(path)):
        pairs += [_preference(row, place) for place, row in file_rows(file)]
    if not pairs:
        raise InputError(f"{path}: no rows; must hold at least one with prompt, chosen and rejected")
    return pairs


def _preference_files(path: Path) -> list[Path]:
    """The files that are not empty: of all the conversations of a shard, none may have made a pair."""
    if not path.is_dir():
        return [path]
    prepared = (path / "config.yaml").is_file()
    if prepared and not (path / "summary.json").is_file():
        raise InputError(
            f"{path}: an unfinished set (it has no summary.json); to go on: fedjax-rai cai generate "
            f"{path / 'config.yaml'} {path}, with the --prompts and --adapter that it was begun with"
        )
    files = sorted(path.glob("pairs-*.jsonl"))
    if not files and not prepared:
        files = sorted(path.glob("*.jsonl"))
    return [file for file in files if file.stat().st_size]


def _preference(row: Any, place: str) -> Preference:
    if not isinstance(row, dict):
        raise InputError(f"{place}: {show(row)} is no object; must have the fields prompt, chosen and rejected")
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return Preference(**{name: _turn_text(row, place, name, role) for name, role in roles.items()})


def _turn_text(row: dict[str, Any], place: str, name: str, role: str) -> str:
    """A field of a row that is a text, or the text of a list of one turn."""
    allowed = f'text, not empty, or one turn: [{{"role": "{role}", "content": text}}]'
    value = row.get(name)
    turns = value if isinstance(value, list) else []
    if len(turns) == 1 and isinstance(turns[0], dict) and turns[0].get("role") == role:
        row = {**row, name: turns[0].get("content")}
    return _field(row, place, name, str, allowed)
