"""Our side of a measurement: a federated round, decoding, a CAI phase or scoring at given sizes.

python -m fedjax_rai.bench.work answers `bench.protocol` on standard input and output.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.aliases import Adapter, Array, PyTree
from fedjax_rai.bench import machine
from fedjax_rai.bench.floors import Part, Sizes, cai_floor, decoding_floor, job_floor, round_floor, score_floor
from fedjax_rai.bench.protocol import Prepared, serve
from fedjax_rai.bench.random_inputs import random_examples, random_lm, random_prompts, random_texts, random_tokens
from fedjax_rai.bench.shapes import CaiShape, DecodingShape, RoundShape, ScoreShape, model_json
from fedjax_rai.cai.align import align_in_place, begin
from fedjax_rai.cai.options import Options, make_numbers, make_objective, make_sampling
from fedjax_rai.cai.programs import OnlineSource, outcome
from fedjax_rai.cai.revise import Requests, RolloutBatch
from fedjax_rai.config.schema import CaiConfig, FederatedConfig, LoraConfig
from fedjax_rai.data.examples import length_batches
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.cost import parameters
from fedjax_rai.experiment.together import federated_round
from fedjax_rai.fed.algorithm import make_algorithm
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Cohort
from fedjax_rai.memory import measured
from fedjax_rai.mesh import everywhere_but_spread, make_mesh, replicated, ways
from fedjax_rai.model.cache import empty_cache
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.families import decoder_config
from fedjax_rai.model.lora import NO_LORA, Lora, init_adapter, lora_shape
from fedjax_rai.runs.compiled import keep_compiled
from fedjax_rai.safety.form import two_verdicts
from fedjax_rai.safety.guard import first_token_score
from fedjax_rai.train.dispatch import read_late
from fedjax_rai.train.generate import Decoding, Sampling, generate
from fedjax_rai.train.queue import (
    answer_all,
    answer_in_batches,
    read,
    refilled_at_once,
    steps_in_batches,
    steps_in_queue,
)
from fedjax_rai.train.speaker import merged
from fedjax_rai.train.step import PLAIN, TrainState

NO_END = np.array([-1], np.int32)
CORPUS = 64  # rows that the clients' batches are drawn from


class Subject(NamedTuple):
    """The model that a work is done with."""

    lm: LM
    lora: Lora
    adapter: Adapter
    mesh: jax.sharding.Mesh

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        return self.lm.model.config.vocab_size

    @property
    def sizes(self) -> Sizes:
        """What the floors know of it."""
        config = self.lm.model.config
        kept = {name: leaf for name, leaf in self.lm.base.items() if name != "embed_tokens"}
        read = self.lm.base if config.tie_word_embeddings else kept
        slot = jax.eval_shape(lambda: empty_cache(config, batch=1, slots=1))
        head = self.lm.base["embed_tokens" if config.tie_word_embeddings else "lm_head"]
        return Sizes(parameters(config, self.lora), _bytes((read, self.adapter)), _bytes(head), _bytes(slot))


def _bytes(tree: PyTree) -> int:
    """Of all leaves, which may be shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class Counted(NamedTuple):
    """What a run of a work was, and what it cannot do without."""

    tokens: int
    floor: list[Part]
    others: dict[str, int] = {}
    """Further numbers of its row, by name."""


class Work(NamedTuple):
    """What is timed."""

    run: Callable[[], Any]
    counted: Callable[[], Counted]
    """Of the last run."""


def known(tokens: int, floor: list[Part]) -> Callable[[], Counted]:
    """What every run is, known before the first."""
    return lambda: Counted(tokens, floor)


def prepare(request: dict[str, Any]) -> Prepared:
    """The work of a request, compiled by its first run; raises InputError for what cannot be computed here."""
    keep_compiled()
    counted = machine.Compilations()
    _check_devices(request["devices"])
    subject = make_subject(request)
    work = WORKS[request["work"]](request, subject)
    counted.clear()  # programs that make inputs are none of the work's

    def ready() -> dict[str, Any]:
        found = {"compilations": counted.compiled, "programs_found": counted.found}
        counted.clear()
        tokens, floor, others = work.counted()
        return found | {"tokens": tokens, "floor": floor, "counts": others} | machine.description()

    def end() -> dict[str, Any]:
        again = counted.compiled + counted.found
        # before the limits are measured, which hold matrices of their own
        held = {"host_memory": measured.process_peak(), "device_memory": measured.device_peaks()[0].peak}
        return {"recompilations": again} | held | machine.peaks(request["computed"]["dtype"])

    return Prepared(work.run, ready, end)


