"""`docs/config.md`: meaning, default and range of every key, made of the schema.

python -m fedjax_rai.tools.config_reference > docs/config.md
"""

import inspect
import json
from collections.abc import Iterator
from typing import Any

from fedjax_rai.config.files import shipped
from fedjax_rai.config.keys import allowed, properties, schemas, sections

HEAD = """\
# Configuration

Every key of a config, with its meaning, its default and its range: made of `fedjax_rai/config/schema.py` by
`python -m fedjax_rai.tools.config_reference > docs/config.md`.

A config is a YAML file of sections; what it does not name is the default, and `fedjax-rai config CONFIG` prints it in
full. Every command takes overrides behind the file, `federated.rounds=3 lora.targets=[q_proj,v_proj]`; a sweep takes
several values, `cai.iterations=0,10,25`. Keys that do not exist and values out of range are refused, all at once, with
file, line and the nearest right spelling. Paths are relative to the current directory; `~` is your home.

The value of an override is taken whole, `output=runs/exp #1` with its `#1`; lists, mappings and text in quotes are
read as YAML, null is written `null`, and `output=` with nothing behind it is refused. What YAML 1.1 reads as a number
in base 8 or 60, `010` or `1:30`, is the text that is written, and refused where a whole number must stand. Merged keys
(`<<`) may be overridden; a key that stands twice otherwise is refused, at any depth.

Where a key takes a name *or package.module:attribute*, a value of your own may stand: `mine.rules:median` is the
attribute `median` of `mine/rules.py`, installed or below the current directory. What each must be, and how the Python
API takes the value itself, is in [api.md](api.md). The run folder notes its name and the digest of its file, and a run
does not go on with another.
"""


def reference() -> str:
    """The page, in Markdown."""
    parts = [HEAD]
    top = [key for key in schemas() if "." not in key]
    parts.append("## Top level\n\n" + "\n".join(table(schemas(), top)) + "\n")
    for name, section in sections().items():
        keys = [key for key in schemas() if key.startswith(f"{name}.")]
        parts.append(f"## {name}\n\n{inspect.getdoc(section)}\n\n" + "\n".join(table(schemas(), keys)) + "\n")
        parts += [entries(key) for key in keys if schemas()[key].get("items", {}).get("properties")]
        parts += in_place_of_a_path([key for key in keys if properties(schemas()[key])])
    return "\n".join(parts)


def entries(key: str) -> str:
    """The keys of an entry of a list, in Markdown."""
    keys = schemas()[key]["items"]["properties"]
    return f"Each entry of `{key}` has the keys\n\n" + "\n".join(table(keys, list(keys))) + "\n"


def in_place_of_a_path(keys: list[str]) -> Iterator[str]:
    """The keys of the mapping that may stand where these keys take a path, in Markdown."""
    if keys:
        known = properties(schemas()[keys[0]])
        named = ", ".join(f"`{key}`" for key in keys)
        yield f"In place of the path of {named} a mapping may stand, of\n\n" + "\n".join(table(known, [*known])) + "\n"


def table(known: dict[str, Any], keys: list[str]) -> Iterator[str]:
    """The rows of these keys, of which JSON schemas are `known`."""
    yield "| key | default | what is allowed | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        schema = known[key]
        default = f"`{json.dumps(schema['default'])}`" if "default" in schema else "must be given"
        cells = [f"`{key}`", default, values(schema), meaning(schema)]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def values(schema: dict[str, Any]) -> str:
    """What a key takes, in words; of a path, what must be there."""
    if "file" not in schema:
        return allowed(schema)
    word = shipped(schema)
    options = [] if "shipped" in schema else ["null" if word is None else word]
    options = [f"one of {', '.join(schema['enum'])}"] if "enum" in schema else options
    options.append(f"the path of a {schema['file']}")
    if "attribute" in schema:
        options.append(schema["attribute"])
    if properties(schema):
        options.append(f"a mapping of {', '.join(properties(schema))}")
    return ", or ".join(options)


def meaning(schema: dict[str, Any]) -> str:
    return " ".join(schema["description"].split())


if __name__ == "__main__":
    print(reference(), end="")
