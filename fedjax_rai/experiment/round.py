"""One round of one run, or of several that go together: filter, local training, aggregation, constitutional AI."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Metrics
from fedjax_rai.cai.options import is_due, make_sampling
from fedjax_rai.cai.revise import Rollout
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.data.order import cycle
from fedjax_rai.data.packing import plan
from fedjax_rai.evals.open_ended import Sampled
from fedjax_rai.experiment.evaluation import answers_to
from fedjax_rai.experiment.filtering import ClientPairs
from fedjax_rai.experiment.phase import Phase
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.together import PhaseNumbers, align_together, federated_round, federated_rounds
from fedjax_rai.fed.algorithm import make_algorithm, make_weigher
from fedjax_rai.fed.base import RoundBatch, ServerState
from fedjax_rai.fed.client import Cohort
from fedjax_rai.fed.weights import Counts
from fedjax_rai.mesh import everywhere_but_spread
from fedjax_rai.model.lora import Dropout
from fedjax_rai.safety.guard import score
from fedjax_rai.train.dispatch import ahead
from fedjax_rai.train.optimizers import learning_rate


class Outcome(NamedTuple):
    """What a round reports, still on the device, and when each part was there; None where there was no such part."""

    local: Metrics
    local_done: Future[float]
    probe_done: Future[float] | None = None
    cai: Metrics | None = None
    cai_done: Future[float] | None = None
    rollout: Rollout | None = None
    given: float = 0.0
    """When (`time.perf_counter`) the device was given the local training: all of it was compiled, or found."""


class End(NamedTuple):
    """How a round ended for one run: the state that it left, and what it reports."""

    state: ServerState
    outcome: Outcome


_CLOCKS = threading.local()  # one of each thread that dispatches: what one dispatches is done in order


def when_done(arrays: Any) -> Future[float]:
    """The time (`time.perf_counter`) at which the device has computed them; nobody waits for it."""
    if not hasattr(_CLOCKS, "clock"):
        _CLOCKS.clock = ThreadPoolExecutor(1, "clock")

    def wait() -> float:
        jax.block_until_ready(arrays)
        return time.perf_counter()

    return _CLOCKS.clock.submit(wait)


class Federation:
    """One run's clients and server: who trains on which rows, by which algorithm, and when a CAI phase follows."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.algorithm = make_algorithm(setting.config.federated, dict(setting.config), setting.models.mesh)
        self.filtered = ClientPairs(setting)
        self.kept = self.filtered.kept
        self.weigher = make_weigher(setting.config.federated, dict(setting.config))
        self._drawn: dict[int, Future[tuple[Cohort, dict[str, int]]]] = {}

    @property
    def config(self) -> ExperimentConfig:
        return self.setting.config

    @cached_property
    def phase(self) -> Phase:
        return Phase(self.setting)

    def init(self) -> ServerState:
        """The state before the first round: on every device, but for what the algorithm has spread over them."""
        state = self.algorithm.init(self.setting.fresh_adapter("adapter"))
        return everywhere_but_spread(state, self.setting.models.mesh)

    def prepare(self, t: int) -> None:
        """Draw the cohort of round t and its rows now, while the device is busy with what comes before."""
        self._drawn = {t: ahead(lambda: self.cohort(t), self.setting.models.mesh.size)}

    def drawn(self, t: int) -> tuple[Cohort, dict[str, int]]:
        """`cohort(t)`, which may have been prepared."""
        drawn = self._drawn.pop(t, None)
        return self.cohort(t) if drawn is None else drawn.result()

    def cohort(self, t: int) -> tuple[Cohort, dict[str, int]]:
        """The clients of round t with their batches, and what is counted of them: `step_tokens` and `without_data`.

        A client that has nothing to train on takes part with weight 0; how many do is absent where none does.
        """
        federated, seed = self.config.federated, self.config.seed
        clients = rng.host(seed, "cohort", round=t).choice(federated.clients, federated.cohort, replace=False)
        rows = np.stack([self._local_rows(int(client), t) for client in clients])
        weight = np.array([self._weight(int(client)) for client in clients], np.float32)
        lengths = self.filtered.lengths
        counts = {"step_tokens": int(lengths[rows][weight > 0].sum())}
        absent = int(np.sum(weight == 0))
        if absent:
            counts["without_data"] = absent
        if self.config.data.packing:
            rows = plan(rows, lengths, self.filtered.corpus.tokens.shape[1])
        return Cohort(jnp.asarray(clients, jnp.int32), jnp.asarray(rows), jnp.asarray(weight)), counts

    def _weight(self, client: int) -> float:
        """What a client reports; 0 where it has no answer token left to train on. It is the same in every round."""
        kept = self.kept[client]
        if not self.filtered.answer_tokens[kept].any():
            return 0.0
        counts = Counts(len(kept), self.config.federated.local_steps)
        return self.weigher(counts, rng.host(self.config.seed, "weight", client=client))

    def _local_rows(self, client: int, t: int) -> np.ndarray:
        """int32[k, b]: the corpus rows of a client's local steps in round t; any row where it kept none."""
        federated = self.config.federated
        size = (federated.local_steps, federated.batch_size)
        kept = self.kept[client]
        if not len(kept):
            return np.zeros(size, np.int32)
        g = rng.host(self.config.seed, "local batches", round=t, client=client)
        return cycle(kept, federated.local_steps * federated.batch_size, g).reshape(size).astype(np.int32)

    def learning_rate(self, t: int) -> jax.Array:
        """The clients' learning rate in round t."""
        return jnp.float32(learning_rate(self.config.federated, t))

    def dropout(self, t: int) -> Dropout | None:
        """The dropout of round t, of which each client and local step has its own; None where there is none."""
        rate = self.config.lora.dropout
        if not rate:
            return None
        return Dropout(jax.random.key(self.config.seed), jnp.float32(rate)).at(round=t)

    @property
    def numbers(self) -> PhaseNumbers:
        """What its CAI phases differ in from those of runs that go together with it."""
        return PhaseNumbers(self.phase.numbers, make_sampling(self.config.cai))


