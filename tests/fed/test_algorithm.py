"""Laws of federated algorithms; those named by `ALGORITHMS` are all put through every one that concerns them."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_rai import trees
from fedjax_rai.data.examples import take
from fedjax_rai.fed.aggregate import AGGREGATORS, weighted_mean
from fedjax_rai.fed.algorithm import ALGORITHMS, RoundBatch, fedavg, scaffold
from fedjax_rai.fed.client import ClientUpdate, local_update
from fedjax_rai.model.decoder import Decoder, init_base
from fedjax_rai.train.step import train
from tests import small

CLIENTS, RATE = 6, jnp.float32(3e-2)


@pytest.fixture(autouse=True, scope="module")
def plain_sgd():
    """Adam divides by the gradient's size and so blows rounding up; under SGD the laws hold to rounding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedjax_rai.train.step.optimizer", lambda: optax.identity())
        yield


@cache
def compiled(name, chunk):
    algorithm = ALGORITHMS[name](small.MODEL, weighted_mean(), CLIENTS, chunk)
    return algorithm, jax.jit(algorithm.round)


def play(name, cohorts, chunk=1):
    """The state after a round with each cohort."""
    algorithm, step = compiled(name, chunk)
    state = algorithm.init(small.adapter())
    metrics: Any = None
    for cohort in cohorts:
        state, metrics = step(state, small.BASE, RoundBatch(small.corpus(), cohort, RATE))
    return state, metrics


every_algorithm = pytest.mark.parametrize(
    "name", ["fedavg", *(small.slow(name) for name in ALGORITHMS if name != "fedavg")]
)


@every_algorithm
def test_one_client_is_centralised_training(name):
    state, _ = play(name, [small.cohort([3])])
    batches = take(small.corpus(), small.cohort([3]).rows[0])
    alone, _ = jax.jit(train)(small.LM, small.adapter(), batches, RATE)
    small.assert_trees_close(state.adapter, alone)
    assert small.distance(state.adapter, small.adapter()) > 1e-4


@every_algorithm
@pytest.mark.parametrize("chunk", [small.slow(2), 4, small.slow(5)])
def test_chunked_and_vmapped_equal_looped(name, chunk):
    """Chunks of 1 are a loop; 5 is the whole cohort under one vmap; 2 and 4 do not divide it, so clients are padded."""
    cohorts = [small.cohort([0, 2, 3, 4, 5]), small.cohort([5, 1, 0, 2, 4], seed=1)]
    looped, metrics = play(name, cohorts)
    chunked, same = play(name, cohorts, chunk)
    small.assert_trees_close(looped, chunked)
    assert float(metrics["train_loss"]) == pytest.approx(float(same["train_loss"]), rel=1e-5)
    assert int(same["clients"]) == 5


@every_algorithm
def test_permuting_clients_changes_nothing(name):
    small.assert_trees_close(play(name, [small.cohort([0, 2, 4])])[0], play(name, [small.cohort([4, 0, 2])])[0])


@every_algorithm
def test_weight_zero_is_absent(name):
    with_ghost = play(name, [small.cohort([0, 2, 4], weight=[1.0, 0.0, 5.0])])[0]
    small.assert_trees_close(with_ghost, play(name, [small.cohort([0, 4])])[0])


@every_algorithm
def test_all_weights_zero_changes_nothing(name):
    state, metrics = play(name, [small.cohort([0, 2], weight=[0.0, 0.0])])
    assert small.distance(state.adapter, small.adapter()) == 0
    assert int(metrics["clients"]) == 0 and np.isfinite(float(metrics["train_loss"]))


@every_algorithm
def test_identical_clients_are_that_client(name):
    one = small.cohort([3])
    rows = jnp.repeat(one.rows, 3, axis=0)
    three = one._replace(client=jnp.array([3, 4, 5]), rows=rows, weight=jnp.array([1.0, 2.0, 7.0]))
    small.assert_trees_close(play(name, [three])[0].adapter, play(name, [one])[0].adapter)


def test_scaffold_with_zero_control_variates_is_fedavg():
    """The first round; the second one differs, or the control variates would do nothing."""
    first, second = small.cohort([0, 2, 4]), small.cohort([0, 1, 5], seed=1)
    small.assert_trees_close(play("scaffold", [first])[0].adapter, play("fedavg", [first])[0].adapter)
    both = [play(name, [first, second])[0].adapter for name in ("scaffold", "fedavg")]
    assert small.distance(*both) > 1e-4


