"""Views of a config: the keys that a part of an experiment reads, and no others."""

import re
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, TypeAlias

from fedjax_rai.config.schema import ExperimentConfig, Section


class View:
    """Some keys of a config: `view.data.max_length`, as of the config itself; any other key is an AttributeError.

    What is built from a view can depend on nothing but the keys that it names, so two views that are equal (the same
    keys with the same values) may share what was built from one of them.
    """

    def __init__(self, config: "Readable", keys: Iterable[str]):
        """`keys`: a top-level key (`seed`), a whole section (`data`) or a key of one (`cai.probe`)."""
        self._values = {key: value_at(config, key) for key in sorted(set(keys))}
        for key, value in self._values.items():
            section, _, name = key.rpartition(".")
            if not section:
                setattr(self, name, value)
            elif section not in self._values:
                setattr(_section(self, section), name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} is not among the keys of this view: {', '.join(self._values)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, View) and self._values == other._values

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # sections may hold mappings

    def plain(self) -> dict[str, Any]:
        """The values by key, sections as mappings."""
        found = {}
        for key, value in self._values.items():
            found[key] = value.model_dump() if isinstance(value, Section) else value
        return found

    def __repr__(self) -> str:
        return f"View({self._values!r})"


Readable: TypeAlias = ExperimentConfig | View


def value_at(config: Readable, key: str) -> Any:
    """The value of a dotted key, of an entry's (`data.sources[0].path`), or a whole section."""
    value: Any = config
    for name in re.findall(r"\w+", key):
        value = value[int(name)] if name.isdigit() else getattr(value, name)
    return value


def _section(view: View, name: str) -> SimpleNamespace:
    """The part of a view that holds some keys of a section."""
    if name not in vars(view):
        setattr(view, name, SimpleNamespace())
    return getattr(view, name)


WRITES_ONLY = {"output", "tracker"}  # keys that say where something is written, so that no number depends on them


def relevant(config: ExperimentConfig, but: Iterable[str] = ()) -> dict[str, Any]:
    """The value of every key that a number can depend on, by dotted key; without the keys in `but`."""
    left_out = {*WRITES_ONLY, *but}
    found = {}
    for key in all_keys():
        if key not in left_out:
            value = value_at(config, key)
            found[key] = value.model_dump() if isinstance(value, Section) else value
    return found


def all_keys() -> list[str]:
    """Every dotted key of a config, in order of declaration."""
    found = []
    for name, field in ExperimentConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            found += [f"{name}.{key}" for key in section.model_fields]
        else:
            found.append(name)
    return found
