"""What a compiled program's loops move, counted by hand in a program of five kernels; and a step for an absent GPU."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from tests.moved_bytes import loops
from tests.processes import ROOT

# Eight layers of a kernel [64, 32] in bfloat16 (4096 bytes each), tokens [4, 64] (512 bytes) and what is kept of each
# layer, [8, 4, 32] (256 bytes a layer).
PROGRAM = """
HloModule hand

%sliced (p.0: bf16[8,64,32], p.1: s32[]) -> bf16[1,64,32] {
  %p.0 = bf16[8,64,32]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice.1 = bf16[1,64,32]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,64,32}
}

%straight (p.2: bf16[8,64,32], p.3: s32[], p.4: bf16[4,64]) -> (bf16[4,32], s8[33554432]) {
  %p.2 = bf16[8,64,32]{2,1,0} parameter(0)
  %p.3 = s32[] parameter(1)
  %p.4 = bf16[4,64]{1,0} parameter(2)
  %none = s32[] constant(0)
  %slice.2 = bf16[1,64,32]{2,1,0} dynamic-slice(%p.2, %p.3, %none, %none), dynamic_slice_sizes={1,64,32}
  %flat = bf16[64,32]{1,0} bitcast(%slice.2)
  ROOT %call = (bf16[4,32]{1,0}, s8[33554432]{0}) custom-call(%p.4, %flat), custom_call_target="__cublas$lt$matmul"
}

%updated (p.5: bf16[8,4,32], p.6: bf16[4,32], p.7: s32[]) -> bf16[8,4,32] {
  %p.5 = bf16[8,4,32]{2,1,0} parameter(0)
  %p.6 = bf16[4,32]{1,0} parameter(1)
  %p.7 = s32[] parameter(2)
  %nought = s32[] constant(0)
  %layer = bf16[1,4,32]{2,1,0} bitcast(%p.6)
  ROOT %update = bf16[8,4,32]{2,1,0} dynamic-update-slice(%p.5, %layer, %p.7, %nought, %nought)
}

%picked (p.8: bf16[100,64], p.9: s32[4]) -> bf16[4,64] {
  %p.8 = bf16[100,64]{1,0} parameter(0)
  %p.9 = s32[4]{0} parameter(1)
  ROOT %rows = bf16[4,64]{1,0} gather(%p.8, %p.9), offset_dims={1}, slice_sizes={1,64}
}

%body (state: (s32[], bf16[4,64], bf16[8,64,32], bf16[8,4,32])) -> (s32[], bf16[4,64], bf16[8,64,32], bf16[8,4,32]) {
  %state = (s32[], bf16[4,64]{1,0}, bf16[8,64,32]{2,1,0}, bf16[8,4,32]{2,1,0}) parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  %tokens = bf16[4,64]{1,0} get-tuple-element(%state), index=1
  %stack = bf16[8,64,32]{2,1,0} get-tuple-element(%state), index=2
  %kept = bf16[8,4,32]{2,1,0} get-tuple-element(%state), index=3
  %copied = bf16[1,64,32]{2,1,0} fusion(%stack, %index), kind=kLoop, calls=%sliced
  %product = (bf16[4,32]{1,0}, s8[33554432]{0}) fusion(%stack, %index, %tokens), kind=kCustom, calls=%straight
  %out = bf16[4,32]{1,0} get-tuple-element(%product), index=0
  %new = bf16[8,4,32]{2,1,0} fusion(%kept, %out, %index), kind=kLoop, calls=%updated
  %table = bf16[100,64]{1,0} constant({...})
  %numbers = s32[4]{0} constant({...})
  %embedded = bf16[4,64]{1,0} fusion(%table, %numbers), kind=kLoop, calls=%picked
  %next = s32[] add(%index, %index)
  ROOT %again = (s32[], bf16[4,64]{1,0}, bf16[8,64,32]{2,1,0}, bf16[8,4,32]{2,1,0}) tuple(%next, %tokens, %stack, %new)
}

ENTRY %main (start: (s32[], bf16[4,64], bf16[8,64,32], bf16[8,4,32])) -> s32[] {
  %start = (s32[], bf16[4,64]{1,0}, bf16[8,64,32]{2,1,0}, bf16[8,4,32]{2,1,0}) parameter(0)
  %loop = (s32[], bf16[4,64], bf16[8,64,32], bf16[8,4,32]) while(%start), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  ROOT %end = s32[] get-tuple-element(%loop), index=0
}
"""  # noqa: E501


def test_what_a_loop_moves_by_hand():
    """A number is 4 bytes, and whoever slices or updates reads the place too.

    The copy reads a layer, and writes it; the product reads a layer where it lies, and the tokens, and writes [4, 32];
    the update reads what is new, and writes it into the stack; of a table the rows are read that are taken.
    """
    [(times, kernels)] = loops(PROGRAM)
    moved = {one.instruction.name: (one.read, one.written, one.is_product) for one in kernels}
    assert times == 8
    assert moved == {
        "copied": (4096 + 4, 4096, False),
        "product": (4096 + 4 + 512, 256, True),
        "new": (256 + 4, 256, False),
        "embedded": (512 + 16, 512, False),
        "next": (4 + 4, 4, False),
    }


gpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs the compiler for GPUs: pip install jax-cuda13-plugin jax-cuda13-pjrt, of jax's own version",
)


def compiled_for_a_gpu(work: str, least: int, *computed: str) -> str:
    """What `absent_devices.py` says of a work, with cuBLAS's products."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}
    command = [sys.executable, str(ROOT / "tests/programs/absent_devices.py"), work, str(least), *computed]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def products(work: str) -> list[int]:
    """How many each of its loops computes in a pass."""
    _, *loops = re.split(r"\n(?=[^\n]* kernels, )", compiled_for_a_gpu(work, 0))
    return [loop.count(" product  ") for loop in loops]


@pytest.mark.slow
@gpu_compiler
def test_a_decoding_step_reads_kernels_where_they_lie():
    """Of 1B a layer has kernels of 116 MiB and, for 16 rows of 192 tokens, 6 MiB of keys and values.

    With products of cuBLAS no kernel is copied out of its stack: a layer moves less than 1.2 times that.
    """
    moved = re.findall(r"16 times: .*? ([\d,]+) MiB", compiled_for_a_gpu("generate", 1000))
    layers = [float(found.replace(",", "")) for found in moved]
    assert len(layers) == 2  # of a step, and of reading the prompts
    assert 116 + 6 < min(layers) < 1.2 * (116 + 6)


@pytest.mark.slow
@gpu_compiler
def test_a_step_computes_each_product_once():
    """Each of a layer's four kernels has its own product and two thin ones, and attention has two: 14 forward.

    Backward: of its input twice (through the kernel and a), of what lies between, of a and of b, 20; of attention four,
    and its logits again.
    """
    assert products("generate") == [14, 14, 1]  # a layer of a step, one of reading the prompts; the logits
    assert products("round") == [14, 2, 25, 0, 0]  # forward; a slice of logits; backward; a step; a client


@pytest.mark.slow
@gpu_compiler
@pytest.mark.parametrize("attention", ["cudnn", "xla"])
def test_what_unrolled_layers_need_is_planned(attention):
    """As much as in a loop: XLA's attention computes its probabilities, 8 GiB of all layers, again there, too."""
    text = compiled_for_a_gpu("round", 100_000, f"attention={attention}", "unroll=full")
    (numbers,) = re.findall(r"held at most: ([\d.]+) GiB; planned ([\d.]+)", text)
    held, planned = map(float, numbers)
    assert 0.95 < planned / held < 1.15
