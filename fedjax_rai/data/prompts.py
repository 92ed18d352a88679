"""Rows that ask: prompts, tasks with one right answer, and choices between two answers, from any file or data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.data.columns import ETC, show
from fedjax_rai.data.files import read_rows
from fedjax_rai.data.mix import twins
from fedjax_rai.data.sources import Choice, Language, Question
from fedjax_rai.data.turns import TRANSCRIPT, NoPair, is_absent, listed, opening, turns_of, written
from fedjax_rai.errors import InputError
from fedjax_rai.text.prompts import ASSISTANT

# Columns that hold a prompt, the first that a row has counts; of two languages that of the config.
PROMPTS = ("prompt", "goal", "question", "query", "behavior", "Behavior", "forbidden_prompt", "turns", "instruction")
# Columns that hold a conversation, whose first turn of the user counts.
CONVERSATIONS = ("messages", "conversation", "conversations", "chosen")
ANSWER = "answer"
TURNS = "turns"  # MT-Bench's, a list of what the user asks
LABEL, UNSAFE = "label", "unsafe"  # XSTest's, whose unsafe prompts are there for contrast
TYPE, CONTRAST = "type", "contrast_"  # XSTest's types, and how those of unsafe prompts begin


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
        found.append(Prompt(_query(row, place, name), _category(row), _others(row, name), row, place))
    if not found:
        raise InputError(f"{path}: no rows; must hold at least one prompt")
    return found


def read_harmless(path: str | Path, language: Language = "en") -> tuple[list[Prompt], list[Prompt]]:
    """The prompts of a source that should not be refused, and those that are unsafe.

    Unsafe are, as in XSTest, those of the label `unsafe`, or where there is no label of a type `contrast_...`.
    """
    harmless: list[Prompt] = []
    unsafe: list[Prompt] = []
    for prompt in read_prompts(path, language):
        kind = unsafe if _is_unsafe(prompt.row) else harmless
        kind.append(prompt)
    if not harmless:
        raise InputError(f"{path}: every prompt is labelled {UNSAFE}; must hold some that should not be refused")
    return harmless, unsafe


def _is_unsafe(row: Mapping[str, Any]) -> bool:
    label = row.get(LABEL)
    if is_absent(label) or label == "":
        return str(row.get(TYPE)).startswith(CONTRAST)
    return str(label).strip().casefold() == UNSAFE


def read_tasks(path: str | Path, language: Language = "en") -> list[Question]:
    """The prompts of a source with the one right answer to each, in the column `answer`."""
    found = []
    for prompt in read_prompts(path, language):
        found.append(Question(prompt.query, _text(prompt.row, prompt.place, ANSWER), prompt.others))
    return found


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
        return Choice(**texts, category=_category(row), others=_others(row, "input"))
    _check_column(row, place, "prompt")
    return Choice(
        query=_query(row, place, "prompt"),
        good=_answer(row, place, "chosen"),
        bad=_answer(row, place, "rejected"),
        category=_category(row),
        others=_others(row, "prompt"),
    )


def _column(row: Mapping[str, Any], language: Language) -> str | None:
    """The column of a row that holds its prompt, or its conversation."""
    for name in PROMPTS:
        for column in (f"{name}_{language}", name):
            if column in row:
                return column
    return next((name for name in CONVERSATIONS if name in row), None)


def _others(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """What a column holds, in the other languages that the row has it in."""
    return tuple(row[twin].strip() for twin in twins(name) if _is_text(row.get(twin)))


def _query(row: Mapping[str, Any], place: str, name: str) -> str:
    value = listed(row[name])
    if name == TURNS and isinstance(value, str):
        value = written(value)
    if name in CONVERSATIONS or _has_turns(value):
        return _opening(value, place, name)
    query = _text({**row, name: value}, place, name)
    if name == "instruction" and _is_text(row.get("input")):
        return f"{query}\n\n{row['input'].strip()}"
    return query


def _has_turns(value: Any) -> bool:
    """Whether a column that may hold a text holds a transcript, or a list of turns."""
    if isinstance(value, str):
        return TRANSCRIPT.match(value.strip()) is not None
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _text(row: Any, place: str, name: str) -> str:
    """The text in a column; of a list of texts the first."""
    _check_column(row, place, name)
    value = row[name]
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, Mapping) and "content" in value:
        value = value["content"]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: column {name!r} is {show(row[name])}; must be text, not empty")
    return value.strip()


def _check_column(row: Any, place: str, name: str) -> None:
    if not isinstance(row, Mapping) or name not in row:
        there = ", ".join(map(str, row)) if isinstance(row, Mapping) else show(row)
        raise InputError(f"{place}: no column {name!r}, only {there}; must have it")


def _opening(conversation: Any, place: str, name: str) -> str:
    """The user's first turn, of a list of turns or a transcript ("Human: ...")."""
    try:
        found = opening(conversation, place, name)
    except NoPair:
        found = ""
    if not found:
        raise InputError(f"{place}: column {name!r} is {show(conversation)}; must have a turn of the user's with text")
    return found


def _answer(row: Mapping[str, Any], place: str, name: str) -> str:
    """The text in a column; of a list of turns the assistant's last."""
    _check_column(row, place, name)
    value = listed(row[name])
    if not isinstance(value, list) or not _has_turns(value):
        return _text(row, place, name)
    try:
        turns = turns_of({name: value}, name, place, ASSISTANT)
    except NoPair:
        turns = []
    if not turns or turns[-1].role != ASSISTANT:
        raise InputError(f"{place}: column {name!r} is {show(value)}; must end with a turn of the assistant's")
    return turns[-1].text


def _category(row: Mapping[str, Any]) -> str:
    value = row.get("question_category") or row.get("category")
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) and value.strip() else ETC
