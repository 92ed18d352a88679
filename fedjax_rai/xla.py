"""What XLA is told before it is asked for anything: jax reads the variable once, when it looks for devices."""

import os
from importlib.util import find_spec

FLAGS = "XLA_FLAGS"
TRITON = "xla_gpu_enable_triton_gemm"
CUDA = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def multiply_by_cublas() -> None:
    """Have matrix products of NVIDIA's GPUs computed by cuBLAS, unless XLA_FLAGS says whether Triton may have them.

    XLA times both, one product at a time, and takes the faster; but a product of Triton's has the kernel of a layer
    copied out of the stack of all layers first, in every step, which is not timed. With this decoding was 1.2 to 1.4
    times as fast, and training about as fast (docs/performance.md). Where the variable names a file of flags it is left
    alone, and so it is without jax's plugin for such GPUs. Without effect once jax has looked for devices.
    """
    flags = os.environ.get(FLAGS, "").strip()
    is_file = flags != "" and not flags.startswith("-")
    if TRITON not in flags and not is_file and any(find_spec(plugin) for plugin in CUDA):
        os.environ[FLAGS] = f"{flags} --{TRITON}=false".strip()
