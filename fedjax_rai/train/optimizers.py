"""Local optimizers as optax transformations of a direction, and learning rates over rounds.

The learning rate is no part of an optimizer: `train.step` multiplies by it, so that it stays a traced number.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import optax

from fedjax_rai.config.names import look_up
from fedjax_rai.config.schema import FederatedConfig
from fedjax_rai.errors import InputError


def adam(weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Adam's direction (arXiv 1412.6980), of the gradient plus `weight_decay` times the parameters."""
    direction = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    if not weight_decay:
        return direction
    return optax.chain(optax.add_decayed_weights(weight_decay), direction)


def adamw(weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Adam's direction plus `weight_decay` times the parameters (arXiv 1711.05101, as PyTorch scales it)."""
    direction = adam()
    if not weight_decay:
        return direction
    return optax.chain(direction, optax.add_decayed_weights(weight_decay))


def sgd(weight_decay: float = 0.0) -> optax.GradientTransformation:
    """The gradient itself, plus `weight_decay` times the parameters."""
    if not weight_decay:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay)


# A constructor from a weight decay; what it returns gets the parameters, too.
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {"adam": adam, "adamw": adamw, "sgd": sgd}


@lru_cache
def make_optimizer(
    constructor: Callable[[float], optax.GradientTransformation], weight_decay: float, clip_norm: float | None
) -> optax.GradientTransformation:
    """That optimizer of gradients clipped to a Euclidean norm (null: not clipped), their decay not counted.

    The same arguments give the same value, so that what is compiled for it is compiled once. Raises TypeError where
    the constructor gives something else.
    """
    optimizer = constructor(weight_decay)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"gives a value of the type {type(optimizer).__name__}")
    if clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


DEFAULT = make_optimizer(adam, 0.0, 1.0)
"""Adam's direction of gradients clipped to norm 1: clients by default, the guard and constitutional AI."""


def constant(t: int, rounds: int, initial: float, final: float) -> float:
    """`initial` in every round; `final` is not read."""
    return initial


def cosine(t: int, rounds: int, initial: float, final: float) -> float:
    """final + (initial - final) (1 + cos(pi t / rounds)) / 2 (arXiv 1608.03983, equation 5): half a period over a run.

    Round 0 has `initial`; `final` would be round `rounds`, the first that there is not.
    """
    return final + 0.5 * (initial - final) * (1.0 + math.cos(math.pi * t / rounds))


# The learning rate of round t, counted from 0: (t, rounds, initial, final) -> rate.
SCHEDULES: dict[str, Callable[[int, int, float, float], float]] = {"constant": constant, "cosine": cosine}


def learning_rate(federated: FederatedConfig, t: int) -> float:
    """The clients' learning rate in round t, counted from 0, by the schedule of that name.

    Raises InputError where a schedule of the user's own gives no finite number above 0 (as float32).
    """
    schedule = look_up(SCHEDULES, federated.schedule, "federated.schedule")
    numbers = (t, federated.rounds, federated.learning_rate, federated.final_learning_rate)
    if federated.schedule in SCHEDULES:
        return schedule(*numbers)
    stated = f"federated.schedule = {federated.schedule}: "
    try:
        rate = float(schedule(*numbers))
    except (TypeError, ValueError) as error:
        form = "a function of (t, rounds, learning_rate, final_learning_rate) that gives a number"
        raise InputError(f"{stated}calling it in round {t} (from 0) failed ({error}); must be {form}") from error
    if not 0 < np.float32(rate) < np.inf:
        raise InputError(f"{stated}gives {rate} in round {t} (from 0); must be a finite number > 0")
    return rate
