"""What a run does with its memory plan: prints it, or refuses to start and says which keys help."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_rai import terminal
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.memory.plan import Plan, Sizes, abstract_mesh, chain_slots, guard_length, plan

GIB = 2**30


def device_limit() -> int | None:
    """Bytes that one device here has for arrays, those there already included; None where nothing says so.

    A CPU's is what the machine, or the process's control group, has left; devices on one CPU share it.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    limits = _cpu_limits()
    if not limits:
        return None
    held = sum(shard.data.nbytes for array in jax.live_arrays() for shard in array.addressable_shards)
    return (min(limits) + held) // jax.local_device_count()


def _cpu_limits() -> list[int]:
    """Bytes that the machine has left, and those that the process's control group may have; what is known of these."""
    limits = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable"):
            kibibytes = int(line.split()[1])
            limits.append(1024 * kibibytes)
    for line in _lines("/sys/fs/cgroup/memory.max"):
        if line.isdigit():  # "max" where there is no limit
            limits.append(int(line))
    return limits


def _lines(path: str) -> list[str]:
    """The lines of a file; none where there is no such file."""
    if not Path(path).is_file():
        return []
    return Path(path).read_text().splitlines()


def announce(config: ExperimentConfig, known: Sizes) -> None:
    """Print the plan: a line where it is small, else a table. Raises InputError where it does not fit."""
    limit = device_limit()
    check_lengths(config, known)
    memory = plan(config, known)
    if limit is not None and memory.need(memory.peak) > limit:
        raise InputError(refusal(config, known, limit))
    terminal.say("\n".join(described(config, known, limit)))


def check_lengths(config: ExperimentConfig, sizes: Sizes) -> None:
    """Raises InputError where some phase's sequences are longer than the model's rotary embedding is meant for."""
    for key, tokens in _model_sequences(config, sizes):
        _check_length(config, key, tokens, "this model", sizes.model.config.longest)
    if sizes.guarded:
        reader = "this model" if sizes.guard is None else "the guard"
        longest = (sizes.guard or sizes.model.config).longest
        _check_length(config, "data.max_length", guard_length(config, sizes), reader, longest)


def _model_sequences(config: ExperimentConfig, sizes: Sizes) -> Iterator[tuple[str, int]]:
    """(key that a sequence's length depends on, tokens) of the longest sequences that the model reads or writes."""
    lengths = sizes.lengths
    new = config.cai.max_new_tokens
    yield "data.max_length", max(lengths.train, lengths.prepared, lengths.choice)
    prompt = max(lengths.asked, lengths.probe)
    if prompt:
        yield "eval.max_new_tokens", prompt + config.eval.max_new_tokens
    if lengths.replay:
        yield "cai.max_new_tokens", lengths.replay + new
    if lengths.red:
        opening = lengths.opening or lengths.red
        requests = lengths.critique + lengths.revision
        yield "cai.max_new_tokens", chain_slots(opening, requests, new, revisions=1)
        yield "cai.revisions", chain_slots(opening, requests, new, config.cai.revisions)


def _check_length(config: ExperimentConfig, key: str, tokens: int, reader: str, longest: int | None) -> None:
    if longest is not None and tokens > longest:
        limit = "max_position_embeddings of its config.json, or its rotary embedding's limit"
        raise InputError(
            f"{key} = {_get(config, key)}: gives sequences of {tokens} tokens; {reader} takes {longest} ({limit})"
        )


def described(config: ExperimentConfig, known: Sizes, limit: int | None) -> list[str]:
    """The plan in lines, the second of which names the largest part at the peak and a key that makes it smaller."""
    first, *others = table(plan(config, known), limit)
    return [first, largest(config, known), *others]


def largest(config: ExperimentConfig, known: Sizes) -> str:
    """The largest part of what is there at the peak, and the key that makes it smaller, with a value that does."""
    memory = plan(config, known)
    everywhere = {Part(None, name): size for name, size in memory.held.items()}
    at_peak = {Part(memory.peak, name): size for name, size in memory.phases[memory.peak].items()}
    sizes = everywhere | at_peak
    part = max(sizes, key=sizes.__getitem__)
    found = lowered_by(config, known, part)
    by = "no key lowers it by itself"
    if found is not None:
        key, value = found
        by = f"lowered by {key} = {_shown(_get(config, key))} -> {value}"
    return f"  largest: {part}, {_gib(sizes[part])} GiB; {by}"


