"""The memory plan of a run: bytes a device in each of its phases, from shapes alone, before the base is loaded.

How far the plan is to be trusted is told in `memory.footprint`. Packed batches count as if they were not packed, an
upper bound. Not counted: what Python and the host hold besides, and the tensor that is being loaded.
"""

import dataclasses
from collections.abc import Callable, Iterator
from math import ceil, prod
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from fedjax_rai import mesh as meshes
from fedjax_rai.aliases import PyTree
from fedjax_rai.cai.options import make_objective, may_be_due
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.data.examples import bucket
from fedjax_rai.fed.algorithm import chunk_of_clients, in_turn, local_optimizer, make_algorithm
from fedjax_rai.fed.base import FedAlgorithm
from fedjax_rai.fed.client import spread_spec
from fedjax_rai.memory.footprint import (
    FLOAT,
    Computation,
    DecodingShape,
    base_bytes,
    compared,
    decoding,
    merged_bytes,
    nbytes,
    training,
    whole_sequences,
)
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.model.lora import abstract_adapter, lora_shape
from fedjax_rai.train.queue import refilled_at_once, slots_of
from fedjax_rai.train.step import rows_at_once

EXAMPLE_TOKEN = 4 + 1 + 4
"""Bytes of a token of an example: id, loss mask and segment."""
PROMPT_TOKEN = 4 + 1
"""Bytes of a token of a prompt: id, and whether it is one or padding."""


class Lengths(NamedTuple):
    """Padded lengths in tokens; 0 where there is no such text."""

    train: int = 0
    guard_request: int = 0  # the guard's own words around a pair; a released one reads `data.max_length` besides
    guard_lines: int = 0  # of these, what it may write itself before its verdict
    red: int = 0
    opening: int = 0  # red prompts behind few-shot turns
    few_shot: int = 0  # what those turns add to `data.max_length`
    critique: int = 0  # requests
    revision: int = 0
    prepared: int = 0
    replay: int = 0
    asked: int = 0  # prompts of the evaluation
    probe: int = 0
    choice: int = 0
    drift: int = 0  # benign prompts that the base answers

    def cut(self, max_length: int) -> "Lengths":
        """The lengths with a smaller `data.max_length`."""
        longest = bucket(max_length)
        names = ("train", "red", "prepared", "replay", "asked", "probe", "choice", "drift")
        texts = {name: min(getattr(self, name), longest) for name in names}
        opening = min(self.opening, bucket(max_length + self.few_shot))
        return self._replace(**texts, opening=opening)


class JudgeSize(NamedTuple):
    """A judge that is loaded beside the base when it is asked, and freed when it has answered."""

    name: str
    model: DecoderConfig
    request: int
    """Tokens of its own words around a pair, its lines among them."""
    is_base: bool
    """Its weights, without an adapter, are the base's, which are there."""
    lines: int = 0
    """Tokens that it may write itself before its verdict."""
    weights: int = 0
    """Bytes a device of its adapter, of its weights, and of their copy where there is one."""


class Sizes(NamedTuple):
    """All that a plan depends on besides the config."""

    model: Decoder
    guard: DecoderConfig | None  # of a released guard
    guarded: bool
    lengths: Lengths
    pairs: int
    red: int  # prompts
    prepared: int  # pairs
    devices: int
    widens: bool  # a CPU computes bfloat16 in float32: XLA widens the whole base first, and all that follows
    preparing: bool = False  # conversations are held, and nothing else is done
    judges: tuple[JudgeSize, ...] = ()


class Plan(NamedTuple):
    """Bytes a device, by part: what is there in every phase, and what each phase adds."""

    held: dict[str, int]
    phases: dict[str, dict[str, int]]

    def need(self, phase: str) -> int:
        """Bytes that a device needs during a phase."""
        return sum(self.held.values()) + sum(self.phases[phase].values())

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.need)


