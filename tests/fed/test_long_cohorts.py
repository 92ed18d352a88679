"""Long cohorts under a linear aggregator: deltas are added up on the way, and memory does not grow with the cohort."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.experiment.together import federated_round
from fedjax_rai.fed.aggregate import Aggregator, median, weighted_mean
from fedjax_rai.fed.algorithm import make_algorithm
from fedjax_rai.fed.base import RoundBatch, summary
from fedjax_rai.fed.client import HELD_TOGETHER, ClientUpdate, Cohort, Mapper, are_added_up, spread_spec
from fedjax_rai.fed.fedavg import fedavg
from fedjax_rai.memory.footprint import loaded
from fedjax_rai.mesh import AXES
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import Lora, abstract_adapter
from fedjax_rai.tools.tiny_base import CONFIG as TINY
from tests import small
from tests.memory.test_footprint import corpus, ints


@pytest.mark.parametrize(
    ("chunks", "chunk", "added_up"),
    [
        (1, 5, False),  # all at once
        (5, 1, False),  # every shipped config's cohort on a CPU: its numbers are sums of shares
        (HELD_TOGETHER, 1, False),
        (HELD_TOGETHER + 1, 1, True),
        (2, 5, True),
    ],
)
def test_which_cohorts_are_added_up(chunks, chunk, added_up):
    assert are_added_up(chunks, chunk) == added_up


def sent(row: tuple[jax.Array, jax.Array]) -> ClientUpdate:
    """A client that has nothing to train: it sends what it was given."""
    value, weight = row
    delta = {"x": jnp.where(weight > 0, value, 0.0)}
    return ClientUpdate(delta, weight, {"loss_total": value, "loss_weight": weight, "diverged": 0.0 * value})


def test_the_update_of_all_by_hand():
    """Of 1, 2, 9, 4 with weights 1, 3, 0, 4: the mean (1 + 6 + 16) / 8 of weight 8, by three clients."""
    rows = jnp.array([1.0, 2.0, 9.0, 4.0]), jnp.array([1.0, 3.0, 0.0, 4.0])
    update = Mapper(4, chunk=2, adds_up=True).updates(sent, rows)
    assert update.delta["x"].shape == (1,) and float(update.delta["x"][0]) == 23 / 8 and float(update.weight[0]) == 8
    direction, _ = weighted_mean().apply(update, ())
    assert float(direction["x"]) == 23 / 8
    told = summary(update, direction)
    assert (int(told["clients"]), float(told["trained_tokens"]), float(told["train_loss"])) == (3, 8.0, 2.0)


def test_of_nobody_the_update_is_zero():
    update = Mapper(4, chunk=2, adds_up=True).updates(sent, (jnp.arange(4.0), jnp.zeros(4)))
    assert float(update.delta["x"][0]) == 0.0 == float(update.weight[0])
    assert int(summary(update, {"x": jnp.zeros(())})["clients"]) == 0


def test_who_is_not_linear_gets_every_delta():
    rows = jnp.array([1.0, 2.0, 9.0, 4.0]), jnp.ones(4)
    assert not median().linear and not Aggregator(lambda adapter: (), lambda updates, state: state).linear
    update = Mapper(4, chunk=2).updates(sent, rows)
    np.testing.assert_array_equal(update.delta["x"], rows[0])
    direction, _ = median().apply(update, ())
    assert float(direction["x"]) == 3.0


@pytest.mark.slow
def test_one_client_after_another_is_added_up_to_the_mean_of_all(monkeypatch):
    """Two rounds of a cohort with an absent client, whatever is held together."""
    ends = []
    for most in (HELD_TOGETHER, 2):
        monkeypatch.setattr("fedjax_rai.fed.client.HELD_TOGETHER", most)
        algorithm = fedavg(small.SGD, weighted_mean(), Mapper(6))
        state, metrics = algorithm.init(small.adapter()), None
        step: Any = jax.jit(lambda *given, algorithm=algorithm: algorithm.round(*given))
        for seed in (0, 1):
            cohort = small.cohort([0, 2, 3, 5], seed=seed, weight=[1.0, 0.0, 5.0, 2.0])
            state, metrics = step(state, small.LM, RoundBatch(small.corpus(), cohort, jnp.float32(0.03)))
        ends.append((state.adapter, metrics))
    (held, told), (added_up, same) = ends
    small.assert_trees_close(added_up, held)
    assert small.distance(held, small.adapter()) > 1e-4
    for name in told:
        np.testing.assert_allclose(same[name], told[name], rtol=1e-5)


def held_by_a_round(cohort: int, aggregator: str = "weighted_mean") -> int:
    """Bytes that a round of the tiny world's model holds, five of so many clients at once, inputs left out."""
    given = {"clients": cohort, "cohort": cohort, "clients_per_chunk": 5, "aggregator": aggregator}
    config = ExperimentConfig.model_validate({"federated": given | {"batch_size": 4}})
    model = Decoder(TINY, Lora(TINY.targets, 8, 16.0))
    algorithm = make_algorithm(config.federated, dict(config), small.mesh(1))
    state = jax.eval_shape(algorithm.init, abstract_adapter(model.config, model.lora))
    rate: Any = jax.ShapeDtypeStruct((), jnp.float32)
    batch = RoundBatch(corpus(64, 64), Cohort(ints(cohort), ints(cohort, 2, 4), numbers(cohort)), rate)
    analysis = federated_round.lower(algorithm, state, LM(model, loaded(TINY)), batch).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def numbers(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_cohort():
    """Five clients at once, of 5 and of 200: the same within a twentieth. A median holds every delta."""
    few, many = held_by_a_round(5), held_by_a_round(200)
    assert many < 1.05 * few
    assert held_by_a_round(200, "median") > 1.5 * many


@pytest.mark.parametrize(
    ("shape", "devices", "spec"),
    [
        ((20, 32, 4096, 16), 8, P(None, None, AXES)),  # the longest axis behind the clients
        ((20, 32, 16, 14336), 8, P(None, None, None, AXES)),
        ((20, 4, 9, 5), 8, P()),  # eight devices divide none of these
        ((16,), 8, P()),
        ((20, 4, 9, 5), 4, P(None, AXES)),
    ],
)
def test_a_stack_of_adapters_is_spread_along_its_longest_axis(shape, devices, spec):
    """The number of clients, 20, need not be divided by the devices."""
    assert spread_spec(shape, AbstractMesh((devices, 1, 1), AXES)) == spec
