"""Principles: how to ask for a critique and a revision. YAML in; every problem with its line out; draws by weight."""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedjax_rai.config.files import CONSTITUTION
from fedjax_rai.config.names import attribute, is_attribute
from fedjax_rai.errors import InputError
from fedjax_rai.text.prompts import ASSISTANT, USER, Turn
from fedjax_rai.yaml_lines import Document, Place, read_yaml


class Principle(NamedTuple):
    """`critique` and `revision`: the requests put to the model after its answer. No `categories`: for every prompt."""

    name: str
    critique: str
    revision: str
    weight: float = 1.0
    categories: tuple[str, ...] = ()


class Constitution(NamedTuple):
    """`few_shot` stands before every conversation that the critic reads: user, assistant, ..., assistant."""

    principles: tuple[Principle, ...]
    few_shot: tuple[Turn, ...] = ()


def draw(constitution: Constitution, categories: Sequence[str], times: int, g: np.random.Generator) -> np.ndarray:
    """int32[n, times]: the principle of each revision of n prompts of these categories ("": unknown).

    Draws are independent, with probability in proportion to weight among the principles that name the prompt's
    category or none; among all where there is no such principle. Each takes one uniform number, so that a prompt's
    draws depend on its place and its own category alone.
    """
    principles, shape = constitution.principles, (len(categories), len(constitution.principles))
    applies = np.array([not p.categories or c in p.categories for c in categories for p in principles], bool)
    applies = applies.reshape(shape)
    weights = np.where(applies | ~applies.any(axis=1, keepdims=True), [p.weight for p in principles], 0.0)
    bounds = np.cumsum(weights / weights.max(axis=1, keepdims=True), axis=1)  # of the largest: no sum can overflow
    uniform = g.random((len(categories), times)) * bounds[:, -1:]
    return (uniform[:, :, None] >= bounds[:, None]).sum(axis=2, dtype=np.int32)


def load_constitution(path: Path) -> Constitution:
    """The constitution in a YAML file; space around its texts is taken off.

    Raises InputError, which lists every problem with its line: keys that do not exist, are missing or stand twice,
    values of a wrong type or out of range, names that repeat, turns that do not alternate.
    """
    document = _read(path)
    data, problems = document.data, _twice(document)
    problems += [(document.line(at), what) for at, what in (*_repeated(data, document.lines), *_misplaced(data))]
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        file = None
        problems += [(document.line(item["loc"]), _explain(item)) for item in error.errors()]
    if file is None or problems:
        raise InputError("\n".join(f"{path}:{line}: {what}" for line, what in sorted(problems)))
    turns = [turn for item in file.few_shot for turn in item.model_dump(exclude_unset=True).items()]
    principles = tuple(Principle(**{**dict(item), "categories": tuple(item.categories)}) for item in file.principles)
    return Constitution(principles, tuple(Turn(role, text) for role, text in turns))


def find_constitution(name: str) -> Constitution:
    """The one that `cai.constitution` names: "default" as shipped, a `package.module:attribute`, else a YAML file.

    Raises InputError as `load_constitution` and `config.names.attribute` do.
    """
    if is_attribute(name):
        return attribute(name, "cai.constitution", Constitution)
    return load_constitution(CONSTITUTION if name == "default" else Path(name))


_Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]
_TURN = f"'{USER}: text' or '{ASSISTANT}: text'"
_ALLOWED = {
    (): "a mapping with the key principles",
    ("principles",): "a list of principles, at least one",
    ("principles", 0): "a mapping with name, critique and revision",
    ("principles", 0, "weight"): "a number > 0, like 2 or 0.5",
    ("principles", 0, "categories"): "a list of at least one text; without it, the principle is for every prompt",
    ("few_shot",): f"a list of turns, each {_TURN}",
    ("few_shot", 0): _TURN,
}


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Principle(_Keys):
    name: _Text
    critique: _Text
    revision: _Text
    weight: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0
    categories: Annotated[list[_Text], Field(min_length=1)] = []


class _Turn(_Keys):
    user: _Text = ""
    assistant: _Text = ""


class _File(_Keys):
    principles: Annotated[list[_Principle], Field(min_length=1)]
    few_shot: list[_Turn] = []


def _read(path: Path) -> Document:
    """The file, which must hold a mapping; raises InputError."""
    document = read_yaml(path, "YAML file of principles")
    data = document.data
    if isinstance(data, dict):
        return document
    got = "nothing" if data is None else "a list; put it under `principles:`" if isinstance(data, list) else _show(data)
    raise InputError(f"{path}:{document.line(())}: must be {_ALLOWED[()]}; got {got}")


def _twice(document: Document) -> list[tuple[int, str]]:
    """Keys that stand twice."""
    return [
        (line, f"{_dotted(place)}: stands twice, first in line {first}; must stand once")
        for place, line, first in document.repeated
    ]


def _repeated(data: dict[str, Any], lines: dict[Place, int]) -> Iterator[tuple[Place, str]]:
    """Names that several principles have, and categories that one has twice."""
    entries = [entry if isinstance(entry, dict) else {} for entry in _list(data, "principles")]
    groups: list[dict[Place, Any]] = [{("principles", i, "name"): e.get("name") for i, e in enumerate(entries)}]
    for i, entry in enumerate(entries):
        groups.append({("principles", i, "categories", j): c for j, c in enumerate(_list(entry, "categories"))})
    for group in groups:
        first: dict[str, Place] = {}
        for at, text in group.items():
            if isinstance(text, str) and text.strip() and (before := first.setdefault(text.strip(), at)) != at:
                yield at, f"{_dotted(at)} = {_show(text)}: stands in line {lines[before]} too; must stand once"


def _misplaced(data: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Few-shot turns that are none or two, or not where their role may stand."""
    turns, before = _list(data, "few_shot"), ASSISTANT
    for i, turn in enumerate(turns):
        roles = [role for role in (USER, ASSISTANT) if isinstance(turn, dict) and role in turn]
        last = i == len(turns) - 1
        if len(roles) == 2 or turn == {}:
            yield ("few_shot", i), f"few_shot[{i}] = {_show(turn)}: must be one turn, {_TURN}"
        elif roles == [before] or (roles == [USER] and last):
            where = "the last turn" if last and roles != [before] else "here"
            order = f"turns must alternate: {USER}, {ASSISTANT}, ..., {ASSISTANT}"
            yield ("few_shot", i), f"few_shot[{i}]: {roles[0]} may not be {where}; {order}"
        before = roles[0] if len(roles) == 1 else None


def _list(data: dict[str, Any], key: str) -> list:
    return data[key] if isinstance(data.get(key), list) else []


def _explain(error: Any) -> str:
    """One pydantic error in words: key, value, what it must be."""
    at = error["loc"]
    owner = {"principles": _Principle, "few_shot": _Turn}[at[0]] if len(at) > 2 else _File
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(at[-1], owner.model_fields, n=1)
        return f"{_dotted(at)}: no such key; " + (
            f"did you mean {near[0]}?" if near else f"must be one of {', '.join(owner.model_fields)}"
        )
    kind = tuple(0 if isinstance(part, int) else part for part in at)
    missing, value = error["type"] == "missing", error["input"]
    text = "text, not empty" + ("" if missing or isinstance(value, str) else "; put it in quotes")
    return f"{_dotted(at)} {'is missing' if missing else f'= {_show(value)}'}: must be {_ALLOWED.get(kind, text)}"


def _dotted(at: Place) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).removeprefix(".")


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    return text if len(text) <= 60 else text[:57] + "..."
