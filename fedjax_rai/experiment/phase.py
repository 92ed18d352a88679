"""The CAI phase of a round: revisions, by the global model or prepared, and N iterations of training on them.

Jitted programs, compiled once a process: what is generated, and training from one iteration count to another. Taking
the second in several steps gives the adapters of several counts for the price of the largest.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Key, Metrics
from fedjax_rai.cai.align import Progress, align_in_place, begin, make_pool
from fedjax_rai.cai.constitution import draw
from fedjax_rai.cai.options import Numbers, Options, make_numbers, make_objective, make_sampling
from fedjax_rai.cai.programs import Collected, OnlineSource, PreparedSource, Source, count_pairs, outcome
from fedjax_rai.cai.revise import RolloutBatch
from fedjax_rai.config.files import ONLINE
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.data.examples import Prompts, take
from fedjax_rai.data.order import cycle
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.mesh import replicated, ways
from fedjax_rai.terminal import verb
from fedjax_rai.train.dispatch import ahead
from fedjax_rai.train.step import PLAIN, TrainState

CAUSES = ("held_out", "cut_off", "empty", "equal")
"""Why a conversation, or a prepared pair, makes no pair, as `cai_...` of a round's row; it counts for the first."""


class Phase:
    """The phases of one arm."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.config = setting.config
        self.options = make_options(setting, setting.config)
        self._sources: dict[int, Future[Source]] = {}

    def collect(self, adapter: Adapter, t: int) -> Collected:
        """What the phase of round t trains on, given the adapter that it starts from."""
        return self.source(t).collect(self.setting.lm, self.options, adapter, make_sampling(self.config.cai))

    def align(
        self, adapter: Adapter, collected: Collected, t: int, counts: Sequence[int]
    ) -> Iterator[tuple[Adapter, Metrics]]:
        """(adapter, metrics) after each of the ascending iteration counts, by one pass through all of them."""
        key, progress = ahead(lambda: self._begun(adapter, t), self.setting.models.mesh.size).result()
        numbers = self.numbers
        for count in counts:
            numbers = numbers._replace(iterations=jnp.int32(count))
            done = progress._replace(state=TrainState({}, ()))
            progress = align_in_place(self.setting.lm, self.options, progress.state, done, collected.pool, numbers, key)
            trained, metrics = outcome(adapter, progress)
            yield trained, collected.metrics | metrics

    def _begun(self, adapter: Adapter, t: int) -> tuple[Key[Array, ""], Progress]:
        """The key of a phase's iterations, and their state before the first of them."""
        # laid out as `align` leaves it, so that going on from there is the same program; a copy, as it is given up
        progress = jax.device_put(begin(adapter), replicated(self.setting.models.mesh), may_alias=False)
        return rng.stream(self.key(t), "align"), progress

    @property
    def numbers(self) -> Numbers:
        """The numbers of every phase of the arm."""
        return make_numbers(self.config.cai, replayed=len(self.setting.replay.examples.tokens))

    def key(self, t: int) -> Key[Array, ""]:
        """The random key of the phase of round t."""
        return rng.stream(self.setting.root, "cai", round=t)

    def prepare(self, t: int) -> None:
        """Make the source of round t now, while the device is busy with what comes before."""
        _ = self.setting.replay.examples  # answered once for all, and by this thread
        self._sources = {t: ahead(lambda: self._source(t), self.setting.models.mesh.size)}

    def source(self, t: int) -> Source:
        """The source of round t: `cai.prompts` of the red prompts, or so many of the prepared pairs."""
        prepared = self._sources.pop(t, None)
        return self._source(t) if prepared is None else prepared.result()

    def _source(self, t: int) -> Source:
        if self.config.cai.data == ONLINE:
            return self._online(t)
        return self._prepared(t)

    def _online(self, t: int) -> OnlineSource:
        texts = self.setting.texts
        rows = self._rows(len(texts.red_prompts.tokens), t)
        categories = [texts.materials.red_prompts[row].category for row in rows]
        g = rng.host(self.config.seed, "principles", round=t)
        principles = draw(self.setting.revising.constitution, categories, self.config.cai.revisions, g)
        key = rng.stream(self.key(t), "chain")
        keys = jax.vmap(lambda row: rng.stream(key, "respond", row=row))(jnp.arange(len(rows)))
        batch = rollout_batch(self.setting, rows, principles, keys)
        return OnlineSource(batch, self.setting.revising.requests, self.setting.replay.examples)

    def _prepared(self, t: int) -> PreparedSource:
        prepared = self.setting.revising.prepared
        objective = self.options.objective
        rows = self._rows(len(prepared.chosen.tokens), t)
        causes = {name: holds[rows] for name, holds in prepared.causes.items()}
        paired, metrics = count_pairs(causes)
        usable = prepared.usable[rows] if objective.likelihood else paired
        chosen = take(prepared.chosen, rows)
        rejected = take(prepared.rejected, rows)
        read = chosen.valid.sum() + rejected.valid.sum() if objective.preference else 0
        metrics |= {"cai_usable": usable.sum(), "cai_generated_tokens": 0, "cai_read_tokens": read}
        pool = make_pool(chosen, rejected, self.setting.replay.examples, jnp.asarray(usable), jnp.asarray(paired))
        return PreparedSource(pool, metrics)

    def _rows(self, available: int, t: int) -> np.ndarray:
        """Which of so many prompts or pairs round t takes."""
        g = rng.host(self.config.seed, "red prompts", round=t)
        return cycle(np.arange(available), self.config.cai.prompts, g)


