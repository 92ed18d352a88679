"""Keys `clients`: which clients hold a source, or have a threshold of their own: a range, a list or a percentage."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import PlainValidator, WithJsonSchema

from fedjax_rai.errors import InputError

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


class Named(NamedTuple):
    """An entry of a list that names clients."""

    key: str
    """How messages call it: `data.sources[1]`."""
    clients: Any
    """The value of its `clients`."""


def members(named: Sequence[Named], clients: int, kind: str = "source") -> list[list[int] | None]:
    """The clients of each entry, of so many in all; None for an entry that names none: null.

    A percentage takes clients that no entry names by number, in order, each going on where the one before ended. Raises
    InputError for clients that there are not; `kind` is what messages call an entry.
    """
    numbers = [_numbers(entry, clients) for entry in named]
    by_number = {client for found in numbers if found is not None for client in found}
    free = [client for client in range(clients) if client not in by_number]
    taken = _by_percentage(named, clients, free, kind)
    return [
        found if share_of(entry.clients) is None else next(taken) for entry, found in zip(named, numbers, strict=True)
    ]


def _numbers(entry: Named, clients: int) -> list[int] | None:
    """The clients that an entry names by number; None for all, and for a percentage."""
    value = entry.clients
    if value is None or share_of(value) is not None:
        return None
    found = numbered(value)
    if found[-1] >= clients:
        shown = list(value) if isinstance(value, tuple) else value
        raise InputError(
            f"{entry.key}.clients = {shown}: there is no client {found[-1]}; must be from 0 to {clients - 1} "
            f"(federated.clients = {clients})"
        )
    return found


def _by_percentage(named: Sequence[Named], clients: int, free: Sequence[int], kind: str) -> Iterator[list[int]]:
    """Consecutive clients for each entry that names a percentage of all."""
    total, start = 0.0, 0
    for entry in named:
        share = share_of(entry.clients)
        if share is None:
            continue
        total += share
        end = int(total * clients + 0.5 + 1e-9)
        stated = f"{entry.key}.clients = {entry.clients}"
        if end == start:
            raise InputError(f"{stated}: of federated.clients = {clients} is nobody; must be more")
        if end > len(free):
            raise InputError(
                f"{stated}: is {end - start} of {clients} clients, but only {len(free) - start} are left that no other "
                f"{kind} names; must be less, or name them by number"
            )
        yield list(free[start:end])
        start = end


Clients = Annotated[
    Any,
    PlainValidator(checked_clients),
    WithJsonSchema({"type": "string", "says": ALLOWED}),
]
