"""Columns by what they hold: of pairs (`data.columns`, which takes layouts and functions, too), and of prompts."""

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from fedjax_rai.config.names import FORM, TAKES_ATTRIBUTE, is_attribute
from fedjax_rai.errors import did_you_mean

LAYOUTS = ("square", "alpaca", "messages", "prompt_completion", "safe_pairs", "pku_pairs", "hh")
"""What the table `data.columns.COLUMNS` holds, by name."""
HOLDS = {
    "prompt": "what is asked",
    "response": "the answer",
    "messages": "a whole conversation, in place of both",
    "input": "what is put behind the prompt, where it is not empty",
    "system": "a system prompt",
    "label": "whether the answer is harmful",
    "harmful": "values of the label that say so",
    "acceptable": "values of the label that say that it is not",
    "category": "what the prompt is about",
}
"""What one's own columns may hold, and for `harmful` and `acceptable` values of the label."""
_VALUES = ("harmful", "acceptable")
_TRUE = ("true", "yes", "1", "1.0")
_FALSE = ("false", "no", "0", "0.0")
_OPPOSITES = {"1": "0", "safe": "unsafe", "harmful": "harmless"}


def label_text(value: Any) -> str | None:
    """The form by which values of a label are compared; None for what is no label.

    True, "true", "yes", 1, 1.0 and "1" are one ("1"), as are their opposites ("0"), in any capitals; any other text
    is itself, in small letters and without white space at its ends.
    """
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.0f}" if math.isfinite(value) and value == int(value) else None
    if not isinstance(value, str) or not value.strip():
        return None
    text = value.strip().casefold()
    if text in _TRUE:
        return "1"
    return "0" if text in _FALSE else text


def shown_label(label: str) -> str:
    """What `label_text` gives, as a user may write it."""
    if label not in ("0", "1"):
        return label
    return " / ".join((_TRUE if label == "1" else _FALSE)[:3])


def opposites(labels: set[str]) -> set[str]:
    """The labels that mean the contrary of these, of those that have one by themselves."""
    both_ways = {**_OPPOSITES, **{other: label for label, other in _OPPOSITES.items()}}
    return {both_ways[label] for label in labels if label in both_ways}


def checked_columns(value: Any) -> Any:
    """The value of `data.columns`; raises ValueError, which says what is wrong."""
    if value is None:
        return value
    if isinstance(value, str):
        if value in LAYOUTS or is_attribute(value):
            return value
        raise ValueError(
            f"must be one of {', '.join(LAYOUTS)}, or names of columns, as {_LIKE}, or {FORM}, or null"
            f"{did_you_mean(value, LAYOUTS)}"
        )
    if not isinstance(value, Mapping):
        raise ValueError(f"must be the name of a layout, or names of columns, as {_LIKE}")
    return _checked_names(value)


_LIKE = "{prompt: q, response: a}"


def _checked_names(given: Mapping[Any, Any]) -> dict[str, Any]:
    names = dict(given)
    for key, value in names.items():
        if key not in HOLDS:
            raise ValueError(f"{key!r}: no such key; must be one of {', '.join(HOLDS)}{did_you_mean(str(key), HOLDS)}")
        if key not in _VALUES and not (isinstance(value, str) and value):
            raise ValueError(f"{key}: must be the name of a column, as text (in quotes, where YAML reads it otherwise)")
    spoken = {"prompt", "response", "input", "system"} & names.keys()
    if "messages" in names and spoken:
        raise ValueError(f"messages holds whole conversations: must stand without {', '.join(sorted(spoken))}")
    if "messages" not in names and not {"prompt", "response"} <= names.keys():
        raise ValueError("must name a prompt and a response, or messages")
    _check_labels(names)
    return names


def _check_labels(names: dict[str, Any]) -> None:
    given = [key for key in _VALUES if key in names]
    if "label" not in names and given:
        raise ValueError(f"{given[0]}: needs label, the column of these values")
    if "label" in names and not given:
        raise ValueError("label: needs harmful or acceptable, the values that mean it")
    labels = {key: label_values(names[key]) for key in given}
    if len(given) == 2 and labels["harmful"] & labels["acceptable"]:
        both = ", ".join(sorted(labels["harmful"] & labels["acceptable"]))
        raise ValueError(f"{both}: stands under harmful and acceptable; must stand under one")


def label_values(given: Any) -> set[str]:
    """The labels that one value, or a list of them, names, as `label_text` has them."""
    values = list(given) if isinstance(given, list | tuple) else [given]
    labels = {label_text(value) for value in values}
    if not labels or None in labels:
        raise ValueError(f"harmful, acceptable: {given!r}: must be values of the label: text, numbers, true or false")
    return {label for label in labels if label is not None}


ColumnNames = Annotated[
    Any,
    AfterValidator(checked_columns),
    WithJsonSchema(
        {"type": "string", "enum": [*LAYOUTS], **TAKES_ATTRIBUTE, "else": f"names of columns, as {_LIKE}, or null"}
    ),
]


PROMPT_HOLDS = ("prompt", "answer", "chosen", "rejected", "label", "category")
"""What one's own columns of prompts may hold; each key that names prompts takes some of them."""
SET_HOLDS = {
    "harm": ("prompt", "category"),
    "benign": ("prompt",),
    "task": ("prompt", "answer"),
    "choice": ("prompt", "chosen", "rejected", "category"),
}
"""What columns of a set of the user's own may hold, by its kind."""
PROMPT_COLUMNS = "names of columns by what they hold, as {prompt: q}, or null"


def checked_prompt_columns(names: dict[str, str] | None, known: Collection[str]) -> dict[str, str] | None:
    """Columns by what they hold, for a key that reads the `known`; raises ValueError, which says what is wrong."""
    holders: dict[str, str] = {}
    for holds, column in (names or {}).items():
        if holds not in known:
            raise ValueError(f"{holds!r}: no such key; must be one of {', '.join(known)}{did_you_mean(holds, known)}")
        if column in holders:
            raise ValueError(f"{column!r} stands for {holders[column]} and {holds}; must stand for one")
        holders[column] = holds
    return names
