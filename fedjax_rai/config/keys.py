"""The keys of a config: sections, what each may hold, in words, and the nearest spelling of one that does not exist."""

import difflib
from datetime import date
from functools import cache
from typing import Any

from pydantic import BaseModel

from fedjax_rai.config.names import is_attribute
from fedjax_rai.config.schema import ExperimentConfig, Section
from fedjax_rai.config.views import value_at
from fedjax_rai.errors import did_you_mean
from fedjax_rai.yaml_lines import is_in_another_base

TOP = ExperimentConfig.model_fields


@cache
def sections() -> dict[str, type[BaseModel]]:
    """Every section's type, by its key."""
    return {name: field.annotation for name, field in TOP.items() if field.annotation in Section.__subclasses__()}  # pyright: ignore


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """JSON schema of every value, by dotted key."""
    top = ExperimentConfig.model_json_schema()["properties"]
    found = {name: schema for name, schema in top.items() if name not in sections()}
    for name, section in sections().items():
        found |= {f"{name}.{key}": schema for key, schema in section.model_json_schema()["properties"].items()}
    return found


def inner(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of the entries of a list or a mapping."""
    for option in schema.get("anyOf", [schema]):
        for name in ("items", "additionalProperties"):
            if name in option:
                return option[name]
    raise ValueError(f"neither a list nor a mapping: {schema}")


def allowed(schema: dict[str, Any]) -> str:
    """What a value of this JSON schema may be, in words."""
    if "anyOf" in schema:
        return " or ".join(allowed(option) for option in schema["anyOf"])
    if "enum" in schema:
        names = [str(name) for name in schema["enum"]]
        return (f"one of {', '.join(names)}" if len(names) > 1 else names[0]) + _or_attribute(schema)
    if schema["type"] == "array":
        return f"a list, each {allowed(schema['items'])}"
    if schema["type"] == "object":
        return f"a mapping of patterns, each to {allowed(schema['additionalProperties'])}"
    word = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]}" for name, sign in bounds.items() if name in schema]
    return " ".join([word.get(schema["type"], "text, not empty"), " and ".join(limits)]).strip() + _or_attribute(schema)


def hint(value: Any, schema: dict[str, Any]) -> str:
    """What may have gone wrong with a value that this JSON schema refuses."""
    if isinstance(value, bool):
        return "; YAML reads unquoted yes, no, on, off as truth values"
    if schema.get("type") == "string" and isinstance(value, str):
        return did_you_mean(value, schema.get("enum", ()))
    if schema.get("type") == "string" or isinstance(value, date):
        return "; put it in quotes"
    kinds = {option.get("type") for option in schema.get("anyOf", [schema])}
    if isinstance(value, str) and kinds & {"integer", "number"} and is_in_another_base(value):
        return "; YAML would read this in base 8 or 60: write it in base 10, without a leading 0"
    return "; write it in digits alone, like 1000" if "integer" in kinds and isinstance(value, float | str) else ""


def suggest_key(key: str) -> str:
    """The nearest spelling in the section, else the keys with the same last word, else what may stand there."""
    section, _, last = key.rpartition(".")
    inside = section in sections()
    names = sections()[section].model_fields if inside else TOP
    near = difflib.get_close_matches(last if inside else key, names, n=1)
    if near:
        return f"; did you mean {section}.{near[0]}?" if inside else f"; did you mean {near[0]}?"
    same = [name for name in schemas() if name.rpartition(".")[2] == last]
    if same:
        return f"; did you mean {' or '.join(same)}?"
    elsewhere = "" if inside else did_you_mean(key, schemas())
    return elsewhere or f"; must be one of {', '.join(names)}"


def imported_values(config: ExperimentConfig) -> dict[str, str]:
    """The values of the user's own that a config names as `package.module:attribute`, by key."""
    found = {}
    for key, schema in schemas().items():
        if "attribute" not in schema:
            continue
        value = value_at(config, key)
        if isinstance(value, str) and is_attribute(value):
            found[key] = value
    return found


def _or_attribute(schema: dict[str, Any]) -> str:
    attribute = f", or {schema['attribute']}" if "attribute" in schema else ""
    return f"{attribute}, or {schema['else']}" if "else" in schema else attribute
