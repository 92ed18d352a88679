"""Configs as files: strict YAML and `key.path=value` overrides in; every problem at once, with its line, out."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from fedjax_rai.config.keys import allowed, hint, place_within, properties, schemas, sections, suggest_key, within
from fedjax_rai.config.schema import ExperimentConfig, Section
from fedjax_rai.errors import InputError, did_you_mean
from fedjax_rai.yaml_lines import DEEPEST, Document, no_text, parse_value, read_yaml

GIVEN = "the given config"  # the place of what stands in no file


class _Source(NamedTuple):
    """What a config is made of, before it is checked."""

    data: dict[str, Any]
    where: dict[str, str]  # the place of every dotted key
    name: str  # the place of what stands nowhere
    problems: list[str]


def load_config(
    source: Path | Mapping[str, Any], overrides: Sequence[str] = (), output: str = "runs/{stem}"
) -> ExperimentConfig:
    """The config in a YAML file, or of a mapping of the same form; everything not named is the default.

    `key.path=value` overrides are applied in order. An empty file or section is all defaults; a config without `output`
    gets the one given, {stem} being the file's, or "run", which does not count as set (`model_fields_set`). Raises
    InputError, which lists every problem with its line: keys that do not exist or stand twice, values of a wrong type
    or out of range, overrides that cannot be read.
    """
    if isinstance(source, Mapping):
        read, stem = _from_mapping(source), "run"
    else:
        read, stem = _from_file(Path(source)), Path(source).stem
    problems = [*read.problems]
    for override in overrides:
        problems += _apply(override, read)
    is_named = read.data.get("output") is not None
    if not is_named:
        read.data["output"] = output.format(stem=stem)
    try:
        config = ExperimentConfig.model_validate(read.data)
    except ValidationError as error:
        config = None
        problems += [_explain(item, read) for item in error.errors() if item["type"] != "invalid_key"]
    if config is None or problems:
        raise InputError("\n".join(sorted(problems, key=_file_order)))
    if not is_named:
        config.model_fields_set.discard("output")
    return config


def dump_config(config: ExperimentConfig) -> str:
    """YAML with every key, in order of declaration; loads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def as_written(value: Any) -> str:
    """The value of a key in one line, as a user writes it behind `key=`; of sections what is not the default."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    """A value as YAML has it: sections as mappings, tuples as lists."""
    if isinstance(value, Section):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    return value


def _from_file(path: Path) -> _Source:
    document = read_yaml(path, "YAML config")
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        raise InputError(f"{path}:1: must be a mapping of keys, like 'seed: 1'; got {_show(data)}")
    where = {}
    for place, line in document.lines.items():
        if place not in document.no_text:
            where[_dotted(place)] = f"{path}:{line}"
    for section, *inside in document.no_text:  # is reported once, as what it is
        if not inside:
            del data[section]
        elif len(inside) == 1 and isinstance(data.get(section), dict):
            del data[section][inside[0]]
    return _Source(_as_sections(data), where, str(path), [*_wrong_keys(document, path)])


def _from_mapping(given: Mapping[str, Any]) -> _Source:
    """Sections may be mappings or sections of another config."""
    data = {}
    where = {}
    for key, value in given.items():
        data[key] = dict(value) if isinstance(value, Mapping) else value
        where[key] = GIVEN
        where |= {f"{key}.{name}": GIVEN for name in (data[key] if isinstance(data[key], dict) else ())}
    problems = [f"{GIVEN}: {key}: text {wrong}" for key, wrong in _no_texts("", data, 0)]
    return _Source(_as_sections(data), where, GIVEN, problems)


def _no_texts(key: str, value: Any, level: int) -> Iterator[tuple[str, str]]:
    """(dotted key, what is wrong) of every text within a value that is none."""
    if isinstance(value, str):
        wrong = no_text(value)
        if wrong is not None:
            yield key, wrong
    elif isinstance(value, Mapping) and level < DEEPEST:
        for name, inner in value.items():
            yield from _no_texts(key, name, level + 1)
            yield from _no_texts(f"{key}.{name}".removeprefix("."), inner, level + 1)
    elif isinstance(value, list | tuple) and level < DEEPEST:
        for inner in value:
            yield from _no_texts(key, inner, level + 1)


AUTO_MESH = {"auto": True}
"""What `mesh: auto` stands for."""


def _as_sections(data: dict[str, Any]) -> dict[str, Any]:
    """A section without keys is all defaults, and `mesh: auto` one with a key, so that overrides find a section."""
    found = {key: {} if value is None and key in sections() else value for key, value in data.items()}
    return found | {"mesh": dict(AUTO_MESH)} if found.get("mesh") == "auto" else found


def _wrong_keys(document: Document, path: Path) -> Iterator[str]:
    """Keys that stand twice or are no text."""
    for place, line, first in document.repeated:
        yield f"{path}:{line}: {_dotted(place)}: stands twice, first at {path}:{first}; must stand once"
    for place in document.no_text:
        line = document.lines[place]
        yield f"{path}:{line}: key {_dotted(place)}: YAML reads this as no text; put it in quotes"


def _dotted(place: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in place)


def _apply(override: str, read: _Source) -> list[str]:
    """Write `key.path=value` into the data and its origin into `where`; returns the problem, if there is one."""
    key, equals, text = override.partition("=")
    key = key.strip()
    place = f"override {override!r}"
    if not equals or not key:
        return [f"{place}: must be written key.path=value, like lora.rank=16"]
    if key in sections():
        inside = ", ".join(name for name in schemas() if name.startswith(f"{key}."))
        return [f"{place}: {key} is a section; must name one of its keys: {inside}"]
    entry = _ENTRY.fullmatch(key)
    mapping, _, within_mapping = key.rpartition(".")
    is_within = bool(properties(schemas().get(mapping, {})))
    if key not in schemas() and not is_within and not (entry and entry[1] in schemas()):
        return [f"{place}: {key}: no such key{suggest_key(key)}"]
    try:
        value = parse_value(text)
    except ValueError as error:
        return [f"{place}: {key}: {error}"]
    if key not in schemas() and entry:
        return _apply_to_entry(entry, value, place, read)
    if is_within:
        return _apply_within(mapping, within_mapping, value, place, read)
    section, _, name = key.rpartition(".")
    inside = read.data.setdefault(section, {}) if section else read.data
    if isinstance(inside, dict):  # else the file's own mistake is reported
        inside[name] = value
        read.where[key] = place
        read.where.update(dict.fromkeys([at for at in read.where if at.startswith(f"{key}.")], place))
    return []


_ENTRY = re.compile(r"(\w+\.\w+)\[(\d+)\]\.(\w+)")  # data.sources[0].rows


def _apply_to_entry(entry: re.Match[str], value: Any, place: str, read: _Source) -> list[str]:
    """Write one key of one entry of a list of mappings; returns the problem, if there is one."""
    key, index, name = entry[1], int(entry[2]), entry[3]
    section, _, last = key.rpartition(".")
    inside = read.data.get(section)
    entries = inside.get(last) if isinstance(inside, dict) else None
    there = len(entries) if isinstance(entries, list | tuple) else 0
    if index >= there:
        return [f"{place}: {key} has {there} entries, counted from 0; must be one of them, or {key}=[...] for all"]
    assert isinstance(inside, dict) and entries is not None
    if isinstance(entries[index], Mapping):  # else the file's own mistake is reported
        changed = {**entries[index], name: value}
        inside[last] = [*entries[:index], changed, *entries[index + 1 :]]
        read.where[f"{key}.{index}.{name}"] = place
    return []


def _apply_within(key: str, name: str, value: Any, place: str, read: _Source) -> list[str]:
    """Write one key of a mapping that may stand where a path does; a path that stands there becomes that mapping's."""
    section, _, last = key.rpartition(".")
    inside = read.data.setdefault(section, {})
    if isinstance(inside, dict):  # else the file's own mistake is reported
        given = inside.get(last)
        if isinstance(given, Section):
            given = given.model_dump()
        if isinstance(given, str):
            given = {"path": given}
        inside[last] = {**given, name: value} if isinstance(given, Mapping) else {name: value}
        read.where[f"{key}.{name}"] = place
        read.where.setdefault(key, place)
    return []


