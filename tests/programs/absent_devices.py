"""What XLA makes for GPUs and TPUs, compiled on a machine that has none: what programs hold, and what their loops move.

    pip install jax-cuda13-plugin==JAX jax-cuda13-pjrt==JAX libtpu    # of jax's own version; no CUDA, cuDNN or driver
    absent_devices.py memory gpu:8 1x1 8x1    # the paper's config at 8B on so many H100s, meshes as fsdp x tensor
    absent_devices.py memory v5e:2x4 2x1      # the same on eight chips; v6e:2x4
    absent_devices.py round 10                # 1B on an H100: five steps of 16 x 512 tokens; kernels from 10 MiB on
    absent_devices.py generate 10             # 1B on an H100: 16 greedy answers of 128 tokens to prompts of 64
    absent_devices.py round 10 attention=cudnn unroll=full    # by these keys of the section `model`

Attention is XLA's if nothing is said. Nothing is run, allocated or timed. And nothing is tuned: a GPU's products are
Triton's, or cuBLAS's with XLA_FLAGS=--xla_gpu_enable_triton_gemm=false, where its own compiler chooses one by one.
"""

import os
import re
import sys
from typing import Any

# Before jax is imported: nothing looks for devices, or for the machines that a TPU would be one of.
os.environ.update(JAX_PLATFORMS="cpu", JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1", TPU_SKIP_MDS_QUERY="1")
os.environ.update(TPU_ACCELERATOR_TYPE="v5litepod-8", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")

from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies

from fedjax_rai.bench.shapes import model_json
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.memory.plan import Lengths, Sizes, plan
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.model.families import decoder_config
from fedjax_rai.model.lora import Lora
from tests.moved_bytes import loops
from tests.programs import planned_memory

MIB, GIB = 2**20, 2**30
# An H100 of 80 GB, as far as the compiler asks: what it has, and what it must not exceed.
H100 = """
gpu_device_info {
  name: "H100" device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 85000000000 memory_bandwidth: 3350000000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  device_address_bits: 64 driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "H100"
"""


def devices(which: str) -> list[Any]:
    """`gpu:COUNT`, or a TPU's topology, to compile for; nothing can be put on them."""
    if not which.startswith("gpu:"):
        return list(topologies.get_topology_desc(which, "tpu").devices)
    from jax._src import xla_bridge  # jax knows no "gpu" where there is none: github.com/jax-ml/jax/issues/23971

    known = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda platform: "cuda" if platform == "gpu" else known(platform)
    xla_bridge.backends()  # registers the plugin
    shape = f"1x1x{which.removeprefix('gpu:')}"
    return list(topologies.get_topology_desc("absent", "cuda", target_config=H100, topology=shape).devices)


def show(compiled: Any, planned: int, least: float) -> None:
    """What is held at most, and what one pass of each loop moves; kernels that move `least` MiB one by one."""
    held = compiled.memory_analysis().peak_memory_in_bytes
    print(f"held at most: {held / GIB:.2f} GiB; planned {planned / GIB:.2f}")
    for times, kernels in loops(compiled.as_text()):
        moved = sum(kernel.read + kernel.written for kernel in kernels)
        products = sum(kernel.read + kernel.written for kernel in kernels if kernel.is_product)
        count = "as long as it takes" if times is None else f"{times} times"
        print(f"{count}: {len(kernels)} kernels, {moved / MIB:,.0f} MiB, of products {products / MIB:,.0f}")
        for kernel in kernels:
            if kernel.read + kernel.written >= least * MIB:
                kind = "product" if kernel.is_product else ""
                operation = re.search(r'op_name="([^"]*)"', kernel.instruction.line)
                name = operation[1][-60:] if operation else kernel.instruction.name
                print(f"  {kernel.read / MIB:8.1f} read {kernel.written / MIB:8.1f} written  {kind:8} {name}")


def at_1b(computed: dict[str, str], phase: str, **sections: Any) -> tuple[planned_memory.Shapes, int]:
    """Llama-3.2-1B's shape in bfloat16, a LoRA of rank 16 on all projections, on one GPU; bytes planned of a phase."""
    computed = {"dtype": "bfloat16"} | computed
    given = {"model": computed, "lora": {"rank": 16}, "data": {"max_length": 512}} | sections
    config = ExperimentConfig.model_validate(given)
    shape = decoder_config(model_json("1B"), "1B", **computed)
    lengths = Lengths(train=512, red=64, critique=48, revision=32, replay=64, asked=64)
    known = Sizes(Decoder(shape, Lora(shape.targets, 16, 32.0)), None, True, lengths, 64, 64, 0, 1, False)
    return planned_memory.Shapes(config, known, devices("gpu:1")), plan(config, known).need(phase)


def of_round(computed: dict[str, str]) -> tuple[Any, int]:
    federated = {"clients": 2, "cohort": 2, "local_steps": 5, "batch_size": 16}
    shapes, planned = at_1b(computed, "local training", federated=federated)
    return planned_memory.local_training(shapes), planned


def of_generate(computed: dict[str, str]) -> tuple[Any, int]:
    asked = {"batch_size": 16, "max_new_tokens": 128}
    shapes, planned = at_1b(computed, "evaluation, answering", eval=asked)
    return planned_memory.answering(shapes), planned


if __name__ == "__main__":
    what, which, *others = sys.argv[1:]
    if what == "memory":
        planned_memory.at_8b(32, others, "bfloat16", devices(which))
    else:
        fused_attention_stablehlo.check_cudnn_version = lambda: 91_000  # of which there is none to be asked
        computed = dict(option.split("=") for option in others)
        lowered, planned = {"round": of_round, "generate": of_generate}[what](computed)
        show(lowered.compile(), planned, float(which))
