"""Turns of a conversation from a column: a text, a list of turns, or a transcript."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_rai.errors import InputError
from fedjax_rai.text.compare import same
from fedjax_rai.text.prompts import ASSISTANT, USER, Turn

SYSTEM = "system"
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), ASSISTANT),
    "system": SYSTEM,
}
TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class NoPair(Exception):
    """A row, or an answer of it, that is empty where there must be text: it is left out, counted and said."""


def is_transcript_of(row: Mapping[str, Any], field: str) -> bool:
    value = row.get(field)
    return isinstance(value, str) and TRANSCRIPT.match(value) is not None


def whole_transcript(prompt: str, answer: Any) -> str:
    """The transcript of a prompt and an answer, which may hold it all."""
    if not isinstance(answer, str) or TRANSCRIPT.match(answer):
        return str(answer)
    opened = prompt.rstrip().endswith("Assistant:")
    return f"{prompt.rstrip()} {answer}" if opened else f"{prompt}\n\nAssistant: {answer}"


def conversation(turns: Sequence[Turn], place: str, field: str) -> list[Turn]:
    """Turns of user and assistant by turns, up to the last answer; a system prompt may come before them.

    Neighbours of one role are one turn, their texts a paragraph each.
    """
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Turn(turn.role, f"{joined[-1].text}\n\n{turn.text}")
        else:
            joined.append(turn)
    while joined and joined[-1].role != ASSISTANT:
        joined.pop()
    roles = [turn.role for turn in joined]
    spoken = roles[1:] if roles[:1] == [SYSTEM] else roles
    if not spoken:
        raise NoPair(f"field {field!r} has no answer")
    if SYSTEM in spoken:
        raise InputError(f"{place}: field {field!r} has a system turn in its midst; must be the first")
    if spoken[0] != USER:
        raise NoPair(f"field {field!r} begins with an answer to nothing")
    return joined


def turns_of(row: dict[str, Any], field: str, place: str, role: str | None, plain: bool = False) -> list[Turn]:
    """A column's turns: a text is one of that role; None: it is a whole conversation, as a list or a transcript."""
    value = required(row, field, place)
    if role is None and isinstance(value, str):
        if TRANSCRIPT.match(value):
            return transcript(value, field)
        value = written(value)
    if not plain:
        value = listed(value)
    if isinstance(value, list) and value and not plain:
        return [_turn(item, place, field) for item in value]
    if role is None and not (is_absent(value) or value in ("", [])):
        raise InputError(f"{place}: field {field!r} is {show(value)}; must be a list of turns, {_TURN}")
    text = text_of(None if value == [] and not plain else value, place, field)
    if not text or role is None:
        raise NoPair(f"field {field!r} is {show(row[field])}")
    return [Turn(role, text)]


def required(row: Mapping[str, Any], field: str, place: str) -> Any:
    if field not in row:
        raise InputError(f"{place}: no field {field!r}; must be text, not empty")
    return row[field]


_TURN = '[{"role": "user", "content": text}, {"role": "assistant", "content": text}]'


def role_of(item: Any) -> str | None:
    """Who speaks in a turn of a list; None where it names nobody that is known."""
    role = _role_named(item)
    return _ROLES.get(role.strip().casefold()) if isinstance(role, str) else None


def _role_named(item: Any) -> Any:
    return item.get("role", item.get("from")) if isinstance(item, Mapping) else None


def opening(value: Any, place: str, field: str) -> str:
    """What the user's first turn says, of a list of turns or a transcript; empty where it has none."""
    if isinstance(value, str):
        text = value.strip()
        spoken = _spoken(text) if TRANSCRIPT.match(text) else []
        return next((turn.text for turn in spoken if turn.role == USER), "")
    for item in value if isinstance(value, list) else ():
        if role_of(item) == USER:
            return _turn(item, place, field).text
    return ""


def _turn(item: Any, place: str, field: str) -> Turn:
    """A turn of a list, as `role` and `content` or as `from` and `value`."""
    if not isinstance(item, dict):
        raise InputError(f"{place}: field {field!r} holds {show(item)}; must be a list of turns, {_TURN}")
    role = _role_named(item)
    content = item.get("content", item.get("value"))
    known = role_of(item)
    if known is None:
        raise InputError(f"{place}: field {field!r} has a turn of {show(role)}; must be of {', '.join(_ROLES)}")
    if isinstance(content, list):
        content = "".join(_part(part, place, field) for part in content)
    text = text_of(content, place, field)
    if not text:
        raise NoPair(f"field {field!r} has a turn of {known} without text")
    return Turn(known, text)


def _part(part: Any, place: str, field: str) -> str:
    """A piece of a turn that is given in pieces, each `{"type": "text", "text": ...}`."""
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise InputError(f"{place}: field {field!r} has a turn with {show(part)} in it; must be text")
    return text


def transcript(value: str, field: str) -> list[Turn]:
    """The turns of `\\n\\nHuman: ...\\n\\nAssistant: ...`, as Anthropic's sets are written."""
    turns = _spoken(value)
    for turn in turns:
        if not turn.text:
            raise NoPair(f"field {field!r} has a turn of {turn.role} without text")
    return turns


def _spoken(value: str) -> list[Turn]:
    """The turns of a transcript, with those without text."""
    _, *parts = TRANSCRIPT.split(value)
    turns = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        turns.append(Turn(USER if speaker == "Human" else ASSISTANT, text.strip()))
    return turns


def text_of(value: Any, place: str, field: str) -> str:
    """A text without white space at its ends; empty for null and NaN, and where a reader sees nothing."""
    if is_absent(value):
        return ""
    if not isinstance(value, str):
        raise InputError(f"{place}: field {field!r} is {show(value)}; must be text, not empty")
    text = value.strip()
    return text if len(text) > _FEW or same(text) else ""


_FEW = 16  # characters that may all be invisible


def is_absent(value: Any) -> bool:
    """Whether a value is null, or NaN, which tables have for it."""
    return value is None or (isinstance(value, float) and value != value)


def written(text: str) -> Any:
    """The list or mapping that a text writes out, as JSON or as Python does, as in CSV files; else the text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


_LIST_OF_MAPPINGS = re.compile(r"\s*\[\s*\{")


def listed(value: Any) -> Any:
    """The list of turns that a text writes out, each a mapping with a role; any other value as it is."""
    if not isinstance(value, str) or not _LIST_OF_MAPPINGS.match(value):
        return value
    items = written(value)
    if isinstance(items, list) and all(isinstance(_role_named(item), str) for item in items):
        return items
    return value


def show(value: Any) -> str:
    """A value as JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
