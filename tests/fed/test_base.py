"""What a round reports of its clients, worked out by hand."""

import jax.numpy as jnp

from fedjax_rai.fed.base import summary
from fedjax_rai.fed.client import ClientUpdate


def test_a_round_reports_the_loss_of_a_token_who_counted_and_how_far_it_went():
    """Losses of 6 over 3 tokens and 10 over 1: 16 over 4, not the mean of 2 and 10; the second client diverged."""
    metrics = {
        "loss_total": jnp.array([6.0, 0.0, 10.0]),
        "loss_weight": jnp.array([3.0, 0.0, 1.0]),
        "diverged": jnp.array([0.0, 1.0, 0.0]),
    }
    updates = ClientUpdate({"x": jnp.ones((3, 1)), "y": jnp.ones((3, 1))}, jnp.array([5.0, 0.0, 7.0]), metrics)
    found = summary(updates, {"x": jnp.array([3.0]), "y": jnp.array([4.0])})
    assert {name: float(number) for name, number in found.items()} == {
        "train_loss": 4.0, "trained_tokens": 4.0, "clients": 2.0, "diverged": 1.0, "delta_norm": 5.0,
    }  # fmt: skip
    metrics = {name: 0 * numbers for name, numbers in metrics.items()}
    nobody = summary(ClientUpdate(updates.delta, jnp.zeros(3), metrics), {"x": jnp.zeros(1)})
    assert jnp.isnan(nobody["train_loss"]) and float(nobody["trained_tokens"]) == float(nobody["clients"]) == 0