def play_round(
    federations: Sequence[Federation], states: Sequence[ServerState], t: int, fewer: Sequence[int] = ()
) -> tuple[list[End], list[End]]:
    """Round t of every federation, dispatched: their ends, and those of runs that differ in `cai.iterations` alone.

    Several federations are one vmapped axis (`together`). Of a single one, `fewer` are ascending smaller numbers of
    iterations, whose ends are passed on the way to its own. Nothing waits for the device but a probe; before it does,
    the host's part of the phase and of the next round is done.
    """
    ends = _local_training(federations, states, t)
    _prepare(federations, t)
    ends = [_probed(federation, end) for federation, end in zip(federations, ends, strict=True)]
    cai = federations[0].config.cai
    counts = [federation.config.cai.iterations for federation in federations]
    if not (any(counts) and is_due(cai, t, ends[0].outcome.local.get("probe_harmless"))):
        return ends, [ends[0] for _ in fewer]
    if len(federations) > 1:
        return _aligned_together(federations, ends, t), []
    *passed, end = _aligned(federations[0], ends[0], t, [*fewer, *counts])
    return [end], passed


def _local_training(federations: Sequence[Federation], states: Sequence[ServerState], t: int) -> list[End]:
    """Local training and aggregation."""
    first = federations[0]
    cohort, counts = first.drawn(t)
    batch = RoundBatch(first.filtered.corpus, cohort, first.learning_rate(t), first.dropout(t))
    lm = first.setting.lm
    if len(federations) == 1:
        trained = [federated_round(first.algorithm, states[0], lm, batch)]
    else:
        rates = [federation.learning_rate(t) for federation in federations]
        trained = federated_rounds(first.algorithm, list(states), lm, batch, rates)
    given = time.perf_counter()
    done = when_done(trained[0][1])
    return [End(state, Outcome(metrics | counts, done, given=given)) for state, metrics in trained]


