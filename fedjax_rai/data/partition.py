"""Which client holds which pair: partitions as values.

Each deals out disjoint parts that cover all pairs (`natural` may leave some out) and gives every client at least one.
Who holds how many of which kind depends on the seed and on how many there are of each kind, not on the pairs' order.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_rai import rng
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError, did_you_mean

CATEGORY, LABEL = "category", "label"
LABELS = {True: "harmful", False: "acceptable", None: "unlabelled"}


def iid(pairs: Sequence[Pair], clients: int, seed: int) -> list[np.ndarray]:
    """All pairs dealt at random, in sizes within one. Raises InputError where there are fewer pairs than clients."""
    _check_enough(len(pairs), clients)
    return np.array_split(_generator(seed).permutation(len(pairs)), clients)


def dirichlet(pairs: Sequence[Pair], clients: int, seed: int, alpha: float, column: str) -> list[np.ndarray]:
    """Label skew (arXiv 1909.06335): each client's mixture of kinds is drawn from Dirichlet(alpha p), sizes within one.

    p is the mixture of all pairs, a kind is a value of the column. A mixture's share of a kind k has the mean p_k and
    the variance p_k (1 - p_k) / (alpha + 1). Clients draw their pairs in a random order; where a kind has run out, what
    is missing is drawn by a new mixture of the others. So for alpha to infinity every client draws like iid, and for
    alpha to 0 all but at most (kinds - 1) clients hold one kind.
    """
    _check_enough(len(pairs), clients)
    g = _generator(seed)
    _, kinds, left = _kinds(pairs, column)
    prior = left / len(pairs)
    counts = np.zeros((clients, len(left)), int)
    sizes = even_sizes(len(pairs), clients)
    for client in g.permutation(clients):
        missing = sizes[client]
        while missing:
            drawn = np.minimum(g.multinomial(missing, _mixture(g, alpha, prior * (left > 0))), left)
            counts[client] += drawn
            left = left - drawn
            missing -= drawn.sum()
    order = np.lexsort((g.random(len(pairs)), kinds))
    return _collected(order, _holders(counts), clients)


def category(pairs: Sequence[Pair], clients: int, seed: int, column: str) -> list[np.ndarray]:
    """Whole kinds: a kind, which is a value of the column, lies at one client, if there are as many kinds as clients.

    The largest is dealt first, each to the client that holds least. With fewer kinds than clients each client holds
    one kind, and a kind is shared out evenly to a number of clients in proportion to its size.
    """
    _check_enough(len(pairs), clients)
    g = _generator(seed)
    _, kinds, sizes = _kinds(pairs, column)
    order = np.lexsort((g.random(len(pairs)), kinds))
    renamed = g.permutation(clients)
    counts = np.zeros((clients, len(sizes)), int)
    if len(sizes) >= clients:
        holders = _to_the_least(sizes, clients)
        counts[renamed[holders], np.arange(len(sizes))] = sizes
    else:
        ends = np.cumsum(apportion(clients, sizes, least=1))
        for kind, holders in enumerate(np.split(renamed, ends[:-1])):
            counts[holders, kind] = even_sizes(int(sizes[kind]), len(holders))
    return _collected(order, _holders(counts), clients)


def quantity(pairs: Sequence[Pair], clients: int, seed: int, exponent: float) -> list[np.ndarray]:
    """Quantity skew: client i, from 0, holds a share of the pairs in proportion to (i + 1)^-exponent, at random.

    Sizes are rounded by largest remainders; whom this leaves without a pair gets one of the largest client's.
    """
    _check_enough(len(pairs), clients)
    sizes = apportion(len(pairs), np.arange(1, clients + 1) ** -float(exponent), least=1)
    return np.split(_generator(seed).permutation(len(pairs)), np.cumsum(sizes)[:-1])


def harm(pairs: Sequence[Pair], clients: int, seed: int, share: float) -> list[np.ndarray]:
    """Harm on few clients: harmful pairs are dealt evenly to the first `share` of the clients, at least to one.

    The other pairs make all clients' sizes as even as they can be. Raises InputError where no pair is harmful, and
    where the others are too few for every client to hold one.
    """
    _check_enough(len(pairs), clients)
    harmful = np.array([pair.harmful is True for pair in pairs], bool)
    if not harmful.any():
        raise InputError("no pair is labelled as harmful; must be labelled pairs, or another partition")
    g = _generator(seed)
    held = np.zeros(clients, int)
    few = at_least_one(share, clients)
    held[:few] = even_sizes(int(harmful.sum()), few)
    sizes = _filled(held, len(pairs))
    if not sizes.all():
        raise InputError(
            f"{np.sum(sizes == 0)} of {clients} clients get no pair: there are only {np.sum(~harmful)} beside the "
            "harmful ones; must be fewer clients"
        )
    counts = np.stack([held, sizes - held], axis=1)
    order = np.lexsort((g.random(len(pairs)), ~harmful))
    return _collected(order, _holders(counts), clients)


def natural(pairs: Sequence[Pair], clients: int, seed: int, column: str) -> list[np.ndarray]:
    """A column names the client: its values with the most pairs are the clients, the largest first, ties by name.

    The pairs of further values are held by nobody. Raises InputError where there are fewer values than clients.
    """
    names, kinds, sizes = _kinds(pairs, column)
    if len(names) < clients:
        raise InputError(
            f"column {column!r} names {len(names)} clients, and {clients} are asked for; must be at most that"
        )
    ranks = np.empty(len(names), int)
    ranks[np.argsort(-sizes, kind="stable")] = np.arange(len(names))
    return _collected(np.arange(len(pairs)), ranks[kinds], len(names))[:clients]


Partition = Callable[..., list[np.ndarray]]
PARTITIONS: dict[str, Partition] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "category": category,
    "quantity": quantity,
    "harm": harm,
    "natural": natural,
}
"""Partitions by name: (pairs, number of clients, seed) -> an index array for each client.