def _check_devices(devices: int | None) -> None:
    there = jax.device_count()
    if devices is not None and devices != there:
        raise InputError(f"--devices {devices}: jax sees {there} ({jax.devices()[0].device_kind})")


def make_subject(request: dict[str, Any]) -> Subject:
    """The model of a request, a fresh adapter beside it, both laid out over all devices."""
    model, computed = request["model"], request["computed"]
    mesh = make_mesh(**request["mesh"])
    config = decoder_config(model_json(model), model, **computed, parts=mesh.shape["tensor"])
    lora = lora_shape(LoraConfig.model_validate(request["lora"]), config)
    lm = random_lm(model, mesh, lora, **computed)
    adapter = init_adapter(config, lora, jax.random.key(1))
    return Subject(lm, lora, jax.device_put(adapter, replicated(mesh)), mesh)


def round_work(request: dict[str, Any], subject: Subject) -> Work:
    """A federated round, FedAvg with Adam if the config does not say otherwise."""
    shape = RoundShape(**request["shape"])
    sizes = {"clients": shape.clients, "cohort": shape.clients, "batch_size": shape.batch}
    fields = {**request["federated"], **sizes, "clients_per_chunk": shape.chunk, "micro_batch": request["micro_batch"]}
    algorithm = make_algorithm(FederatedConfig.model_validate(fields), request["sections"], subject.mesh)
    state = everywhere_but_spread(algorithm.init(subject.adapter), subject.mesh)
    batch = _batch(subject.vocabulary, shape)

    def run() -> None:
        jax.block_until_ready(federated_round(algorithm, state, subject.lm, batch))

    return Work(run, known(shape.tokens, round_floor(subject.sizes, shape)))


def _batch(vocabulary: int, shape: RoundShape) -> RoundBatch:
    examples = random_examples(vocabulary, CORPUS, shape.length)
    size = (shape.clients, shape.steps, shape.batch)
    rows = np.random.default_rng(2).integers(0, CORPUS, size, np.int32)
    cohort = Cohort(jnp.arange(shape.clients), jnp.asarray(rows), jnp.ones(shape.clients))
    return RoundBatch(examples, cohort, jnp.float32(1e-4))


def decoding_work(request: dict[str, Any], subject: Subject) -> Work:
    """Greedy decoding with an adapter; with `answers`, a job."""
    shape = DecodingShape(**request["shape"])
    if shape.adapter == "merged":
        lm = jax.jit(merged)(subject.lm, subject.adapter)
        subject = Subject(lm, NO_LORA, {"layers": {}}, subject.mesh)
    if shape.answers is not None:
        return job_work(shape, subject)
    prompts = random_prompts(subject.vocabulary, shape)
    keys = jax.random.split(jax.random.key(2), shape.rows)
    decoding = Decoding(Sampling(np.float32(0)), NO_END, shape.new)

    def run() -> None:
        jax.block_until_ready(generate(subject.lm, subject.adapter, prompts, keys, decoding))

    return Work(run, known(shape.tokens, decoding_floor(subject.sizes, shape)))