def plan(config: ExperimentConfig, sizes: Sizes) -> Plan:
    """The plan of an arm of that config; nothing is allocated. `config` may differ in how the model is computed."""
    sizes = _as_configured(config, sizes)
    held = _held(config, sizes)
    sizes = _with_weights(sizes, config)
    if sizes.widens and config.model.dtype == "bfloat16":
        mesh = abstract_mesh(config, sizes.devices)
        narrow = base_bytes(sizes.model.config, mesh)
        sizes = _with_architectures(sizes, lambda architecture: dataclasses.replace(architecture, dtype="float32"))
        # the base's copy in float32: what is quantised is in both, so the difference is half of the copy
        held["base in float32"] = 2 * (base_bytes(sizes.model.config, mesh) - narrow)
        sizes = _with_weights(sizes, config)
    sizes = _with_architectures(sizes, lambda architecture: _one_device_of(architecture, config.mesh.tensor))
    if sizes.preparing:
        return Plan(held, {"CAI, generating": _conversing(config, sizes)})
    return Plan(held, dict(_phases(config, sizes)))


COMPUTED = ("dtype", "attention", "quantize", "kv_cache", "remat", "unroll", "answering")
"""Keys of `model` that say how it is computed."""


def _as_configured(config: ExperimentConfig, sizes: Sizes) -> Sizes:
    """The sizes under the keys of `config` that change how a model is computed, its rank, and how long texts are."""
    computed = {key: getattr(config.model, key) for key in COMPUTED}
    sizes = _with_architectures(sizes, lambda architecture: dataclasses.replace(architecture, **computed))
    lora = dataclasses.replace(sizes.model.lora, rank=config.lora.rank)
    lengths = sizes.lengths.cut(config.data.max_length)
    return sizes._replace(model=Decoder(sizes.model.config, lora), lengths=lengths)


def _with_architectures(sizes: Sizes, change: Callable[[DecoderConfig], DecoderConfig]) -> Sizes:
    """The sizes with the architecture of the model, and of a released guard, changed."""
    model = Decoder(change(sizes.model.config), sizes.model.lora)
    guard = None if sizes.guard is None else change(sizes.guard)
    judges = tuple(judge._replace(model=change(judge.model)) for judge in sizes.judges)
    return sizes._replace(model=model, guard=guard, judges=judges)


def _with_weights(sizes: Sizes, config: ExperimentConfig) -> Sizes:
    """The sizes with the bytes of the judges' weights as they are now added."""
    mesh = abstract_mesh(config, sizes.devices)
    judges = []
    for judge in sizes.judges:
        more = 0 if judge.is_base else base_bytes(judge.model, mesh)
        judges.append(judge._replace(weights=judge.weights + more))
    return sizes._replace(judges=tuple(judges))


def _one_device_of(config: DecoderConfig, tensor: int) -> DecoderConfig:
    """The decoder whose arrays are as wide as one device's: heads, gate|up and vocabulary lie along `tensor`."""
    groups = ceil(config.num_key_value_heads / tensor)
    heads_per_group = ceil(config.num_attention_heads / tensor / groups)
    return dataclasses.replace(
        config,
        num_attention_heads=heads_per_group * groups,
        num_key_value_heads=groups,
        intermediate_size=2 * ceil(config.intermediate_size / tensor / 2),  # nf4 packs pairs of rows
        vocab_size=ceil(config.vocab_size / tensor),
        parts=1,
    )


def abstract_mesh(config: ExperimentConfig, devices: int) -> AbstractMesh:
    """The mesh of a config on so many devices, as a shape; no device is asked for."""
    fsdp = config.mesh.fsdp
    tensor = config.mesh.tensor
    clients = devices // (fsdp * tensor)
    return AbstractMesh((clients, fsdp, tensor), meshes.AXES, axis_types=(AxisType.Auto,) * 3)


def has_cai(config: ExperimentConfig) -> bool:
    """Whether a CAI phase may come due."""
    return may_be_due(config.cai, config.federated.rounds)


def chain_slots(opening: int, requests: int, new: int, revisions: int) -> int:
    """Tokens of the longest conversation that a critic reads and continues.

    `opening`: the padded length of what it begins with; `requests`: of both requests together; `new`: the most tokens
    of an answer.
    """
    return opening + revisions * (requests + 2 * new) + new


