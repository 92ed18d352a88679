"""The memory plan of a run: bytes a device in each of its phases, from shapes alone, before the base is loaded.

How far it is to be trusted is said in `run.footprint`. Packed batches count as if they were not, an upper bound. Not
counted: what Python and the host hold besides, and the tensor that is being loaded.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from fedjax_rai import mesh as meshes
from fedjax_rai.config import ExperimentConfig
from fedjax_rai.data.examples import bucket, encode_chats, encode_questions
from fedjax_rai.errors import InputError
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.model.lora import abstract_adapter
from fedjax_rai.run import log
from fedjax_rai.run.footprint import How, base_bytes, decoding, nbytes, training, whole_sequences
from fedjax_rai.run.setting import Setting
from fedjax_rai.safety.guard import guard_form
from fedjax_rai.text.prompts import answered, question

GIB = 2**30


class Lengths(NamedTuple):
    """Padded lengths in tokens; 0 where there is no such text."""

    train: int
    guard: int  # a pair in the guard's form
    guard_request: int  # what that form adds to `data.max_length`
    red: int
    requests: int  # for critique and revision, together
    replay: int
    asked: int  # prompts of the evaluation
    choice: int

    def cut(self, max_length: int) -> "Lengths":
        """With a smaller `data.max_length`."""
        texts = {name: min(getattr(self, name), bucket(max_length)) for name in ("train", "red", "replay", "asked")}
        guard = min(self.guard, bucket(max_length + self.guard_request))
        return self._replace(**texts, guard=guard, choice=min(self.choice, bucket(max_length)))


class Sizes(NamedTuple):
    """All that a plan depends on besides the config."""

    model: Decoder
    guard: DecoderConfig | None  # of a released guard
    guarded: bool
    lengths: Lengths
    pairs: int
    devices: int
    widens: bool  # a CPU computes bfloat16 in float32: XLA widens the whole base first, and all that follows


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
    held, mesh = _held(config, sizes), _mesh(config, sizes.devices)
    shapes = [model.config, *([guard] if guard else [])]
    if sizes.widens and own.dtype == "bfloat16":
        shapes = [dataclasses.replace(shape, dtype="float32") for shape in shapes]
        # a copy of what is not quantised, which is what makes the difference
        held["base in float32"] = 2 * (base_bytes(shapes[0], mesh) - base_bytes(model.config, mesh))
    shape, *others = (_share(shape, config.mesh.tensor) for shape in shapes)
    local = sizes._replace(model=Decoder(shape, lora), guard=others[0] if others else None)
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


def _mesh(config: ExperimentConfig, devices: int) -> AbstractMesh:
    fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
    return AbstractMesh((devices // (fsdp * tensor), fsdp, tensor), meshes.AXES, axis_types=(AxisType.Auto,) * 3)


def _held(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    mesh, model = _mesh(config, sizes.devices), sizes.model
    adapter = nbytes(abstract_adapter(model.config, model.lora))
    # A round's state is kept until the next one's is there. SCAFFOLD's has a control variate of everyone and its own.
    states = 2 * (1 + (1 + config.federated.clients if config.federated.algorithm == "scaffold" else 0))
    fitted = 1 if sizes.guarded and sizes.guard is None else 0
    parts = {"base": base_bytes(model.config, mesh), "adapters": (states + fitted) * adapter}
    if sizes.guard and (config.guard.path, config.guard.revision) != (config.model.path, config.model.revision):
        parts["guard"] = base_bytes(sizes.guard, mesh)
    return parts | {"data": sizes.pairs * sizes.lengths.train * (4 + 1 + 4)}  # tokens, loss mask, segments


def _how(config: ExperimentConfig) -> How:
    narrow = jnp.dtype(config.model.dtype).itemsize
    return How(config.mesh.fsdp, 4 + (narrow if narrow < 4 else 0))


def _phases(config: ExperimentConfig, sizes: Sizes) -> Iterator[tuple[str, dict[str, int]]]:
    model, lengths = sizes.model, sizes.lengths
    fed, cai, own, how = config.federated, config.cai, config.eval, _how(config)
    if sizes.guarded and sizes.guard is None and config.guard.steps:
        yield "fitting the guard", training(model, config.guard.batch_size, lengths.guard, how)
    if sizes.guarded:
        scorer = sizes.guard or model.config
        yield "scoring", whole_sequences(scorer, own.batch_size, lengths.guard, 1, how)
    if fed.rounds:
        yield "local training", _local_training(config, sizes)
    if fed.rounds and cai.enabled:
        if lengths.replay:
            slots = lengths.replay + cai.max_new_tokens
            yield "answering replay", decoding(model.config, cai.replay, lengths.replay, slots, how)
        slots = lengths.red + lengths.requests + 3 * cai.max_new_tokens
        answered = 0 if cai.critic == "policy" else lengths.red + cai.max_new_tokens  # in the policy's own cache
        yield "CAI, generating", decoding(model.config, cai.prompts, lengths.red, slots, how, answered)
        longest = max(lengths.red, lengths.replay) + cai.max_new_tokens
        yield "CAI, training", training(model, cai.batch_size, longest, how)
    slots = lengths.asked + own.max_new_tokens
    yield "evaluation, answering", decoding(model.config, own.batch_size, lengths.asked, slots, how)
    if whole := lengths.choice:
        yield "evaluation, choices", whole_sequences(model.config, own.batch_size, whole, whole, how)


def _local_training(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    fed, mesh = config.federated, _mesh(config, sizes.devices)
    adapter = nbytes(abstract_adapter(sizes.model.config, sizes.model.lora))
    own = ceil(fed.clients_per_chunk / mesh.shape["clients"])  # a chunk is a multiple of the clients axis
    in_chunk = own * mesh.shape["clients"]
    kept = ceil(fed.cohort / in_chunk) * own  # of the cohort, padded to whole chunks, on this device
    parts = training(sizes.model, fed.batch_size, sizes.lengths.train, _how(config), own)
    if fed.algorithm == "scaffold":
        return parts | {"deltas": kept * adapter, "control variates": (kept + own) * adapter}  # theirs and corrections
    return parts | {"deltas": kept * adapter}


def sizes(setting: Setting, config: ExperimentConfig) -> Sizes:
    """Those of an arm of a setting; reads its data and the shapes of its models, and encodes the texts."""
    devices = prod(setting.mesh.shape.values())
    guard = setting.guard_model.config if config.guard.path is not None else None
    return Sizes(
        setting.model, guard, setting.guarded, _lengths(setting, config), len(setting.materials.pairs), devices,
        jax.default_backend() == "cpu",
    )  # fmt: skip


def _lengths(setting: Setting, config: ExperimentConfig) -> Lengths:
    made, tokenizer, most = setting.materials, setting.tokenizer, config.data.max_length
    train, cai = setting.corpus.tokens.shape[1], config.cai.enabled and config.federated.rounds > 0

    def longest(queries: Sequence[str]) -> int:
        encoded = encode_questions(tokenizer, [question(query) for query in queries], most)
        return bucket(max(map(len, encoded))) if encoded else 0

    choices = [answered(c.query, text) for c in made.choices for text in (c.good, c.bad)]
    request = _guard_request(setting) if setting.guarded else 0
    beyond = request if config.guard.path is not None else 0
    return Lengths(
        train=train,
        guard=bucket(min(train + request, most + beyond)),
        guard_request=beyond,
        red=setting.red_prompts.tokens.shape[1] if cai else 0,
        requests=sum(side.tokens.shape[1] for side in setting.requests) if cai else 0,
        replay=longest(made.benign_prompts) if cai else 0,
        asked=longest([*made.advbench, *(q.query for q in made.utility), *made.over_refusal]),
        choice=encode_chats(tokenizer, choices, most)[0].tokens.shape[1] if choices else 0,
    )


def _guard_request(setting: Setting) -> int:
    """Tokens of the guard's own words around an empty pair."""
    tokenizer = setting.guard_tokenizer
    (ids,) = encode_questions(tokenizer, [guard_form(tokenizer).conversation("", "")], sys.maxsize)
    return len(ids)


