"""Greedy decoding by vLLM's offline engine: python -m fedjax_rai.bench.vllm_peer, by the Python of an environment that
has vllm.

The same prompts as ours, and as many new tokens, whatever they are. It serves the base alone, as one does whose adapter
is merged. Prompts are not cached from run to run, and text is made of no token.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedjax_rai.bench.prompts import prompt_ids
from fedjax_rai.bench.protocol import Prepared, serve
from fedjax_rai.bench.shapes import DecodingShape, has_weights, model_json
from fedjax_rai.bench.torch_peer import about
from fedjax_rai.errors import InputError

SHARE = 0.45  # of the device's memory, which it takes at its start; the other side has the rest


def prepare(request: dict[str, Any]) -> Prepared:
    """Decoding of the request."""
    import torch  # pyright: ignore[reportMissingImports]
    import vllm  # pyright: ignore[reportMissingImports]

    run = _generate(vllm, request)
    versions = f"vllm {vllm.__version__}, torch {torch.__version__}"
    # Its engine is a process of its own, and keeps all the memory that it may have: no number of ours to compare.
    return Prepared(run, lambda: about(versions), dict)


def _generate(vllm: Any, request: dict[str, Any]) -> Callable[[], None]:
    """Answers to all prompts at once, each of which has as many tokens as asked for."""
    shape = DecodingShape(**request["shape"])
    with tempfile.TemporaryDirectory() as made:
        engine = vllm.LLM(**engine_options(request, shape, Path(made)))
    ids = prompt_ids(model_json(request["model"])["vocab_size"], shape.rows, shape.prompt)
    prompts = [{"prompt_token_ids": row} for row in ids.tolist()]
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=shape.new, ignore_eos=True, detokenize=False)

    def run() -> None:
        answers = engine.generate(prompts, sampling, use_tqdm=False)
        lengths = {len(answer.outputs[0].token_ids) for answer in answers}
        if len(answers) != shape.rows or lengths != {shape.new}:
            raise InputError(f"--peer vllm: gave {len(answers)} answers of {sorted(lengths)} tokens, not {shape.new}")

    return run


def engine_options(request: dict[str, Any], shape: DecodingShape, made: Path) -> dict[str, Any]:
    """What vLLM's `LLM` is made with: the model's folder, or in the folder `made` a config for random weights."""
    name = request["model"]
    length = shape.prompt + shape.new
    weights = has_weights(name)
    folder = Path(name)
    if not weights:
        config = {**model_json(name), "torch_dtype": request["computed"]["dtype"]}
        config["max_position_embeddings"] = max(length, config.get("max_position_embeddings", 0))
        folder = made
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "load_format": "auto" if weights else "dummy",
        "dtype": request["computed"]["dtype"],
        "max_model_len": length,
        "max_num_seqs": shape.rows,
        "gpu_memory_utilization": SHARE,
        "enable_prefix_caching": False,
        "seed": 0,
    }


if __name__ == "__main__":
    serve(prepare)
