"""Rows that ask: prompts, tasks with one right answer, and choices between two answers, from any file or data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from fedjax_rai.config.schema import PromptSource
from fedjax_rai.data.columns import ETC, show
from fedjax_rai.data.files import Rows, read_rows
from fedjax_rai.data.mix import twins
from fedjax_rai.data.sources import Choice, Language, Question, Source
from fedjax_rai.data.turns import TRANSCRIPT, NoPair, is_absent, listed, opening, turns_of, written
from fedjax_rai.errors import InputError, did_you_mean
from fedjax_rai.text.prompts import ASSISTANT

# Columns that hold a prompt, the first that a row has counts; of two languages that of the config.
PROMPTS = ("prompt", "goal", "question", "query", "behavior", "Behavior", "forbidden_prompt", "turns", "instruction")
# Columns that hold a conversation, whose first turn of the user counts.
CONVERSATIONS = ("messages", "conversation", "conversations", "chosen")
ANSWER = "answer"
TURNS = "turns"  # MT-Bench's, a list of what the user asks
LABEL, UNSAFE, SAFE = "label", "unsafe", "safe"  # XSTest's, whose unsafe prompts are there for contrast
TYPE, CONTRAST = "type", "contrast_"  # XSTest's types, and how those of unsafe prompts begin


Given: TypeAlias = str | Path | PromptSource
"""What a key that names prompts holds: a path, or a mapping with a split or columns of its own."""


class Prompt(NamedTuple):
    """What a row asks."""

    query: str
    category: str
    others: tuple[str, ...]
    """The same in other languages, where the row has it."""
    row: Mapping[str, Any]
    place: str


def source_of(given: Given) -> Source:
    """Where rows that ask are read from, and the columns that are named, by what they hold; none of a path alone."""
    if isinstance(given, PromptSource):
        return Source(given.path, given.name, given.split, given.revision, given.columns or {})
    return Source(str(given), columns={})


def read_prompts(given: Given, language: Language = "en", key: str = "prompts") -> list[Prompt]:
    """What every row of a file or data set asks, in its order. `key`: what names it in the config, for messages.

    A row has the column that is named, one of `PROMPTS` (Alpaca's with its `input` behind it), or one of
    `CONVERSATIONS`. Raises InputError with the place of the first row that is not as it should be, and where there is
    none.
    """
    source = source_of(given)
    found = []
    for place, row in _rows(given, key):
        if not isinstance(row, Mapping):
            raise InputError(f"{place}: {show(row)} is no object; must have a column with a prompt")
        name = source.columns.get("prompt") or _column(row, language)
        if name is None:
            raise InputError(
                f"{place}: the columns {', '.join(map(str, row))} hold no prompt; must have one of "
                f"{', '.join((*PROMPTS, *CONVERSATIONS))}"
            )
        category = _category(row, place, source.columns.get("category"))
        found.append(Prompt(_query(row, place, name), category, _others(row, name), row, place))
    if not found:
        raise InputError(f"{source.path}: no rows; must hold at least one prompt")
    return found


def _rows(given: Given, key: str) -> Rows:
    """(place, row) of a source, whose first row has the columns that are named."""
    source = source_of(given)
    try:
        rows = read_rows(source.path, source.name, source.split, source.revision)
    except InputError as error:
        raise InputError(f"{_chosen(given, key)}{error}") from None
    is_first = True
    for place, row in rows:
        if is_first and isinstance(row, Mapping):
            _check_named(source, row, place, key)
        is_first = False
        yield place, row


def _chosen(given: Given, key: str) -> str:
    """The keys that choose a part of a data set, in front of what is wrong with that; nothing of a path alone."""
    if not isinstance(given, PromptSource):
        return ""
    chosen = {"name": given.name, "split": given.split, "revision": given.revision}
    stated = [f"{key}.{name} = {value!r}" for name, value in chosen.items() if value is not None]
    return f"{', '.join(stated)}: "


def _check_named(source: Source, row: Mapping[str, Any], place: str, key: str) -> None:
    missing = [column for column in source.columns.values() if column not in row]
    if missing:
        there = [str(name) for name in row]
        raise InputError(
            f"{place}: no column {', '.join(map(repr, missing))}, which {key}.columns names, among {', '.join(there)}"
            f"{did_you_mean(missing[0], there)}"
        )


def read_harmless(given: Given, language: Language = "en", key: str = "prompts") -> tuple[list[Prompt], list[Prompt]]:
    """The prompts of a source that should not be refused, and those that are unsafe.

    Unsafe are, as in XSTest, those of the label `unsafe`, or where there is no label of a type `contrast_...`. A column
    that is named as the label says `safe` or `unsafe` in every row.
    """
    source = source_of(given)
    harmless: list[Prompt] = []
    unsafe: list[Prompt] = []
    for prompt in read_prompts(given, language, key):
        kind = unsafe if _is_unsafe(prompt, source.columns.get(LABEL)) else harmless
        kind.append(prompt)
    if not harmless:
        raise InputError(f"{source.path}: every prompt is labelled {UNSAFE}; must hold some that should not be refused")
    return harmless, unsafe


def _is_unsafe(prompt: Prompt, named: str | None) -> bool:
    """By the column that is named as the label, else as XSTest has it."""
    row = prompt.row
    if named is not None:
        label = str(row.get(named)).strip().casefold()
        if label not in (SAFE, UNSAFE):
            wrong = f"column {named!r} is {show(row.get(named))}"
            raise InputError(f"{prompt.place}: {wrong}; must be {SAFE} or {UNSAFE}, as it is named as the label")
        return label == UNSAFE
    label = row.get(LABEL)
    if is_absent(label) or label == "":
        return str(row.get(TYPE)).startswith(CONTRAST)
    return str(label).strip().casefold() == UNSAFE


def read_tasks(given: Given, language: Language = "en", key: str = "prompts") -> list[Question]:
    """The prompts of a source with the one right answer to each, in the column `answer` or the one that is named."""
    answer = source_of(given).columns.get(ANSWER, ANSWER)
    found = []
    for prompt in read_prompts(given, language, key):
        found.append(Question(prompt.query, _text(prompt.row, prompt.place, answer), prompt.others))
    return found


def read_choices(given: Given, key: str = "prompts") -> list[Choice]:
    """Questions with a better and a worse answer: rows in HHH's form, or with `prompt`, `chosen` and `rejected`.

    HHH's are `{"input": text, "targets": {"choices": [text, text], "labels": [1, 0]}}`. A column `category` is kept.
    Columns that are named take the place of these; where one of the answers is named, no row is in HHH's form.
    """
    source = source_of(given)
    found = [_choice(row, place, source.columns) for place, row in _rows(given, key)]
    if not found:
        raise InputError(f"{source.path}: no rows; must hold at least one choice between two answers")
    return found


def _choice(row: Any, place: str, columns: Mapping[str, str]) -> Choice:
    if isinstance(row, dict) and "targets" in row and columns.keys().isdisjoint(("chosen", "rejected")):
        targets = row["targets"]
        choices, labels = (targets.get(name) if isinstance(targets, dict) else None for name in ("choices", "labels"))
        if not isinstance(choices, list) or not isinstance(labels, list) or sorted(map(str, labels)) != ["0", "1"]:
            raise InputError(f"{place}: field 'targets' is {show(targets)}; must have two choices, of labels 1 and 0")
        good = [str(label) for label in labels].index("1")
        answers = {"good": choices[good], "bad": choices[1 - good]}
        prompt = columns.get("prompt", "input")
        texts = {"query": _text(row, place, prompt)} | {name: _text(answers, place, name) for name in answers}
        return Choice(**texts, category=_category(row, place, columns.get("category")), others=_others(row, prompt))
    prompt = columns.get("prompt", "prompt")
    _check_column(row, place, prompt)
    return Choice(
        query=_query(row, place, prompt),
        good=_answer(row, place, columns.get("chosen", "chosen")),
        bad=_answer(row, place, columns.get("rejected", "rejected")),
        category=_category(row, place, columns.get("category")),
        others=_others(row, prompt),
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
    _check_column(row, place, name)
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


def _category(row: Mapping[str, Any], place: str, named: str | None) -> str:
    """The text, or the first of a list; what is no text is refused in a column that is named, and else is none."""
    value = row.get(named) if named else row.get("question_category") or row.get("category")
    if isinstance(value, list) and value:
        value = value[0]
    if named and not (isinstance(value, str) or is_absent(value) or value == []):
        raise InputError(f"{place}: column {named!r} is {show(row[named])}; must be text, a list of text, or null")
    return value if isinstance(value, str) and value.strip() else ETC
