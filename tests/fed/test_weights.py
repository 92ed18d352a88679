"""What a client reports to be weighted by: by hand, and what the server can tell from it."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai import trees
from fedjax_rai.config.schema import FederatedConfig, NoisedConfig
from fedjax_rai.errors import InputError
from fedjax_rai.fed.algorithm import make_weigher
from fedjax_rai.fed.weights import NOISES, WEIGHTS, Counts, examples, noised, steps, uniform


def report(weigher, kept: int, seed: int = 0) -> float:
    return weigher(Counts(kept, 25), np.random.default_rng(seed))


@pytest.mark.parametrize(("weigher", "expected"), [(examples, [3, 70]), (uniform, [1, 1]), (steps, [25, 25])])
def test_weights_by_hand(weigher, expected):
    """Clients who kept 3 and 70 pairs, and took 25 local steps each."""
    assert [report(weigher(), kept) for kept in (3, 70)] == expected


def test_the_mean_of_equal_weights_is_the_mean():
    """Of 1, 2 and 6: 3; by 10, 10 and 40 examples 4.5."""
    deltas = {"x": jnp.array([1.0, 2.0, 6.0])}
    means = []
    for weigher in (uniform(), steps(), examples()):
        weight = jnp.array([report(weigher, kept) for kept in (10, 10, 40)])
        means.append(float(trees.weighted_mean(deltas, weight)["x"]))
    assert means == pytest.approx([3.0, 3.0, 4.5])


@pytest.mark.parametrize(("distribution", "deviation"), [("laplace", 2**0.5), ("gaussian", 1.0)])
def test_noise_has_its_scale_and_no_direction(distribution, deviation):
    """Laplace's standard deviation is the root of 2 times its scale. Of 4,000 draws the mean is within 4 errors."""
    weigher = noised(distribution, 20.0)
    found = np.array([report(weigher, 1000, seed) for seed in range(4000)]) - 1000
    spread = 20.0 * deviation
    assert abs(found.mean()) < 4 * spread / 4000**0.5
    assert found.std() == pytest.approx(spread, rel=0.08)
    assert report(weigher, 1000, 7) == report(weigher, 1000, 7), "the same generator draws the same noise"


def test_a_noised_weight_is_never_that_of_an_absent_client():
    found = [report(noised("laplace", 50.0), 1, seed) for seed in range(200)]
    assert min(found) == 1.0 and max(found) > 50


def test_the_noise_knows_nothing_of_the_number_of_pairs():
    """So that a pair more shifts a report by at most 1, whose Laplace density changes by at most exp(1 / scale).

    Only from one pair on: of none there is no report, and a weight of exactly 0, which no report is.
    """
    weigher = noised("laplace", 2.0)
    for seed in range(200):
        noise = float(np.random.default_rng(seed).laplace(0.0, 2.0))
        for kept in (1, 2, 5):
            assert report(weigher, kept, seed) == max(kept + noise, 1.0)
        assert 0 <= report(weigher, 2, seed) - report(weigher, 1, seed) <= 1 + 1e-9
        assert report(weigher, 1, seed) > 0


def test_the_schema_names_the_noises_of_the_table():
    from typing import get_args

    assert get_args(NoisedConfig.model_fields["distribution"].annotation) == tuple(NOISES)


def half(counts: Counts, g: np.random.Generator) -> float:
    return counts.examples / 2


def nothing(counts: Counts, g: np.random.Generator) -> float:
    return 0.0


def test_a_function_of_the_users_own_weighs_and_nothing_is_no_weight():
    def of(name: str):
        return make_weigher(FederatedConfig.model_validate({"weight": name}), {"noised": NoisedConfig(scale=1e-6)})

    assert report(of(f"{__name__}:half"), 7) == 3.5
    assert report(of("noised"), 7) == pytest.approx(7, abs=1e-3)
    with pytest.raises(InputError, match="federated.weight = .*:nothing: gave 0.0 of Counts"):
        report(of(f"{__name__}:nothing"), 7)
    assert {name for name in WEIGHTS if WEIGHTS[name].section} == {"noised"}
