"""A guard's form in YAML: strict, every problem with its line."""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedjax_rai.errors import InputError, did_you_mean
from fedjax_rai.safety.form import GuardForm
from fedjax_rai.text.prompts import Turn
from fedjax_rai.yaml_lines import Place, read_yaml

MOST_LINES = 512
SUFFIXES = (".yaml", ".yml")

_Text = Annotated[str, StringConstraints(strict=True)]
_Words = Annotated[str, StringConstraints(strict=True, min_length=1)]
_Spellings = Annotated[tuple[_Words, ...], Field(min_length=1)]
_Flag = Annotated[bool, Field(strict=True)]
_ALLOWED = {
    "extends": "the name of a shipped form",
    "text": "text, as it is put to the guard",
    "turns": "a list of turns, each one role (system, user, assistant) and its text",
    "safe": "a list of spellings, the main one first",
    "unsafe": "a list of spellings, the main one first",
    "between": "a list of spellings, the main one first",
    "opens": "true or false",
    "whole": "true or false",
    "english": "true or false",
    "cut_start": "true or false",
    "variables": "a mapping, as the chat template takes it",
    "lines": f"a whole number from 0 to {MOST_LINES}",
    "questions": "a list of texts",
}


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    extends: _Words | None = None
    text: _Words | None = None
    turns: Annotated[list[dict[_Words, _Text]], Field(min_length=1)] | None = None
    safe: _Spellings | None = None
    unsafe: _Spellings | None = None
    between: tuple[_Words, ...] | None = None
    opens: _Flag | None = None
    variables: dict[_Words, Any] | None = None
    lead: _Text | None = None
    marker: _Text | None = None
    lines: Annotated[int, Field(strict=True, ge=0, le=MOST_LINES)] | None = None
    answer: _Words | None = None
    questions: tuple[_Words, ...] | None = None
    policy: _Words | None = None
    whole: _Flag | None = None
    cut_start: _Flag | None = None
    english: _Flag | None = None


def is_form_file(chosen: str) -> bool:
    """Whether `guard.form` names a file."""
    return Path(chosen).suffix.lower() in SUFFIXES


def load_form(path: Path, forms: Mapping[str, GuardForm]) -> GuardForm:
    """The form in a YAML file; of one that `extends` a row of `forms`, the keys that it has replace that row's.

    Raises InputError, which lists every problem with its line: keys that do not exist, are missing or stand twice,
    values of a wrong type, a request without the pair in it.
    """
    document = read_yaml(path, "YAML file of a guard's form")
    if not isinstance(document.data, dict):
        raise InputError(f"{path}:{document.line(())}: must be a mapping with the keys of a guard's form")
    problems = [
        (line, f"{'.'.join(map(str, place))}: stands twice, first in line {first}; must stand once")
        for place, line, first in document.repeated
    ]
    file = None
    try:
        file = _File.model_validate(document.data)
    except ValidationError as error:
        problems += [(document.line(item["loc"]), _explain(item)) for item in error.errors()]
    if file is not None:
        problems += [(document.line(at), what) for at, what in _inconsistent(file, forms)]
    if file is None or problems:
        raise InputError("\n".join(f"{path}:{line}: {what}" for line, what in sorted(set(problems))))
    return _form(path, file, forms)


def _form(path: Path, file: _File, forms: Mapping[str, GuardForm]) -> GuardForm:
    fields = file.model_dump(exclude_none=True, exclude={"extends", "text", "turns"})
    if file.text is not None:
        fields["request"] = file.text
    if file.turns is not None:
        fields["request"] = tuple(Turn(role, text) for turn in file.turns for role, text in turn.items())
    if file.extends is not None:
        return forms[file.extends]._replace(name=str(path), family=file.extends, **fields)
    return GuardForm(name=str(path), **fields)


def _inconsistent(file: _File, forms: Mapping[str, GuardForm]) -> Iterator[tuple[Place, str]]:
    """What is wrong between keys, and where."""
    if file.extends is not None and file.extends not in forms:
        near = did_you_mean(file.extends, forms)
        yield ("extends",), f"extends = {_show(file.extends)}: must be one of {', '.join(forms)}{near}"
        return
    if file.text is not None and file.turns is not None:
        yield ("turns",), "turns: must not stand beside text; the request is one or the other"
    if file.extends is None and file.text is None and file.turns is None:
        yield (), "text or turns is missing: what is put to the guard"
    for name in ("safe", "unsafe"):
        if file.extends is None and getattr(file, name) is None:
            yield (), f"{name} is missing: must be {_ALLOWED[name]}"
    for i, turn in enumerate(file.turns or ()):
        if len(turn) != 1 or not {"system", "user", "assistant"}.issuperset(turn):
            yield ("turns", i), f"turns[{i}]: must be one role (system, user, assistant) and its text"
    written = file.text or "".join(text for turn in file.turns or () for text in turn.values())
    for place in ("{query}", "{response}"):
        if written and place not in written:
            yield ("text",) if file.text else ("turns",), f"the request has no {place}: the guard would not see it"
    inherited = forms[file.extends] if file.extends is not None else None
    marker = file.marker if file.marker is not None else getattr(inherited, "marker", "")
    lines = file.lines if file.lines is not None else getattr(inherited, "lines", 0)
    if bool(marker) != bool(lines):
        yield ("lines",) if file.lines else ("marker",), "marker and lines: must both be there, or none of them"
    if file.answer is not None and "{verdict}" not in file.answer:
        yield ("answer",), "answer: has no {verdict}"


def _explain(error: Any) -> str:
    """One pydantic error in words: key, value, what it must be."""
    at = error["loc"]
    key = str(at[0])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _File.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(_File.model_fields)}"
        return f"{key}: no such key; {hint}"
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).removeprefix(".")
    return f"{dotted} = {_show(error['input'])}: must be {_ALLOWED.get(key, 'text, not empty; put it in quotes')}"


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    return text if len(text) <= 60 else text[:57] + "..."