A partition with numbers takes those of the config's section of its name as further arguments. The arrays are disjoint,
and a function of the arguments alone.
"""


def kinds_of(pairs: Sequence[Pair], column: str) -> np.ndarray:
    """str[n]: each pair's `category`, its `label` (harmful, acceptable, unlabelled), or its row's value of a column.

    Raises InputError where a row has no such value, with the columns that there are.
    """
    if column == CATEGORY:
        return np.array([pair.category for pair in pairs], str)
    if column == LABEL:
        return np.array([LABELS[pair.harmful] for pair in pairs], str)
    found = [(pair.columns or {}).get(column) for pair in pairs]
    missing = sum(value is None for value in found)
    if missing:
        there = {name for pair in pairs for name in pair.columns or ()}
        known = [CATEGORY, LABEL, *sorted(there - {CATEGORY, LABEL})]
        raise InputError(
            f"column {column!r}: {missing} of {len(pairs)} pairs have no such value; must be one of "
            f"{', '.join(known)}{did_you_mean(column, known)}"
        )
    return np.array(found, str)


def even_sizes(n: int, parts: int) -> np.ndarray:
    """int[parts]: sizes within one that sum to n, the larger first."""
    return n // parts + (np.arange(parts) < n % parts)


def at_least_one(share: float, whole: int) -> int:
    """A share of a whole, rounded half up, and at least 1."""
    return max(1, int(np.floor(share * whole + 0.5)))


def apportion(total: int, weights: np.ndarray, least: int = 0) -> np.ndarray:
    """int[n]: whole numbers in proportion to the weights that sum to `total`, by largest remainders, the first ones at
    ties; then those below `least` are raised to it, at the cost of the largest.
    """
    quotas = total * weights / weights.sum()
    found = np.floor(quotas).astype(int)
    most = np.argsort(found - quotas, kind="stable")
    found[most[: total - found.sum()]] += 1
    for i in np.flatnonzero(found < least):
        while found[i] < least:
            found[np.argmax(found)] -= 1
            found[i] += 1
    return found


def _generator(seed: int) -> np.random.Generator:
    return rng.host(seed, "partition")


def _check_enough(n: int, clients: int) -> None:
    if n < clients:
        raise InputError(f"federated.clients = {clients}: more than the {n} training pairs; must be at most {n}")


def _kinds(pairs: Sequence[Pair], column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the values of a column in their order; int[n]: which of them each pair has; how many pairs have each)."""
    return np.unique(kinds_of(pairs, column), return_inverse=True, return_counts=True)


