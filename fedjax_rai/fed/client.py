"""A client's round, and how it is mapped over a cohort: K local steps by scan, clients by vmap, chunks by `lax.map`.

Memory holds one chunk's activations and optimizer states, whatever the size of the cohort; and one chunk's deltas,
where the aggregator is linear.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Float, Int, PyTree
from fedjax_rai.data.examples import Examples
from fedjax_rai.mesh import ROWS, lay
from fedjax_rai.model.decoder import LM
from fedjax_rai.model.lora import Dropout
from fedjax_rai.train.step import Trainer, train

HELD_TOGETHER = 32
"""Clients one after another whose deltas are held until the last one is there, though they could be added up before.

Each is then divided by the weight of all before it is added: numbers of small cohorts are these sums, bit for bit, and
so many adapters are small beside a step. Chunks of several clients gain from the first on, as devices send no delta.
"""

X = TypeVar("X")
Y = TypeVar("Y")


class ClientUpdate(NamedTuple):
    """The wire: the only thing that leaves a client."""

    delta: Adapter  # local adapter minus received adapter; leaves [c, ...] once mapped
    weight: Float[Array, "c"]  # what `federated.weight` makes of it; 0 for a padding, failed or empty client
    metrics: dict[str, Float[Array, "c"]]


class Cohort(NamedTuple):
    """This round's clients and their batches, as rows of a corpus that holds all clients' examples.

    `rows[c, k, b]`, or packed `rows[c, k, R, m]` (`data.packing`), indexes the corpus; `weight[c]` is what the client
    reports (`fed.weights`), 0 for padding.
    """

    client: Int[Array, "c"]
    rows: Int[Array, "c k ..."]
    weight: Float[Array, "c"]


class Task(NamedTuple):
    """What one client trains on in one round."""

    batches: Examples  # [k, b, l], one a local step
    weight: Float[Array, ""]
    learning_rate: Float[Array, ""]
    dropout: Dropout | None = None


def local_update(local: Trainer, lm: LM, adapter: Adapter, task: Task) -> ClientUpdate:
    """One client's round. A client whose training diverged (a NaN or infinity) sends a zero delta of weight 0."""
    trained, loss = train(lm, adapter, task.batches, task.learning_rate, local, task.dropout)
    delta = trees.sub(trained, adapter)
    sound = trees.all_finite(delta)
    present = task.weight > 0
    counts = sound & present
    metrics = {
        "loss_total": jnp.where(counts, loss.total, 0.0),
        "loss_weight": jnp.where(counts, loss.weight, 0.0),
        "diverged": jnp.where(present & ~sound, 1.0, 0.0),
    }
    sent = trees.select(counts, delta, trees.zeros_like(delta))
    return ClientUpdate(sent, jnp.where(counts, task.weight, 0.0), metrics)


def everywhere(tree: PyTree) -> PyTree:
    """The layout of one device: none."""
    return tree


@lru_cache  # one function for one mesh, which compiled programs are found by
def laid_out(mesh: Mesh | AbstractMesh, in_turn: bool) -> Callable[[PyTree], PyTree]:
    """Lays a chunk of clients out: clients over the mesh's `clients` axis, the rows of each local step over `fsdp`.

    `in_turn`: the rows of a step over both, so that one client has all devices.
    """
    clients = () if in_turn else ("clients",)
    rows = ROWS if in_turn else ("fsdp",)

    def lay_node(node: PyTree) -> PyTree:
        by_client = lay(node, mesh, {0: clients})
        if isinstance(node, Cohort):
            return by_client._replace(rows=lay(node.rows, mesh, {0: clients, 2: rows}))
        return by_client

    return lambda tree: jax.tree.map(lay_node, tree, is_leaf=lambda node: isinstance(node, Cohort))


class Stacks(NamedTuple):
    """How adapters of many clients, leaves [c, ...], lie on the mesh where they are kept, and what is made of them."""

    spread: Callable[[PyTree], PyTree] = everywhere  # every device has a part of each adapter
    whole: Callable[[PyTree], PyTree] = everywhere  # every device has all of a tree


@lru_cache
def stacks(mesh: Mesh | AbstractMesh) -> Stacks:
    """Of a mesh; within a program."""
    if mesh.size == 1:
        return Stacks()

    def lie(leaf: Array, spec: P) -> Array:
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return Stacks(
        spread=lambda tree: jax.tree.map(lambda leaf: lie(leaf, spread_spec(leaf.shape, mesh)), tree),
        whole=lambda tree: jax.tree.map(lambda leaf: lie(leaf, P()), tree),
    )


