"""One round: filter, local training, aggregation, constitutional AI. Two jitted programs, compiled once a process."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng, trees
from fedjax_rai.aliases import Adapter, Array, Base, Float, Int, Key, Metrics
from fedjax_rai.cai.align import align, pool
from fedjax_rai.cai.revise import Requests, chain, equal, examples
from fedjax_rai.config import ExperimentConfig
from fedjax_rai.data.examples import Examples, Prompts
from fedjax_rai.data.packing import plan
from fedjax_rai.fed.aggregate import weighted_mean
from fedjax_rai.fed.algorithm import ALGORITHMS, FedAlgorithm, RoundBatch, ServerState
from fedjax_rai.fed.client import Cohort
from fedjax_rai.mesh import over_clients, replicated
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.run.setting import Setting, cycle
from fedjax_rai.safety.filter import keep


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


class CaiBatch(NamedTuple):
    """All that a CAI phase reads."""

    prompts: Prompts
    requests: Requests
    principle: Int[Array, "b"]
    replay: Examples
    iterations: Int[Array, ""]
    learning_rate: Float[Array, ""]
    temperature: Float[Array, ""]


class CaiOptions(NamedTuple):
    """What a CAI phase is compiled for."""

    end_ids: tuple[int, ...]
    max_new: int
    batch_size: int
    critic_is_policy: bool
    train_on_revisions: bool


@partial(jax.jit, static_argnames=("model", "options"))
def cai_phase(
    model: Decoder, options: CaiOptions, base: Base, adapter: Adapter, batch: CaiBatch, key: Key[Array, ""]
) -> tuple[Adapter, Metrics]:
    """Respond, critique, revise, and `iterations` of SFT on the revisions and the replayed benign answers."""
    critic = adapter if options.critic_is_policy else None
    said = chain(
        model, base, adapter, critic, batch.prompts, batch.requests, batch.principle, rng.stream(key, "chain"),
        batch.temperature, jnp.array(options.end_ids), options.max_new, options.critic_is_policy,
    )  # fmt: skip
    own = examples(batch.prompts, said.revision if options.train_on_revisions else said.response)
    trained, loss = align(
        model, base, adapter, pool(own, batch.replay), batch.iterations, batch.learning_rate,
        rng.stream(key, "align"), options.batch_size,
    )  # fmt: skip
    sound = trees.all_finite(trained)  # a phase that diverged is undone
    usable = own.loss_mask.any(axis=1)
    metrics = {
        "cai_loss": loss,
        "cai_diverged": ~sound,
        "cai_revised": jnp.mean(~equal(said.response, said.revision)),
        "cai_unusable": jnp.sum(~usable),
        "cai_generated_tokens": sum(answer.valid.sum() for answer in said),
    }
    return trees.select(sound, trained, adapter), metrics


class Federation:
    """Rounds of one arm: a setting, and the arm's own filter, rounds and CAI."""

    def __init__(self, setting: Setting, config: ExperimentConfig):
        fed = config.federated
        self.setting, self.config = setting, config
        model: Any = setting.model  # hashable, though its type does not say so
        self.algorithm = make_algorithm(fed.algorithm, model, fed.clients, fed.clients_per_chunk, setting.mesh)
        self.kept = self._kept_rows()

    def init(self) -> ServerState:
        state = self.algorithm.init(self.setting.fresh_adapter("adapter"))
        return jax.device_put(state, replicated(self.setting.mesh))

    def _kept_rows(self) -> list[np.ndarray]:
        """Each client's rows of the corpus after its filter."""
        if not self.config.filter.enabled:
            return self.setting.parts
        threshold = np.inf if self.config.filter.keep_all else self.config.guard.threshold
        return [part[keep(self.setting.scores[part], threshold)] for part in self.setting.parts]

    def cohort(self, t: int) -> Cohort:
        """The clients of round t and their batches. A client that kept nothing takes part with weight 0."""
        fed, seed = self.config.federated, self.config.seed
        chosen = rng.host(seed, "cohort", round=t).choice(fed.clients, fed.cohort, replace=False)
        size = (fed.local_steps, fed.batch_size)
        rows = np.zeros((fed.cohort, *size), np.int32)
        for i, client in enumerate(chosen):
            if len(own := self.kept[client]):
                g = rng.host(seed, "local batches", round=t, client=int(client))
                rows[i] = cycle(own, fed.local_steps * fed.batch_size, g).reshape(size)
        weight = np.array([len(self.kept[client]) for client in chosen], np.float32)
        if self.config.data.packing:
            rows = plan(rows, self.setting.lengths, self.setting.corpus.tokens.shape[1])
        return Cohort(jnp.asarray(chosen, jnp.int32), jnp.asarray(rows), jnp.asarray(weight))

    def round(self, state: ServerState, t: int) -> tuple[ServerState, Metrics]:
        """Round t, dispatched: the metrics are still on the device."""
        fed, cai = self.config.federated, self.config.cai
        batch = RoundBatch(self.setting.corpus, self.cohort(t), jnp.float32(fed.learning_rate))
        state, metrics = federated_round(self.algorithm, state, self.setting.base, batch)
        if cai.enabled:
            adapter, more = self.align(state.adapter, t)
            state, metrics = state._replace(adapter=adapter), metrics | more
        return state, metrics

    def align(self, adapter: Adapter, t: int) -> tuple[Adapter, Metrics]:
        """The CAI phase of round t, on red prompts drawn anew each round."""
        setting, cai = self.setting, self.config.cai
        g = rng.host(self.config.seed, "red prompts", round=t)
        chosen = cycle(np.arange(len(setting.red_prompts.tokens)), cai.prompts, g)
        principles = g.integers(len(setting.constitution), size=cai.prompts)
        batch = CaiBatch(
            Prompts(*(column[chosen] for column in setting.red_prompts)), setting.requests,
            jnp.asarray(principles, jnp.int32), setting.replay, jnp.int32(cai.iterations),
            jnp.float32(cai.learning_rate), jnp.float32(cai.temperature),
        )  # fmt: skip
        options = CaiOptions(
            setting.tokenizer.end_ids,
            cai.max_new_tokens,
            cai.batch_size,
            cai.critic == "policy",
            cai.target == "revision",
        )
        return cai_phase(setting.model, options, setting.base, adapter, batch, rng.stream(setting.root, "cai", round=t))
