"""YAML files with the line of every key, so that what is wrong can be said where it stands.

What YAML 1.1 reads as another number than what is written is text: `1:30` (90, in base 60), as in YAML 1.2, and a
number with a leading 0 (`010`: 8, in base 8), about which the two disagree. Where a whole number must stand it is
refused as what it is, and where text must stand it is that text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedjax_rai.errors import InputError
from fedjax_rai.reading import half_a_character, read_text

Place = tuple[str | int, ...]
"""Keys and positions, from the top of a file."""
DEEPEST = 100  # levels of lists and mappings: what reads, compares or prints them goes down by recursion
MOST = 100_000  # values; those that an alias stands for count wherever it stands
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_LIST, _MAPPING = "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"
_DATE = "tag:yaml.org,2002:timestamp"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_NO_VALUE = "tag:yaml.org,2002:value"  # a text that is "="
_OTHER_BASE = re.compile(r"[-+]?0[0-9_]+|.*:.*")
_TOO_DEEP = f"lists and mappings within each other, more than {DEEPEST} levels"
_TOO_MANY = f"aliases stand for more than {MOST:,} values"


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


class _Loader(yaml.SafeLoader):
    """The safe loader, to which numbers in base 8 or 60 are text."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        if kind is not yaml.ScalarNode or not implicit[0]:
            return tag
        is_text = tag == _NO_VALUE or (tag in _NUMBERS and _OTHER_BASE.fullmatch(value))
        return _TEXT if is_text else tag


def read_yaml(path: Path, what: str = "YAML file") -> Document:
    """The document in a file of the kind `what`; raises InputError, with the line, for what is no YAML in UTF-8.

    Also for what YAML allows and nothing here can hold: text with half of a character, more levels than `DEEPEST`,
    aliases that lead back into themselves, or that stand for more than `MOST` values.
    """
    text = read_text(path, what, "*.y*ml")
    loader = None
    try:
        loader = _Loader(text)
        return _document(loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise InputError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a character that may not stand there
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise InputError(f"{path}:{line}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        line = loader.line + 1 if loader else 1
        raise InputError(f"{path}:{line}: not valid YAML: {_TOO_DEEP}") from None


def parse_value(text: str) -> Any:
    """The value of a text on the command line, taken whole: `a #1`, `a: b` and `it's` are text.

    A list, a mapping or a text in quotes is read as YAML, and nothing may stand behind it. White space at both ends is
    taken off, but within quotes. Raises ValueError, which says what is wrong.
    """
    text = text.strip()
    if not text:
        raise ValueError("there is no value; null is written null")
    wrong = no_text(text)
    if wrong is not None:
        raise ValueError(f"text {wrong}")
    try:
        if text[0] not in "[{'\"":
            return _plain_value(text)
        document = _document(_Loader(text), ends=len(text))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        raise ValueError(
            f"the value cannot be read as YAML ({problem}); put it in quotes within the override"
        ) from None
    for place in document.no_text:
        raise ValueError(f"YAML reads the key {place[-1]} as no text; put it in quotes")
    for repeated in document.repeated:
        raise ValueError(f"the key {repeated.place[-1]} stands twice; must stand once")
    return document.data


def is_in_another_base(text: str) -> bool:
    """Whether YAML 1.1 reads a text as a number in base 8 or 60."""
    tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))
    return tag in _NUMBERS and _OTHER_BASE.fullmatch(text) is not None


def _plain_value(text: str) -> Any:
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    mark: Any = None
    return _scalar(yaml.ScalarNode(_TEXT if tag in (_MERGE, _DATE) else tag, text, mark, mark), loader)


def _document(loader: _Loader, ends: int | None = None) -> Document:
    """What a loader's text holds, up to its character `ends`; raises YAMLError and RecursionError."""
    document = Document(None, {}, [], set())
    node = loader.get_single_node()
    if node is None:
        return document
    if ends is not None and node.end_mark.index < ends:
        raise yaml.MarkedYAMLError(problem="something stands behind its end", problem_mark=node.end_mark)
    _measure(node, 1, {}, set())
    return document._replace(data=_contents(node, loader, (), document))


