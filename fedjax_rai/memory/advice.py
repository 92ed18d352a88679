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
    here = [int(line.split()[1]) * 1024 for line in _read("/proc/meminfo") if line.startswith("MemAvailable")]
    here += [int(line) for line in _read("/sys/fs/cgroup/memory.max") if line.isdigit()]
    held = sum(shard.data.nbytes for array in jax.live_arrays() for shard in array.addressable_shards)
    return (min(here) + held) // jax.local_device_count() if here else None


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def announce(config: ExperimentConfig, known: Sizes) -> None:
    """Print the plan: a line where it is small, else a table. Raises InputError where it does not fit."""
    limit = device_limit()
    check_lengths(config, known)
    made = plan(config, known)
    if limit is not None and made.need(made.peak) > limit:
        raise InputError(refusal(config, known, limit))
    terminal.say("\n".join(table(made, limit)))


def check_lengths(config: ExperimentConfig, sizes: Sizes) -> None:
    """Raises InputError where some phase's sequences are longer than the model's rotary embedding is meant for."""
    own, model = sizes.lengths, sizes.model.config
    asked, new = max(own.asked, own.probe), config.cai.max_new_tokens
    found = [("data.max_length", max(own.train, own.prepared, own.choice), model)]
    if asked:
        found += [("eval.max_new_tokens", asked + config.eval.max_new_tokens, model)]
    if own.replay:
        found += [("cai.max_new_tokens", own.replay + new, model)]
    if own.red:
        given = own.opening or own.red, own.critique + own.revision, new
        shortest, longest = (chain_slots(*given, revisions) for revisions in (1, config.cai.revisions))
        found += [("cai.max_new_tokens", shortest, model), ("cai.revisions", longest, model)]
    if sizes.guarded:
        found += [("data.max_length", guard_length(config, sizes), sizes.guard or model)]
    for key, tokens, reader in found:
        if reader.longest is not None and tokens > reader.longest:
            whose = "the guard" if reader is sizes.guard else "this model"
            raise InputError(
                f"{key} = {_get(config, key)}: gives sequences of {tokens} tokens; {whose} takes {reader.longest}"
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
    lines += ["  others: " + ", ".join(f"{phase} {_gib(made.need(phase))}" for phase in others)] if others else []
    return [f"{first} (estimated)", *lines]


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
    lines = [f"memory: {_gib(made.need(made.peak))} GiB a device needed, {_gib(limit)} there; nothing was started"]
    lines += table(made, None)[1:]
    if found:
        lines.append("what helps, and how much each of these alone:")
    for own in found:
        change = f"{own.key} = {'null' if own.old is None else own.old} -> {own.new}"
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
    large = {phase: made.need(phase) for phase in made.phases if made.need(phase) > limit}
    found = [_remedy(config, known, limit, large, *own) for own in _candidates(config, known.devices)]
    return sorted((own for own in found if own), key=lambda own: -own.saves)


def _remedy(
    config: ExperimentConfig, known: Sizes, limit: int, large: dict[str, int], key: str, values: Iterable
) -> Remedy | None:
    """The first of the values with which all that the key helps fits, else the last; None where it helps nothing."""
    found = None
    for value in values:
        other = plan(_with(config, key, value), known)
        saves = {phase: need - other.need(phase) for phase, need in large.items()}
        helped = [phase for phase, need in large.items() if 100 * saves[phase] > need]
        if helped:
            phase = max(helped, key=saves.__getitem__)
            found = Remedy(key, _get(config, key), value, saves[phase], phase)
            if all(other.need(phase) <= limit for phase in helped):
                break
    return found


def _candidates(config: ExperimentConfig, devices: int) -> Iterator[tuple[str, Iterable]]:
    """(key, values) of all that makes a plan smaller, or may; several values where none of them changes a result."""
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
    halved = ("data.max_length", "federated.batch_size", "guard.batch_size", "cai.replay", "cai.batch_size")
    halved += ("cai.max_new_tokens", "eval.batch_size", "eval.max_new_tokens", "lora.rank")
    least = {"data.max_length": 16, "cai.replay": 0}
    for key in halved:
        lowest[key] = max(_get(config, key) // 2, least.get(key, 1))
    if devices % (2 * mesh.fsdp * mesh.tensor) == 0:
        lowest["mesh.fsdp"] = 2 * mesh.fsdp
    yield from ((key, [new]) for key, new in lowest.items() if new != _get(config, key))
    yield "cai.prompts_per_chunk", _chunks(config, abstract_mesh(config, devices).shape["clients"])


def _chunks(config: ExperimentConfig, across: int) -> Iterator[int]:
    """Sizes of a chunk of conversations below the present one: halves, down to one on each device."""
    size = min(config.cai.prompts_per_chunk or config.cai.prompts, config.cai.prompts)
    while size > across:
        size = max(size // 2, across)
        yield size


def _get(config: ExperimentConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _with(config: ExperimentConfig, key: str, value: Any) -> ExperimentConfig:
    section, name = key.split(".")
    return config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})
