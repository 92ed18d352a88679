"""The key `clients` of a source: which clients hold it, as a range, a list or a percentage."""

import re
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

ALLOWED = "a range (0-6), a list ([0, 3, 9]), a percentage (30%), or null: all"
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def checked_clients(value: Any) -> Any:
    """The value of `clients` as it is written; raises ValueError, which says what is wrong."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"may mean client {value} or {value} clients; must be written [{value}], or as a range")
    if isinstance(value, list | tuple):
        value = tuple(value)
    if value is not None and share_of(value) is None:
        numbered(value)
    return value


def share_of(value: Any) -> float | None:
    """The share, from 0 to 1, of a percentage; None for anything else. Raises ValueError for more than 100 or for 0."""
    matched = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if matched is None:
        return None
    share = float(matched[1]) / 100
    if not 0 < share <= 1:
        raise ValueError("must be more than 0% and at most 100%")
    return share


def numbered(value: Any) -> list[int]:
    """The clients of a range or a list, in their order; raises ValueError where it is neither, or names one twice."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError(f"must be {ALLOWED}")
    found = []
    for item in items:
        found += _item(item)
    if len(found) > len(set(found)):
        twice = next(client for client in found if found.count(client) > 1)
        raise ValueError(f"names client {twice} twice; must name each once")
    return sorted(found)


def _item(item: Any) -> list[int]:
    if isinstance(item, int) and not isinstance(item, bool) and item >= 0:
        return [item]
    matched = _RANGE.fullmatch(item.strip()) if isinstance(item, str) else None
    if matched is None:
        raise ValueError(f"{item!r}: must be {ALLOWED}")
    first, last = int(matched[1]), int(matched[2])
    if first > last:
        raise ValueError(f"{item}: the first client is after the last; must be written {last}-{first}")
    return list(range(first, last + 1))


Clients = Annotated[
    Any,
    PlainValidator(checked_clients),
    WithJsonSchema({"type": "string", "says": ALLOWED}),
]