def test_scaffold_follows_its_formulas():
    """Two rounds against a plain NumPy-style loop over clients."""
    rounds = [small.cohort([0, 2, 4]), small.cohort([2, 4, 5], seed=1)]
    state, _ = play("scaffold", rounds)
    trainer = jax.jit(train)
    x, server = small.adapter(), trees.zeros_like(small.adapter())
    own = {i: trees.zeros_like(x) for i in range(CLIENTS)}
    for cohort in rounds:
        deltas, changes = [], []
        for i, rows in zip(cohort.client.tolist(), cohort.rows, strict=True):
            y, _ = trainer(small.LM, x, take(small.corpus(), rows), RATE, trees.sub(own[i], server))
            deltas.append(trees.sub(y, x))
            new = trees.sub(trees.sub(own[i], server), trees.scale(1 / (3 * RATE), deltas[-1]))
            changes.append((i, new, trees.sub(new, own[i])))
        weights = np.asarray(cohort.weight) / float(cohort.weight.sum())
        for weight, delta in zip(weights, deltas, strict=True):
            x = trees.add(x, trees.scale(float(weight), delta))
        for i, new, change in changes:
            own[i] = new
            server = trees.add(server, trees.scale(1 / CLIENTS, change))
    small.assert_trees_close(state.adapter, x)
    small.assert_trees_close(state.controls.server, server)
    small.assert_trees_close(jax.tree.map(lambda c: c[4], state.controls.clients), own[4])


@every_algorithm
def test_a_diverging_client_is_left_out(name):
    """One client's data lead to NaN (through a token whose embedding is NaN): the others' round is unharmed."""
    model = Decoder(replace(small.CONFIG, tie_word_embeddings=False), small.MODEL.lora)
    base, bad = init_base(model.config, jax.random.key(0)), small.VOCAB - 1
    base["embed_tokens"] = base["embed_tokens"].at[bad].set(jnp.nan)
    clean = jnp.where(small.corpus().tokens == bad, 1, small.corpus().tokens)
    corpus = small.corpus()._replace(tokens=clean.at[7, 1].set(bad))
    cohort = small.cohort([0, 1, 2])
    cohort = cohort._replace(rows=jnp.where(cohort.rows == 7, 8, cohort.rows).at[1, 1, 0].set(7))
    algorithm = ALGORITHMS[name](model, weighted_mean(), CLIENTS, 1)
    start, step = algorithm.init(small.adapter()), jax.jit(algorithm.round)
    state, metrics = step(start, base, RoundBatch(corpus, cohort, RATE))
    assert int(metrics["diverged"]) == 1 and int(metrics["clients"]) == 2
    absent = cohort._replace(weight=cohort.weight.at[1].set(0.0))
    small.assert_trees_close(state, step(start, base, RoundBatch(corpus, absent, RATE))[0])
    assert bool(trees.all_finite(state.adapter)) and small.distance(state.adapter, small.adapter()) > 1e-5


@every_algorithm
def test_learning_rate_and_cohort_compile_once(name):
    algorithm = ALGORITHMS[name](small.MODEL, weighted_mean(), CLIENTS, 2)
    step = jax.jit(algorithm.round)
    state = algorithm.init(small.adapter())
    for i, rate in enumerate((1e-2, 1e-3, 0.5)):
        state, _ = step(state, small.BASE, RoundBatch(small.corpus(), small.cohort([i, 3], seed=i), jnp.float32(rate)))
    assert small.compilations(step) == 1


def test_the_wire_carries_only_what_is_listed():
    batches = take(small.corpus(), small.cohort([1]).rows[0])
    update = local_update(small.LM, small.adapter(), batches, jnp.float32(3), RATE)
    assert ClientUpdate._fields == ("delta", "weight", "metrics")
    assert jax.tree.structure(update.delta) == jax.tree.structure(small.adapter())
    assert set(update.metrics) == {"loss_total", "loss_weight", "diverged"}
    assert all(value.shape == () for value in update.metrics.values())


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregator_of_one_client_is_its_delta(name):
    aggregator = AGGREGATORS[name]()
    delta = small.adapter()
    update = ClientUpdate(jax.tree.map(lambda x: x[None], delta), jnp.array([3.0]), {})
    small.assert_trees_close(aggregator.apply(update, aggregator.init(delta))[0], delta)


def test_weighted_mean_is_its_formula_and_ignores_absent_rows():
    rows = jnp.array([[1.0, 2.0], [3.0, 6.0], [jnp.nan, jnp.inf]])
    mean = trees.weighted_mean({"x": rows}, jnp.array([1.0, 3.0, 0.0]))["x"]
    np.testing.assert_allclose(mean, [2.5, 5.0])


def test_constructors_agree_on_their_arguments():
    for constructor in (fedavg, scaffold):
        assert constructor(small.MODEL, weighted_mean(), CLIENTS).init(small.adapter()).adapter is not None
