"""One optimizer update of an adapter, and k of them by scan."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Float, PyTree
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
    micro_batch: int | None = None  # rows of a batch that are computed at once, on all devices together; None: all


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
    return _step(gradient, state, learning_rate, trainer), more


def descend_by_parts(
    loss: Callable[[Adapter, Any], tuple[Float[Array, ""], X]],
    parts: PyTree,
    state: TrainState,
    learning_rate: Float[Array, ""],
    trainer: Trainer = PLAIN,
) -> tuple[TrainState, X]:
    """`descend` for the sum of `loss(adapter, part)` over parts, leaves [n, ...]; and the sum of their `more`.

    One part is computed after another, and no more than one's activations are held. Sums are in the adapter's type,
    which is float32.
    """
    gradient_of_part = jax.grad(loss, has_aux=True)

    def add_part(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
        return trees.add(total, gradient_of_part(state.adapter, part)), None

    first = jax.tree.map(lambda leaf: leaf[0], parts)
    nothing = trees.zeros_like(jax.eval_shape(gradient_of_part, state.adapter, first))
    (gradient, more), _ = jax.lax.scan(add_part, nothing, parts)
    if trainer.penalty is not None:
        gradient = trees.add(gradient, jax.grad(trainer.penalty)(state.adapter))
    return _step(gradient, state, learning_rate, trainer), more


def _step(gradient: Adapter, state: TrainState, learning_rate: Float[Array, ""], trainer: Trainer) -> TrainState:
    """adapter - learning_rate * direction of a gradient."""
    direction, opt_state = trainer.optimizer.update(gradient, state.opt_state, state.adapter)
    if trainer.correct is not None:
        direction = trainer.correct(direction)
    adapter = jax.tree.map(lambda x, d: x - learning_rate * d, state.adapter, direction)
    return TrainState(adapter, opt_state)


def rows_at_once(rows: int, micro_batch: int | None, devices: int = 1) -> int:
    """How many of a batch's rows are computed at once: a divisor of `rows`, `micro_batch` at most; None: all of them.

    One that `devices` divide, if there is any, though it be larger than `micro_batch`: a row on each.
    """
    if micro_batch is None or micro_batch >= rows:
        return rows
    sizes = [size for size in range(1, max(micro_batch, devices) + 1) if rows % size == 0]
    even = [size for size in sizes if size % devices == 0]
    return max(even or [size for size in sizes if size <= micro_batch])


def micro_batches(batch: PyTree, size: int) -> PyTree:
    """Leaves [b, ...] as [b / size, size, ...]. Every part has rows of each device that the batch is split over."""

    def cut(leaf: Array) -> Array:
        return jnp.moveaxis(leaf.reshape(size, -1, *leaf.shape[1:]), 1, 0)

    return jax.tree.map(cut, batch)


def update(
    lm: LM,
    state: TrainState,
    batch: Examples,
    learning_rate: Float[Array, ""],
    trainer: Trainer = PLAIN,
    dropout: Dropout | None = None,
) -> tuple[TrainState, losses.Sum]:
    """A step of supervised fine-tuning, whose gradient is that of the mean over trained tokens."""
    rows = batch.tokens.shape[0]
    size = rows_at_once(rows, trainer.micro_batch, trainer.devices)
    if size < rows:
        return _update_by_parts(lm, state, batch, size, learning_rate, trainer, dropout)

    def loss(adapter: Adapter) -> tuple[Float[Array, ""], losses.Sum]:
        terms = losses.sft(lm, adapter, batch, dropout, trainer.devices)
        return terms.mean(), terms

    return descend(loss, state, learning_rate, trainer)


def _update_by_parts(
    lm: LM,
    state: TrainState,
    batch: Examples,
    size: int,
    learning_rate: Float[Array, ""],
    trainer: Trainer,
    dropout: Dropout | None,
) -> tuple[TrainState, losses.Sum]:
    """`update`, of which `size` rows are computed at once. The seven arguments are `update`'s, and that size."""
    weight = losses.trained_tokens(batch).sum()
    parts = micro_batches(batch, size)
    drops = None if dropout is None else dropout.each("micro_batch", parts.tokens.shape[0])

    def loss(adapter: Adapter, part: tuple[Examples, Dropout | None]) -> tuple[Float[Array, ""], losses.Sum]:
        examples, drop = part
        terms = losses.sft(lm, adapter, examples, drop, trainer.devices)
        return losses.Sum(terms.total, weight).mean(), terms

    return descend_by_parts(loss, (parts, drops), state, learning_rate, trainer)


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
