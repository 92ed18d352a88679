"""The safety filter: which of its pairs a client trains on as they came, drops, or trains on with a refusal in them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.config.client_names import Named, members
from fedjax_rai.data.columns import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.text.prompts import ASSISTANT, USER, Turn

REFUSALS = {"en": "I cannot help with that.", "ko": "죄송하지만 그 요청은 도와드릴 수 없습니다."}
"""What takes the place of an unsafe answer, by the language of its data. The tiny world's model knows the English."""


class Limit(NamedTuple):
    """When a client calls an answer unsafe: at a score from `threshold` on, or by its rank among the client's pairs."""

    threshold: float
    drop_rate: float | None = None
    """In place of the threshold: the share of the client's scored pairs, those of the greatest scores, that is unsafe.

    floor(share x pairs); of equal scores the pairs that come first.
    """


class Flags(NamedTuple):
    """A client's verdicts on its n pairs, of m answers in all."""

    pair: np.ndarray
    """int[m]: which of the pairs, from 0 on, an answer is of; ascending."""
    unsafe: np.ndarray
    """bool[m]: answers that are unsafe."""
    left_out: np.ndarray
    """bool[n]: pairs that have an answer without a score, where such pairs are dropped."""

    def in_pairs(self, answers: np.ndarray) -> np.ndarray:
        """bool[n]: the pairs that have one of these answers."""
        found = np.zeros(len(self.left_out), bool)
        found[self.pair[answers]] = True
        return found


class Decision(NamedTuple):
    """What a client trains on."""

    kept: np.ndarray
    """bool[n]: the pairs, as they came or with refusals in them."""
    replaced: np.ndarray
    """bool[m]: answers of these in whose place a refusal stands."""


def drop(flags: Flags) -> Decision:
    """Pairs with an unsafe answer are left out whole."""
    kept = ~flags.left_out & ~flags.in_pairs(flags.unsafe)
    return Decision(kept, np.zeros_like(flags.unsafe))


def replace(flags: Flags) -> Decision:
    """A refusal takes the place of each unsafe answer (FedDetox, arXiv 2604.06833); the pair's other answers stay."""
    kept = ~flags.left_out
    return Decision(kept, flags.unsafe & kept[flags.pair])


def keep(flags: Flags) -> Decision:
    """The control: every pair, whatever the guard says of it, or does not."""
    return Decision(np.ones_like(flags.left_out), np.zeros_like(flags.unsafe))


ACTIONS: dict[str, Callable[[Flags], Decision]] = {"drop": drop, "replace": replace, "keep": keep}
"""What is done with what is flagged, by `filter.action`."""


def flag(scores: np.ndarray, pair: np.ndarray, limit: Limit, keep_unscored: bool = False) -> Flags:
    """The verdicts on a client's answers, whose scores are float[m] (NaN: none) and whose pairs are int[m].

    `keep_unscored`: an answer without a score is no reason to leave its pair out; it is never unsafe itself.
    """
    n = int(pair.max(initial=-1)) + 1
    nothing = np.zeros(n, bool)
    unscored = np.isnan(scores)
    flags = Flags(pair, ~unscored & (np.nan_to_num(scores) >= limit.threshold), nothing)
    if not keep_unscored:
        flags = flags._replace(left_out=flags.in_pairs(unscored))
    if limit.drop_rate is None:
        return flags
    return flags._replace(unsafe=_by_rank(scores, flags, limit.drop_rate))


def _by_rank(scores: np.ndarray, flags: Flags, rate: float) -> np.ndarray:
    """bool[m]: the answers that put their pairs among the `rate` of those that have the greatest scores."""
    known = np.nan_to_num(scores, nan=-1.0)  # below every score
    greatest = np.full(len(flags.left_out), -1.0)
    np.maximum.at(greatest, flags.pair, known)
    greatest[flags.left_out] = -1.0
    count = int(np.floor(rate * np.sum(greatest >= 0) + 1e-9))  # 0.29 of 100 are 29
    worst = np.argsort(-greatest, kind="stable")[:count]
    least = greatest[worst].min(initial=np.inf)
    among = np.zeros(len(greatest), bool)
    among[worst] = True
    return among[flags.pair] & (known >= least)


def limits(filtering: Any, threshold: float, clients: int) -> list[Limit]:
    """Each client's limit, by the config's section `filter`; a client that no entry names has `threshold`.

    An entry that names no clients holds for all those that no other names. Raises InputError for clients that there are
    not, and for one that two entries name.
    """
    entries = filtering.thresholds
    named = [Named(f"filter.thresholds[{i}]", entry.clients) for i, entry in enumerate(entries)]
    found: dict[int, Limit] = {}
    for_others: Limit | None = None
    for entry, place, held_by in zip(entries, named, members(named, clients, "entry"), strict=True):
        limit = Limit(threshold if entry.threshold is None else entry.threshold, entry.drop_rate)
        if held_by is None:
            if for_others is not None:
                raise InputError(f"{place.key}.clients: names no clients, as an entry before; at most one may")
            for_others = limit
        for client in held_by or ():
            if client in found:
                raise InputError(f"{place.key}.clients: names client {client}, as an entry before; must name each once")
            found[client] = limit
    return [found.get(client, for_others or Limit(threshold)) for client in range(clients)]


def with_refusals(pair: Pair, replaced: Sequence[bool] | np.ndarray, refusal: str) -> Pair:
    """The pair with a refusal in the place of those of its exchanges, in order, that are replaced.

    Where its own answer is replaced, the last one, the pair is harmful no longer.
    """
    turns = pair.turns
    answers = [
        i + 1 for i, (asked, given) in enumerate(zip(turns, turns[1:], strict=False)) if _is_exchange(asked, given)
    ]
    for i, is_replaced in zip(answers, replaced, strict=True):
        if is_replaced:
            turns[i] = Turn(ASSISTANT, refusal)
    harmful = False if replaced[-1] else pair.harmful
    return pair._replace(before=tuple(turns[:-2]), response=turns[-1].text, harmful=harmful)


def _is_exchange(asked: Turn, given: Turn) -> bool:
    return asked.role == USER and given.role == ASSISTANT