def _explain(error: Any, read: _Source) -> str:
    """One line for one pydantic error: place, key, value, what it must be."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location[:2] if location[0] in sections() else location[:1])
    inside = location[key.count(".") + 1 :]
    place = _place(location, read) or read.where.get(key) or read.where.get(location[0]) or read.name
    index = place_within(schemas()[key], inside) if key in schemas() else ""
    value = error["input"]
    if error["type"] == "extra_forbidden":
        return f"{place}: {key}{index}: no such key{_near(key, inside) if inside else suggest_key(key)}"
    if error["type"] == "missing":
        return f"{place}: {key}{index}: must be given"
    stated = f"{place}: {key}{index} = {_show(value)}{'' if key in read.where else ' (the default)'}: "
    if key in sections():
        return f"{stated}must be a section of keys: {', '.join(sections()[key].model_fields)}"
    if error["type"] == "value_error" and not isinstance(value, bool):
        return stated + str(error["ctx"]["error"])
    schema = within(schemas()[key], inside)
    return f"{stated}must be {allowed(schema)}{hint(value, schema)}"


def _place(location: Sequence[str], read: _Source) -> str | None:
    """Of the innermost key that has one, of a value within a value."""
    for depth in range(len(location), 2, -1):
        if ".".join(location[:depth]) in read.where:
            return read.where[".".join(location[:depth])]
    return None


def _near(key: str, inside: Sequence[str]) -> str:
    """The nearest key to one that an entry does not have, or all that there are."""
    known = properties(within(schemas()[key], inside[:-1]))
    return did_you_mean(inside[-1], known) or f"; must be one of {', '.join(known)}"


def _show(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _file_order(problem: str) -> tuple[bool, int]:
    line = re.search(r":(\d+):", problem)
    return problem.startswith("override "), int(line.group(1)) if line else 0