def device_limit() -> int | None:
    """Bytes that one device here has for arrays, those there already included; None where nothing says so.

    A CPU's is what the machine, or the process's control group, has left; devices on one CPU share it.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    here = [int(line.split()[1]) * 1024 for line in _read("/proc/meminfo") if line.startswith("MemAvailable")]
    here += [int(line) for line in _read("/sys/fs/cgroup/memory.max") if line.isdigit()]
    held = sum(shard.data.nbytes for array in jax.live_arrays() for shard in array.addressable_shards)
    return (min(here) + held) // jax.local_device_count() if here else None


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def announce(config: ExperimentConfig, setting: Setting) -> None:
    """Print the plan: a line where it is small, else a table. Raises InputError where it does not fit."""
    known, limit = sizes(setting, config), device_limit()
    check_lengths(config, known)
    made = plan(config, known)
    if limit is not None and made.need(made.peak) > limit:
        raise InputError(refusal(config, known, limit))
    log.say("\n".join(table(made, limit)))


def check_lengths(config: ExperimentConfig, sizes: Sizes) -> None:
    """Raises InputError where some phase's sequences are longer than the model's rotary embedding is meant for."""
    own, most = sizes.lengths, sizes.model.config.longest
    longest = {"data.max_length": max(own.train, own.guard, own.choice)}
    longest["eval.max_new_tokens"] = own.asked + config.eval.max_new_tokens
    if config.cai.enabled:
        longest["cai.max_new_tokens"] = own.red + own.requests + 3 * config.cai.max_new_tokens
    for key, tokens in longest.items():
        if most is not None and tokens > most:
            raise InputError(
                f"{key} = {_get(config, key)}: gives sequences of {tokens} tokens; this model takes {most}"
            )


def table(made: Plan, limit: int | None) -> list[str]:
    """The plan in lines: one where it takes at most half of the limit."""
    whole = f"memory a device: {_gib(made.need(made.peak))} GiB"
    first = whole + (f" of {_gib(limit)}" if limit is not None else "") + f", most of it in {made.peak}"
    if limit is not None and 2 * made.need(made.peak) <= limit:
        return [f"{first} (estimated)"]
    others = sorted(made.phases.keys() - {made.peak}, key=made.need, reverse=True)
    rows = [(name, size) for name, size in made.held.items()]
    rows += [(f"{made.peak}: {name}", size) for name, size in made.phases[made.peak].items()]
    lines = [f"  {name:<44}{_gib(size):>8}" for name, size in rows]
    return [f"{first} (estimated)", *lines, "  others: " + ", ".join(f"{p} {_gib(made.need(p))}" for p in others)]


def _gib(size: int) -> str:
    return f"{size / GIB:.{1 if size >= 10 * GIB else 2}f}"


class Remedy(NamedTuple):
    """One key set otherwise, and what that alone saves in the phase that it helps most of those too large."""

    key: str
    old: Any
    new: Any
    saves: int
    phase: str


def refusal(config: ExperimentConfig, known: Sizes, limit: int) -> str:
    """Why it does not fit, and which keys to set, the most effective first; of each, what it does alone."""
    made, found = plan(config, known), remedies(config, known, limit)
    lines = [f"memory: {_gib(made.need(made.peak))} GiB a device needed, {_gib(limit)} there; this run was not started"]
    lines += table(made, None)[1:]
    if found:
        lines.append("what helps, and how much each of these alone:")
    for own in found:
        change = f"{own.key} = {own.old} -> {own.new}"
        lines.append(f"  {change:<44}saves {_gib(own.saves)} GiB in {own.phase}")
    for own in found:
        config = _with(config, own.key, own.new)
    least = plan(config, known)
    fits = least.need(least.peak) <= limit
    lines.append(f"with all of them {_gib(least.need(least.peak))} GiB" + ("" if fits else ": too much, still"))
    return "\n".join(lines if found else lines[:-1])


def remedies(config: ExperimentConfig, known: Sizes, limit: int) -> list[Remedy]:
    """What would make the phases that are too large smaller by a hundredth at least, the most effective first."""
    made = plan(config, known)
    large = [phase for phase in made.phases if made.need(phase) > limit]
    found = []
    for key, new in _candidates(config, known.devices):
        other = plan(_with(config, key, new), known)
        saves, phase = max((made.need(phase) - other.need(phase), phase) for phase in large)
        if 100 * saves > made.need(phase):
            found.append(Remedy(key, _get(config, key), new, saves, phase))
    return sorted(found, key=lambda own: -own.saves)


def _candidates(config: ExperimentConfig, devices: int) -> Iterator[tuple[str, Any]]:
    """(key, value) of all that makes a plan smaller, or may."""
    model, mesh = config.model, config.mesh
    lowest = {
        "federated.clients_per_chunk": 1,
        "model.remat": "full",
        "model.quantize": "nf4" if model.quantize == "int8" else "int8",
        "model.dtype": "bfloat16",
        "model.attention": "chunked" if model.attention == "xla" else model.attention,
    }
    if model.quantize == "nf4":
        del lowest["model.quantize"]
    halved = ("data.max_length", "federated.batch_size", "guard.batch_size", "cai.prompts", "cai.replay")
    halved += ("cai.batch_size", "cai.max_new_tokens", "eval.batch_size", "eval.max_new_tokens", "lora.rank")
    least = {"data.max_length": 16, "cai.replay": 0}
    for key in halved:
        lowest[key] = max(_get(config, key) // 2, least.get(key, 1))
    if devices % (2 * mesh.fsdp * mesh.tensor) == 0:
        lowest["mesh.fsdp"] = 2 * mesh.fsdp
    yield from ((key, new) for key, new in lowest.items() if new != _get(config, key))


def _get(config: ExperimentConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _with(config: ExperimentConfig, key: str, value: Any) -> ExperimentConfig:
    section, name = key.split(".")
    return config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})
