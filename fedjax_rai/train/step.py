"""One optimizer update of an adapter, and k of them by scan."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from fedjax_rai.aliases import Adapter, Array, Float
from fedjax_rai.data.examples import Examples
from fedjax_rai.model.decoder import LM
from fedjax_rai.model.lora import Dropout
from fedjax_rai.train import losses
from fedjax_rai.train.optimizers import DEFAULT

X = TypeVar("X")


class Trainer(NamedTuple):
    """How an adapter descends: the optimizer, and what an algorithm adds to the loss and to the direction."""

    optimizer: optax.GradientTransformation = DEFAULT  # of the direction, without the learning rate
    penalty: Callable[[Adapter], Float[Array, ""]] | None = None  # added to the loss of every step
    correct: Callable[[Adapter], Adapter] | None = None  # of the optimizer's direction
    devices: int = 1  # that the rows of a batch lie over


PLAIN = Trainer()


class TrainState(NamedTuple):
    """What training changes. `opt_state` is that of the direction; the learning rate stays outside, a traced number."""

    adapter: Adapter
    opt_state: optax.OptState


def start(adapter: Adapter, trainer: Trainer = PLAIN) -> TrainState:
    """The state before the first step, of a fresh optimizer."""
    return TrainState(adapter, trainer.optimizer.init(adapter))


def descend(
    loss: Callable[[Adapter], tuple[Float[Array, ""], X]],
    state: TrainState,
    learning_rate: Float[Array, ""],
    trainer: Trainer = PLAIN,
) -> tuple[TrainState, X]:
    """adapter - learning_rate * direction for a `loss(adapter) -> (number, more)`; and that `more`."""

    def objective(adapter: Adapter) -> tuple[Float[Array, ""], X]:
        value, more = loss(adapter)
        if trainer.penalty is not None:
            value = value + trainer.penalty(adapter)
        return value, more

    gradient, more = jax.grad(objective, has_aux=True)(state.adapter)
    direction, opt_state = trainer.optimizer.update(gradient, state.opt_state, state.adapter)
    if trainer.correct is not None:
        direction = trainer.correct(direction)
    adapter = jax.tree.map(lambda x, d: x - learning_rate * d, state.adapter, direction)
    return TrainState(adapter, opt_state), more


def update(
    lm: LM,
    state: TrainState,
    batch: Examples,
    learning_rate: Float[Array, ""],
    trainer: Trainer = PLAIN,
    dropout: Dropout | None = None,
) -> tuple[TrainState, losses.Sum]:
    """A step of supervised fine-tuning, whose gradient is that of the mean over trained tokens."""

    def loss(adapter: Adapter) -> tuple[Float[Array, ""], losses.Sum]:
        terms = losses.sft(lm, adapter, batch, dropout, trainer.devices)
        return terms.mean(), terms

    return descend(loss, state, learning_rate, trainer)


def train(
    lm: LM,
    adapter: Adapter,
    batches: Examples,
    learning_rate: Float[Array, ""],
    trainer: Trainer = PLAIN,
    dropout: Dropout | None = None,
) -> tuple[Adapter, losses.Sum]:
    """`k` updates from a fresh optimizer on batches `[k, b, l]`: the trained adapter and the loss of all its tokens."""

    def body(state: TrainState, step: tuple[Examples, Dropout | None]) -> tuple[TrainState, losses.Sum]:
        batch, drops = step
        return update(lm, state, batch, learning_rate, trainer, drops)

    every_step = None if dropout is None else dropout.each("step", batches.tokens.shape[0])
    state, terms = jax.lax.scan(body, start(adapter, trainer), (batches, every_step))
    return state.adapter, losses.Sum(jnp.sum(terms.total), jnp.sum(terms.weight))
