"""What a run does with its memory plan: prints it, or refuses to start and says which keys help."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_rai import terminal
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.memory.plan import Plan, Sizes, abstract_mesh, chain_slots, first_text, guard_length, plan, ring_slots
from fedjax_rai.mesh import ways

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
        if sizes.preparing:
            several = config.cai.revisions > 1
            key = "cai.revisions" if several else "cai.max_new_tokens"
            yield key, ring_slots(config, lengths, first_text(config, lengths))


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
        trial = _trial(config, key, value, known.devices)
        by = f"lowered by {_change(config, trial, key, value)}"
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


KEEPING = (
    "mesh.tensor",
    "mesh.fsdp",
    "federated.micro_batch",
    "guard.micro_batch",
    "cai.micro_batch",
    "model.remat",
    "model.attention",
    "model.answering",
    "federated.clients_per_chunk",
    "cai.prompts_per_chunk",
    "eval.batch_size",
)
"""Keys that change no number of an experiment but by rounding: how it is computed, not what."""

# The keys that make a phase's parts smaller, those that change no number first.
_READING = ("eval.batch_size", "model.attention", "mesh.tensor", "data.max_length")
_ANSWERING = (
    "model.answering",
    "eval.batch_size",
    "mesh.tensor",
    "model.kv_cache",
    "eval.max_new_tokens",
    "data.max_length",
)
_WRITING_LINES = ("eval.batch_size", "mesh.tensor", "model.kv_cache", "data.max_length")
_TRAINING = ("model.remat", "model.attention", "mesh.tensor")
_CHANGING_TRAINING = ("data.max_length", "lora.rank", "model.dtype")
LOWERED_BY: dict[str, tuple[str, ...]] = {
    "fitting the guard": ("guard.micro_batch", *_TRAINING, "guard.batch_size", *_CHANGING_TRAINING),
    "scoring": _READING,
    "scoring, the guard's lines": _WRITING_LINES,
    "local training": (
        "federated.clients_per_chunk",
        "federated.micro_batch",
        *_TRAINING,
        "federated.batch_size",
        *_CHANGING_TRAINING,
    ),
    "probe": _ANSWERING,
    "evaluation, answering": _ANSWERING,
    "evaluation, choices": _READING,
    "evaluation, drift": (*_READING, "eval.max_new_tokens"),
    "answering replay": ("mesh.tensor", "model.kv_cache", "cai.replay", "cai.max_new_tokens"),
    "CAI, generating": (
        "model.answering",
        "cai.prompts_per_chunk",
        "mesh.tensor",
        "model.kv_cache",
        "cai.max_new_tokens",
        "data.max_length",
    ),
    "CAI, reference": ("model.attention", "mesh.tensor", "cai.batch_size", "cai.max_new_tokens", "data.max_length"),
    "CAI, training": ("cai.micro_batch", *_TRAINING, "cai.batch_size", "cai.max_new_tokens", *_CHANGING_TRAINING),
}
JUDGE_LOWERED_BY = ("eval.batch_size", "model.attention", "mesh.fsdp", "mesh.tensor", "model.kv_cache")
JUDGE_LOWERED_BY += ("eval.max_new_tokens", "data.max_length", "model.quantize", "model.dtype")
"""Of the phases of judges, which have names of their own; their weights are among the parts."""
HELD_LOWERED_BY: dict[str, tuple[str, ...]] = {
    "base": ("mesh.fsdp", "mesh.tensor", "model.quantize", "model.dtype"),
    "base in float32": ("model.dtype", "model.quantize"),
    "guard": ("mesh.fsdp", "mesh.tensor", "model.quantize", "model.dtype"),
    "adapters": ("lora.rank",),
    "prepared set": ("data.max_length",),
    "data": ("data.max_length",),
}


def lowered_by(config: ExperimentConfig, known: Sizes, part: Part) -> tuple[str, Any] | None:
    """(key, value) that makes a part, and with it what is needed, smaller by a hundredth of the part at least."""
    memory = plan(config, known)
    values = _smaller_values(config, known)
    keys = HELD_LOWERED_BY[part.name] if part.phase is None else LOWERED_BY.get(part.phase, JUDGE_LOWERED_BY)
    phase = part.phase or memory.peak
    size = part.size(memory)
    for key in keys:
        if key not in values:
            continue
        other = plan(_trial(config, key, values[key], known.devices), known)
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

    @property
    def keeps(self) -> bool:
        """Whether it changes no number of the experiment, but by rounding."""
        return self.key in KEEPING


def refusal(config: ExperimentConfig, known: Sizes, limit: int) -> str:
    """Why it does not fit, and which keys to set: those that change no number of the experiment, then the others.

    Of each group the most effective first; of each key, what it does alone.
    """
    memory = plan(config, known)
    need = memory.need(memory.peak)
    lines = [f"memory: {_gib(need)} GiB a device needed, {_gib(limit)} there; nothing was started"]
    lines += described(config, known, None)[1:]
    found = remedies(config, known, limit)
    keeping = [remedy for remedy in found if remedy.keeps]
    changing = [remedy for remedy in found if not remedy.keeps]
    if keeping:
        lines.append("what helps and changes no number but by rounding, and how much each of these alone:")
        config = _offered(config, known, keeping, lines)
        lines.append(_together(_all_of(keeping), config, known, limit))
    if _packs(config, memory, limit):
        lines.append("data.packing = true may help in local training, too, which is not estimated")
    if changing:
        lines.append("what helps and CHANGES THE EXPERIMENT, and how much each of these alone:")
        config = _offered(config, known, changing, lines)
        lines.append(_together("with these, too," if keeping else _all_of(changing), config, known, limit))
    return "\n".join(lines)


def _offered(config: ExperimentConfig, known: Sizes, offers: Iterable[Remedy], lines: list[str]) -> ExperimentConfig:
    """The config with all of these remedies, of which each is added to `lines`; of two meshes with the first."""
    first = config
    for remedy in offers:
        trial = _trial(first, remedy.key, remedy.new, known.devices)
        change = _change(first, trial, remedy.key, remedy.new)
        lines.append(f"  {change:<44}saves {_gib(remedy.saves)} GiB in {remedy.phase}")
        another_mesh = remedy.key in OTHER_AXIS and config.mesh != first.mesh
        if not another_mesh:
            config = _trial(config, remedy.key, remedy.new, known.devices)
    return config


def _change(config: ExperimentConfig, trial: ExperimentConfig, key: str, value: Any) -> str:
    """Another value of a key in words, with the key that gives way to it, as the other axis of the mesh may."""
    change = f"{key} = {_shown(_get(config, key))} -> {value}"
    other = OTHER_AXIS.get(key) or INSTEAD.get(key, (None,))[0]
    if other is None or _get(config, other) == _get(trial, other):
        return change
    return f"{change}, {other} = {_get(config, other)} -> {_get(trial, other)}"


def _all_of(offers: Sequence[Remedy]) -> str:
    """Of two meshes only one is possible."""
    meshes = sum(remedy.key in OTHER_AXIS for remedy in offers)
    return "with all of them, the first of the two meshes," if meshes > 1 else "with all of them"


def _together(what: str, config: ExperimentConfig, known: Sizes, limit: int) -> str:
    """What a config needs that has all of what was offered, and whether that fits."""
    memory = plan(config, known)
    need = memory.need(memory.peak)
    still = "" if need <= limit else ": too much, still"
    return f"{what} {_gib(need)} GiB{still}"


def _packs(config: ExperimentConfig, memory: Plan, limit: int) -> bool:
    """Whether short examples could share rows where local training is too large, and no number would change."""
    if config.data.packing or config.lora.dropout or "local training" not in memory.phases:
        return False
    return memory.need("local training") > limit


def remedies(config: ExperimentConfig, known: Sizes, limit: int) -> list[Remedy]:
    """What would make the phases that are too large smaller by a hundredth at least: first what changes no number of
    the experiment, and of that, as of the rest, the most effective first.
    """
    found = []
    for key, values in _candidates(config, known.devices):
        remedy = _remedy(config, known, limit, key, values)
        if remedy is not None:
            found.append(remedy)
    return sorted(found, key=lambda remedy: (not remedy.keeps, -remedy.saves))


def _remedy(config: ExperimentConfig, known: Sizes, limit: int, key: str, values: Iterable) -> Remedy | None:
    """The first of the key's values with which every phase that the key helps fits, else the one that saves most; None
    where none of the values helps.
    """
    memory = plan(config, known)
    too_large = {phase: memory.need(phase) for phase in memory.phases if memory.need(phase) > limit}
    found = None
    for value in values:
        other = plan(_trial(config, key, value, known.devices), known)
        saves = {phase: need - other.need(phase) for phase, need in too_large.items()}
        helped = [phase for phase, need in too_large.items() if 100 * saves[phase] > need]
        if not helped:
            continue
        most = max(helped, key=saves.__getitem__)
        fits = all(other.need(phase) <= limit for phase in helped)
        if found is None or fits or saves[most] > found.saves:
            found = Remedy(key, _get(config, key), value, saves[most], most)
        if fits:
            break
    return found


def _candidates(config: ExperimentConfig, devices: int) -> Iterator[tuple[str, Iterable]]:
    """(key, values) of all that makes a plan smaller, or may; several values where none of them changes a result."""
    for key in OTHER_AXIS:
        present = _get(config, key)
        yield key, [parts for parts in range(present + 1, devices + 1) if devices % parts == 0]
    yield "eval.batch_size", _halves(config.eval.batch_size, 1)
    conversations = min(config.cai.prompts_per_chunk or config.cai.prompts, config.cai.prompts)
    yield "cai.prompts_per_chunk", _halves(conversations, ways(abstract_mesh(config, devices)))
    for section in ("federated", "guard", "cai"):
        yield f"{section}.micro_batch", _micro_batches(config, section)
    for key, value in _lower(config).items():
        if value != _get(config, key):
            yield key, [value]


OTHER_AXIS = {"mesh.tensor": "mesh.fsdp", "mesh.fsdp": "mesh.tensor"}
"""Both keys of the mesh, and which gives way to which where devices do not suffice for the two."""

INSTEAD = {"model.remat": ("model.unroll", "none"), "model.quantize": ("model.answering", "apart")}
"""A key, and which it cannot be had together with but at this value."""

HALVED = {
    "data.max_length": 16,
    "federated.batch_size": 1,
    "guard.batch_size": 1,
    "cai.replay": 0,
    "cai.batch_size": 1,
    "cai.max_new_tokens": 1,
    "eval.max_new_tokens": 1,
    "lora.rank": 1,
}
"""Keys whose half is proposed, and the least value of each."""


def _lower(config: ExperimentConfig) -> dict[str, Any]:
    """The value of every key that may make a plan smaller; of some keys, the value that they have."""
    lower: dict[str, Any] = {"federated.clients_per_chunk": 1, "model.remat": "full", "model.answering": "apart"}
    smaller = {"none": "int8", "int8": "nf4"}
    if config.model.quantize in smaller:
        lower["model.quantize"] = smaller[config.model.quantize]
    lower["model.kv_cache"] = "int8"
    lower["model.dtype"] = "bfloat16"
    if config.model.attention == "xla":
        lower["model.attention"] = "chunked"
    for key, least in HALVED.items():
        half = max(_get(config, key) // 2, least)
        if key.endswith(".batch_size"):
            micro_batch = _get(config, key.replace("batch_size", "micro_batch"))
            if half % (micro_batch or 1):  # which the config would refuse
                half = _get(config, key)
        lower[key] = half
    return lower


def _micro_batches(config: ExperimentConfig, section: str) -> list[int]:
    """The smaller numbers of examples that a section's steps may be computed by, the largest first.

    None of local training with dropout, which would zero other inputs.
    """
    if section == "federated" and config.lora.dropout:
        return []
    batch = _get(config, f"{section}.batch_size")
    present = _get(config, f"{section}.micro_batch") or batch
    return [size for size in range(present - 1, 0, -1) if batch % size == 0]


def _halves(size: int, least: int) -> Iterator[int]:
    """Half of a size, half of that, and so on down to the least."""
    while size > least:
        size = max(size // 2, least)
        yield size


def _trial(config: ExperimentConfig, key: str, value: Any, devices: int) -> ExperimentConfig:
    """The config with another value of a key, and of one that gives way to it.

    Of a mesh that the devices do not suffice for, the other axis is 1.
    """
    trial = _with(config, key, value)
    if key in OTHER_AXIS and devices % (trial.mesh.fsdp * trial.mesh.tensor):
        trial = _with(trial, OTHER_AXIS[key], 1)
    if key in INSTEAD:
        trial = _with(trial, *INSTEAD[key])
    return trial


def _get(config: ExperimentConfig, key: str) -> Any:
    """The value of a key `section.name`."""
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _with(config: ExperimentConfig, key: str, value: Any) -> ExperimentConfig:
    """The config with another value of a key `section.name`; the value is not checked."""
    section, name = key.split(".")
    changed = getattr(config, section).model_copy(update={name: value})
    return config.model_copy(update={section: changed})
