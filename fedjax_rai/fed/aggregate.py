"""Aggregators: deltas [c, ...] and weights to one direction, as a pair of pure functions."""

from collections.abc import Callable
from typing import NamedTuple

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, PyTree
from fedjax_rai.fed.client import ClientUpdate


class Aggregator(NamedTuple):
    """`init(adapter) -> state`; `apply(updates, state) -> (direction, state)`."""

    init: Callable[[Adapter], PyTree]
    apply: Callable[[ClientUpdate, PyTree], tuple[Adapter, PyTree]]


def weighted_mean() -> Aggregator:
    """sum_i w_i delta_i / sum_i w_i (FedAvg, arXiv 1602.05629); the zero tree when every weight is 0.

    A and B are averaged apart, so the mean's product is not the products' mean.
    """
    return Aggregator(
        lambda adapter: (), lambda updates, state: (trees.weighted_mean(updates.delta, updates.weight), state)
    )


AGGREGATORS: dict[str, Callable[[], Aggregator]] = {"weighted_mean": weighted_mean}
