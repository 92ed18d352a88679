"""One round: filter, local training, aggregation, constitutional AI."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Base, Metrics
from fedjax_rai.cai.revise import Rollout
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.data.order import cycle
from fedjax_rai.data.packing import plan
from fedjax_rai.experiment.evaluation import ask
from fedjax_rai.experiment.phase import Phase
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.fed.aggregate import weighted_mean
from fedjax_rai.fed.algorithm import ALGORITHMS, FedAlgorithm, RoundBatch, ServerState
from fedjax_rai.fed.client import Cohort
from fedjax_rai.mesh import over_clients, replicated
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.safety.filter import keep
from fedjax_rai.safety.guard import score


@lru_cache
def make_algorithm(name: str, model: Decoder, clients: int, chunk: int, mesh: jax.sharding.Mesh) -> FedAlgorithm:
    """The algorithm of that name; a chunk is a multiple of the mesh's clients axis. Cached, so compiled once."""
    across = mesh.shape["clients"]
    return ALGORITHMS[name](model, weighted_mean(), clients, -(-chunk // across) * across, over_clients(mesh))


@partial(jax.jit, static_argnames="algorithm")
def federated_round(
    algorithm: FedAlgorithm, state: ServerState, base: Base, batch: RoundBatch
) -> tuple[ServerState, Metrics]:
    return algorithm.round(state, base, batch)


class Outcome(NamedTuple):
    """What a round reports, still on the device, and when each part was there; None where there was no such part."""

    local: Metrics
    local_done: Future[float]
    probe_done: Future[float] | None = None
    cai: Metrics | None = None
    cai_done: Future[float] | None = None
    rollout: Rollout | None = None


_CLOCK = ThreadPoolExecutor(1, "clock")


def when_done(metrics: Metrics) -> Future[float]:
    """The time (`time.perf_counter`) at which the device has computed them; nobody waits for it."""

    def wait() -> float:
        jax.block_until_ready(metrics)
        return time.perf_counter()

    return _CLOCK.submit(wait)


class Federation:
    """Rounds of one arm: a setting, and the arm's own filter, rounds and CAI."""

    def __init__(self, setting: Setting, config: ExperimentConfig):
        fed = config.federated
        self.setting, self.config = setting, config
        model: Any = setting.model  # hashable, though its type does not say so
        self.algorithm = make_algorithm(fed.algorithm, model, fed.clients, fed.clients_per_chunk, setting.mesh)
        self.kept = self._kept_rows()

    @cached_property
    def phase(self) -> Phase:
        return Phase(self.setting, self.config)

    def init(self) -> ServerState:
        state = self.algorithm.init(self.setting.fresh_adapter("adapter"))
        return jax.device_put(state, replicated(self.setting.mesh))

    def _kept_rows(self) -> list[np.ndarray]:
        """Each client's rows of the corpus after its filter."""
        if not self.config.filter.enabled:
            return self.setting.parts
        threshold = np.inf if self.config.filter.keep_all else self.config.guard.threshold
        return [part[keep(self.setting.scores[part], threshold)] for part in self.setting.parts]

    def cohort(self, t: int) -> tuple[Cohort, int]:
        """The clients of round t with their batches, and the tokens of all these.

        A client that kept nothing takes part with weight 0.
        """
        fed, seed = self.config.federated, self.config.seed
        chosen = rng.host(seed, "cohort", round=t).choice(fed.clients, fed.cohort, replace=False)
        size = (fed.local_steps, fed.batch_size)
        rows = np.zeros((fed.cohort, *size), np.int32)
        for i, client in enumerate(chosen):
            if len(own := self.kept[client]):
                g = rng.host(seed, "local batches", round=t, client=int(client))
                rows[i] = cycle(own, fed.local_steps * fed.batch_size, g).reshape(size)
        weight = np.array([len(self.kept[client]) for client in chosen], np.float32)
        tokens = int(self.setting.lengths[rows][weight > 0].sum())
        if self.config.data.packing:
            rows = plan(rows, self.setting.lengths, self.setting.corpus.tokens.shape[1])
        return Cohort(jnp.asarray(chosen, jnp.int32), jnp.asarray(rows), jnp.asarray(weight)), tokens

    def fork(self, state: ServerState, t: int, counts: Sequence[int]) -> list[tuple[ServerState, Outcome]]:
        """Round t, dispatched, for ascending numbers of CAI iterations; what they share is computed once."""
        state, local = self._local(state, t)
        plain = state, local
        if not (counts[-1] and self._due(t, local.local)):
            return [plain for _ in counts]
        trained = [count for count in counts if count]
        collected = self.phase.collect(state.adapter, t)
        ends = {}
        aligned = self.phase.align(state.adapter, collected, t, trained)
        for count, (adapter, metrics) in zip(trained, aligned, strict=True):
            outcome = local._replace(cai=metrics, cai_done=when_done(metrics), rollout=collected.rollout)
            ends[count] = state._replace(adapter=adapter), outcome
        return [ends.get(count, plain) for count in counts]

    def _local(self, state: ServerState, t: int) -> tuple[ServerState, Outcome]:
        """Local training, aggregation, and the probe if there is one."""
        cohort, tokens = self.cohort(t)
        batch = RoundBatch(self.setting.corpus, cohort, jnp.float32(self.config.federated.learning_rate))
        state, metrics = federated_round(self.algorithm, state, self.setting.base, batch)
        done = when_done(metrics)
        metrics["step_tokens"] = tokens
        if self.config.cai.probe:
            metrics["probe_harmless"] = probe(self.setting, self.config.cai.probe, state.adapter)
            return state, Outcome(metrics, done, when_done({}))
        return state, Outcome(metrics, done)

    def _due(self, t: int, local: Metrics) -> bool:
        """Whether there is a phase after round t: the last of every `cai.every` rounds, unless the probe is safe."""
        own = self.config.cai
        return (
            own.enabled and (t + 1) % own.every == 0 and (own.trigger is None or local["probe_harmless"] < own.trigger)
        )


def probe(setting: Setting, prompts: int, adapter: Adapter) -> float:
    """The share of safe answers to the fixed probe prompts, by the guard; waits for the device."""
    queries = setting.materials.probe_prompts[:prompts]
    answers = ask(setting, adapter, queries, "probe", temperature=1.0, samples=1)
    pairs = [(query, texts[0]) for query, texts in zip(queries, answers, strict=True)]
    return float(np.mean(score(setting.guard, pairs) < setting.config.guard.threshold))
