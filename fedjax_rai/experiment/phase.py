"""The CAI phase of a round: revisions, by the global model or prepared, and N iterations of training on them.

Two jitted programs, compiled once a process: what is said, and training from one iteration count to another. Taking
the second in several steps gives the adapters of several counts for the price of the largest.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Key, Metrics
from fedjax_rai.cai import align as cai
from fedjax_rai.cai.align import METHODS, Pool, Rates
from fedjax_rai.cai.constitution import draw
from fedjax_rai.cai.programs import Conversations, Options, learn, outcome, pairing, sampling, train
from fedjax_rai.cai.revise import Chain, Talk
from fedjax_rai.config.files import ONLINE
from fedjax_rai.data.examples import Prompts, take
from fedjax_rai.data.order import cycle
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.mesh import replicated


class Said(NamedTuple):
    """The conversations of a phase, to be read by people: tokens on the device, principles on the host."""

    rows: np.ndarray  # of the red prompts
    principles: np.ndarray  # [b, n]
    chain: Chain


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


class Phase:
    """The phases of one arm."""

    def __init__(self, setting: Setting):
        config = setting.config
        own, across = config.cai, setting.models.mesh.shape["clients"]
        chunk = min(own.prompts_per_chunk or own.prompts, own.prompts)
        self.setting, self.config = setting, config
        self.options = Options(
            end_ids=setting.models.tokenizer.end_ids,
            max_new=own.max_new_tokens,
            chunk=-(-chunk // across) * across,
            batch_size=own.batch_size,
            critic_is_policy=own.critic == "policy",
            same_cache=own.critic == "policy" and own.data == ONLINE and not setting.texts.constitution.few_shot,
            train_on_revisions=own.target == "revision",
            objective=METHODS[own.method](own.preference),
            reference_is_base=own.reference == "base",
            mesh=setting.models.mesh,
        )

    def lesson(self, adapter: Adapter, t: int) -> Lesson:
        """What the phase of round t trains on, given the adapter that it starts from."""
        setting, source = self.setting, self.source(t)
        pool, metrics, chain = learn(
            setting.model, self.options, setting.models.base, adapter, source.pool, sampling(self.config.cai)
        )
        return Lesson(pool, source.metrics | metrics, source.said(chain))

    def source(self, t: int) -> Source:
        """That of round t: conversations about `cai.prompts` red prompts, or so many of the prepared pairs."""
        online, g = self.config.cai.data == ONLINE, rng.host(self.config.seed, "red prompts", round=t)
        everything = (self.setting.texts.red_prompts if online else self.setting.texts.prepared.chosen).tokens
        rows = cycle(np.arange(len(everything)), self.config.cai.prompts, g)
        if not online:
            return self._prepared(rows)
        return Source(
            Conversations(self._talk(rows, t), self.setting.texts.requests, self.setting.replay.examples), {}, rows
        )

    def _talk(self, rows: np.ndarray, t: int) -> Talk:
        setting, key = self.setting, rng.stream(self.key(t), "chain")
        categories = [setting.texts.materials.red_prompts[row].category for row in rows]
        g = rng.host(self.config.seed, "principles", round=t)
        principles = draw(setting.texts.constitution, categories, self.config.cai.revisions, g)
        keys = jax.vmap(lambda row: rng.stream(key, "respond", row=row))(jnp.arange(len(rows)))
        return talk(setting, rows, principles, keys)

    def align(
        self, adapter: Adapter, lesson: Lesson, t: int, counts: Sequence[int]
    ) -> Iterator[tuple[Adapter, Metrics]]:
        """(adapter, metrics) after each of the ascending iteration counts, by one pass through all of them."""
        setting, done = self.setting, 0
        # laid out as `train` leaves it, so that going on from there is the same program
        progress = jax.device_put(cai.begin(adapter), replicated(setting.models.mesh))
        for count in counts:
            progress = train(
                setting.model, self.options, setting.models.base, progress, lesson.pool, jnp.int32(done),
                jnp.int32(count), self.rates, rng.stream(self.key(t), "align"),
            )  # fmt: skip
            done = count
            trained, metrics = outcome(adapter, progress, jnp.int32(count))
            yield trained, lesson.metrics | metrics

    @property
    def rates(self) -> Rates:
        own, mixed = self.config.cai, len(self.setting.replay.examples.tokens)
        return Rates(jnp.float32(own.learning_rate), jnp.float32(own.beta), jnp.float32(mixed / (own.prompts + mixed)))

    def _prepared(self, rows: np.ndarray) -> Source:
        own, objective = self.setting.texts.prepared, self.options.objective
        paired, metrics = pairing({name: holds[rows] for name, holds in own.causes.items()})
        usable = own.usable[rows] if objective.likelihood else paired
        chosen, rejected = take(own.chosen, rows), take(own.rejected, rows)
        read = chosen.valid.sum() + rejected.valid.sum() if objective.preference else 0
        metrics |= {"cai_usable": usable.sum(), "cai_generated_tokens": 0, "cai_read_tokens": read}
        pool = cai.pool(chosen, rejected, self.setting.replay.examples, jnp.asarray(usable), jnp.asarray(paired))
        return Source(pool, metrics, rows)

    def key(self, t: int) -> Key[Array, ""]:
        """Of round t."""
        return rng.stream(self.setting.root, "cai", round=t)


def talk(setting: Setting, rows: np.ndarray, principles: np.ndarray, keys: Key[Array, "b"]) -> Talk:
    """Conversations about those of the red prompts."""
    prompts, openings = (
        Prompts(*(c[rows] for c in own)) for own in (setting.texts.red_prompts, setting.texts.openings)
    )
    return Talk(prompts, openings, jnp.asarray(principles), keys)
