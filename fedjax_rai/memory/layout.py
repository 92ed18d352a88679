"""Which mesh a run has on the devices that are there, by its memory plan: the least split of the base that fits.

Clients alone send each other sums of adapters, once a round. `fsdp` sends the base's kernels, once a layer, whatever
the batch is, and that may go on while the layer before is computed. `tensor` sends activations twice a layer, and
waits for them each time. So the base is first split by `fsdp`, and by `tensor` only where all devices do not suffice.
Beside what devices' own compilers reserve a plan is too low by up to 16 % (docs/performance.md), so that much is left.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fedjax_rai.config.schema import ExperimentConfig, MeshConfig
from fedjax_rai.memory.advice import GIB
from fedjax_rai.memory.plan import Plan, Sizes, plan
from fedjax_rai.model.architecture import DecoderConfig, parts_of

ROOM = 0.84
"""Of a device's memory, what a mesh is chosen to need at most."""


class Layout(NamedTuple):
    """How the base is split, and why."""

    mesh: MeshConfig
    reason: str


def layouts(devices: int, tensors: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(fsdp, tensor) of every mesh of so many devices, in the order in which they are tried.

    `tensors`: ways in which the columns of the model may be split.
    """
    for tensor in sorted(tensors):
        for fsdp in range(1, devices + 1):
            if devices % (fsdp * tensor) == 0:
                yield fsdp, tensor


def tensors_of(config: DecoderConfig, devices: int) -> list[int]:
    """Numbers of devices that can share the columns so that each has whole heads; 1 is always one of them."""

    def divides(parts: int) -> bool:
        shape = dataclasses.replace(config, parts=parts)
        return all(parts_of(shape, kernel) == parts for kernel in ("qkv_proj", "gate_up_proj"))

    return [parts for parts in range(1, devices + 1) if devices % parts == 0 and divides(parts)]


def choose(arms: Sequence[tuple[ExperimentConfig, Sizes]], limit: int | None) -> Layout:
    """The first mesh on which all arms, which share a base, need no more than ROOM of a device's `limit` of bytes.

    Where they do on none, the one that needs least; where nothing says how much there is (None), clients alone.
    """
    devices = arms[0][1].devices
    if limit is None:
        return Layout(MeshConfig(), f"{_named(1, 1, devices)}: nothing says how much memory a device has")
    found: list[tuple[int, int, int, str]] = []
    for fsdp, tensor in layouts(devices, tensors_of(arms[0][1].model.config, devices)):
        need, phase = greatest([(with_mesh(config, fsdp, tensor), known) for config, known in arms])
        found.append((need, fsdp, tensor, phase))
        if need <= ROOM * limit:
            break
    chosen = found[-1] if found[-1][0] <= ROOM * limit else min(found)
    _, fsdp, tensor, _ = chosen
    return Layout(MeshConfig(fsdp=fsdp, tensor=tensor), _reason(found, chosen, devices, limit))


def with_mesh(config: ExperimentConfig, fsdp: int, tensor: int) -> ExperimentConfig:
    """The config with its base split in so many ways."""
    return config.model_copy(update={"mesh": MeshConfig(fsdp=fsdp, tensor=tensor)})


def greatest(arms: Sequence[tuple[ExperimentConfig, Sizes]]) -> tuple[int, str]:
    """(bytes a device, phase) of what the arm of the greatest need needs."""
    plans: list[Plan] = [plan(config, known) for config, known in arms]
    largest = max(plans, key=lambda made: made.need(made.peak))
    return largest.need(largest.peak), largest.peak


def _reason(
    tried: Sequence[tuple[int, int, int, str]], chosen: tuple[int, int, int, str], devices: int, limit: int
) -> str:
    """The choice in words: what the other meshes need."""
    need, fsdp, tensor, _ = chosen
    first = _named(fsdp, tensor, devices)
    if need > limit:
        return f"{first}: no mesh fits, and this one needs least, {gib(need)} GiB a device of {gib(limit)}"
    needs = f"needs {gib(need)} GiB a device of {gib(limit)}"
    others = [mesh for mesh in tried if mesh != chosen]
    too_low = f"a plan may be {1 - ROOM:.0%} too low"
    if need > ROOM * limit:
        needs += f", and {too_low}"
    if not others:
        return f"{first}: {needs}"
    rejected = [f"{_split(*ways)} {gib(more)}" for more, *ways, _ in others]
    phase = tried[0][3]
    has_room = need <= ROOM * limit and any(more <= limit for more, *_ in others)
    why = f"; {too_low}" if has_room else ""
    return f"{first}: {needs}; {', '.join(rejected)} (most of it in {phase}){why}"


def _named(fsdp: int, tensor: int, devices: int) -> str:
    if devices == 1:
        return "mesh auto: one device"
    return f"mesh auto: {_split(fsdp, tensor)} of {devices} devices"


def _split(fsdp: int, tensor: int) -> str:
    named = {"fsdp": fsdp, "tensor": tensor}
    return ", ".join(f"{name}={ways}" for name, ways in named.items() if ways > 1) or "the base in one part"


def gib(size: int) -> str:
    """A number of bytes in GiB."""
    return f"{size / GIB:.1f}"