def _measure(node: yaml.Node, level: int, known: dict[int, tuple[int, int]], above: set[int]) -> tuple[int, int]:
    """(values, levels) of a node; raises MarkedYAMLError where these are too many, or it stands within itself."""
    if id(node) in above:
        raise _wrong(node, "found unconstructable recursive node (an alias leads back into what it stands for)")
    if id(node) in known:
        values, levels = known[id(node)]
    elif level > DEEPEST:
        raise _wrong(node, _TOO_DEEP)
    else:
        above.add(id(node))
        inside = [_measure(child, level + 1, known, above) for child in _children(node)]
        above.remove(id(node))
        values = 1 + sum(child_values for child_values, _ in inside)
        levels = max((1 + child_levels for _, child_levels in inside), default=0)
        known[id(node)] = values, levels
    if level + levels > DEEPEST + 1:
        raise _wrong(node, _TOO_DEEP)
    if values > MOST:
        raise _wrong(node, _TOO_MANY)
    return values, levels


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value


def _contents(node: yaml.Node, loader: _Loader, at: Place, document: Document) -> Any:
    """What a node holds; what is noted of it goes into the document."""
    document.lines.setdefault(at, node.start_mark.line + 1)  # the line of a key, where there is one
    if isinstance(node, yaml.SequenceNode) and node.tag == _LIST:
        return [_contents(item, loader, (*at, i), document) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode) or node.tag != _MAPPING:
        return _scalar(node, loader)
    found = {}
    for key, value, merged in _pairs(node):
        inside = (*at, _scalar_text(key))
        line = key.start_mark.line + 1
        if inside not in document.lines:
            document.lines[inside] = line
            if key.tag != _TEXT:
                document.no_text.add(inside)
            found[inside[-1]] = _contents(value, loader, inside, document)
        elif not merged:
            document.repeated.append(Repeated(inside, line, document.lines[inside]))
    return found


def _pairs(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
    """(key, value, whether it came by `<<`) of a mapping: what stands there itself, then what it merges, first first.

    The node stays as it is, for it may stand elsewhere, too.
    """
    for key, value in node.value:
        if key.tag != _MERGE:
            yield key, value, False
    for key, value in node.value:
        if key.tag != _MERGE:
            continue
        for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(merged, yaml.MappingNode):
                raise _wrong(merged, "what is merged by << must be a mapping, or a list of mappings")
            for inner_key, inner_value, _ in _pairs(merged):
                yield inner_key, inner_value, True


def _scalar_text(key: yaml.Node) -> str:
    if not isinstance(key, yaml.ScalarNode):
        return "?"
    return _joined(key)


def _scalar(node: yaml.Node, loader: _Loader) -> Any:
    """What a node without lines of its own holds; raises MarkedYAMLError."""
    if node.tag in _NUMBERS and _OTHER_BASE.fullmatch(str(node.value)):
        raise _wrong(node, f"{node.value} is in base 8 or 60; must be in base 10")
    if node.tag == _TEXT and isinstance(node, yaml.ScalarNode):
        return _joined(node)
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError:
        raise
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        # PyYAML raises them for a tag that its value does not fit, and for numbers of thousands of digits
        raise _wrong(node, str(error) or type(error).__name__) from None


def _joined(node: yaml.ScalarNode) -> str:
    """A text, in which two escapes may stand for one character, as in JSON."""
    text = node.value
    if half_a_character(text) is not None:
        halves = text.encode("utf-16", "surrogatepass")
        text = halves.decode("utf-16", "ignore")
        if text.encode("utf-16") != halves:
            text = node.value
    wrong = no_text(text)
    if wrong is not None:
        raise _wrong(node, f"text {wrong}")
    return text


def no_text(text: str) -> str | None:
    """What is wrong with a text that no file's name can be, nor a prompt; None: nothing is."""
    return "holds the character U+0000" if "\0" in text else half_a_character(text)


def _wrong(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
