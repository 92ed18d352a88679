"""The memory plan of a run: bytes a device in each of its phases, from shapes alone, before the base is loaded.

How far it is to be trusted is said in `run.footprint`. Packed batches count as if they were not, an upper bound. Not
counted: what Python and the host hold besides, and the tensor that is being loaded.
"""

import dataclasses
from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from fedjax_rai import mesh as meshes
from fedjax_rai.cai.options import make_objective
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.data.examples import bucket
from fedjax_rai.fed.algorithm import make_algorithm
from fedjax_rai.fed.base import FedAlgorithm
from fedjax_rai.memory.footprint import How, base_bytes, decoding, nbytes, training, whole_sequences
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.model.lora import abstract_adapter

EXAMPLE, PROMPT = 4 + 1 + 4, 4 + 1  # bytes of a token: id, loss mask and segment; id and whether it is one


class Lengths(NamedTuple):
    """Padded lengths in tokens; 0 where there is no such text."""

    train: int = 0
    guard_request: int = 0  # the guard's own words around a pair; a released one reads `data.max_length` besides
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

    def cut(self, max_length: int) -> "Lengths":
        """With a smaller `data.max_length`."""
        names = ("train", "red", "prepared", "replay", "asked", "probe", "choice")
        texts = {name: min(getattr(self, name), bucket(max_length)) for name in names}
        return self._replace(**texts, opening=min(self.opening, bucket(max_length + self.few_shot)))


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
    saying: bool = False  # conversations are held, and nothing else is done


class Plan(NamedTuple):
    """Bytes a device, by part: what is there in every phase, and what each phase adds."""

    held: dict[str, int]
    phases: dict[str, dict[str, int]]

    def need(self, phase: str) -> int:
        return sum(self.held.values()) + sum(self.phases[phase].values())

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.need)


def plan(config: ExperimentConfig, sizes: Sizes) -> Plan:
    """The plan of an arm of that config; nothing is allocated. `config` may differ in how the model is computed."""
    own = config.model
    computed = {"dtype": own.dtype, "attention": own.attention, "quantize": own.quantize, "remat": own.remat}
    lora = dataclasses.replace(sizes.model.lora, rank=config.lora.rank)
    model = Decoder(dataclasses.replace(sizes.model.config, **computed), lora)
    guard = dataclasses.replace(sizes.guard, **computed) if sizes.guard else None
    sizes = sizes._replace(model=model, guard=guard, lengths=sizes.lengths.cut(config.data.max_length))
    held, mesh = _held(config, sizes), abstract_mesh(config, sizes.devices)
    shapes = [model.config, *([guard] if guard else [])]
    if sizes.widens and own.dtype == "bfloat16":
        shapes = [dataclasses.replace(shape, dtype="float32") for shape in shapes]
        # a copy of what is not quantised, which is what makes the difference
        held["base in float32"] = 2 * (base_bytes(shapes[0], mesh) - base_bytes(model.config, mesh))
    shape, *others = (_share(shape, config.mesh.tensor) for shape in shapes)
    local = sizes._replace(model=Decoder(shape, lora), guard=others[0] if others else None)
    if sizes.saying:
        return Plan(held, {"CAI, generating": _generating(config, local)})
    return Plan(held, dict(_phases(config, local)))


def _share(config: DecoderConfig, tensor: int) -> DecoderConfig:
    """The decoder whose arrays are as wide as one device's: heads, gate|up and vocabulary lie along `tensor`."""
    groups = ceil(config.num_key_value_heads / tensor)
    return dataclasses.replace(
        config,
        num_attention_heads=ceil(config.num_attention_heads / tensor / groups) * groups,
        num_key_value_heads=groups,
        intermediate_size=2 * ceil(config.intermediate_size / tensor / 2),  # nf4 packs pairs of rows
        vocab_size=ceil(config.vocab_size / tensor),
    )