def _mixture(g: np.random.Generator, alpha: float, prior: np.ndarray) -> np.ndarray:
    """float[k]: a draw from Dirichlet(alpha p), p being the prior made to sum to 1; kinds of prior 0 stay 0."""
    there = np.flatnonzero(prior)
    shares = prior[there] / prior[there].sum()
    drawn = g.dirichlet(alpha * shares)
    if not np.isfinite(drawn).all():  # beyond what floats hold: the limits, one kind or the prior
        drawn = np.eye(len(there))[g.choice(len(there), p=shares)] if alpha < 1 else shares
    mixture = np.zeros(len(prior))
    mixture[there] = drawn / drawn.sum()
    return mixture


def _to_the_least(sizes: np.ndarray, clients: int) -> np.ndarray:
    """int[k]: who gets each kind, the largest first to whoever holds least."""
    holders = np.zeros(len(sizes), int)
    held = [(0, client) for client in range(clients)]
    for kind in np.argsort(-sizes, kind="stable"):
        least, client = heapq.heappop(held)
        holders[kind] = client
        heapq.heappush(held, (least + int(sizes[kind]), client))
    return holders


def _filled(held: np.ndarray, total: int) -> np.ndarray:
    """Sizes, none below what is held, that sum to `total` and are as even as that allows."""
    low, high = 0, total
    while low < high:  # the highest level to which all can be filled
        level = (low + high + 1) // 2
        if np.maximum(held, level).sum() <= total:
            low = level
        else:
            high = level - 1
    sizes = np.maximum(held, low)
    sizes[np.flatnonzero(sizes == low)[: total - sizes.sum()]] += 1
    return sizes


def _holders(counts: np.ndarray) -> np.ndarray:
    """int[n]: who holds each pair, where pairs are sorted by kind and `counts` says how many of a kind a client has."""
    clients, kinds = counts.shape
    return np.repeat(np.tile(np.arange(clients), kinds), counts.T.ravel())


def _collected(order: np.ndarray, holders: np.ndarray, clients: int) -> list[np.ndarray]:
    """Each client's pairs: those of `order` at which it stands in `holders`."""
    sizes = np.bincount(holders, minlength=clients)
    return np.split(order[np.argsort(holders, kind="stable")], np.cumsum(sizes)[:-1])


def checked_partition(parts: Any, pairs: int, clients: int, stated: str) -> list[np.ndarray]:
    """The index array of each client, by the partition that is `stated` ("data.partition = iid").

    Pairs that no client holds are allowed. Raises InputError unless there is an integer array [n] for each client,
    indices are those of pairs, and none stands twice.
    """
    if not isinstance(parts, Sequence | np.ndarray) or len(parts) != clients:
        found = len(parts) if isinstance(parts, Sequence | np.ndarray) else f"a {type(parts).__name__}, not a list of"
        raise InputError(f"{stated}: gives {found} arrays; must give one for each of the {clients} clients")
    held = [_indices(part, f"{stated}: client {client}", pairs) for client, part in enumerate(parts)]
    together = np.concatenate(held)
    indices, times = np.unique(together, return_counts=True)
    if len(indices) < len(together):
        twice = indices[times > 1][0]
        holders = [client for client, part in enumerate(held) if twice in part]
        raise InputError(f"{stated}: pair {twice} stands twice, at clients {holders}; no index may")
    return held


def _indices(part: Any, stated: str, pairs: int) -> np.ndarray:
    try:
        array = np.asarray(part)
    except ValueError:  # lists of unequal lengths
        raise InputError(f"{stated} gets no array; must get an integer array of indices") from None
    if array.shape == (0,):
        return array.astype(int)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{stated} gets {array.dtype}{[*array.shape]}; must get an integer array [n] of indices")
    outside = array[(array < 0) | (array >= pairs)]
    if len(outside):
        raise InputError(f"{stated} gets the index {outside[0]}; must be from 0 to {pairs - 1}")
    return array
