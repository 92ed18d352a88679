"""What users bring: (question, response) pairs in SQuARe's format, and AdvBench's requests."""

from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.config.prepared import check_language, columns_of
from fedjax_rai.data.columns import COLUMNS, Language, Pair, Reader, language_key, reader, show
from fedjax_rai.data.files import file_rows, read_rows
from fedjax_rai.errors import InputError
from fedjax_rai.text.compare import same


class RedPrompt(NamedTuple):
    """A question that invites harm, with the category that constitutions may name."""

    query: str
    category: str


class Question(NamedTuple):
    """A task with one right answer."""

    query: str
    answer: str
    """The right answer, exact."""
    others: tuple[str, ...] = ()
    """The same in other languages, where the row has it."""


class Choice(NamedTuple):
    """A question with two answers, as HHH has them: which one does a model find likelier?"""

    query: str
    good: str
    bad: str
    category: str
    others: tuple[str, ...] = ()
    """The question in other languages, where the row has it."""


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
    """Rows with an answer that makes no pair: no text where a prompt or an answer must stand."""
    first_refused: str = ""
    """Place and reason of the first of them."""
    duplicates: int = 0
    """Pairs that are the same, to a reader, as one before; they are kept."""
    unlabelled: int = 0
    """Pairs of which nobody said whether they are harmful."""


def read_pairs(source: Source, key: str = "data.columns") -> Read:
    """All pairs of a source, in its order. `key`: what names its columns, as messages say.

    Raises InputError with the place of the first row that is not as it should be, and where there is no pair.
    """
    check_language(source.path, source.language, language_key(key))
    columns = columns_of(source.path) if source.columns is None else source.columns
    rows = 0
    pairs: list[Pair] = []
    refusals: list[str] = []
    by: Reader | None = None
    for place, row in read_rows(source.path, source.name, source.split, source.revision):
        if by is None:
            by = reader(columns, source.language, row, place, key)
        rows += 1
        made = by.pairs(row, place)
        pairs += made.pairs
        if made.refusals:
            refusals.append(f"{place}: {made.refusals[0]}")
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
        counts = f"{read.refused:,} of {read.rows:,} rows"
        lines.append(f"{path}: {counts} have an answer that makes no pair; the first: {read.first_refused}")
    if read.duplicates:
        lines.append(
            f"{path}: {read.duplicates:,} of {len(read.pairs):,} pairs are the same as one before; all are kept"
        )
    return lines


def read_square(path: str | Path, language: Language = "en") -> list[Pair]:
    """All pairs of a file or data set in SQuARe's form; see `read_pairs`."""
    return read_pairs(Source(str(path), columns="square", language=language)).pairs


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