def job_work(shape: DecodingShape, subject: Subject) -> Work:
    """Answers of different lengths to more prompts than there are rows, as an evaluation asks for them.

    Every token is as likely as any other, and of all tokens as many end an answer as make it a third of `new` long in
    the mean. So the lengths are the same in both orders, on every machine and in every type.
    """
    texts = random_texts(subject.vocabulary, shape.prompts)
    keys = jax.random.split(jax.random.key(2), len(texts))
    ends = np.arange(max(1, min(3 * subject.vocabulary // shape.new, subject.vocabulary)), dtype=np.int32)
    decoding = Decoding(Sampling(np.float32(np.inf)), ends, shape.new)
    answering = {"queue": answer_all, "batches": answer_in_batches}[shape.order or "queue"]
    lengths = np.zeros(len(texts), int)
    parts = ways(subject.mesh)

    def run() -> None:
        for finished in read_late(answering(subject.lm, subject.adapter, texts, keys, decoding, shape.rows)):
            numbers, answers = read(finished)
            lengths[numbers] = answers.valid.sum(axis=1)

    def counted() -> Counted:
        floor = job_floor(subject.sizes, shape, lengths.tolist())
        return Counted(int(lengths.sum()), floor, steps(shape, lengths, parts))

    return Work(run, counted)


def steps(shape: DecodingShape, lengths: np.ndarray, parts: int) -> dict[str, int]:
    """Decode steps of a job, each of all rows: in its order, in both, and at least. `parts`: of the rows, by device."""
    by_length = np.argsort(shape.prompts, kind="stable")  # as prompts are given rows
    ordered = lengths[by_length].tolist()
    rows = parts * -(-shape.rows // parts)
    counts = {
        "queue": steps_in_queue(ordered, rows, refilled_at_once(rows, parts)),
        "batches": steps_in_batches(ordered, rows),
    }
    least = max(-(-sum(ordered) // rows), max(ordered))
    in_both = {f"steps_in_{order}": count for order, count in counts.items()}
    return {"steps": counts[shape.order or "queue"], **in_both, "steps_at_least": least}


def cai_work(request: dict[str, Any], subject: Subject) -> Work:
    """A phase of constitutional AI: respond, critique, revise, and train, by the config's method."""
    shape = CaiShape(**request["shape"])
    sizes = {"iterations": shape.iterations, "prompts": shape.prompts, "revisions": shape.revisions}
    fields = {**request["cai"], **sizes, "batch_size": shape.batch, "max_new_tokens": shape.new}
    fields["micro_batch"] = request["micro_batch"]
    cai = CaiConfig.model_validate(fields)
    options = _options(cai, shape, subject.mesh)
    source = _source(cai, shape, subject.vocabulary)
    numbers = make_numbers(cai, replayed=cai.replay)
    sampling = make_sampling(cai)
    key = jax.random.key(2)
    answering = shape.adapter or "apart"
    lm = LM(Decoder(replace(subject.lm.model.config, answering=answering), subject.lora), subject.lm.base)

    def run() -> None:
        collected = source.collect(lm, options, subject.adapter, sampling)
        progress = jax.device_put(begin(subject.adapter), replicated(subject.mesh), may_alias=False)
        done = progress._replace(state=TrainState({}, ()))
        progress = align_in_place(lm, options, progress.state, done, collected.pool, numbers, key)
        jax.block_until_ready(outcome(subject.adapter, progress))

    is_preference = options.objective.preference is not None
    without = subject._replace(lora=NO_LORA, adapter={"layers": {}})
    generating = without.sizes if answering == "merged" else subject.sizes
    floor = cai_floor(subject.sizes, shape, is_preference, not options.critic_is_policy, generating)
    return Work(run, known(shape.tokens, floor))


def _options(cai: CaiConfig, shape: CaiShape, mesh: jax.sharding.Mesh) -> Options:
    chunk = shape.chunk or shape.prompts
    parts = ways(mesh)
    return Options(
        end_ids=(0,),  # a random model hardly ever gives it, and an answer that ends early ends no other
        max_new=shape.new,
        chunk=-(-chunk // parts) * parts,
        batch_size=shape.batch,
        critic_is_policy=cai.critic == "policy",
        train_on_revisions=cai.target == "revision",
        reference_is_base=cai.reference == "base",
        objective=make_objective(cai),
        mesh=mesh,
        trainer=PLAIN._replace(micro_batch=cai.micro_batch),
    )


def _source(cai: CaiConfig, shape: CaiShape, vocabulary: int) -> OnlineSource:
    """Random prompts and requests, and replayed answers of the same length."""
    prompts = random_tokens(vocabulary, shape.prompts, shape.prompt)
    rows = jnp.arange(shape.prompts)
    principles = jnp.zeros((shape.prompts, shape.revisions), jnp.int32)
    again = None if cai.critic == "policy" else prompts
    batch = RolloutBatch(rows, prompts, again, principles, jax.random.split(jax.random.key(3), shape.prompts))
    request = random_tokens(vocabulary, 1, shape.request)
    replay = random_examples(vocabulary, cai.replay, shape.prompt + shape.new)
    return OnlineSource(batch, Requests(request, request), replay)


def score_work(request: dict[str, Any], subject: Subject) -> Work:
    """A fitted guard's scores of pairs, sorted by length and padded to buckets as `safety.guard.score` does it."""
    shape = ScoreShape(**request["shape"])
    texts = random_texts(subject.vocabulary, shape.lengths)
    verdicts = two_verdicts(1, 2)

    def dispatched() -> Iterator[tuple[np.ndarray, Array]]:
        for rows, batch in length_batches(texts, shape.batch, 0):
            yield rows, first_token_score(subject.lm, subject.adapter, batch.tokens, batch.valid, verdicts).scores

    def run() -> None:
        scores = np.zeros(shape.pairs, np.float32)
        for rows, found in read_late(dispatched()):
            scores[rows] = np.asarray(found)[: len(rows)]

    return Work(run, known(shape.tokens, score_floor(subject.sizes, shape)))


WORKS: dict[str, Callable[[dict[str, Any], Subject], Work]] = {
    "round": round_work,
    "generate": decoding_work,
    "cai": cai_work,
    "score": score_work,
}
"""What is measured, by name."""


if __name__ == "__main__":
    serve(prepare)
