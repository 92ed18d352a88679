"""N iterations of training on revisions, on the global adapter; N is traced, so changing it compiles nothing.

An iteration draws rows of a pool: revisions, and replayed benign answers to hold utility. Its loss is the sum of the
likelihood of the answers drawn and the preference of revisions over first responses, each a mean of its own.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai import rng, trees
from fedjax_rai.aliases import Adapter, Array, Bool, Float, Int, Key
from fedjax_rai.cai.options import Numbers, Options
from fedjax_rai.data.examples import Examples, take
from fedjax_rai.mesh import whole
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.losses import LogRatios, Sum, answer_logps, split_answer_logps, trained_tokens
from fedjax_rai.train.step import (
    PLAIN,
    Trainer,
    TrainState,
    descend,
    descend_by_parts,
    micro_batches,
    rows_at_once,
    start,
)


class Pool(NamedTuple):
    """What a phase trains on: `n` pairs, and behind their chosen answers `m` that are replayed."""

    answers: Examples  # [n + m, l]: the chosen answers, then the replayed ones
    rejected: Examples  # [n, l]; unread where nothing is preferred
    usable: Bool[Array, "n"]  # the pair may be drawn
    paired: Bool[Array, "n"]  # the chosen answer is to be preferred to the rejected one
    # log p(answer | prompt) of the chosen and of the rejected answers; None where nothing is preferred
    reference_logps: tuple[Float[Array, "n"], Float[Array, "n"]] | None = None


class Drawn(NamedTuple):
    """The rows of an iteration."""

    rows: Int[Array, "b"]  # of a pool's answers
    replayed: Bool[Array, "b"]


class Progress(NamedTuple):
    """How far a phase has come."""

    state: TrainState
    iterations: Int[Array, ""]  # done
    loss: Float[Array, ""]  # of the last iteration
    margin: Float[Array, ""]  # of the last iteration: mean beta (log-ratio of chosen - of rejected)
    trained_tokens: Float[Array, ""]  # targets of all iterations
    step_tokens: Float[Array, ""]  # tokens that went through all iterations


def make_pool(
    chosen: Examples, rejected: Examples, replay: Examples, usable: Bool[Array, "n"], paired: Bool[Array, "n"]
) -> Pool:
    """Sets of different lengths as one pool, right-padded."""
    length = max(part.tokens.shape[1] for part in (chosen, rejected, replay))

    def padded(part: Examples) -> Examples:
        missing = length - part.tokens.shape[1]
        return Examples(*(jnp.pad(column, ((0, 0), (0, missing))) for column in part))

    return Pool(stack(padded(chosen), padded(replay)), padded(rejected), usable, paired)


def stack(*parts: Examples) -> Examples:
    """Sets of one length, one behind another."""
    return Examples(*(jnp.concatenate(columns) for columns in zip(*parts, strict=True)))


def with_reference_logps(lm: LM, reference: Adapter | None, pool: Pool, rows: int) -> Pool:
    """The pool with log-probabilities of all its pairs under the reference (None: the base), `rows` of them at once.

    These are split over the devices that the base lies on.
    """
    pairs = pool.usable.shape[0]

    def of_chunk(chunk: Examples) -> Float[Array, "n"]:
        return split_answer_logps(lm, reference, chunk)[0]

    def logps(part: Examples) -> Float[Array, "n"]:
        return trees.in_chunks(of_chunk, part, min(rows, pairs))

    chosen = Examples(*(column[:pairs] for column in pool.answers))
    return pool._replace(reference_logps=(logps(chosen), logps(pool.rejected)))


def begin(adapter: Adapter, trainer: Trainer = PLAIN) -> Progress:
    """No iteration done yet, from a fresh optimizer."""
    zero = jnp.zeros(())
    return Progress(start(adapter, trainer), jnp.zeros((), jnp.int32), zero, zero, zero, zero)


@partial(jax.jit, static_argnames="options")
def align(lm: LM, options: Options, progress: Progress, pool: Pool, numbers: Numbers, key: Key[Array, ""]) -> Progress:
    """Iterations from where `progress` is up to `numbers.iterations`; `progress` untouched where it is there already.

    The batch of iteration i depends on `key` and i alone, and the learning rate is constant, so a longer run passes
    through every shorter one.
    """
    usable_first = jnp.argsort(~pool.usable, stable=True)

    def iteration(i: Int[Array, ""], before: Progress) -> Progress:
        draw_key = rng.stream(key, "align", iteration=i)
        drawn = draw(pool, usable_first, numbers.replay, draw_key, options.batch_size)

        def loss(adapter: Adapter):
            return objective_loss(lm, options, adapter, pool, drawn, numbers)

        rate = numbers.learning_rate
        size = rows_at_once(options.batch_size, options.trainer.micro_batch, options.devices(options.batch_size))
        if size == options.batch_size:
            state, found = descend(loss, before.state, rate, options.trainer)
        else:
            weights = batch_weights(options, pool, drawn)

            def loss_of_part(adapter: Adapter, part: Drawn):
                return objective_loss(lm, options, adapter, pool, part, numbers, weights)

            parts = micro_batches(drawn, size)
            state, found = descend_by_parts(loss_of_part, parts, before.state, rate, options.trainer)
        value, margin, trained, read = found
        return Progress(state, i + 1, value, margin, before.trained_tokens + trained, before.step_tokens + read)

    return whole(jax.lax.fori_loop(progress.iterations, numbers.iterations, iteration, progress), lm.base)


@partial(jax.jit, static_argnames="options", donate_argnames="state")
def align_in_place(
    lm: LM,
    options: Options,
    state: TrainState,
    done: Progress,
    pool: Pool,
    numbers: Numbers,
    key: Key[Array, ""],
) -> Progress:
    """`align` from `done`, but with that state, whose memory it takes over: nobody may read it again.

    The seven arguments are `align`'s, its progress in two: what a report is made of is not given up.
    """
    return align(lm, options, done._replace(state=state), pool, numbers, key)


def draw(
    pool: Pool, usable_first: Int[Array, "n"], share: Float[Array, ""], key: Key[Array, ""], batch_size: int
) -> Drawn:
    """Rows of the pool's answers: usable ones alone, each as likely as any other, and replayed ones.

    `usable_first` are all pairs, those that are usable before the others. `share` of the rows are replayed in the mean;
    all, where there is no usable pair. Where there is neither a usable pair nor replay, rows are of unusable pairs.
    """
    pairs = pool.usable.shape[0]
    replay = pool.answers.tokens.shape[0] - pairs
    usable = pool.usable.sum()
    keys = jax.random.split(key, 3)
    rows = usable_first[jax.random.randint(keys[0], (batch_size,), 0, jnp.maximum(usable, 1))]
    if not replay:
        return Drawn(rows, jnp.zeros(batch_size, bool))
    again = pairs + jax.random.randint(keys[1], (batch_size,), 0, replay)
    replayed = (jax.random.uniform(keys[2], (batch_size,)) < share) | (usable == 0)
    return Drawn(jnp.where(replayed, again, rows), replayed)


class Weights(NamedTuple):
    """What the sums of a batch are divided by."""

    learnt: Float[Array, ""]  # tokens
    paired: Float[Array, ""]  # pairs


def batch_weights(options: Options, pool: Pool, drawn: Drawn) -> Weights:
    """Of a whole batch; the model is not asked."""
    tokens = trained_tokens(take(pool.answers, drawn.rows))
    return Weights(jnp.sum(tokens * _learnt(options, pool, drawn)), jnp.sum(_paired(pool, drawn).astype(jnp.float32)))


def _pairs(pool: Pool, drawn: Drawn) -> Int[Array, "b"]:
    """The pair of each row; of a replayed one any, which the masks leave out."""
    return jnp.minimum(drawn.rows, pool.usable.shape[0] - 1)


def _learnt(options: Options, pool: Pool, drawn: Drawn) -> Bool[Array, "b"]:
    """The rows whose likelihood is learnt.

    An unusable one, which is drawn where there is neither a usable one nor replay, is not.
    """
    return drawn.replayed | (pool.usable[_pairs(pool, drawn)] & options.objective.likelihood)


def _paired(pool: Pool, drawn: Drawn) -> Bool[Array, "b"]:
    """The rows whose chosen answer is preferred to the rejected one."""
    return pool.paired[_pairs(pool, drawn)] & ~drawn.replayed


def objective_loss(
    lm: LM,
    options: Options,
    adapter: Adapter,
    pool: Pool,
    drawn: Drawn,
    numbers: Numbers,
    weights: Weights | None = None,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """(loss, (loss, margin, trained tokens, read tokens)) of a batch, or what a part adds to these of a whole batch.

    The loss is the mean over tokens of what is learnt, plus the mean over pairs of what is preferred. Replayed answers
    are learnt whatever the objective. Chosen and rejected answers go through one forward pass.

    `weights`: what the sums of a part are divided by, those of its batch; None: its own. So there are seven parameters.
    """
    objective = options.objective
    count = drawn.rows.shape[0]
    pairs = _pairs(pool, drawn)
    batch = take(pool.answers, drawn.rows)
    if objective.preference:
        batch = stack(batch, take(pool.rejected, pairs))
    rows = batch.tokens.shape[0]
    logps, tokens = answer_logps(lm, adapter, options.constrain(rows)(batch), options.devices(rows))
    read = batch.valid.sum().astype(logps.dtype)

    learnt = _learnt(options, pool, drawn).astype(logps.dtype)
    chosen, chosen_tokens = logps[:count], tokens[:count]
    tokens_learnt = jnp.sum(chosen_tokens * learnt)
    likelihood = Sum(-jnp.sum(chosen * learnt), tokens_learnt if weights is None else weights.learnt)
    if not objective.preference:
        return likelihood.mean(), (likelihood.mean(), jnp.zeros(()), tokens_learnt, read)

    assert pool.reference_logps is not None, "a preference needs reference_logps: see `with_reference_logps`"
    reference_chosen, reference_rejected = pool.reference_logps
    rejected, rejected_tokens = logps[count:], tokens[count:]
    ratios = LogRatios(
        chosen=chosen - reference_chosen[pairs],
        rejected=rejected - reference_rejected[pairs],
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
    )
    paired = _paired(pool, drawn).astype(logps.dtype)
    losses = objective.preference(ratios, numbers.beta, **numbers.further)
    pairs_paired = jnp.sum(paired) if weights is None else weights.paired
    preference = Sum(jnp.sum(losses * paired), pairs_paired)
    margin = Sum(numbers.beta * jnp.sum((ratios.chosen - ratios.rejected) * paired), pairs_paired)
    value = likelihood.mean() + preference.mean()
    trained = jnp.sum(chosen_tokens * jnp.maximum(learnt, paired)) + jnp.sum(rejected_tokens * paired)
    return value, (value, margin.mean(), trained, read)
