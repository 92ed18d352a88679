"""YAML files of a few levels with the line of every key, so that what is wrong can be said where it stands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedjax_rai.errors import InputError, did_you_mean_file

Place = tuple[str | int, ...]
"""Keys and positions, from the top of a file."""
DEEPEST = 4  # levels that have lines; what is deeper is read as it is, so that an alias may lead back to itself
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class Repeated(NamedTuple):
    """A key that stands twice."""

    place: Place
    line: int
    first: int  # the line where it stood before


class Document(NamedTuple):
    """What a YAML file holds, its keys as they are written."""

    data: Any  # None: an empty file
    lines: dict[Place, int]  # from 1, of every key and item
    repeated: list[Repeated]  # read as it stood first
    no_text: set[Place]  # keys that YAML reads as a number, a truth value, a list, ...

    def line(self, place: Place) -> int:
        """The line of what is at a place, else of what it is missing from."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_yaml(path: Path, what: str = "YAML file") -> Document:
    """The document in a file of the kind `what`; raises InputError, with the line, for what is no YAML in UTF-8."""
    text = _read(path, what)
    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        document = Document(None, {}, [], set())
        if node is None:
            return document
        return document._replace(data=_contents(node, loader, (), document))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise InputError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a character that may not stand there
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise InputError(f"{path}:{line}: not valid YAML: {' '.join(str(error).split())}") from None


def _read(path: Path, what: str) -> str:
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {reason}; must be a {what}{did_you_mean_file(path, '*.y*ml')}")
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte {error.start} is not UTF-8; must be a text file in UTF-8") from None


def _contents(node: yaml.Node, loader: yaml.SafeLoader, at: Place, document: Document) -> Any:
    """What a node holds; what is noted of it goes into the document."""
    document.lines.setdefault(at, node.start_mark.line + 1)  # the line of a key, where there is one
    if isinstance(node, yaml.ScalarNode) or len(at) >= DEEPEST:
        return _constructed(node, loader)
    if isinstance(node, yaml.SequenceNode):
        return [_contents(item, loader, (*at, i), document) for i, item in enumerate(node.value)]
    found = {}
    for key, value, merged in _pairs(node, loader):
        inside = (*at, key.value if isinstance(key, yaml.ScalarNode) else "?")
        line = key.start_mark.line + 1
        if key.tag != _TEXT:
            document.no_text.add(inside)
        if inside in document.lines and not merged:
            document.repeated.append(Repeated(inside, line, document.lines[inside]))
        elif inside not in document.lines:
            document.lines[inside] = line
            found[inside[-1]] = _contents(value, loader, inside, document)
    return found


def _pairs(node: Any, loader: yaml.SafeLoader) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
    """(key, value, whether it came by `<<`) of a mapping, its own before those that it merges."""
    written = [pair for pair in node.value if pair[0].tag != _MERGE]
    loader.flatten_mapping(node)
    merged = node.value[: len(node.value) - len(written)]
    yield from ((key, value, False) for key, value in written)
    yield from ((key, value, True) for key, value in merged)


def _constructed(node: yaml.Node, loader: yaml.SafeLoader) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except ValueError as error:  # such as a date that there is not
        raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None