def make_options(setting: Setting, config: ExperimentConfig) -> Options:
    """What an arm's phases are compiled for; a chunk of prompts is a multiple of what rows are split into."""
    cai = config.cai
    chunk = min(cai.prompts_per_chunk or cai.prompts, cai.prompts)
    parts = ways(setting.models.mesh)
    return Options(
        end_ids=setting.models.tokenizer.end_ids,
        max_new=cai.max_new_tokens,
        chunk=-(-chunk // parts) * parts,
        batch_size=cai.batch_size,
        critic_is_policy=cai.critic == "policy",
        train_on_revisions=cai.target == "revision",
        reference_is_base=cai.reference == "base",
        objective=make_objective(cai),
        mesh=setting.models.mesh,
        trainer=PLAIN._replace(micro_batch=cai.micro_batch),
    )


def rollout_batch(setting: Setting, rows: np.ndarray, principles: np.ndarray, keys: Key[Array, "b"]) -> RolloutBatch:
    """The batch about those rows of the red prompts; `principles` is [b, n].

    A critic that is the policy and needs no few-shot turns has no prompts of its own: it reads what the policy reads.
    """
    texts, revising = setting.texts, setting.revising
    in_one_cache = setting.config.cai.critic == "policy" and not revising.constitution.few_shot
    return RolloutBatch(
        rows=jnp.asarray(rows),
        prompts=_take(texts.red_prompts, rows),
        critic_prompts=None if in_one_cache else _take(revising.openings, rows),
        principles=jnp.asarray(principles),
        keys=keys,
    )


def _take(prompts: Prompts, rows: np.ndarray) -> Prompts:
    return Prompts(prompts.tokens[rows], prompts.valid[rows])


def warnings(row: Mapping[str, Any], config: ExperimentConfig) -> Iterator[str]:
    """What must be said where a round's row of metrics tells of a phase that was cut off, or had no usable pair."""
    if "cai_usable" not in row:
        return
    causes = {cause: row.get(f"cai_{cause}", 0) for cause in CAUSES}
    total = row["cai_pairs"] + sum(causes.values())
    at_round = f"round {row['round']}:"
    if causes["cut_off"]:
        yield f"{at_round} {causes['cut_off']} of {total} {_cut_off(causes['cut_off'], config)}"
    if not row["cai_usable"]:
        counted = [f"{count} {cause.replace('_', ' ')}" for cause, count in causes.items() if count]
        listed = f" ({', '.join(counted)})" if counted else ""
        yield f"{at_round} no usable pair among {total}{listed}: the CAI phase trained on no revision"


def _cut_off(number: int, config: ExperimentConfig) -> str:
    """What cut off the conversations of a phase, or its prepared pairs: a key and its value."""
    if config.cai.data == ONLINE:
        return (
            f"conversations {verb(number, 'was', 'were')} cut off at cai.max_new_tokens = {config.cai.max_new_tokens}"
        )
    return f"prepared pairs {verb(number, 'is', 'are')} longer than data.max_length = {config.data.max_length}"
