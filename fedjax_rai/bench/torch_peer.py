"""The same work by transformers and PEFT in torch, as a careful user writes it: python -m fedjax_rai.bench.torch_peer

Scaled dot-product attention, fused AdamW, bfloat16 weights with float32 adapters, TF32 allowed; no data loading, no
logging, no gradient checkpointing. A program of its own, so that neither library holds memory of the other's.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from fedjax_rai.bench.shapes import LORA, MODELS, DecodingShape, RoundShape


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """What `request` asks for: its work (round or generate), model, dtype, shape, repeats and whether to compile."""
    import peft  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    torch.backends.cuda.matmul.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model(request["model"], request["dtype"], device)
    work = {"round": _round, "generate": _generate}[request["work"]]
    run, tokens = work(model, request, device)
    run()
    spent = [_timed(run) for _ in range(request["repeats"])]
    return {
        **request,
        "peer": f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}",
        "seconds": spent,
        "tokens_per_second": tokens / statistics.median(spent),
        "peak_memory": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def _model(name: str, dtype: str, device: str) -> Any:
    import torch  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**MODELS[name])
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(getattr(torch, dtype))
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    lora = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=list(LORA.targets), task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def _round(model: Any, request: dict[str, Any], device: str) -> tuple[Callable[[], None], int]:
    """Clients in turn, each from the received adapter with a fresh optimizer; the deltas' mean at the end."""
    import torch  # pyright: ignore[reportMissingImports]

    shape = RoundShape(**request["shape"])
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    received = [parameter.detach().clone() for parameter in adapter]
    vocabulary = model.config.vocab_size
    batches = torch.randint(0, vocabulary, (shape.steps, shape.batch, shape.length), device=device)
    stepped = torch.compile(model) if request["compile"] else model

    def run() -> None:
        total = [torch.zeros_like(parameter) for parameter in adapter]
        for _ in range(shape.clients):
            with torch.no_grad():
                torch._foreach_copy_(adapter, received)
            optimizer = torch.optim.AdamW(adapter, lr=1e-4, fused=True)
            for tokens in batches:
                stepped(input_ids=tokens, labels=tokens).loss.backward()
                torch.nn.utils.clip_grad_norm_(adapter, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_add_(total, torch._foreach_sub(adapter, received))
        torch._foreach_div_(total, shape.clients)

    return run, shape.tokens


def _generate(model: Any, request: dict[str, Any], device: str) -> tuple[Callable[[], None], int]:
    """Greedy `generate` with a dynamic cache; no row ends before its limit."""
    import torch  # pyright: ignore[reportMissingImports]

    shape = DecodingShape(**request["shape"])
    prompts = torch.randint(0, model.config.vocab_size, (shape.rows, shape.prompt), device=device)
    options = {"do_sample": False, "min_new_tokens": shape.new, "max_new_tokens": shape.new, "pad_token_id": 0}

    def run() -> None:
        with torch.inference_mode():
            model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **options)

    return run, shape.rows * shape.new


def _timed(run: Callable[[], None]) -> float:
    import torch  # pyright: ignore[reportMissingImports]

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
