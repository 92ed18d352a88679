"""A federated round and decoding at given shapes, timed beside this machine's limits."""

import json
import statistics
import sys
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.bench import machine
from fedjax_rai.bench.shapes import LORA, DecodingShape, RoundShape, random_examples, random_lm, random_prompts
from fedjax_rai.config.schema import FederatedConfig
from fedjax_rai.experiment.cost import forward_flops, parameters, step_flops
from fedjax_rai.experiment.together import federated_round
from fedjax_rai.fed.algorithm import make_algorithm
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Cohort
from fedjax_rai.mesh import make_mesh
from fedjax_rai.model.decoder import LM
from fedjax_rai.model.lora import init_adapter
from fedjax_rai.runs.compiled import keep_compiled
from fedjax_rai.train.generate import Decoding, Sampling, generate

NO_END = np.array([-1], np.int32)
FOUND = "/jax/compilation_cache/cache_hits"  # what jax counts a program that it found on disk as


def measure_round(model: str, shape: RoundShape, repeats: int = 3, **computed: str) -> dict[str, Any]:
    """Tokens a second of a round of FedAvg with Adam, and the share of the machine's matrix products.

    FLOPs are those of the matrix products with the base and the adapters, without attention's (`experiment.cost`).
    """
    lm = random_lm(model, **computed)
    federated = FederatedConfig(clients=shape.clients, cohort=shape.clients, clients_per_chunk=shape.chunk)
    algorithm = make_algorithm(federated, {}, make_mesh())
    state = algorithm.init(init_adapter(lm.model.config, LORA, jax.random.key(1)))
    batch = _batch(lm, shape)
    began = time.perf_counter()
    jax.block_until_ready(federated_round(algorithm, state, lm, batch))
    first = time.perf_counter() - began
    spent = machine.seconds(lambda: federated_round(algorithm, state, lm, batch), repeats)
    median = statistics.median(spent)
    held = machine.peak_memory()  # before the limits are measured, which hold matrices of their own
    peaks = machine.peaks(lm.model.config.dtype)
    flops = shape.tokens * step_flops(parameters(lm.model.config, LORA)) / median
    return {
        "work": "round",
        "model": model,
        **shape._asdict(),
        **computed,
        "seconds": spent,
        "compile_seconds": first - median,
        "tokens_per_second": shape.tokens / median,
        "flops_per_second": flops,
        "share_of_matmul": flops / peaks["matmul_flops"],
        "peak_memory": held,
        **peaks,
        **machine.description(),
    }


def _batch(lm: LM, shape: RoundShape) -> RoundBatch:
    examples = random_examples(lm.model.config.vocab_size, 64, shape.length)
    size = (shape.clients, shape.steps, shape.batch)
    rows = np.random.default_rng(2).integers(0, 64, size, np.int32)
    cohort = Cohort(jnp.arange(shape.clients), jnp.asarray(rows), jnp.ones(shape.clients))
    return RoundBatch(examples, cohort, jnp.float32(1e-4))


def measure_decoding(model: str, shape: DecodingShape, repeats: int = 3, **computed: str) -> dict[str, Any]:
    """Tokens a second of greedy decoding with an adapter, and the shares of the machine's copies and products.

    Bytes are the base's and the adapter's weights and the mean cache, read once for every token.
    """
    lm = random_lm(model, **computed)
    config = lm.model.config
    adapter = init_adapter(config, LORA, jax.random.key(1))
    prompts = random_prompts(config.vocab_size, shape)
    keys = jax.random.split(jax.random.key(2), shape.rows)
    decoding = Decoding(Sampling(np.float32(0)), NO_END, shape.new)
    spent = machine.seconds(lambda: generate(lm, adapter, prompts, keys, decoding), repeats)
    median = statistics.median(spent)
    held = machine.peak_memory()  # before the limits are measured, which hold matrices of their own
    peaks = machine.peaks(config.dtype)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((lm.base, adapter)))
    slots = shape.prompt + shape.new
    width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    cache = shape.rows * slots * width * jnp.dtype(config.dtype).itemsize
    tokens = shape.rows * shape.new
    flops = (tokens + shape.rows * shape.prompt) * forward_flops(parameters(config, LORA)) / median
    read = shape.new * (weights + cache) / median
    return {
        "work": "generate",
        "model": model,
        **shape._asdict(),
        **computed,
        "seconds": spent,
        "tokens_per_second": tokens / median,
        "flops_per_second": flops,
        "share_of_matmul": flops / peaks["matmul_flops"],
        "bytes_per_second": read,
        "share_of_copy": read / peaks["copy_bytes"],
        "peak_memory": held,
        **peaks,
        **machine.description(),
    }


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """What `request` asks for: its work (round or generate), model, shape, repeats and how it is computed.

    `programs_found`: how many an earlier process had compiled; where it is 0, `compile_seconds` are those of compiling.
    """
    keep_compiled()
    events: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
    measured = _measure(request)
    return measured | {"programs_found": events[FOUND]}


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    model, repeats, computed = request["model"], request["repeats"], request["computed"]
    if request["work"] == "round":
        return measure_round(model, RoundShape(**request["shape"]), repeats, **computed)
    return measure_decoding(model, DecodingShape(**request["shape"]), repeats, **computed)


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