class Part(NamedTuple):
    """A part of a plan: one that is there in every phase (None), or one of a phase's."""

    phase: str | None
    name: str

    def __str__(self) -> str:
        return self.name if self.phase is None else f"{self.name} ({self.phase})"

    def size(self, memory: Plan) -> int:
        """Its bytes in a plan; 0 where the plan has no such part."""
        parts = memory.held if self.phase is None else memory.phases.get(self.phase, {})
        return parts.get(self.name, 0)


# The keys that make a phase's parts smaller, those that move the fewest numbers of a run first.
_READING = ("eval.batch_size", "data.max_length")
_ANSWERING = ("eval.batch_size", "eval.max_new_tokens", "data.max_length")
_OF_ADAPTERS = ("lora.rank", "model.attention", "model.dtype")
LOWERED_BY: dict[str, tuple[str, ...]] = {
    "fitting the guard": ("guard.batch_size", "model.remat", "data.max_length", *_OF_ADAPTERS),
    "scoring": _READING,
    "local training": (
        "federated.clients_per_chunk",
        "model.remat",
        "federated.batch_size",
        "data.max_length",
        *_OF_ADAPTERS,
    ),
    "probe": _ANSWERING,
    "evaluation, answering": _ANSWERING,
    "evaluation, choices": _READING,
    "answering replay": ("cai.replay", "cai.max_new_tokens"),
    "CAI, generating": ("cai.prompts_per_chunk", "cai.max_new_tokens", "data.max_length"),
    "CAI, reference": ("cai.batch_size", "cai.max_new_tokens", "data.max_length"),
    "CAI, training": ("cai.batch_size", "model.remat", "cai.max_new_tokens", "data.max_length", *_OF_ADAPTERS),
}
HELD_LOWERED_BY: dict[str, tuple[str, ...]] = {
    "base": ("mesh.fsdp", "model.quantize", "model.dtype"),
    "base in float32": ("model.dtype", "model.quantize"),
    "guard": ("mesh.fsdp", "model.quantize", "model.dtype"),
    "adapters": ("lora.rank",),
    "prepared set": ("data.max_length",),
    "data": ("data.max_length",),
}


def lowered_by(config: ExperimentConfig, known: Sizes, part: Part) -> tuple[str, Any] | None:
    """(key, value) that makes a part, and with it what is needed, smaller by a hundredth of the part at least."""
    memory = plan(config, known)
    values = _smaller_values(config, known)
    keys = HELD_LOWERED_BY[part.name] if part.phase is None else LOWERED_BY[part.phase]
    phase = part.phase or memory.peak
    size = part.size(memory)
    for key in keys:
        if key not in values:
            continue
        other = plan(_with(config, key, values[key]), known)
        saved = min(size - part.size(other), memory.need(phase) - other.need(phase))
        if 100 * saved > size:
            return key, values[key]
    return None