def abstract_mesh(config: ExperimentConfig, devices: int) -> AbstractMesh:
    fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
    return AbstractMesh((devices // (fsdp * tensor), fsdp, tensor), meshes.AXES, axis_types=(AxisType.Auto,) * 3)


def has_cai(config: ExperimentConfig) -> bool:
    """Whether a CAI phase may come due."""
    own = config.cai
    return own.enabled and own.iterations > 0 and config.federated.rounds >= own.every


def chain_slots(opening: int, requests: int, new: int, revisions: int) -> int:
    """Tokens of the longest conversation that a critic reads and continues: from the padded lengths of its opening and
    of both requests together, and the most tokens of an answer.
    """
    return opening + revisions * (requests + 2 * new) + new


def guard_length(config: ExperimentConfig, sizes: Sizes) -> int:
    """Of the longest pair that is scored, not padded: a client's, or an answer of the evaluation, the probe, CAI."""
    own, new = sizes.lengths, config.eval.max_new_tokens
    answers = [(own.asked, new), (own.probe, new), (own.red, config.cai.max_new_tokens)]
    pair = max([own.train, *(length + more for length, more in answers if length)])
    most = config.data.max_length + (own.guard_request if sizes.guard else 0)
    return min(pair + own.guard_request, most)


def _held(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    mesh, model, own = abstract_mesh(config, sizes.devices), sizes.model, sizes.lengths
    adapter = nbytes(abstract_adapter(model.config, model.lora))
    # a round's state is kept until the next one's is there
    states = adapter if sizes.saying else 2 * _state_bytes(config, sizes)
    fitted = adapter if sizes.guarded and sizes.guard is None else 0
    parts = {"base": base_bytes(model.config, mesh), "adapters": states + fitted}
    if sizes.guard and (config.guard.path, config.guard.revision) != (config.model.path, config.model.revision):
        parts["guard"] = base_bytes(sizes.guard, mesh)
    data = EXAMPLE * sizes.pairs * own.train + PROMPT * sizes.red * (own.red + own.opening)
    if sizes.prepared:
        parts["prepared set"] = EXAMPLE * 2 * sizes.prepared * own.prepared
    return parts | {"data": data}


def _algorithm(config: ExperimentConfig, sizes: Sizes) -> FedAlgorithm:
    return make_algorithm(config.federated, dict(config), abstract_mesh(config, sizes.devices))


def _state_bytes(config: ExperimentConfig, sizes: Sizes) -> int:
    """Of what the server keeps from round to round."""
    adapter = abstract_adapter(sizes.model.config, sizes.model.lora)
    return nbytes(jax.eval_shape(_algorithm(config, sizes).init, adapter))


def _taught_length(config: ExperimentConfig, lengths: Lengths) -> int:
    """Of everything that a CAI phase trains on."""
    new = config.cai.max_new_tokens
    return max(lengths.prepared or lengths.red + new, lengths.replay + new if lengths.replay else 0)


def _pool_bytes(config: ExperimentConfig, sizes: Sizes) -> int:
    """Chosen, rejected and replayed, in one length."""
    rows = 2 * config.cai.prompts + (config.cai.replay if sizes.lengths.replay else 0)
    return EXAMPLE * rows * _taught_length(config, sizes.lengths)


def _how(config: ExperimentConfig) -> How:
    narrow = jnp.dtype(config.model.dtype).itemsize
    return How(config.mesh.fsdp, 4 + (narrow if narrow < 4 else 0))


def _phases(config: ExperimentConfig, sizes: Sizes) -> Iterator[tuple[str, dict[str, int]]]:
    model, lengths = sizes.model, sizes.lengths
    fed, own, how = config.federated, config.eval, _how(config)
    if sizes.guarded and sizes.guard is None and config.guard.steps:
        length = bucket(min(lengths.train + lengths.guard_request, config.data.max_length))
        yield "fitting the guard", training(model, config.guard.batch_size, length, how)
    if sizes.guarded:
        scorer = sizes.guard or model.config
        yield "scoring", whole_sequences(scorer, own.batch_size, bucket(guard_length(config, sizes)), 1, how)
    if fed.rounds:
        yield "local training", _local_training(config, sizes)
    for name, asked in (("probe", lengths.probe if fed.rounds else 0), ("evaluation, answering", lengths.asked)):
        if asked:
            yield name, decoding(model.config, own.batch_size, asked, asked + own.max_new_tokens, how)
    if has_cai(config):
        yield from _constitutional(config, sizes)
    if whole := lengths.choice:
        yield "evaluation, choices", whole_sequences(model.config, own.batch_size, whole, whole, how)


def _local_training(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    fed, mesh = config.federated, abstract_mesh(config, sizes.devices)
    adapter = nbytes(abstract_adapter(sizes.model.config, sizes.model.lora))
    own = ceil(fed.clients_per_chunk / mesh.shape["clients"])  # a chunk is a multiple of the clients axis
    in_chunk = own * mesh.shape["clients"]
    kept = ceil(fed.cohort / in_chunk) * own  # of the cohort, padded to whole chunks, on this device
    parts = training(sizes.model, fed.batch_size, sizes.lengths.train, _how(config), own)
    more = _algorithm(config, sizes).holds(kept, own)
    return parts | {"deltas": kept * adapter} | {name: count * adapter for name, count in more.items()}


def _constitutional(config: ExperimentConfig, sizes: Sizes) -> Iterator[tuple[str, dict[str, int]]]:
    """The programs of a CAI phase. What was said stays until the last of them is done."""
    model, own, cai, how = sizes.model, sizes.lengths, config.cai, _how(config)
    if own.replay:
        slots = own.replay + cai.max_new_tokens
        yield "answering replay", decoding(model.config, cai.replay, own.replay, slots, how)
    held, pairs, longest = {"revisions": _pool_bytes(config, sizes)}, cai.prompts, _taught_length(config, own)
    if not sizes.prepared:
        yield "CAI, generating", (generating := _generating(config, sizes))
        held["revisions"] += generating["conversations"]
    preferred = make_objective(cai).preference is not None
    if preferred:
        # Its two passes follow one another if each is a loop over batches. Either reads one of the sets from a copy.
        read = min(cai.batch_size, pairs) * (2 if pairs <= cai.batch_size else 1)
        parts = held | {"pairs being read": EXAMPLE * pairs * longest}
        yield "CAI, reference", parts | whole_sequences(model.config, read, longest, longest, how)
    rows = cai.batch_size * (2 if preferred else 1)  # chosen and rejected go through together
    across = abstract_mesh(config, sizes.devices).shape["clients"]
    yield "CAI, training", held | training(model, rows // across if rows % across == 0 else rows, longest, how)


def _generating(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    """A chunk of conversations at once, spread over the clients axis; what all of them said.

    A critic of its own fills a second cache, and XLA does not free the policy's before.
    """
    own, cai, across = sizes.lengths, config.cai, abstract_mesh(config, sizes.devices).shape["clients"]
    chunk = min(cai.prompts_per_chunk or cai.prompts, cai.prompts)
    apart = cai.critic != "policy" or own.opening > 0
    fed = max(own.opening or own.red, own.critique, own.revision, cai.max_new_tokens if apart else 0)
    further = own.red + cai.max_new_tokens if apart else 0
    slots = chain_slots(own.opening or own.red, own.critique + own.revision, cai.max_new_tokens, cai.revisions)
    sorts = cai.top_k is not None or cai.top_p is not None
    parts = decoding(sizes.model.config, ceil(chunk / across), fed, slots, _how(config), further, sorts)
    return parts | {"conversations": PROMPT * cai.prompts * (1 + 2 * cai.revisions) * cai.max_new_tokens}
