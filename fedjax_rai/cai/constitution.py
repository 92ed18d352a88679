"""Principles: how to ask for a critique and a revision. YAML in, one clear error where it is wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from fedjax_rai.errors import InputError


class Principle(NamedTuple):
    """`critique` and `revision` are the requests put to the model after its answer."""

    name: str
    critique: str
    revision: str


def load_constitution(path: Path) -> list[Principle]:
    """A list of mappings with exactly the texts `name`, `critique`, `revision`; else InputError with file and line."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not YAML: {error.problem}") from error
    if not isinstance(root, yaml.SequenceNode) or not root.value:
        raise InputError(f"{path}:1: a constitution is a non-empty list of principles")
    return [_principle(path, node) for node in root.value]


def _principle(path: Path, node: yaml.Node) -> Principle:
    line = node.start_mark.line + 1
    fields: Sequence = node.value if isinstance(node, yaml.MappingNode) else ()
    texts = {
        key.value: value.value for key, value in fields if isinstance(value, yaml.ScalarNode) and value.value.strip()
    }
    if set(texts) != set(Principle._fields) or len(texts) != len(fields):
        found = ", ".join(sorted(texts)) or "none"
        raise InputError(
            f"{path}:{line}: a principle has the texts {', '.join(Principle._fields)}, all of them; found: {found}"
        )
    return Principle(**texts)
