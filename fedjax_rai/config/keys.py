"""The keys of a config: sections, what each may hold, in words, and the nearest spelling of one that does not exist."""

import difflib
from collections.abc import Iterator, Sequence
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
    found = {name: schema for name, schema in _properties(ExperimentConfig).items() if name not in sections()}
    for name, section in sections().items():
        found |= {f"{name}.{key}": schema for key, schema in _properties(section).items()}
    return found


def _properties(section: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a section's keys, those of sections within it in their places."""
    whole = section.model_json_schema()
    return _without_references(whole["properties"], whole.get("$defs", {}))


def _without_references(schema: Any, named: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_without_references(item, named) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _without_references(named[schema["$ref"].rpartition("/")[2]], named) | {
            key: value for key, value in schema.items() if key != "$ref"
        }
    return {key: _without_references(value, named) for key, value in schema.items()}


def leaves(config: ExperimentConfig) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(key, JSON schema, value) of every key, and of those within: `data.sources[0].path`, `eval.advbench.path`."""
    for key, schema in schemas().items():
        value = value_at(config, key)
        yield key, schema, value
        if isinstance(value, Section):
            yield from _leaves_of(value, key, schema)
        entries = value if isinstance(value, tuple) else ()
        for i, entry in enumerate(entries):
            if isinstance(entry, Section):
                yield from _leaves_of(entry, f"{key}[{i}]", inner(schema))
            elif isinstance(entry, str):
                yield f"{key}[{i}]", inner(schema), entry


def _leaves_of(section: Section, key: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    for name, inside in properties(schema).items():
        yield f"{key}.{name}", inside, getattr(section, name)


def properties(schema: dict[str, Any]) -> dict[str, Any]:
    """The schemas of the keys of a mapping with keys of its own; none of any other value."""
    for option in schema.get("anyOf", [schema]):
        if "properties" in option:
            return option["properties"]
    return {}


def within(schema: dict[str, Any], place: Sequence[str]) -> dict[str, Any]:
    """The schema of what lies at a place within a value: positions of lists, keys of mappings."""
    for part in place:
        if part != "[key]":
            schema = properties(schema).get(part) or inner(schema)
    return schema


def place_within(schema: dict[str, Any], place: Sequence[str]) -> str:
    """How such a place is written behind the key: `[0].path`, `[q_proj]`."""
    text = ""
    for depth, part in enumerate(place):
        if part != "[key]":
            text += f".{part}" if properties(within(schema, place[:depth])) else f"[{part}]"
    return text


def inner(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of the entries of a list or a mapping."""
    for option in schema.get("anyOf", [schema]):
        for name in ("items", "additionalProperties"):
            if name in option:
                return option[name]
    raise ValueError(f"neither a list nor a mapping: {schema}")


def allowed(schema: dict[str, Any]) -> str:
    """What a value of this JSON schema may be, in words."""
    if "says" in schema:
        return schema["says"]
    if "anyOf" in schema:
        return " or ".join(allowed(option) for option in schema["anyOf"])
    if "enum" in schema:
        names = [str(name) for name in schema["enum"]]
        return (f"one of {', '.join(names)}" if len(names) > 1 else names[0]) + _or_attribute(schema)
    if schema["type"] == "array":
        return f"a list, each {allowed(schema['items'])}"
    if "properties" in schema:
        return f"a mapping of {', '.join(properties(schema))}"
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
    options = schema.get("anyOf", [schema])
    texts = [option for option in options if option.get("type") == "string"]
    if texts and isinstance(value, str):
        return did_you_mean(value, texts[0].get("enum", ()))
    kinds = {option.get("type") for option in options}
    is_number = isinstance(value, int | float)
    if schema.get("type") == "string" or isinstance(value, date) or (is_number and {"string", "object"} <= kinds):
        return "; put it in quotes"
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
    for key, schema, value in leaves(config):
        for option in schema.get("anyOf", [schema]):
            if "attribute" in option and isinstance(value, str) and is_attribute(value):
                if value.partition(":")[0] not in option.get("before", ()):
                    found[key] = value
    return found


def _or_attribute(schema: dict[str, Any]) -> str:
    attribute = f", or {schema['attribute']}" if "attribute" in schema else ""
    return f"{attribute}, or {schema['else']}" if "else" in schema else attribute
