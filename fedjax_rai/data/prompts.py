"""Rows that ask: prompts, tasks with one right answer, and choices between two answers, from any file or data set."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.data.columns import ETC, show
from fedjax_rai.data.files import read_rows
from fedjax_rai.data.mix import twins
from fedjax_rai.data.sources import Choice, Language, Question
from fedjax_rai.errors import InputError

# Columns that hold a prompt, the first that a row has counts; of two languages that of the config.
PROMPTS = ("prompt", "goal", "question", "query", "behavior", "Behavior", "forbidden_prompt", "turns", "instruction")
# Columns that hold a conversation, whose first turn of the user counts.
CONVERSATIONS = ("messages", "conversation", "conversations", "chosen")
ANSWER = "answer"
LABEL, UNSAFE = "label", "unsafe"  # XSTest's, whose unsafe prompts are there for contrast
_USER = ("user", "human", "prompter")
_OPENING = re.compile(r"\s*Human:(.*?)(?=\n\nAssistant:|\Z)", re.DOTALL)


class Prompt(NamedTuple):
    """What a row asks."""

    query: str
    category: str
    others: tuple[str, ...]
    """The same in other languages, where the row has it."""
    row: Mapping[str, Any]
    place: str


def read_prompts(path: str | Path, language: Language = "en") -> list[Prompt]:
    """What every row of a file or data set asks, in its order.

    A row has a column of `PROMPTS` (Alpaca's with its `input` behind it), or one of `CONVERSATIONS`. Raises InputError
    with the place of the first row that is not as it should be, and where there is none.
    """
    found = []
    for place, row in read_rows(path):
        if not isinstance(row, Mapping):
            raise InputError(f"{place}: {show(row)} is no object; must have a column with a prompt")
        name = _column(row, language)
        if name is None:
            raise InputError(
                f"{place}: the columns {', '.join(map(str, row))} hold no prompt; must have one of "
                f"{', '.join((*PROMPTS, *CONVERSATIONS))}"
            )
        others = tuple(row[twin].strip() for twin in twins(name) if _is_text(row.get(twin)))
        found.append(Prompt(_query(row, place, name), _category(row), others, row, place))
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


def _column(row: Mapping[str, Any], language: Language) -> str | None:
    """The column of a row that holds its prompt, or its conversation."""
    for name in PROMPTS:
        for column in (f"{name}_{language}", name):
            if column in row:
                return column
    return next((name for name in CONVERSATIONS if name in row), None)


def _query(row: Mapping[str, Any], place: str, name: str) -> str:
    if name in CONVERSATIONS:
        return _opening(row[name], place, name)
    query = _text(row, place, name)
    if name == "instruction" and _is_text(row.get("input")):
        return f"{query}\n\n{row['input'].strip()}"
    return query


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


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


def _opening(conversation: Any, place: str, name: str) -> str:
    """The user's first turn, of a list of turns or a transcript ("Human: ...")."""
    found: Any = None
    if isinstance(conversation, str):
        matched = _OPENING.match(conversation)
        found = matched[1] if matched else None
    for turn in conversation if isinstance(conversation, list) else ():
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        if role in _USER:
            found = turn.get("content", turn.get("value"))
            break
    if not _is_text(found):
        raise InputError(f"{place}: column {name!r} is {show(conversation)}; must begin with a turn of the user's")
    return found.strip()


def _category(row: Mapping[str, Any]) -> str:
    value = row.get("question_category") or row.get("category")
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) and value.strip() else ETC
