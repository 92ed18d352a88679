"""What a fitted guard and a guard's scores are made of, as a digest, and who keeps them under it for the next time."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fedjax_rai.aliases import Adapter, PyTree
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.lora import Lora

VERSION = 4
"""Of the computations: to be raised where the same keys, texts and weights give another guard, or other scores."""
FITTED, FITTING, SCORES = "fitted", "fitting", "scores"


class Origin(NamedTuple):
    """What something was made of: two of one kind with equal digests are the same, bit for bit, on one machine."""

    kind: str
    """`fitted`: a guard's adapter; `fitting`: the state of its fit; `scores`: p(unsafe) of pairs."""
    parts: dict[str, Any]
    """Plain values: keys of the config, and the digests of texts and weights."""
    base: str = ""
    """What the base is called; not part of the digest, which has its contents."""

    @property
    def digest(self) -> str:
        """Of all that, as 64 hexadecimal digits."""
        stated = {"version": VERSION, "kind": self.kind, **self.parts}
        return hashlib.sha256(json.dumps(stated).encode()).hexdigest()


def digest_of_texts(rows: Iterable[Any]) -> str:
    """The digest of rows of texts, in their order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(repr(row).encode())
        found.update(b"\n")
    return found.hexdigest()


@runtime_checkable
class Replies(Protocol):
    """Keeps replies by the digest of what was asked, for the next time and for other processes."""

    def get(self, digest: str) -> str | None:
        """A reply that was kept."""
        ...

    def keep(self, digest: str, reply: str) -> None:
        """Keep a reply; called as soon as it is there, from one thread at a time."""
        ...


@runtime_checkable
class Store(Protocol):
    """Keeps guards and scores by their origin, and gives them back bit for bit; None for what it does not have."""

    def adapter(self, origin: Origin, shape: tuple[DecoderConfig, Lora]) -> Adapter | None:
        """The adapter of a fitted guard; leaves may be on any device."""
        ...

    def notes(self, origin: Origin) -> dict[str, Any] | None:
        """What was kept beside that adapter, as JSON has it."""
        ...

    def keep_adapter(
        self, origin: Origin, shape: tuple[DecoderConfig, Lora], adapter: Adapter, notes: Mapping[str, Any]
    ) -> None:
        """Keep it and its notes for the next time, and its fit no longer; never raises for what a disk refuses."""
        ...

    def fitting(self, origin: Origin, like: PyTree) -> tuple[int, PyTree] | None:
        """(steps done, state after them) of the fit of a guard, the state of the shape of `like`."""
        ...

    def keep_fitting(self, origin: Origin, steps: int, state: PyTree) -> None:
        """Keep it in the place of an earlier one; never raises for what a file system refuses."""
        ...

    def scores(self, origin: Origin) -> np.ndarray | None:
        """float32[2, n]: scores, and what their verdicts hold of the probability."""
        ...

    def keep_scores(self, origin: Origin, scores: np.ndarray) -> None:
        """Keep them for the next time; never raises for what a file system refuses."""
        ...

    def replies(self, name: str) -> Replies:
        """What the endpoint of that name replied before, and will from now on."""
        ...
