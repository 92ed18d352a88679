"""The CAI phase of a round: revisions, by the global model or prepared, and N iterations of training on them.

Two jitted programs, compiled once a process: what is said, and training from one iteration count to another. Taking
the second in several steps gives the adapters of several counts for the price of the largest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng, trees
from fedjax_rai.aliases import Adapter, Array, Base, Int, Key, Metrics
from fedjax_rai.cai import align as cai
from fedjax_rai.cai.align import METHODS, Objective, Pool, Progress, Rates
from fedjax_rai.cai.constitution import draw
from fedjax_rai.cai.revise import Chain, Requests, Talk, chain, degenerate, examples
from fedjax_rai.config import CaiConfig, ExperimentConfig
from fedjax_rai.data.examples import Examples, Prompts, take
from fedjax_rai.mesh import over_clients, replicated
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.run.inputs import ONLINE
from fedjax_rai.run.setting import Setting, cycle
from fedjax_rai.train.generate import Decoding, Sampling


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

    def constrain(self, rows: int) -> Callable[[Any], Any]:
        """Lays so many rows out over the devices, if they divide them."""
        return over_clients(self.mesh) if rows % self.mesh.shape["clients"] == 0 else lambda tree: tree

    def reference(self, adapter: Adapter) -> Adapter | None:
        return None if self.reference_is_base else adapter


class Said(NamedTuple):
    """The conversations of a phase, to be read by people: tokens on the device, principles on the host."""

    rows: np.ndarray  # of the red prompts
    principles: np.ndarray  # [b, n]
    chain: Chain


class Conversations(NamedTuple):
    """What conversations to hold, and what is replayed beside the revisions that they end with."""

    talk: Talk
    requests: Requests
    replay: Examples


class Source(NamedTuple):
    """Where a round's phase takes its pool from, whatever the adapter: conversations, or a prepared set."""

    pool: Pool | Conversations
    metrics: Metrics  # known before
    rows: np.ndarray  # of the red prompts, or of the prepared set

    def said(self, chain: Chain | None) -> Said | None:
        own = self.pool
        return Said(self.rows, np.asarray(own.talk.principles), chain) if chain and not isinstance(own, Pool) else None


class Lesson(NamedTuple):
    """What a phase trains on, and what it cost; `said` is None for a prepared set."""

    pool: Pool
    metrics: Metrics
    said: Said | None = None


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
        options.constrain(rows),
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


class Phase:
    """The phases of one arm."""

    def __init__(self, setting: Setting, config: ExperimentConfig):
        own, across = config.cai, setting.mesh.shape["clients"]
        chunk = min(own.prompts_per_chunk or own.prompts, own.prompts)
        self.setting, self.config = setting, config
        self.options = Options(
            end_ids=setting.tokenizer.end_ids,
            max_new=own.max_new_tokens,
            chunk=-(-chunk // across) * across,
            batch_size=own.batch_size,
            critic_is_policy=own.critic == "policy",
            same_cache=own.critic == "policy" and own.data == ONLINE and not setting.constitution.few_shot,
            train_on_revisions=own.target == "revision",
            objective=METHODS[own.method](own.preference),
            reference_is_base=own.reference == "base",
            mesh=setting.mesh,
        )

    def lesson(self, adapter: Adapter, t: int) -> Lesson:
        """What the phase of round t trains on, given the adapter that it starts from."""
        setting, source = self.setting, self.source(t)
        pool, metrics, chain = learn(
            setting.model, self.options, setting.base, adapter, source.pool, sampling(self.config.cai)
        )
        return Lesson(pool, source.metrics | metrics, source.said(chain))

    def source(self, t: int) -> Source:
        """That of round t: conversations about `cai.prompts` red prompts, or so many of the prepared pairs."""
        online, g = self.config.cai.data == ONLINE, rng.host(self.config.seed, "red prompts", round=t)
        everything = (self.setting.red_prompts if online else self.setting.prepared.chosen).tokens
        rows = cycle(np.arange(len(everything)), self.config.cai.prompts, g)
        if not online:
            return self._prepared(rows)
        return Source(Conversations(self._talk(rows, t), self.setting.requests, self.setting.replay), {}, rows)

    def _talk(self, rows: np.ndarray, t: int) -> Talk:
        setting, key = self.setting, rng.stream(self.key(t), "chain")
        categories = [setting.materials.red_prompts[row].category for row in rows]
        g = rng.host(self.config.seed, "principles", round=t)
        principles = draw(setting.constitution, categories, self.config.cai.revisions, g)
        keys = jax.vmap(lambda row: rng.stream(key, "respond", row=row))(jnp.arange(len(rows)))
        return talk(setting, rows, principles, keys)

    def align(
        self, adapter: Adapter, lesson: Lesson, t: int, counts: Sequence[int]
    ) -> Iterator[tuple[Adapter, Metrics]]:
        """(adapter, metrics) after each of the ascending iteration counts, by one pass through all of them."""
        setting, done = self.setting, 0
        # laid out as `train` leaves it, so that going on from there is the same program
        progress = jax.device_put(cai.begin(adapter), replicated(setting.mesh))
        for count in counts:
            progress = train(
                setting.model, self.options, setting.base, progress, lesson.pool, jnp.int32(done), jnp.int32(count),
                self.rates, rng.stream(self.key(t), "align"),
            )  # fmt: skip
            done = count
            trained, metrics = outcome(adapter, progress, jnp.int32(count))
            yield trained, lesson.metrics | metrics

    @property
    def rates(self) -> Rates:
        own, mixed = self.config.cai, len(self.setting.replay.tokens)
        return Rates(jnp.float32(own.learning_rate), jnp.float32(own.beta), jnp.float32(mixed / (own.prompts + mixed)))

    def _prepared(self, rows: np.ndarray) -> Source:
        own, objective = self.setting.prepared, self.options.objective
        paired, metrics = pairing({name: holds[rows] for name, holds in own.causes.items()})
        usable = own.usable[rows] if objective.likelihood else paired
        chosen, rejected = take(own.chosen, rows), take(own.rejected, rows)
        read = chosen.valid.sum() + rejected.valid.sum() if objective.preference else 0
        metrics |= {"cai_generated_tokens": 0, "cai_read_tokens": read}
        pool = cai.pool(chosen, rejected, self.setting.replay, jnp.asarray(usable), jnp.asarray(paired))
        return Source(pool, metrics, rows)

    def key(self, t: int) -> Key[Array, ""]:
        """Of round t."""
        return rng.stream(self.setting.root, "cai", round=t)


def talk(setting: Setting, rows: np.ndarray, principles: np.ndarray, keys: Key[Array, "b"]) -> Talk:
    """Conversations about those of the red prompts."""
    prompts, openings = (Prompts(*(c[rows] for c in own)) for own in (setting.red_prompts, setting.openings))
    return Talk(prompts, openings, jnp.asarray(principles), keys)


def sampling(own: CaiConfig) -> Sampling:
    """How responses are drawn."""
    narrowed = {name: jnp.asarray(value) for name in ("top_k", "top_p", "min_p") if (value := getattr(own, name))}
    return Sampling(jnp.float32(own.temperature), **narrowed)