def spread_spec(shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
    """How a leaf [c, ...] of a stack is spread: its longest axis behind c, of those that all devices divide, over them.

    The number of clients need not be divided. Where devices divide no axis, each has the whole leaf.
    """
    divided = [axis for axis in range(1, len(shape)) if shape[axis] and shape[axis] % mesh.size == 0]
    if not divided:
        return P()
    longest = max(divided, key=lambda axis: shape[axis])
    return P(*(None,) * longest, mesh.axis_names)


class Mapper(NamedTuple):
    """How a function of one client is mapped over a cohort: `chunk` of them at once, one chunk after another."""

    clients: int  # in all, of whom a cohort is drawn
    chunk: int = 1
    constrain: Callable[[PyTree], PyTree] = everywhere  # lays a chunk out on the mesh
    stacks: Stacks = Stacks()  # for what is kept of every client
    adds_up: bool = False  # a linear aggregator needs no more than the mean of what long cohorts send

    def pad(self, cohort: Cohort) -> Cohort:
        """Absent clients (weight 0, repeating the first one's rows) until the chunks are full."""
        missing = -len(cohort.weight) % self.chunk

        def fill(column: Array) -> Array:
            return jnp.concatenate([column, jnp.repeat(column[:1], missing, axis=0)])

        padded = jax.tree.map(fill, cohort)
        return padded._replace(weight=padded.weight.at[len(cohort.weight) :].set(0.0))

    def __call__(self, fn: Callable[[X], Y], rows: X) -> Y:
        """`fn` of every client, leaves [c, ...] in and out; they stay laid out if `rows` were padded."""
        return trees.in_chunks(self._each(fn), rows, self.chunk, self.constrain)

    def spread(self, fn: Callable[[X], Y], rows: X) -> Y:
        """The same, out of and into stacks that are spread over the devices: none of them holds one as a whole."""
        spread = self.stacks.spread
        return trees.in_chunks(self._each(fn), spread(rows), self.chunk, self.constrain, spread)

    def updates(self, train: Callable[[X], ClientUpdate], rows: X) -> ClientUpdate:
        """What the clients of padded rows send, leaves [c, ...].

        Where it is added up it is as if a single client, c = 1, sent it: the mean delta with the weight of all, and
        the sums of all metrics, with `clients`, how many there were.
        """
        (count,) = {leaf.shape[0] for leaf in jax.tree.leaves(rows)}
        if self.adds_up and are_added_up(count // self.chunk, self.chunk):
            return self._mean_update(train, rows)
        return self(train, rows)

    def _each(self, fn: Callable[[X], Y]) -> Callable[[X], Y]:
        """`fn` of every client of a chunk.

        A client by itself is not mapped: of arrays with an axis of size 1 in front, XLA's CPU backend makes some sums
        over rows 12 times slower (jax 0.10.2; docs/performance.md).
        """
        if self.chunk > 1:
            return jax.vmap(fn)

        def alone(chunk_rows: X) -> Y:
            return jax.tree.map(lambda leaf: leaf[None], fn(jax.tree.map(lambda leaf: leaf[0], chunk_rows)))

        return alone

    def _mean_update(self, train: Callable[[X], ClientUpdate], rows: X) -> ClientUpdate:
        """The update of all clients, a chunk at a time."""

        def sums(chunk_rows: X) -> ClientUpdate:
            return _sums(self.constrain(self._each(train)(self.constrain(chunk_rows))))

        def add_chunk(total: ClientUpdate, chunk_rows: X) -> tuple[ClientUpdate, None]:
            return trees.add(total, sums(chunk_rows)), None

        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, self.chunk, *leaf.shape[1:]), rows)
        first = jax.tree.map(lambda leaf: leaf[0], chunks)
        nothing = trees.zeros_like(jax.eval_shape(sums, first))
        total, _ = jax.lax.scan(add_chunk, nothing, chunks)
        share = 1.0 / jnp.where(total.weight > 0, total.weight, 1.0)
        mean = total._replace(delta=trees.scale(share, total.delta))
        return jax.tree.map(lambda leaf: leaf[None], mean)


def are_added_up(chunks: int, chunk: int) -> bool:
    """Whether so many chunks of so many clients are long enough for their deltas to be added up on the way."""
    return chunks > 1 and (chunk > 1 or chunks > HELD_TOGETHER)


def _sums(updates: ClientUpdate) -> ClientUpdate:
    """Of a chunk: sum_i w_i delta_i, sum_i w_i, and those of all metrics; `clients` of them are present."""
    weight = updates.weight

    def weighted(leaf: Array) -> Array:
        return jnp.sum(leaf * weight.reshape(-1, *(1,) * (leaf.ndim - 1)), axis=0)

    metrics = {name: jnp.sum(values) for name, values in updates.metrics.items()}
    clients = jnp.sum(weight > 0)
    return ClientUpdate(jax.tree.map(weighted, updates.delta), jnp.sum(weight), metrics | {"clients": clients})
