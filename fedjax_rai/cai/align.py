"""N iterations of training on the revisions, on the global adapter; N is traced, so changing it compiles nothing."""

import jax
import jax.numpy as jnp

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Base, Float, Int, Key
from fedjax_rai.data.examples import Examples, take
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.train.losses import Sum
from fedjax_rai.train.step import start, update


def pool(*parts: Examples) -> Examples:
    """Sets of different lengths as one, right-padded."""
    length = max(part.tokens.shape[1] for part in parts)

    def wide(column: Array) -> Array:
        return jnp.pad(column, ((0, 0), (0, length - column.shape[1])))

    return Examples(*(jnp.concatenate([wide(c) for c in columns]) for columns in zip(*parts, strict=True)))


def align(
    model: Decoder,
    base: Base,
    adapter: Adapter,
    examples: Examples,
    iterations: Int[Array, ""],
    learning_rate: Float[Array, ""],
    key: Key[Array, ""],
    batch_size: int,
) -> tuple[Adapter, Float[Array, ""]]:
    """(adapter after that many SFT iterations, mean loss of the last one). 0 iterations return the adapter untouched.

    The batch of iteration i depends on `key` and i alone, and the learning rate is constant, so that a longer run
    passes through every shorter one.
    """
    count = examples.tokens.shape[0]

    def iteration(i: Array, carry):
        state, _ = carry
        rows = jax.random.randint(rng.stream(key, "align", iteration=i), (batch_size,), 0, count)
        return update(model, base, state, take(examples, rows), learning_rate)

    carry = start(adapter), Sum(jnp.zeros(()), jnp.zeros(()))
    state, terms = jax.lax.fori_loop(0, iterations, iteration, carry)
    return state.adapter, terms.mean()
