"""One optimizer update of an adapter, and k of them by scan."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Float
from fedjax_rai.data.examples import Examples
from fedjax_rai.model.decoder import LM
from fedjax_rai.train import losses

X = TypeVar("X")


class TrainState(NamedTuple):
    """What training changes. `opt_state` is that of the direction; the learning rate stays outside, a traced number."""

    adapter: Adapter
    opt_state: optax.OptState


def optimizer() -> optax.GradientTransformation:
    """Adam's direction, gradients clipped to norm 1: the local and the server's trainer alike."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())


def start(adapter: Adapter) -> TrainState:
    return TrainState(adapter, optimizer().init(adapter))


def descend(
    loss: Callable[[Adapter], tuple[Float[Array, ""], X]],
    state: TrainState,
    learning_rate: Float[Array, ""],
    correction: Adapter | None = None,
) -> tuple[TrainState, X]:
    """adapter - learning_rate * (direction - correction) for a `loss(adapter) -> (number, more)`; and that `more`."""
    gradient, more = jax.grad(loss, has_aux=True)(state.adapter)
    direction, opt_state = optimizer().update(gradient, state.opt_state)
    if correction is not None:
        direction = trees.sub(direction, correction)
    adapter = jax.tree.map(lambda x, d: x - learning_rate * d, state.adapter, direction)
    return TrainState(adapter, opt_state), more


def update(
    lm: LM,
    state: TrainState,
    batch: Examples,
    learning_rate: Float[Array, ""],
    correction: Adapter | None = None,
) -> tuple[TrainState, losses.Sum]:
    """A step of supervised fine-tuning, whose gradient is that of the mean over trained tokens."""

    def loss(adapter: Adapter) -> tuple[Float[Array, ""], losses.Sum]:
        terms = losses.sft(lm, adapter, batch)
        return terms.mean(), terms

    return descend(loss, state, learning_rate, correction)


def train(
    lm: LM,
    adapter: Adapter,
    batches: Examples,
    learning_rate: Float[Array, ""],
    correction: Adapter | None = None,
) -> tuple[Adapter, losses.Sum]:
    """`k` updates from a fresh optimizer on batches `[k, b, l]`: the trained adapter and the loss of all its tokens."""

    def body(state: TrainState, batch: Examples) -> tuple[TrainState, losses.Sum]:
        return update(lm, state, batch, learning_rate, correction)

    state, terms = jax.lax.scan(body, start(adapter), batches)
    return state.adapter, losses.Sum(jnp.sum(terms.total), jnp.sum(terms.weight))
