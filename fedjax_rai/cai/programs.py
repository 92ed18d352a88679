"""The jitted programs of a constitutional AI phase."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Base, Int, Key, Metrics
from fedjax_rai.cai import align as cai
from fedjax_rai.cai.align import Objective, Pool, Progress, Rates
from fedjax_rai.cai.revise import Chain, Requests, Talk, chain, degenerate, examples
from fedjax_rai.config.schema import CaiConfig
from fedjax_rai.data.examples import Examples
from fedjax_rai.mesh import over_clients
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.train.generate import Decoding, Sampling
from fedjax_rai.train.step import PLAIN, Trainer


class Options(NamedTuple):
    """What the programs of a phase are compiled for."""

    end_ids: tuple[int, ...]
    max_new: int
    chunk: int  # of prompts
    batch_size: int
    critic_is_policy: bool
    same_cache: bool
    train_on_revisions: bool
    objective: Objective
    reference_is_base: bool
    mesh: jax.sharding.Mesh
    trainer: Trainer = PLAIN

    def constrain(self, rows: int) -> Callable[[Any], Any]:
        """Lays so many rows out over the devices, if they divide them."""
        return over_clients(self.mesh) if rows % self.mesh.shape["clients"] == 0 else lambda tree: tree

    def reference(self, adapter: Adapter) -> Adapter | None:
        return None if self.reference_is_base else adapter


class Conversations(NamedTuple):
    """What conversations to hold, and what is replayed beside the revisions that they end with."""

    talk: Talk
    requests: Requests
    replay: Examples


@partial(jax.jit, static_argnames=("model", "options"))
def converse(
    model: Decoder, options: Options, base: Base, adapter: Adapter, talk: Talk, requests: Requests, sampling: Sampling
) -> Chain:
    """Respond, critique, revise."""
    critic = adapter if options.critic_is_policy else None

    def some(own: Talk) -> Chain:
        ends = jnp.array(options.end_ids)
        decoding = Decoding(sampling, ends, options.max_new)
        return chain(LM(model, base), adapter, critic, own, requests, decoding, options.same_cache)

    return trees.in_chunks(some, talk, options.chunk, options.constrain(options.chunk))


@partial(jax.jit, static_argnames=("model", "options"))
def collect(
    model: Decoder, options: Options, base: Base, adapter: Adapter, talk: Talk, requests: Requests, said: Chain,
    replay: Examples,
) -> tuple[Pool, Metrics]:  # fmt: skip
    """The pool that a chain gives: degenerate pairs are left out, and counted by the first cause that applies."""
    response, revision, causes = said.response, said.last, degenerate(said)
    paired, metrics = pairing(causes)
    answers = examples(talk.prompts, revision if options.train_on_revisions else response)
    usable = answers.loss_mask.any(axis=1) if options.objective.likelihood else paired
    own = cai.pool(answers, examples(talk.prompts, response), replay, usable, paired)
    read = [talk.prompts.valid, *(side.valid[talk.principles] for side in requests)]
    read += [] if options.same_cache else [talk.openings.valid, response.valid]
    if options.objective.preference:
        own = cai.refer(LM(model, base), options.reference(adapter), own, options.batch_size)
        read += [answers.valid, own.responses.valid]
    metrics |= {
        "cai_usable": usable.sum(),
        "cai_revised": jnp.mean(~causes["equal"]),
        "cai_generated_tokens": sum(answer.valid.sum() for answer in said),
        "cai_read_tokens": sum(tokens.sum() for tokens in read),
    }
    return own, metrics


def pairing(causes: Mapping[str, Any]) -> tuple[Any, Metrics]:
    """(bool[n]: makes a pair; how many do, and how many do not by the first cause that holds)."""
    paired, metrics = True, {}
    for name, holds in causes.items():
        metrics[f"cai_{name}"] = (paired & holds).sum()
        paired = paired & ~holds
    return paired, metrics | {"cai_pairs": jnp.sum(paired)}


@partial(jax.jit, static_argnames=("model", "options"))
def refer(model: Decoder, options: Options, base: Base, adapter: Adapter, own: Pool) -> Pool:
    """A prepared set with the reference's view of it."""
    return cai.refer(LM(model, base), options.reference(adapter), own, options.batch_size)


@partial(jax.jit, static_argnames=("model", "options"))
def train(
    model: Decoder, options: Options, base: Base, progress: Progress, own: Pool, first: Int[Array, ""],
    last: Int[Array, ""], rates: Rates, key: Key[Array, ""],
) -> Progress:  # fmt: skip
    """Iterations `first` to `last`, traced."""
    rows = options.batch_size * (2 if options.objective.preference else 1)
    return cai.align(
        LM(model, base), progress, own, first, last, rates, key, options.batch_size, options.objective,
        options.constrain(rows), options.trainer,
    )  # fmt: skip


@jax.jit
def outcome(before: Adapter, progress: Progress, iterations: Int[Array, ""]) -> tuple[Adapter, Metrics]:
    """The adapter that a phase leaves, which is the one it found where training diverged; and what to report."""
    sound = trees.all_finite(progress.state.adapter)
    metrics = {
        "cai_iterations": iterations,
        "cai_loss": progress.loss,
        "cai_margin": progress.margin,
        "cai_diverged": ~sound,
        "cai_trained_tokens": progress.trained,
        "cai_step_tokens": progress.read,
    }
    return trees.select(sound, progress.state.adapter, before), metrics


def learn(
    model: Decoder, options: Options, base: Base, adapter: Adapter, source: Pool | Conversations, drawn: Sampling
) -> tuple[Pool, Metrics, Chain | None]:
    """(pool, metrics, what was said) of a phase that starts from that adapter; may be jitted as a whole."""
    if isinstance(source, Pool):
        return refer(model, options, base, adapter, source) if options.objective.preference else source, {}, None
    talk, requests, replay = source
    said = converse(model, options, base, adapter, talk, requests, drawn)
    return *collect(model, options, base, adapter, talk, requests, said, replay), said


def sampling(own: CaiConfig) -> Sampling:
    """How responses are drawn."""
    narrowed = {name: jnp.asarray(value) for name in ("top_k", "top_p", "min_p") if (value := getattr(own, name))}
    return Sampling(jnp.float32(own.temperature), **narrowed)
