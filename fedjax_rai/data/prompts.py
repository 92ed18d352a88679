"""Rows that ask: prompts, tasks with one right answer, and choices between two answers, from any file or data set."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.data.columns import ETC, NoPair, Pair, Reader, reader, show
from fedjax_rai.data.files import read_rows
from fedjax_rai.data.sources import Choice, Language, Question
from fedjax_rai.errors import InputError
from fedjax_rai.text.prompts import USER

# Columns that hold a prompt, the first that a row has; of two languages that of the config.
PROMPTS = ("prompt", "goal", "question", "query", "behavior", "Behavior", "forbidden_prompt", "turns", "instruction")
ANSWER = "answer"
LABEL, UNSAFE = "label", "unsafe"  # XSTest's, whose unsafe prompts are there for contrast


class Prompt(NamedTuple):
    """What a row asks."""

    query: str
    category: str
    row: Mapping[str, Any]
    place: str


def read_prompts(path: str | Path, language: Language = "en") -> list[Prompt]:
    """What every row of a file or data set asks, in its order.

    A row has a column of `PROMPTS`, or is one that pairs can be read of: then its user's first turn counts. Raises
    InputError with the place of the first row that is not as it should be, and where there is none.
    """
    found = []
    name: str | None = None
    pairs: Reader | None = None
    for place, row in read_rows(path):
        if not found:
            name = _column(row, language)
            pairs = None if name else reader(None, language, row, place, key=str(path))
        query = _text(row, place, name) if name else _opening(pairs, row, place)
        found.append(Prompt(query, _category(row), row, place))
    if not found:
        raise InputError(f"{path}: no rows; must hold at least one prompt")
    return found


def read_harmless(path: str | Path, language: Language = "en") -> list[Prompt]:
    """The prompts of a source that should not be refused: of one with labels like XSTest's those not `unsafe`."""
    found = [prompt for prompt in read_prompts(path, language) if prompt.row.get(LABEL) != UNSAFE]
    if not found:
        raise InputError(f"{path}: every prompt is labelled {UNSAFE}; must hold some that should not be refused")
    return found


def read_tasks(path: str | Path, language: Language = "en") -> list[Question]:
    """The prompts of a source with the one right answer to each, in the column `answer`."""
    return [Question(prompt.query, _text(prompt.row, prompt.place, ANSWER)) for prompt in read_prompts(path, language)]


def read_choices(path: str | Path) -> list[Choice]:
    """Questions with a better and a worse answer: rows in HHH's form, or with `prompt`, `chosen` and `rejected`.

    HHH's are `{"input": text, "targets": {"choices": [text, text], "labels": [1, 0]}}`. A column `category` is kept.
    """
    found = [_choice(row, place) for place, row in read_rows(path)]
    if not found:
        raise InputError(f"{path}: no rows; must hold at least one choice between two answers")
    return found


def _choice(row: Any, place: str) -> Choice:
    if isinstance(row, dict) and "targets" in row:
        targets = row["targets"]
        choices, labels = (targets.get(name) if isinstance(targets, dict) else None for name in ("choices", "labels"))
        if not isinstance(choices, list) or not isinstance(labels, list) or sorted(map(str, labels)) != ["0", "1"]:
            raise InputError(f"{place}: field 'targets' is {show(targets)}; must have two choices, of labels 1 and 0")
        good = [str(label) for label in labels].index("1")
        answers = {"good": choices[good], "bad": choices[1 - good]}
        texts = {"query": _text(row, place, "input")} | {name: _text(answers, place, name) for name in answers}
        return Choice(**texts, category=_category(row))
    names = {"query": "prompt", "good": "chosen", "bad": "rejected"}
    return Choice(**{field: _text(row, place, name) for field, name in names.items()}, category=_category(row))


def _column(row: Any, language: Language) -> str | None:
    """The column of a row that holds its prompt; None where it is to be read as a pair."""
    if not isinstance(row, dict) or {"instruction", "output"} <= row.keys():
        return None
    for name in PROMPTS:
        by_language = [f"{name}_{language}", name]
        there = [column for column in by_language if column in row]
        if there:
            return there[0]
    return None


def _text(row: Any, place: str, name: str) -> str:
    """The text in a column; of a list of turns the first."""
    if not isinstance(row, Mapping) or name not in row:
        there = ", ".join(map(str, row)) if isinstance(row, Mapping) else show(row)
        raise InputError(f"{place}: no column {name!r}, only {there}; must have it")
    value = row[name]
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, Mapping) and "content" in value:
        value = value["content"]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: column {name!r} is {show(row[name])}; must be text, not empty")
    return value.strip()


def _opening(pairs: Reader | None, row: Any, place: str) -> str:
    """The first of the user's turns in a row that holds a conversation."""
    assert pairs is not None
    try:
        pair = pairs.pairs(row, place)[0]
    except NoPair as refusal:
        raise InputError(f"{place}: {refusal}; must be a prompt") from None
    return next(_asked(pair))


def _asked(pair: Pair) -> Iterator[str]:
    return (turn.text for turn in pair.turns if turn.role == USER)


def _category(row: Mapping[str, Any]) -> str:
    value = row.get("question_category") or row.get("category")
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) and value.strip() else ETC
