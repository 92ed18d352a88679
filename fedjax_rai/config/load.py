"""Configs as files: strict YAML and `key.path=value` overrides in; every problem at once, with its line, out."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fedjax_rai.config.keys import allowed, hint, inner, own_values, schemas, sections, suggest_key
from fedjax_rai.config.names import attribute, did_you_mean
from fedjax_rai.config.schema import ExperimentConfig, is_hub_name
from fedjax_rai.errors import InputError


def load_config(path: Path, overrides: Sequence[str] = (), output: str = "runs/{stem}") -> ExperimentConfig:
    """The config in a YAML file, `key.path=value` overrides applied in order; everything not named is the default.

    An empty file or section is all defaults; a config without `output` gets the one given, {stem} being the file's.
    Raises InputError, which lists every problem with its line: keys that do not exist or stand twice, values of a wrong
    type or out of range, overrides that cannot be read.
    """
    path = Path(path)
    data, where, problems = _read_yaml(path)
    for override in overrides:
        problems += _apply(override, data, where)
    if data.get("output") is None:
        data["output"] = output.format(stem=path.stem)
    try:
        config = ExperimentConfig.model_validate(data)
    except ValidationError as error:
        config = None
        problems += [_explain(item, where, path) for item in error.errors() if item["type"] != "invalid_key"]
    if config is None or problems:
        raise InputError("\n".join(sorted(problems, key=_file_order)))
    return config


def dump_config(config: ExperimentConfig) -> str:
    """YAML with every key, in order of declaration; loads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def check_files(config: ExperimentConfig) -> None:
    """Raise InputError naming every configured file or folder that is not there, or value that cannot be imported.

    What could be the name of a model or a data set on a hub (`owner/name`) is left to its reader.
    """
    named_on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(?<!\.json)(?<!\.jsonl)", config.data.train)
    model = "Hugging Face folder with a config.json"
    wanted = (
        ("model.path", config.model.path, "config.json", "tiny", model),
        ("guard.path", config.guard.path or "tiny", "config.json", "tiny", model),
        ("data.train", config.data.train, "", "tiny", "SQuARe JSON file or data set"),
        ("cai.constitution", config.cai.constitution, "", "default", "YAML file of principles"),
        ("cai.data", config.cai.data, "", "online", "JSON lines of revisions, or folder of them"),
        ("eval.advbench", config.eval.advbench, "", "tiny", "CSV file with header goal,target"),
    )
    own = own_values(config)
    problems = [
        f"{key} = {value!r}: no {what} there; must be one, or {shipped!r}{did_you_mean(value, _siblings(value))}"
        for key, value, inside, shipped, what in wanted
        if value != shipped
        and key not in own
        and not (Path(value) / inside).exists()
        and not (key == "data.train" and named_on_hub)
        and not (inside and is_hub_name(value) and not Path(value).exists())
    ]
    for key, name in own.items():
        try:
            attribute(name, key, object)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


def _siblings(path: str | Path, pattern: str = "*") -> list[str]:
    parent = Path(path).parent
    return sorted(str(sibling) for sibling in parent.glob(pattern)) if parent.is_dir() else []


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """(contents, place of every dotted key, problems) of a YAML file of sections."""
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "no such file"
        near = did_you_mean(str(path), _siblings(path, "*.y*ml"))
        raise InputError(f"{path}: {reason}; must be a YAML config{near}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node else None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; must be a text file in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise InputError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise InputError(f"{path}:1: must be a mapping of keys, like 'seed: 1'; got {_show(data)}")
    where: dict[str, str] = {}
    problems = _walk(node, path, "", where)
    return {key: {} if value is None and key in sections() else value for key, value in data.items()}, where, problems


def _walk(node: Any, path: Path, prefix: str, where: dict[str, str]) -> list[str]:
    """Fill `where` with the places of all keys, sections' too; report keys that stand twice or are no text."""
    problems = []
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        dotted, place = f"{prefix}{key.value}", f"{path}:{key.start_mark.line + 1}"
        if key.tag != "tag:yaml.org,2002:str":
            problems.append(f"{place}: key {dotted}: YAML reads this as no text; put it in quotes")
        elif dotted in where:
            problems.append(f"{place}: {dotted}: stands twice, first at {where[dotted]}; must stand once")
        else:
            where[dotted] = place
        if not prefix:
            problems += _walk(value, path, f"{dotted}.", where)
    return problems


def _apply(override: str, data: dict[str, Any], where: dict[str, str]) -> list[str]:
    """Write `key.path=value` into `data` and its origin into `where`; returns the problem, if there is one."""
    key, equals, text = override.partition("=")
    key, place = key.strip(), f"override {override!r}"
    if not equals or not key:
        return [f"{place}: must be written key.path=value, like lora.rank=16"]
    if key in sections():
        inside = ", ".join(name for name in schemas() if name.startswith(f"{key}."))
        return [f"{place}: {key} is a section; must name one of its keys: {inside}"]
    if key not in schemas():
        return [f"{place}: {key}: no such key{suggest_key(key)}"]
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return [f"{place}: the value cannot be read as YAML; put it in quotes within the override"]
    section, _, name = key.rpartition(".")
    inside = data.setdefault(section, {}) if section else data
    if isinstance(inside, dict):  # else the file's own mistake is reported
        inside[name] = value
        where[key] = place
    return []


def _explain(error: Any, where: dict[str, str], path: Path) -> str:
    """One line for one pydantic error: place, key, value, what it must be."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location[:2] if location[0] in sections() else location[:1])
    place = where.get(key) or where.get(location[0]) or str(path)
    index = "".join(f"[{part}]" for part in location[key.count(".") + 1 :] if part != "[key]")
    value = error["input"]
    if error["type"] == "extra_forbidden":
        return f"{place}: {key}: no such key{suggest_key(key)}"
    stated = f"{place}: {key}{index} = {_show(value)}{'' if key in where else ' (the default)'}: "
    if key in sections():
        return f"{stated}must be a section of keys: {', '.join(sections()[key].model_fields)}"
    if error["type"] == "value_error" and not isinstance(value, bool):
        return stated + str(error["ctx"]["error"])
    schema = inner(schemas()[key]) if index else schemas()[key]
    return f"{stated}must be {allowed(schema)}{hint(value, schema)}"


def _show(value: Any) -> str:
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _file_order(problem: str) -> tuple[bool, int]:
    line = re.search(r":(\d+):", problem)
    return problem.startswith("override "), int(line.group(1)) if line else 0
