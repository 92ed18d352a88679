"""Local training mapped over a cohort: K local steps by scan, clients by vmap, chunks of clients by `lax.map`.

Memory holds one chunk's activations and optimizer states, whatever the size of the cohort.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Float, Int, PyTree
from fedjax_rai.data.examples import Examples
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.step import train

X = TypeVar("X")
Y = TypeVar("Y")


class ClientUpdate(NamedTuple):
    """The wire: the only thing that leaves a client."""

    delta: Adapter  # local adapter minus received adapter; leaves [c, ...] once mapped
    weight: Float[Array, "c"]  # number of kept examples; 0 for a padding, failed or empty client
    metrics: dict[str, Float[Array, "c"]]


class Cohort(NamedTuple):
    """This round's clients and their batches, as rows of a corpus that holds all clients' examples.

    `rows[c, k, b]`, or packed `rows[c, k, R, m]` (`data.packing`), indexes the corpus; `weight[c]` is the number of
    kept examples, 0 for padding.
    """

    client: Int[Array, "c"]
    rows: Int[Array, "c k ..."]
    weight: Float[Array, "c"]


def local_update(
    lm: LM,
    adapter: Adapter,
    batches: Examples,
    weight: Float[Array, ""],
    learning_rate: Float[Array, ""],
    correction: Adapter | None = None,
) -> ClientUpdate:
    """One client's round. A client whose training diverged (a NaN or infinity) sends a zero delta of weight 0."""
    trained, loss = train(lm, adapter, batches, learning_rate, correction)
    delta = trees.sub(trained, adapter)
    sound = trees.all_finite(delta)
    counts = sound & (weight > 0)
    metrics = {
        "loss_total": jnp.where(counts, loss.total, 0.0),
        "loss_weight": jnp.where(counts, loss.weight, 0.0),
        "diverged": jnp.where((weight > 0) & ~sound, 1.0, 0.0),
    }
    return ClientUpdate(trees.select(counts, delta, trees.zeros_like(delta)), jnp.where(counts, weight, 0.0), metrics)


def map_cohort(fn: Callable[[X], Y], cohort: X, chunk: int, constrain: Callable[[PyTree], PyTree] = lambda x: x) -> Y:
    """`fn` of every client, leaves [c, ...] in and out: vmapped in chunks that run one after another.

    `constrain` lays a chunk's leading axis out on the mesh; results stay laid out so if `chunk` divides the cohort
    (`pad_cohort`).
    """
    return trees.in_chunks(jax.vmap(fn), cohort, chunk, constrain)


def pad_cohort(cohort: Cohort, multiple: int) -> Cohort:
    """Absent clients (weight 0, repeating the first one's rows) until the size is a multiple."""
    missing = -len(cohort.weight) % multiple
    fill = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[:1], missing, axis=0)]), cohort)
    return fill._replace(weight=fill.weight.at[len(cohort.weight) :].set(0.0))
