"""Laws of aggregators: their formulas in NumPy, absent clients, and what one client of many can do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai import trees
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.fed.aggregate import AGGREGATORS, median, trimmed_mean
from fedjax_rai.fed.algorithm import construct
from fedjax_rai.fed.client import ClientUpdate
from tests import small

ROBUST = {"median": median(), "trimmed_mean": trimmed_mean(0.2)}


def rows(count: int, seed: int = 0):
    """Random deltas of a small pytree, leaves [c, ...]."""
    g = np.random.default_rng(seed)
    return {"a": g.normal(size=(count, 3, 2)), "b": {"c": g.normal(size=(count, 4))}}


def aggregated(aggregator, deltas, weight):
    deltas = jax.tree.map(jnp.float32, deltas)
    update = ClientUpdate(deltas, jnp.asarray(weight, jnp.float32), {})
    state = aggregator.init(jax.tree.map(lambda leaf: leaf[0], deltas))
    return jax.jit(aggregator.apply)(update, state)[0]


def expected(name, deltas, weight):
    """In NumPy, of the present rows alone."""
    present = np.asarray(weight) > 0

    def of(leaf):
        there = leaf[present]
        if name == "weighted_mean":
            return np.average(there, axis=0, weights=np.asarray(weight)[present])
        if name == "median":
            return np.median(there, axis=0)
        ascending, cut = np.sort(there, axis=0), int(0.2 * len(there))
        return ascending[cut : len(there) - cut].mean(axis=0)

    return jax.tree.map(of, deltas)


def make(name):
    sections = dict(ExperimentConfig.model_validate({"trimmed_mean": {"share": 0.2}}))
    return construct(AGGREGATORS[name], sections)()


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_aggregator_is_its_formula(name, count):
    deltas, weight = rows(count), 1.0 + np.arange(count)
    small.assert_trees_close(aggregated(make(name), deltas, weight), expected(name, deltas, weight))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_absent_rows_do_not_count_whatever_they_hold(name):
    deltas = rows(9)
    weight = np.array([1.0, 0.0, 2.0, 3.0, 0.0, 1.0, 0.0, 5.0, 0.0])
    for place, junk in ((1, np.nan), (4, np.inf), (6, -np.inf), (8, 0.0)):
        deltas["a"][place] = deltas["b"]["c"][place] = junk
    small.assert_trees_close(aggregated(make(name), deltas, weight), expected(name, deltas, weight))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_of_nobody_it_is_zero(name):
    got = aggregated(make(name), rows(4), np.zeros(4))
    assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregator_of_one_client_is_its_delta(name):
    deltas = rows(1)
    small.assert_trees_close(aggregated(make(name), deltas, [3.0]), jax.tree.map(lambda leaf: leaf[0], deltas))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_order_does_not_matter_and_a_shift_of_all_shifts_it(name):
    deltas, weight = rows(6), np.array([1.0, 2.0, 0.0, 4.0, 1.0, 3.0])
    order = np.array([3, 5, 0, 2, 1, 4])
    whole = aggregated(make(name), deltas, weight)
    permuted = aggregated(make(name), jax.tree.map(lambda leaf: leaf[order], deltas), weight[order])
    small.assert_trees_close(permuted, whole)
    shifted = aggregated(make(name), jax.tree.map(lambda leaf: leaf + 3.0, deltas), weight)
    small.assert_trees_close(shifted, jax.tree.map(lambda leaf: leaf + 3.0, whole), atol=3e-6)


@pytest.mark.parametrize("absurd", [1e30, -1e30])
@pytest.mark.parametrize("name", ROBUST)
def test_one_absurd_client_of_five_stays_within_the_others(name, absurd):
    """The weighted mean goes wherever it likes; these do not, though its weight is the largest."""
    deltas, weight = rows(5), np.array([1.0, 1.0, 1.0, 1.0, 1e6])
    deltas["a"][4] = deltas["b"]["c"][4] = absurd
    got = aggregated(ROBUST[name], deltas, weight)
    for value, leaf in zip(jax.tree.leaves(got), jax.tree.leaves(deltas), strict=True):
        assert np.all(value >= leaf[:4].min(axis=0) - 1e-6)
        assert np.all(value <= leaf[:4].max(axis=0) + 1e-6)
    assert float(trees.norm(aggregated(make("weighted_mean"), deltas, weight))) > 1e20


def test_the_robust_ones_by_hand():
    """Of 9, 1, 4, 2 the median is (2 + 4) / 2, and so is the mean without both ends; with a 7: 4, and 13 / 3."""
    four = {"x": np.array([[9.0], [1.0], [4.0], [2.0]])}
    assert float(aggregated(median(), four, np.ones(4))["x"][0]) == 3.0
    assert float(aggregated(trimmed_mean(0.25), four, np.ones(4))["x"][0]) == 3.0
    five = {"x": np.array([[9.0], [1.0], [4.0], [2.0], [7.0]])}
    assert float(aggregated(median(), five, np.ones(5))["x"][0]) == 4.0
    assert float(aggregated(trimmed_mean(0.25), five, np.ones(5))["x"][0]) == pytest.approx(13 / 3)


def test_nothing_trimmed_is_the_plain_mean():
    deltas = rows(7)
    got = aggregated(trimmed_mean(0.0), deltas, 1.0 + np.arange(7))
    small.assert_trees_close(got, jax.tree.map(lambda leaf: leaf.mean(axis=0), deltas))


@pytest.mark.parametrize(("share", "count", "cut"), [(0.29, 100, 29), (0.3, 10, 3), (0.49, 2, 0), (0.499999, 10, 4)])
def test_how_many_are_trimmed(share, count, cut):
    """floor(share * count), though no float is 0.29; one is always left. Of squares another cut is another mean."""
    squares = np.arange(count, dtype=np.float64) ** 2
    got = aggregated(trimmed_mean(share), {"x": squares[:, None]}, np.ones(count))["x"][0]
    assert float(got) == pytest.approx(squares[cut : count - cut].mean(), rel=1e-6)


def test_another_share_compiles_nothing():
    step = jax.jit(lambda aggregate, *rest: aggregate(*rest), static_argnums=0)
    deltas = jax.tree.map(jnp.float32, rows(5))
    ends = []
    for share in (0.0, 0.2, 0.4):
        aggregator = trimmed_mean(share)
        ends.append(step(aggregator.apply, ClientUpdate(deltas, jnp.ones(5), {}), aggregator.init(deltas))[0])
    assert small.compilations(step) == 1
    assert small.distance(ends[0], ends[1]) > 1e-3 and small.distance(ends[1], ends[2]) > 1e-3


def test_weighted_mean_is_its_formula_and_ignores_absent_rows():
    deltas = jnp.array([[1.0, 2.0], [3.0, 6.0], [jnp.nan, jnp.inf]])
    mean = trees.weighted_mean({"x": deltas}, jnp.array([1.0, 3.0, 0.0]))["x"]
    np.testing.assert_allclose(mean, [2.5, 5.0])
