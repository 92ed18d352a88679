"""What the loops of a program that XLA compiled move, counted in its text (`compiled.as_text()`).

Of every kernel what it reads and writes: of an array that a fusion slices, the slice; of one that it updates in place,
the update; of a product that a library computes, not the library's scratch space. What caches spare is counted, too.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"}  # nothing is moved by these
UPDATE = "dynamic-update-slice"
PARTS = {"slice", "dynamic-slice", "gather"}  # these read of their first operand what they give


class Instruction(NamedTuple):
    """A line of a compiled program."""

    name: str
    shape: str
    operation: str
    operands: list[str]
    line: str

    @property
    def nbytes(self) -> int:
        """Of what it gives, but for the scratch space of a library's products, which is s8[...] here."""
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", self.shape)
        has_scratch = self.shape.startswith("(") and "cublas" in self.line
        kept = [(kind, sizes) for kind, sizes in arrays if kind in BYTES and not (has_scratch and kind == "s8")]
        return sum(BYTES[kind] * prod(int(size) for size in sizes.split(",") if size) for kind, sizes in kept)

    @property
    def calls(self) -> str | None:
        """The computation that a fusion computes."""
        found = re.search(r"calls=%?([\w.\-]+)", self.line)
        return found and found[1]


class Kernel(NamedTuple):
    """What one instruction of a loop's body moves; a fusion counts as one."""

    instruction: Instruction
    read: int
    written: int
    is_product: bool


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation, by name."""
    found: dict[str, list[Instruction]] = {}
    inside: list[Instruction] = []
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line):
            inside = found[head[1]] = []
        elif part := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line):
            name, shape, operation, rest = part.groups()
            inside.append(Instruction(name, shape, operation, re.findall(r"%([\w.\-]+)", rest.split("), ")[0]), line))
    return found


def moved_by_fusion(instructions: list[Instruction]) -> tuple[int, int]:
    """(bytes read, bytes written): of an array that is sliced its slice, of one that is updated in place its update."""
    by_name = {instruction.name: instruction for instruction in instructions}

    def uses(name: str) -> Iterator[tuple[Instruction, str]]:
        for user in instructions:
            if name in user.operands:
                yield from uses(user.name) if user.operation == "bitcast" else [(user, name)]

    def read(parameter: Instruction) -> int:
        users = list(uses(parameter.name))
        if not users or any(user.operands[0] != name for user, name in users):
            return parameter.nbytes
        if all(user.operation in PARTS for user, _ in users):
            return sum(user.nbytes for user, _ in users)
        return 0 if all(user.operation == UPDATE for user, _ in users) else parameter.nbytes

    def written(instruction: Instruction) -> int:
        if instruction.operation == "tuple":
            return sum(written(by_name[name]) for name in instruction.operands)
        if instruction.operation == "bitcast":
            return written(by_name[instruction.operands[0]])
        if instruction.operation == UPDATE:
            return by_name[instruction.operands[1]].nbytes
        return instruction.nbytes

    (root,) = (instruction for instruction in instructions if instruction.line.lstrip().startswith("ROOT"))
    parameters = [instruction for instruction in instructions if instruction.operation == "parameter"]
    return sum(map(read, parameters)), written(root)


def kernels(body: list[Instruction], every: dict[str, list[Instruction]]) -> Iterator[Kernel]:
    """Those of a loop's body."""
    by_name = {instruction.name: instruction for instruction in body}
    for instruction in body:
        if instruction.operation in FREE or instruction.operation.endswith("-done"):
            continue
        called = every.get(instruction.calls or "")
        while called and instruction.operation.endswith("-start") and (inner := every.get(called[-1].calls or "")):
            called = inner  # of a copy beside the other kernels
        if called:
            read, written = moved_by_fusion(called)
        else:
            operands = [by_name[name].nbytes for name in instruction.operands if name in by_name]
            read, written = sum(operands), instruction.nbytes
        is_product = any(part.operation == "dot" or "cublas" in part.line for part in [instruction, *(called or [])])
        yield Kernel(instruction, read, written, is_product)


def loops(text: str) -> list[tuple[int | None, list[Kernel]]]:
    """(how often it runs, None where the program decides; its kernels) of every loop of a compiled program."""
    every = computations(text)
    found = {}
    whiles = [instruction for body in every.values() for instruction in body if instruction.operation == "while"]
    for instruction in whiles:
        body = re.search(r"body=%?([\w.\-]+)", instruction.line)
        times = re.search(r'known_trip_count.*?"n":"(\d+)"', instruction.line)
        assert body
        found[body[1]] = int(times[1]) if times else None
    return [(times, list(kernels(every[body], every))) for body, times in found.items()]