def guard_length(config: ExperimentConfig, sizes: Sizes) -> int:
    """Tokens of the longest pair that is scored, not padded: a client's, or an answer to a prompt of the evaluation,
    the probe or CAI, with the guard's request around it.
    """
    lengths = sizes.lengths
    pairs = [lengths.train]
    if lengths.asked:
        pairs.append(lengths.asked + config.eval.max_new_tokens)
    if lengths.probe:
        pairs.append(lengths.probe + config.eval.max_new_tokens)
    if lengths.red:
        pairs.append(lengths.red + config.cai.max_new_tokens)
    most = config.data.max_length
    if sizes.guard:
        most += lengths.guard_request
    return min(max(pairs) + lengths.guard_request, most)


def _held(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    """Bytes, by part, of what is there in every phase."""
    mesh = abstract_mesh(config, sizes.devices)
    lengths = sizes.lengths
    held = {
        "base": base_bytes(sizes.model.config, mesh),
        "adapters": _adapters_bytes(config, sizes),
    }
    guard_is_base = (config.guard.path, config.guard.revision) == (config.model.path, config.model.revision)
    if sizes.guard and not guard_is_base:
        held["guard"] = base_bytes(sizes.guard, mesh)
    if sizes.prepared:
        held["prepared set"] = EXAMPLE_TOKEN * 2 * sizes.prepared * lengths.prepared
    replaces = config.filter.enabled and config.filter.action == "replace"
    copies = 2 if replaces else 1  # with refusals, and without, as other arms have them
    examples = copies * EXAMPLE_TOKEN * sizes.pairs * lengths.train
    red_prompts = PROMPT_TOKEN * sizes.red * (lengths.red + lengths.opening)
    held["data"] = examples + red_prompts
    return held


def _adapters_bytes(config: ExperimentConfig, sizes: Sizes) -> int:
    """Bytes of the server's states, and of the adapter of a guard that is fitted, or was."""
    adapter = nbytes(abstract_adapter(sizes.model.config, sizes.model.lora))
    # a round's state is kept until the next one's is there
    states = adapter if sizes.preparing else 2 * _state_bytes(config, sizes)
    guard_is_fitted = sizes.guarded and sizes.guard is None
    return states + adapter if guard_is_fitted else states


def _algorithm(config: ExperimentConfig, sizes: Sizes) -> FedAlgorithm:
    return make_algorithm(config.federated, dict(config), abstract_mesh(config, sizes.devices))


def _state_bytes(config: ExperimentConfig, sizes: Sizes) -> int:
    """Bytes of what the server keeps from round to round, a device."""
    adapter = abstract_adapter(sizes.model.config, sizes.model.lora)
    algorithm = _algorithm(config, sizes)
    state = jax.eval_shape(algorithm.init, adapter)
    spread = algorithm.spread(state)
    return nbytes(state) - nbytes(spread) + _part_of_stacks(spread, abstract_mesh(config, sizes.devices))


def _part_of_stacks(stacks: PyTree, mesh: AbstractMesh) -> int:
    """Bytes of one device's part of adapters that are spread over all of them."""
    total = 0
    for leaf in jax.tree.leaves(stacks):
        lie = NamedSharding(mesh, spread_spec(leaf.shape, mesh))
        total += prod(lie.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


def _training_length(config: ExperimentConfig, lengths: Lengths) -> int:
    """Padded length, in tokens, of everything that a CAI phase trains on."""
    new = config.cai.max_new_tokens
    pairs = lengths.prepared or lengths.red + new
    if not lengths.replay:
        return pairs
    return max(pairs, lengths.replay + new)


def _pool_bytes(config: ExperimentConfig, sizes: Sizes) -> int:
    """Bytes of the chosen, rejected and replayed texts of a CAI phase, all of one length."""
    rows = 2 * config.cai.prompts
    if sizes.lengths.replay:
        rows += config.cai.replay
    return EXAMPLE_TOKEN * rows * _training_length(config, sizes.lengths)


def _computation(config: ExperimentConfig) -> Computation:
    # float32; and what it is cast to, which a CPU makes float32 again
    cotangent = FLOAT if config.model.dtype == "float32" else 2 * FLOAT
    return Computation(config.mesh.fsdp, cotangent, config.mesh.tensor)


def _part(config: ExperimentConfig, sizes: Sizes, rows: int) -> int:
    """How many rows of a batch one device computes."""
    return ceil(rows / meshes.ways(abstract_mesh(config, sizes.devices)))


def _phases(config: ExperimentConfig, sizes: Sizes) -> Iterator[tuple[str, dict[str, int]]]:
    """(name of a phase, the bytes that it adds by part) of every phase of an arm."""
    if sizes.guarded:
        yield from _guarding(config, sizes)
    if config.federated.rounds:
        yield "local training", _local_training(config, sizes)
    if config.federated.rounds and sizes.lengths.probe:
        yield "probe", _answering(config, sizes, sizes.lengths.probe)
    if sizes.lengths.asked:
        yield "evaluation, answering", _answering(config, sizes, sizes.lengths.asked)
        for judge in sizes.judges:
            yield from _judging(config, sizes, judge)
    if has_cai(config):
        yield from _constitutional(config, sizes)
    length = sizes.lengths.choice
    if length:
        rows = _part(config, sizes, config.eval.batch_size)
        yield "evaluation, choices", whole_sequences(sizes.model.config, rows, length, length, _computation(config))
    if sizes.lengths.drift:
        yield "evaluation, drift", _drifting(config, sizes)


def _drifting(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    """Reading the base's answers with and without the adapter: hidden states of one pass are kept over the other."""
    model = sizes.model.config
    rows = _part(config, sizes, config.eval.batch_size)
    length = bucket(sizes.lengths.drift + config.eval.max_new_tokens)
    return compared(model, rows, length, _computation(config))


def fits_guard(config: ExperimentConfig) -> bool:
    """Whether a guard that is a model is fitted: the base is, a released one where the config says so."""
    guard = config.guard
    fits = guard.path is None if guard.fit is None else guard.fit
    return fits and guard.adapter is None


def _guarding(config: ExperimentConfig, sizes: Sizes) -> Iterator[tuple[str, dict[str, int]]]:
    """Fitting the guard, where it is no released one, and scoring pairs with it."""
    computation = _computation(config)
    if fits_guard(config) and (config.guard.epochs or config.guard.steps):
        most = config.data.max_length + (sizes.lengths.guard_request if sizes.guard else 0)
        text = min(sizes.lengths.train + sizes.lengths.guard_request, most)
        fitted = sizes.model if sizes.guard is None else Decoder(sizes.guard, lora_shape(config.lora, sizes.guard))
        guard, devices = config.guard, meshes.ways(abstract_mesh(config, sizes.devices))
        at_once = rows_at_once(guard.batch_size, guard.micro_batch, devices)
        rows, parts = _part(config, sizes, at_once), guard.batch_size // at_once
        yield "fitting the guard", training(fitted, rows, bucket(text), computation, parts=parts)
    scorer = sizes.guard or sizes.model.config
    length = guard_length(config, sizes)
    yield "scoring", _reading(config, sizes, scorer, length)
    lines = sizes.lengths.guard_lines
    if lines:
        yield "scoring, the guard's lines", _writing_lines(config, sizes, scorer, length - lines, lines)


def _judging(config: ExperimentConfig, sizes: Sizes, judge: JudgeSize) -> Iterator[tuple[str, dict[str, int]]]:
    """A judge's weights, and a batch of the evaluation's answers that it reads, and writes lines to."""
    weights = {"judge": judge.weights}
    length = sizes.lengths.asked + config.eval.max_new_tokens + judge.request
    yield f"evaluation, {judge.name}", weights | _reading(config, sizes, judge.model, length)
    if judge.lines:
        writing = _writing_lines(config, sizes, judge.model, length - judge.lines, judge.lines)
        yield f"evaluation, {judge.name}'s lines", weights | writing


def _reading(config: ExperimentConfig, sizes: Sizes, reader: DecoderConfig, length: int) -> dict[str, int]:
    """A guard's reading of a batch of requests of so many tokens, for the one that comes next."""
    rows = _part(config, sizes, config.eval.batch_size)
    return whole_sequences(reader, rows, bucket(length), 1, _computation(config))


def _writing_lines(
    config: ExperimentConfig, sizes: Sizes, writer: DecoderConfig, request: int, lines: int
) -> dict[str, int]:
    """What a guard writes by itself before its verdict, with a cache of request and lines, which are freed with it."""
    rows = _part(config, sizes, config.eval.batch_size)
    length = bucket(request)
    return decoding(writer, DecodingShape(rows, length, length + lines), _computation(config))


def _answering(config: ExperimentConfig, sizes: Sizes, length: int) -> dict[str, int]:
    """Answering a batch of the evaluation's prompts of `length` tokens."""
    rows = _part(config, sizes, config.eval.batch_size)
    shape = DecodingShape(rows, length, length + config.eval.max_new_tokens)
    parts = decoding(sizes.model.config, shape, _computation(config)) | _merged_copy(config, sizes)
    # Where longer prompts follow shorter ones the cache is copied to a longer one, while nothing else is computed.
    parts["activations"] = max(parts["activations"], parts["KV cache"])
    if config.mesh.fsdp > 1:
        parts["kernels in use"] *= 2  # gathered for prompts, and for the tokens that follow
    return parts


def _merged_copy(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    """The copies of the kernels that have the adapter in them, where texts are generated by such."""
    if config.model.answering == "apart":
        return {}
    return {"merged kernels": merged_bytes(sizes.model, config.mesh.fsdp)}


def _local_training(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    """Local training of a chunk of clients at once, and what the algorithm keeps of the cohort."""
    federated = config.federated
    mesh = abstract_mesh(config, sizes.devices)
    adapter = nbytes(abstract_adapter(sizes.model.config, sizes.model.lora))
    chunk = chunk_of_clients(federated, mesh)
    if in_turn(federated, mesh):
        at_once, devices = chunk, meshes.ways(mesh)
    else:
        at_once, devices = chunk // mesh.shape["clients"], mesh.shape["fsdp"]
    size = rows_at_once(federated.batch_size, federated.micro_batch, devices)
    rows = ceil(size / devices)
    kept = ceil(federated.cohort / chunk) * at_once  # of the cohort, padded to whole chunks, on this device
    length = sizes.lengths.train
    computation = _computation(config)._replace(optimizer=local_optimizer(federated))
    pieces = federated.batch_size // size
    parts = training(sizes.model, rows, length, computation, clients=at_once, parts=pieces)
    parts["deltas"] = kept * adapter
    for name, adapters in _algorithm(config, sizes).holds(kept, at_once).items():
        parts[name] = adapters * adapter
    return parts


def _constitutional(config: ExperimentConfig, sizes: Sizes) -> Iterator[tuple[str, dict[str, int]]]:
    """The programs of a CAI phase. What was generated stays until the last of them is done."""
    model = sizes.model
    cai = config.cai
    replay = sizes.lengths.replay
    computation = _computation(config)
    if replay:
        shape = DecodingShape(_part(config, sizes, cai.replay), replay, replay + cai.max_new_tokens)
        yield "answering replay", decoding(model.config, shape, computation)
    held = {"revisions": _pool_bytes(config, sizes)}
    if not sizes.prepared:
        generating = _generating(config, sizes)
        yield "CAI, generating", generating
        held["revisions"] += generating["conversations"]
    length = _training_length(config, sizes.lengths)
    passes = 1
    if make_objective(cai).preference is not None:
        in_one_batch = cai.prompts <= cai.batch_size
        # The passes over chosen and rejected follow one another where each is a loop over batches.
        read = 2 * _part(config, sizes, cai.prompts) if in_one_batch else _part(config, sizes, cai.batch_size)
        copied = {"pairs being read": EXAMPLE_TOKEN * cai.prompts * length}  # chosen or rejected
        yield "CAI, reference", held | copied | whole_sequences(model.config, read, length, length, computation)
        passes = 2  # chosen and rejected go through together
    devices = meshes.ways(abstract_mesh(config, sizes.devices))
    size = rows_at_once(cai.batch_size, cai.micro_batch, devices if cai.batch_size % devices == 0 else 1)
    rows = passes * size
    if rows % devices == 0:  # else every device trains on all rows
        rows = _part(config, sizes, rows)
    yield "CAI, training", held | training(model, rows, length, computation, parts=cai.batch_size // size)


def _conversing(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    """Generating `cai.prompts` conversations by queues: the larger of responses, and of critiques and revisions."""
    cai, lengths, model = config.cai, sizes.lengths, sizes.model.config
    at_once = cai.prompts_per_chunk or cai.prompts
    rows = _part(config, sizes, at_once)
    responding = DecodingShape(rows, lengths.red, lengths.red + cai.max_new_tokens, sorts=_sorts(config))
    length = bucket(first_text(config, lengths))
    slots = ring_slots(config, lengths, length)
    reading = refilled_at_once(rows)
    fresh = ceil(reading * (length + slots) / rows)  # their cache as it is read, and on the ring
    revising = DecodingShape(rows, length, slots, fresh, reading, _sorts(config))
    found = [decoding(model, shape, _computation(config)) for shape in (responding, revising)]
    if at_once < cai.prompts:
        # Where longer texts follow shorter ones the cache is copied to a longer one, while nothing else is computed.
        for parts in found:
            parts["activations"] = max(parts["activations"], parts["KV cache"])
    parts = max(found, key=_total)
    if config.mesh.fsdp > 1:
        parts["kernels in use"] *= 3  # gathered for prompts, for requests, and for the tokens that follow
    return parts | _merged_copy(config, sizes)


def _total(parts: dict[str, int]) -> int:
    return sum(parts.values())


def first_text(config: ExperimentConfig, lengths: Lengths) -> int:
    """Tokens of the longest text that a set's conversations go on from: prompt, response, and a critique's request."""
    return (lengths.opening or lengths.red) + config.cai.max_new_tokens + lengths.critique


def ring_slots(config: ExperimentConfig, lengths: Lengths, first: int) -> int:
    """Slots of the ring in which a set's conversations are criticised and revised, `first` tokens at the beginning."""
    request = max(lengths.critique, lengths.revision)
    return slots_of(first, request, 2 * config.cai.revisions - 1, config.cai.max_new_tokens)


def _sorts(config: ExperimentConfig) -> bool:
    return config.cai.top_k is not None or config.cai.top_p is not None


def _generating(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    """Generating a chunk of conversations at once, split over the devices; and the texts of all conversations.

    A critic that is another model than the policy fills a second cache, and XLA does not free the policy's before.
    """
    cai = config.cai
    lengths = sizes.lengths
    new = cai.max_new_tokens
    opening = lengths.opening or lengths.red
    appended = [opening, lengths.critique, lengths.revision]
    further_slots = 0
    if cai.critic != "policy" or lengths.opening > 0:
        appended.append(new)
        further_slots = lengths.red + new
    chunk = min(cai.prompts_per_chunk or cai.prompts, cai.prompts)
    shape = DecodingShape(
        rows=_part(config, sizes, chunk),
        length=max(appended),
        slots=chain_slots(opening, lengths.critique + lengths.revision, new, cai.revisions),
        further_slots=further_slots,
        sorts=_sorts(config),
    )
    parts = decoding(sizes.model.config, shape, _computation(config)) | _merged_copy(config, sizes)
    if config.mesh.fsdp > 1:
        parts["kernels in use"] *= 2  # the unembedding is gathered for the first answer, and for all that follow
    texts = 1 + 2 * cai.revisions  # the first answer, then a critique and a revision each time
    parts["conversations"] = PROMPT_TOKEN * cai.prompts * texts * new
    return parts
