"""Local optimizers and schedules against values worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_rai.config.schema import FederatedConfig
from fedjax_rai.train.optimizers import DEFAULT, OPTIMIZERS, SCHEDULES, constant, cosine, learning_rate, make_optimizer
from fedjax_rai.train.step import PLAIN, Trainer, descend, start
from tests import small


def directions(optimizer, gradients, x):
    """What the optimizer makes of one gradient after another, all at the same parameters."""
    state, found = optimizer.init(jnp.asarray(x, jnp.float32)), []
    for gradient in gradients:
        direction, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, jnp.asarray(x, jnp.float32))
        found.append(np.asarray(direction))
    return found


def test_the_default_by_hand():
    """Two steps of Adam (b1 0.9, b2 0.999, eps 1e-8) on gradients clipped to norm 1.

    (3, 4) has norm 5 and becomes (0.6, 0.8): the first direction is g / (|g| + eps) = (1, 1).
    (-0.3, 0.1) has norm below 1 and stays:
        m = 0.1 (0.9 (0.6, 0.8) + (-0.3, 0.1)) = (0.024, 0.082)
        v = 0.001 (0.999 (0.36, 0.64) + (0.09, 0.01)) = (0.00044964, 0.00064936)
    divided by 1 - 0.81 and 1 - 0.998001 these are (0.126316, 0.431579) and (0.224932, 0.324842),
    so the second direction is (0.126316 / 0.474271, 0.431579 / 0.569949) = (0.266337, 0.757224).
    """
    first, second = directions(DEFAULT, [(3.0, 4.0), (-0.3, 0.1)], (10.0, -10.0))
    np.testing.assert_allclose(first, [1.0, 1.0], rtol=3e-5)  # 1 - 0.999 in float32
    np.testing.assert_allclose(second, [0.266337, 0.757224], rtol=3e-5)


def test_epsilon_is_added_to_the_root():
    """A gradient of 1e-8 has the direction 1e-8 / (1e-8 + 1e-8) in the first step."""
    (direction,) = directions(DEFAULT, [(1e-8,)], (0.0,))
    np.testing.assert_allclose(direction, [0.5], rtol=1e-4)


def test_decay_by_hand():
    """Parameters (2, -4), decay 0.1, gradient (0.3, 0.4): sgd and adam add to the gradient, adamw to the direction."""
    x, gradient = (2.0, -4.0), [(0.3, 0.4)]
    expected = {"sgd": [0.5, 0.0], "adam": [1.0, 0.0], "adamw": [1.2, 0.6]}
    assert set(expected) == set(OPTIMIZERS)
    for name, values in expected.items():
        (direction,) = directions(make_optimizer(OPTIMIZERS[name], 0.1, 1.0), gradient, x)
        np.testing.assert_allclose(direction, values, atol=3e-5, err_msg=name)


@pytest.mark.parametrize(("clip", "expected"), [(None, [3.0, 4.0]), (2.0, [1.2, 1.6]), (7.0, [3.0, 4.0])])
def test_clipping_by_hand(clip, expected):
    """A gradient (3, 4) of norm 5; decay is added after it, as in PyTorch."""
    (direction,) = directions(make_optimizer(OPTIMIZERS["sgd"], 0.0, clip), [(3.0, 4.0)], (1.0, 1.0))
    np.testing.assert_allclose(direction, expected, rtol=1e-6)
    (decayed,) = directions(make_optimizer(OPTIMIZERS["sgd"], 0.5, clip), [(3.0, 4.0)], (1.0, 1.0))
    np.testing.assert_allclose(decayed, np.add(expected, 0.5), rtol=1e-6)


def test_without_decay_adamw_is_adam_and_sgd_the_gradient():
    adam, adamw = (make_optimizer(OPTIMIZERS[name], 0.0, None) for name in ("adam", "adamw"))
    gradients = [(0.3, -2.0), (1.0, 0.1)]
    np.testing.assert_array_equal(directions(adam, gradients, (1.0, 2.0)), directions(adamw, gradients, (1.0, 2.0)))
    (plain,) = directions(make_optimizer(OPTIMIZERS["sgd"], 0.0, None), [(5.0, -7.0)], (1.0, 2.0))
    np.testing.assert_array_equal(plain, [5.0, -7.0])


def test_the_same_arguments_give_the_same_value():
    assert make_optimizer(OPTIMIZERS["adam"], 0.0, 1.0) == DEFAULT == PLAIN.optimizer
    assert make_optimizer(OPTIMIZERS["adam"], 0.0, None) != DEFAULT


def test_a_step_by_hand():
    """x - lr (correct(direction)) of a loss x^2 with the penalty 3 x: at 2 the gradient is 4 + 3, corrected by 1."""
    trainer = Trainer(optax.identity(), lambda x: 3.0 * x, lambda direction: direction - 1.0)
    state = start(jnp.float32(2.0), trainer)
    after, more = descend(lambda x: (x * x, "more"), state, jnp.float32(0.1), trainer)
    assert float(after.adapter) == pytest.approx(2.0 - 0.1 * 6.0)
    assert more == "more"
    plain, _ = descend(lambda x: (x * x, ()), start(jnp.float32(2.0), small.SGD), jnp.float32(0.1), small.SGD)
    assert float(plain.adapter) == pytest.approx(2.0 - 0.1 * 4.0)


def test_schedules_by_hand():
    """From 8 to 2 in 4 rounds: cos 0, 45, 90, 135 degrees; 2 would be round 4."""
    assert [cosine(t, 4, 8.0, 2.0) for t in range(5)] == pytest.approx(
        [8.0, 5.0 + 3.0 * math.sqrt(0.5), 5.0, 5.0 - 3.0 * math.sqrt(0.5), 2.0]
    )
    assert [constant(t, 4, 8.0, 2.0) for t in range(4)] == [8.0] * 4
    assert set(SCHEDULES) == {"constant", "cosine"}


def test_a_config_says_the_rate_of_a_round():
    """100 rounds from 5e-5 to 1e-6, the field's benchmark: half way it is the mean of both."""
    given = {"rounds": 100, "learning_rate": 5e-5, "final_learning_rate": 1e-6}
    falling = FederatedConfig.model_validate(given | {"schedule": "cosine"})
    assert learning_rate(falling, 0) == 5e-5
    assert learning_rate(falling, 50) == pytest.approx(2.55e-5)
    assert learning_rate(falling, 99) == pytest.approx(1e-6 + 4.9e-5 * 0.5 * (1 - math.cos(math.pi / 100)))
    assert learning_rate(FederatedConfig.model_validate(given), 99) == 5e-5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    trainer = Trainer(make_optimizer(OPTIMIZERS[name], 0.0, 1.0))
    state, loss = start(jnp.float32(2.0), trainer), lambda x: (x * x, ())
    step = jax.jit(lambda state: descend(loss, state, jnp.float32(0.05), trainer)[0])
    for _ in range(20):
        state = step(state)
    assert abs(float(state.adapter)) < 1.9