def _prepare(federations: Sequence[Federation], t: int) -> None:
    """The host's part of what the device is given after the local training of round t."""
    first = federations[0]
    has_iterations = any(federation.config.cai.iterations for federation in federations)
    if has_iterations and is_due(first.config.cai, t, safe_share=0.0):
        first.phase.prepare(t)
    if t + 1 < first.config.federated.rounds:
        first.prepare(t + 1)


def _probed(federation: Federation, end: End) -> End:
    """With the probe's numbers, where a run has a probe; waits for the device."""
    prompts = federation.config.cai.probe
    if not prompts:
        return end
    found = probe(federation.setting, prompts, end.state.adapter)
    outcome = end.outcome
    return End(end.state, outcome._replace(local=outcome.local | found, probe_done=when_done(())))


def _aligned(federation: Federation, end: End, t: int, counts: Sequence[int]) -> list[End]:
    """The ends of a round after each of the ascending iteration counts, by one phase; 0 leaves it as it was."""
    phase, state = federation.phase, end.state
    trained = [count for count in counts if count]
    collected = phase.collect(state.adapter, t)
    ends = {0: end}
    for count, (adapter, metrics) in zip(trained, phase.align(state.adapter, collected, t, trained), strict=True):
        outcome = end.outcome._replace(cai=metrics, cai_done=when_done(metrics), rollout=collected.rollout)
        ends[count] = End(state._replace(adapter=adapter), outcome)
    return [ends[count] for count in counts]


def _aligned_together(federations: Sequence[Federation], ends: Sequence[End], t: int) -> list[End]:
    """The ends of a round after every run's phase, all in one program; a run without iterations stays as it was."""
    first = federations[0]
    phase = first.phase
    passed = align_together(
        first.setting.lm,
        phase.options,
        [end.state.adapter for end in ends],
        [federation.numbers for federation in federations],
        phase.source(t),
        phase.key(t),
    )
    done = when_done(passed[0][1])
    aligned = []
    for federation, end, (adapter, metrics, rollout) in zip(federations, ends, passed, strict=True):
        if not federation.config.cai.iterations:
            aligned.append(end)
            continue
        outcome = end.outcome._replace(cai=metrics, cai_done=done, rollout=rollout)
        aligned.append(End(end.state._replace(adapter=adapter), outcome))
    return aligned


def probe(setting: Setting, prompts: int, adapter: Adapter) -> dict[str, float | int]:
    """The answers to the fixed probe prompts, by the guard; waits for the device.

    `probe_harmless`: the share of safe ones, of those with a word and a score; NaN where none has both. How many have
    no score (`probe_without_verdict`), no word (`probe_empty`) and no end (`probe_cut_off`) is absent where none.
    """
    queries = setting.texts.materials.probe_prompts[:prompts]
    sampled = Sampled(samples=1, temperature=1.0, max_new=setting.config.eval.max_new_tokens)
    answers = answers_to(setting, adapter, "probe", queries, sampled)
    pairs = [(query, texts[0]) for query, texts in zip(queries, answers.texts, strict=True)]
    scores = score(setting.guarding.guard, pairs)
    has_words = np.array([bool(answer.strip()) for _, answer in pairs])
    known = scores[has_words & ~np.isnan(scores)]
    harmless = float(np.mean(known < setting.guarding.threshold)) if len(known) else float("nan")
    counts = {
        "probe_without_verdict": int(np.isnan(scores).sum()),
        "probe_empty": int((~has_words).sum()),
        "probe_cut_off": sum(cut[0] for cut in answers.cut_off),
    }
    return {"probe_harmless": harmless} | {name: count for name, count in counts.items() if count}
