"""N iterations of training on revisions, on the global adapter; N is traced, so changing it compiles nothing.

An iteration draws rows of a pool: revisions, and replayed benign answers to hold utility. Its loss is the sum of the
likelihood of the answers drawn and the preference of revisions over first responses, each a mean of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai import rng, trees
from fedjax_rai.aliases import Adapter, Array, Bool, Float, Int, Key
from fedjax_rai.data.examples import Examples, take
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.losses import PREFERENCES, LogRatios, Sum, answer_logps
from fedjax_rai.train.step import PLAIN, Trainer, TrainState, descend, start


class Objective(NamedTuple):
    """What is trained for: the likelihood of revisions, or their preference (a key of `PREFERENCES`), or both."""

    likelihood: bool
    preference: str | None


METHODS: dict[str, Callable[[str], Objective]] = {
    "sft": lambda preference: Objective(True, None),
    "dpo": lambda preference: Objective(False, preference),
    "sft+dpo": lambda preference: Objective(True, preference),
}


class Reference(NamedTuple):
    """log p(answer | prompt) of every pair under the reference."""

    chosen: Float[Array, "n"]
    rejected: Float[Array, "n"]


class Pool(NamedTuple):
    """What is trained on: `n` revisions, and behind them what is replayed."""

    answers: Examples  # [n + m, l]
    responses: Examples  # [n, l], the first ones; unread where nothing is preferred
    usable: Bool[Array, "n"]  # may be drawn
    paired: Bool[Array, "n"]  # the revision is to be preferred to its response
    reference: Reference | None = None  # unread where nothing is preferred


class Rates(NamedTuple):
    """The numbers of an iteration, all traced."""

    learning_rate: Float[Array, ""]
    beta: Float[Array, ""]
    replay: Float[Array, ""]  # the share of rows that are replayed


class Progress(NamedTuple):
    """How far a phase has come: state, the last iteration's loss and margin of beta-scaled log-ratios, and all tokens
    that were trained on and that went through the steps."""

    state: TrainState
    loss: Float[Array, ""]
    margin: Float[Array, ""]
    trained: Float[Array, ""]
    read: Float[Array, ""]


def pool(revisions: Examples, responses: Examples, replay: Examples, usable: Array, paired: Array) -> Pool:
    """Sets of different lengths as one pool, right-padded."""
    length = max(part.tokens.shape[1] for part in (revisions, responses, replay))

    def wide(part: Examples) -> Examples:
        return Examples(*(jnp.pad(c, ((0, 0), (0, length - c.shape[1]))) for c in part))

    return Pool(stack(wide(revisions), wide(replay)), wide(responses), usable, paired)


def stack(*parts: Examples) -> Examples:
    """Sets of one length, one behind another."""
    return Examples(*(jnp.concatenate(columns) for columns in zip(*parts, strict=True)))


def refer(lm: LM, reference: Adapter | None, own: Pool, rows: int) -> Pool:
    """The pool with log-probabilities of all its pairs under the reference (None: the base), `rows` of them at once."""
    count = own.responses.tokens.shape[0]

    def logps(part: Examples) -> Array:
        return trees.in_chunks(lambda some: answer_logps(lm, reference, some)[0], part, min(rows, count))

    chosen = Examples(*(column[:count] for column in own.answers))
    return own._replace(reference=Reference(logps(chosen), logps(own.responses)))


def begin(adapter: Adapter, trainer: Trainer = PLAIN) -> Progress:
    return Progress(start(adapter, trainer), *(jnp.zeros(()) for _ in range(4)))


def align(
    lm: LM,
    progress: Progress,
    own: Pool,
    first: Int[Array, ""],
    last: Int[Array, ""],
    rates: Rates,
    key: Key[Array, ""],
    batch_size: int,
    objective: Objective,
    constrain: Callable = lambda x: x,
    trainer: Trainer = PLAIN,
) -> Progress:
    """Iterations `first` to `last` (not included); none of them returns `progress` untouched.

    The batch of iteration i depends on `key` and i alone, and the learning rate is constant, so a longer run passes
    through every shorter one.
    """
    usable_first = jnp.argsort(~own.usable, stable=True)

    def iteration(i: Array, so_far: Progress) -> Progress:
        rows, replayed = draw(own, usable_first, rates.replay, rng.stream(key, "align", iteration=i), batch_size)

        def loss(adapter: Adapter):
            return objective_loss(lm, adapter, own, rows, replayed, rates.beta, objective, constrain)

        state, (value, margin, trained, read) = descend(loss, so_far.state, rates.learning_rate, trainer)
        return Progress(state, value, margin, so_far.trained + trained, so_far.read + read)

    return jax.lax.fori_loop(first, last, iteration, progress)


def draw(
    own: Pool, usable_first: Int[Array, "n"], share: Float[Array, ""], key: Key[Array, ""], batch_size: int
) -> tuple[Int[Array, "b"], Bool[Array, "b"]]:
    """(rows of the pool's answers, which of them are replayed): usable ones alone, each as likely as any other.

    `share` of the rows are replayed in the mean; all, where there is no usable revision.
    """
    revisions = own.usable.shape[0]
    replay = own.answers.tokens.shape[0] - revisions
    usable = own.usable.sum()
    keys = jax.random.split(key, 3)
    rows = usable_first[jax.random.randint(keys[0], (batch_size,), 0, jnp.maximum(usable, 1))]
    if not replay:
        return rows, jnp.zeros(batch_size, bool)
    again = revisions + jax.random.randint(keys[1], (batch_size,), 0, replay)
    replayed = (jax.random.uniform(keys[2], (batch_size,)) < share) | (usable == 0)
    return jnp.where(replayed, again, rows), replayed


def objective_loss(
    lm: LM,
    adapter: Adapter,
    own: Pool,
    rows: Int[Array, "b"],
    replayed: Bool[Array, "b"],
    beta: Float[Array, ""],
    objective: Objective,
    constrain: Callable,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """(loss, (loss, margin, trained tokens, read tokens)) of a batch: the mean over tokens of what is liked, plus the
    mean over pairs of what is preferred.

    Replayed answers are liked whatever the objective. Chosen and rejected go through one forward pass.
    """
    batch, pairs = take(own.answers, rows), jnp.minimum(rows, own.usable.shape[0] - 1)
    if objective.preference:
        batch = stack(batch, take(own.responses, pairs))
    logps, counts = answer_logps(lm, adapter, constrain(batch))
    # an unusable row is drawn where there is neither a usable one nor replay: it is not to be learnt
    liked = (replayed | (own.usable[pairs] & objective.likelihood)).astype(logps.dtype)
    read = batch.valid.sum().astype(logps.dtype)
    chosen, lengths = logps[: len(rows)], counts[: len(rows)]
    likelihood = Sum(-jnp.sum(chosen * liked), jnp.sum(lengths * liked))
    if not objective.preference:
        return likelihood.mean(), (likelihood.mean(), jnp.zeros(()), likelihood.weight, read)
    assert own.reference is not None, "a preference needs the reference's view: see `refer`"
    paired = (own.paired[pairs] & ~replayed).astype(logps.dtype)
    ratios = LogRatios(
        chosen - own.reference.chosen[pairs],
        logps[len(rows) :] - own.reference.rejected[pairs],
        lengths,
        counts[len(rows) :],
    )
    preference = Sum(jnp.sum(PREFERENCES[objective.preference](ratios, beta) * paired), jnp.sum(paired))
    margin = Sum(beta * jnp.sum((ratios.chosen - ratios.rejected) * paired), jnp.sum(paired))
    value = likelihood.mean() + preference.mean()
    trained = jnp.sum(lengths * jnp.maximum(liked, paired)) + jnp.sum(counts[len(rows) :] * paired)
    return value, (value, margin.mean(), trained, read)