def _smaller_values(config: ExperimentConfig, known: Sizes) -> dict[str, Any]:
    """The next smaller value of each key that has one."""
    found = {}
    for key, values in _candidates(config, known.devices):
        first = next(iter(values), None)
        if first is not None:
            found[key] = first
    lengths = known.lengths
    longest = max(lengths.train, lengths.red, lengths.prepared, lengths.replay, lengths.asked, lengths.choice)
    found["data.max_length"] = max(min(config.data.max_length, longest) // 2, HALVED["data.max_length"])
    if known.widens and config.model.dtype == "bfloat16":
        found["model.dtype"] = "float32"  # what is widened in any case need not be there twice
    return found


def _shown(value: Any) -> Any:
    return "null" if value is None else value


def table(memory: Plan, limit: int | None) -> list[str]:
    """The plan in lines: one where it takes at most half of the limit."""
    need = memory.need(memory.peak)
    of_limit = "" if limit is None else f" of {_gib(limit)}"
    first = f"memory a device: {_gib(need)} GiB{of_limit}, most of it in {memory.peak} (estimated)"
    if limit is not None and 2 * need <= limit:
        return [first]
    lines = [first]
    for name, size in memory.held.items():
        lines.append(_part(name, size))
    for name, size in memory.phases[memory.peak].items():
        lines.append(_part(f"{memory.peak}: {name}", size))
    others = sorted(memory.phases.keys() - {memory.peak}, key=memory.need, reverse=True)
    if others:
        lines.append("  others: " + ", ".join(f"{phase} {_gib(memory.need(phase))}" for phase in others))
    return lines


def _part(name: str, size: int) -> str:
    return f"  {name:<44}{_gib(size):>8}"


def _gib(size: int) -> str:
    digits = 1 if size >= 10 * GIB else 2
    return f"{size / GIB:.{digits}f}"


class Remedy(NamedTuple):
    """A key with another value, and what that alone saves in the phase that it helps most of those too large."""

    key: str
    old: Any
    new: Any
    saves: int  # bytes
    phase: str


def refusal(config: ExperimentConfig, known: Sizes, limit: int) -> str:
    """Why it does not fit, and which keys to set, the most effective first; of each, what it does alone."""
    memory = plan(config, known)
    need = memory.need(memory.peak)
    lines = [f"memory: {_gib(need)} GiB a device needed, {_gib(limit)} there; nothing was started"]
    lines += described(config, known, None)[1:]
    found = remedies(config, known, limit)
    if not found:
        return "\n".join(lines)
    lines.append("what helps, and how much each of these alone:")
    for remedy in found:
        change = f"{remedy.key} = {_shown(remedy.old)} -> {remedy.new}"
        lines.append(f"  {change:<44}saves {_gib(remedy.saves)} GiB in {remedy.phase}")
        config = _with(config, remedy.key, remedy.new)
    least = plan(config, known)
    least_need = least.need(least.peak)
    still = "" if least_need <= limit else ": too much, still"
    lines.append(f"with all of them {_gib(least_need)} GiB{still}")
    return "\n".join(lines)


def remedies(config: ExperimentConfig, known: Sizes, limit: int) -> list[Remedy]:
    """What would make the phases that are too large smaller by a hundredth at least, the most effective first."""
    found = []
    for key, values in _candidates(config, known.devices):
        remedy = _remedy(config, known, limit, key, values)
        if remedy is not None:
            found.append(remedy)
    return sorted(found, key=lambda remedy: -remedy.saves)


def _remedy(config: ExperimentConfig, known: Sizes, limit: int, key: str, values: Iterable) -> Remedy | None:
    """The first of the key's values with which every phase that the key helps fits, else the last that helps; None
    where none of the values helps.
    """
    memory = plan(config, known)
    too_large = {phase: memory.need(phase) for phase in memory.phases if memory.need(phase) > limit}
    found = None
    for value in values:
        other = plan(_with(config, key, value), known)
        saves = {phase: need - other.need(phase) for phase, need in too_large.items()}
        helped = [phase for phase, need in too_large.items() if 100 * saves[phase] > need]
        if not helped:
            continue
        most = max(helped, key=saves.__getitem__)
        found = Remedy(key, _get(config, key), value, saves[most], most)
        if all(other.need(phase) <= limit for phase in helped):
            break
    return found


def _candidates(config: ExperimentConfig, devices: int) -> Iterator[tuple[str, Iterable]]:
    """(key, values) of all that makes a plan smaller, or may; several values where none of them changes a result."""
    for key, value in _lower(config, devices).items():
        if value != _get(config, key):
            yield key, [value]
    yield "cai.prompts_per_chunk", _chunks(config, abstract_mesh(config, devices).shape["clients"])


HALVED = {
    "data.max_length": 16,
    "federated.batch_size": 1,
    "guard.batch_size": 1,
    "cai.replay": 0,
    "cai.batch_size": 1,
    "cai.max_new_tokens": 1,
    "eval.batch_size": 1,
    "eval.max_new_tokens": 1,
    "lora.rank": 1,
}
"""Keys whose half is proposed, and the least value of each."""


def _lower(config: ExperimentConfig, devices: int) -> dict[str, Any]:
    """The value of every key that may make a plan smaller; of some keys, the value that they have."""
    lower: dict[str, Any] = {"federated.clients_per_chunk": 1, "model.remat": "full"}
    smaller = {"none": "int8", "int8": "nf4"}
    if config.model.quantize in smaller:
        lower["model.quantize"] = smaller[config.model.quantize]
    lower["model.dtype"] = "bfloat16"
    if config.model.attention == "xla":
        lower["model.attention"] = "chunked"
    for key, least in HALVED.items():
        lower[key] = max(_get(config, key) // 2, least)
    further = 2 * config.mesh.fsdp
    if devices % (further * config.mesh.tensor) == 0:
        lower["mesh.fsdp"] = further
    return lower


def _chunks(config: ExperimentConfig, across: int) -> Iterator[int]:
    """Numbers of conversations in a chunk, below the present number: halves, down to one on each device."""
    size = min(config.cai.prompts_per_chunk or config.cai.prompts, config.cai.prompts)
    while size > across:
        size = max(size // 2, across)
        yield size


def _get(config: ExperimentConfig, key: str) -> Any:
    """The value of a key `section.name`."""
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _with(config: ExperimentConfig, key: str, value: Any) -> ExperimentConfig:
    """The config with another value of a key `section.name`; the value is not checked."""
    section, name = key.split(".")
    changed = getattr(config, section).model_copy(update={name: value})
    return config.model_copy(update={section: changed})
