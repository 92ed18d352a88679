"""A phase of constitutional AI from its source to its outcome; what is not training or decoding itself.

A source collects a pool, `align` trains on it, `outcome` keeps or undoes that. Each is jitted, and may be jitted within
a larger program.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Int, Metrics
from fedjax_rai.cai import revise
from fedjax_rai.cai.align import Pool, Progress, make_pool, with_reference_logps
from fedjax_rai.cai.options import Options
from fedjax_rai.cai.revise import Requests, Rollout, RolloutBatch, degenerate, examples
from fedjax_rai.data.examples import Examples
from fedjax_rai.model.decoder import LM
from fedjax_rai.train.generate import Decoding, Sampling
from fedjax_rai.train.speaker import Speaker, speaker


class Collected(NamedTuple):
    """What a phase trains on, and what is known of it before it trains."""

    pool: Pool
    metrics: Metrics  # scalars, `cai_...`
    rollout: Rollout | None  # None for a prepared set


class OnlineSource(NamedTuple):
    """Red prompts, which the global model answers and revises; `replay` is mixed into the pool."""

    batch: RolloutBatch
    requests: Requests
    replay: Examples

    def collect(self, lm: LM, options: Options, adapter: Adapter, sampling: Sampling) -> Collected:
        """The pool of a phase that starts from that adapter."""
        rollout = generate_rollout(lm, options, adapter, self.batch, self.requests, sampling)
        pool, metrics = pool_of_rollout(lm, options, adapter, self, rollout)
        return Collected(pool, metrics, rollout)


class PreparedSource(NamedTuple):
    """Pairs of a prepared set, replay included, and what is known of them."""

    pool: Pool
    metrics: Metrics

    def collect(self, lm: LM, options: Options, adapter: Adapter, sampling: Sampling) -> Collected:
        """The pool of a phase that starts from that adapter; nothing is sampled."""
        if options.objective.preference is None:
            return Collected(self.pool, self.metrics, None)
        return Collected(pool_with_reference(lm, options, adapter, self.pool), self.metrics, None)


Source = OnlineSource | PreparedSource
"""Where the phase of a round takes its pool from, whatever the adapter: a pytree."""


@partial(jax.jit, static_argnames="options")
def generate_rollout(
    lm: LM, options: Options, adapter: Adapter, batch: RolloutBatch, requests: Requests, sampling: Sampling
) -> Rollout:
    """Respond, critique, revise: `options.chunk` rows at once, responses drawn by `sampling`."""
    decoding = Decoding(sampling, jnp.array(options.end_ids), options.max_new)
    policy = speaker(lm, adapter)
    critic = policy if options.critic_is_policy else Speaker(lm, None)

    def of_chunk(rows: RolloutBatch) -> Rollout:
        return revise.rollout(policy, critic, rows, requests, decoding)

    return trees.in_chunks(of_chunk, batch, options.chunk, options.constrain(options.chunk))


@partial(jax.jit, static_argnames="options")
def pool_of_rollout(
    lm: LM, options: Options, adapter: Adapter, source: OnlineSource, rollout: Rollout
) -> tuple[Pool, Metrics]:
    """The pool that a rollout gives: degenerate pairs are left out, and counted by the first cause that applies.

    Metrics: `cai_pairs`, `cai_cut_off`, `cai_empty`, `cai_equal` (they add up to the rows), `cai_usable` (rows that may
    be drawn), `cai_revised` (the share of revisions that are no copy of the response), `cai_generated_tokens` and
    `cai_read_tokens` (what went through the model once: prompts and requests, also answers that are read again).
    """
    batch = source.batch
    causes = degenerate(rollout)
    paired, metrics = count_pairs(causes)
    responses = examples(batch.prompts, rollout.response)
    chosen = examples(batch.prompts, rollout.last) if options.train_on_revisions else responses
    usable = chosen.loss_mask.any(axis=1) if options.objective.likelihood else paired
    pool = make_pool(chosen, responses, source.replay, usable, paired)

    read = [batch.prompts.valid]
    for request in source.requests:
        read.append(request.valid[batch.principles])
    if batch.critic_prompts is not None:
        read += [batch.critic_prompts.valid, rollout.response.valid]
    if options.objective.preference:
        pool = with_reference_logps(lm, options.reference(adapter), pool, options.batch_size)
        read += [chosen.valid, pool.rejected.valid]
    metrics |= {
        "cai_usable": usable.sum(),
        "cai_revised": jnp.mean(~causes["equal"]),
        "cai_generated_tokens": _count(answers.valid for answers in rollout.answers),
        "cai_read_tokens": _count(read),
    }
    return pool, metrics


def _count(masks: Any) -> Int[Array, ""]:
    return sum((mask.sum() for mask in masks), start=jnp.zeros((), jnp.int32))


def count_pairs(causes: Mapping[str, Any]) -> tuple[Any, Metrics]:
    """(bool[n]: makes a pair; how many do, and how many do not by the first cause that holds)."""
    paired, metrics = True, {}
    for name, holds in causes.items():
        metrics[f"cai_{name}"] = (paired & holds).sum()
        paired = paired & ~holds
    return paired, metrics | {"cai_pairs": jnp.sum(paired)}


@partial(jax.jit, static_argnames="options")
def pool_with_reference(lm: LM, options: Options, adapter: Adapter, pool: Pool) -> Pool:
    """The pool with reference_logps, in a phase that starts from that adapter."""
    return with_reference_logps(lm, options.reference(adapter), pool, options.batch_size)


@jax.jit
def outcome(before: Adapter, progress: Progress) -> tuple[Adapter, Metrics]:
    """The adapter that a phase leaves, which is the one it found where training diverged; and what to report."""
    finite = trees.all_finite(progress.state.adapter)
    metrics = {
        "cai_iterations": progress.iterations,
        "cai_loss": progress.loss,
        "cai_margin": progress.margin,
        "cai_diverged": ~finite,
        "cai_trained_tokens": progress.trained_tokens,
        "cai_step_tokens": progress.step_tokens,
    }
    return trees.select(finite, progress.state.adapter, before), metrics
