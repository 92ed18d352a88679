"""Aggregators: deltas [c, ...] and weights to one direction, as a pair of pure functions.

A client of weight 0 is absent, whatever its row holds; where nobody is present, the direction is zero. Factors A and B
are aggregated apart, so the product of the means is not the mean of the products.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Bool, Float, Int, PyTree
from fedjax_rai.fed.base import Row, holds_nothing
from fedjax_rai.fed.client import ClientUpdate, Mapper, are_added_up


class Aggregator(NamedTuple):
    """`init(adapter) -> state`; `apply(updates, state) -> (direction, state)`.

    The state holds the aggregator's numbers, too, so that they are traced. `holds(cohort, chunk)` says what it holds
    besides the deltas, in adapters by name. `linear`: applied to the clients' weighted mean, as if one client with the
    weight of all had sent it, it gives the same; the deltas of long cohorts are then added up and never held together.
    """

    init: Callable[[Adapter], PyTree]
    apply: Callable[[ClientUpdate, PyTree], tuple[Adapter, PyTree]]
    holds: Callable[[int, int], dict[str, int]] = holds_nothing
    linear: bool = False


def weighted_mean() -> Aggregator:
    """sum_i w_i delta_i / sum_i w_i (FedAvg, arXiv 1602.05629)."""
    return Aggregator(_stateless, _weighted_mean, linear=True)


def median() -> Aggregator:
    """The median of every coordinate (arXiv 1803.01498); of an even number of clients, the mean of the middle two.

    Every present client counts the same: a weight says no more than who is present.
    """
    return Aggregator(_stateless, _median, _holds_sorted)


def trimmed_mean(share: float) -> Aggregator:
    """The mean of every coordinate without its floor(share n) largest and as many smallest values of the n present
    clients (arXiv 1803.01498); at least one is left. `share` is traced.

    Every present client counts the same: a weight says no more than who is present.
    """
    return Aggregator(lambda adapter: jnp.float32(share), _trimmed_mean, _holds_sorted)


def held(aggregator: Aggregator, mapper: Mapper) -> Callable[[int, int], dict[str, int]]:
    """`holds` of an algorithm that maps `mapper.updates`: the aggregator's, and a sum where deltas are added up."""

    def holds(cohort: int, chunk: int) -> dict[str, int]:
        added_up = aggregator.linear and are_added_up(cohort // chunk, mapper.chunk)
        return ({"deltas": 1} if added_up else {}) | aggregator.holds(cohort, chunk)

    return holds


def _stateless(adapter: Adapter) -> PyTree:
    return ()


def _holds_sorted(cohort: int, chunk: int) -> dict[str, int]:
    return {"sorted deltas": cohort}


def _weighted_mean(updates: ClientUpdate, state: PyTree) -> tuple[Adapter, PyTree]:
    return trees.weighted_mean(updates.delta, updates.weight), state


def _median(updates: ClientUpdate, state: PyTree) -> tuple[Adapter, PyTree]:
    present = updates.weight > 0
    return _mean_without(updates.delta, present, _all_but_the_middle(jnp.sum(present))), state


def _trimmed_mean(updates: ClientUpdate, share: Float[Array, ""]) -> tuple[Adapter, PyTree]:
    present = updates.weight > 0
    count = jnp.sum(present)
    # 0.29 of 100 are 29, though float32 has a little less than 0.29
    cut = jnp.floor(share * count + 1e-4).astype(count.dtype)
    return _mean_without(updates.delta, present, jnp.minimum(cut, _all_but_the_middle(count))), share


def _all_but_the_middle(count: Int[Array, ""]) -> Int[Array, ""]:
    """How many of so many values may go at either end if one or, of an even number, two are to be left."""
    return jnp.maximum(count - 1, 0) // 2


def _mean_without(deltas: Adapter, present: Bool[Array, "c"], cut: Int[Array, ""]) -> Adapter:
    """The mean of every coordinate of the present rows without its `cut` largest and smallest; 0 if none is present."""
    count = jnp.sum(present)
    rank = jnp.arange(present.shape[0])
    inside = (rank >= cut) & (rank < count - cut)

    def along(mask: Bool[Array, "c"], leaf: Array) -> Array:
        return mask.reshape(-1, *(1,) * (leaf.ndim - 1))

    def mean(leaf: Array) -> Array:
        ascending = jnp.sort(jnp.where(along(present, leaf), leaf, jnp.inf), axis=0)  # the absent come last
        total = jnp.sum(jnp.where(along(inside, leaf), ascending, 0), axis=0)
        return total / jnp.maximum(count - 2 * cut, 1).astype(leaf.dtype)

    return jax.tree.map(mean, deltas)


AGGREGATORS: dict[str, Row] = {
    "weighted_mean": Row(weighted_mean),
    "median": Row(median),
    "trimmed_mean": Row(trimmed_mean, "trimmed_mean"),
}
