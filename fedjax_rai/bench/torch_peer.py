"""The same work by transformers and PEFT in torch, as a careful user writes it: python -m fedjax_rai.bench.torch_peer

Scaled dot-product attention, fused AdamW, bfloat16 weights with float32 adapters, TF32 allowed; no data loading, no
logging, no gradient checkpointing. A program of its own, so that neither library holds memory of the other's.
"""

import platform
from collections.abc import Callable, Sequence
from typing import Any

from fedjax_rai.bench.protocol import Prepared, serve
from fedjax_rai.bench.shapes import DecodingShape, RoundShape, ScoreShape, has_weights, model_json
from fedjax_rai.memory import measured

LEARNING_RATE = 1e-4


def prepare(request: dict[str, Any]) -> Prepared:
    """The work of a request: round, generate or score."""
    import peft  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    model = adapted_model(request)
    make = {"round": _round, "generate": _generate, "score": _score}[request["work"]]
    run = synchronised(make(model, request))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    return Prepared(run, lambda: about(versions), memory)


def device() -> str:
    """Where torch computes."""
    import torch  # pyright: ignore[reportMissingImports]

    return "cuda" if torch.cuda.is_available() else "cpu"


def about(versions: str) -> dict[str, Any]:
    """What a worker in torch knows of itself."""
    import torch  # pyright: ignore[reportMissingImports]

    card = torch.cuda.get_device_name() if device() == "cuda" else "cpu"
    return {"versions": f"{versions}, Python {platform.python_version()}", "device": card, "devices": 1}


def memory() -> dict[str, int | None]:
    """Bytes that this process held at most."""
    import torch  # pyright: ignore[reportMissingImports]

    held = torch.cuda.max_memory_allocated() if device() == "cuda" else None
    return {"host_memory": measured.process_peak(), "device_memory": held}


def synchronised(run: Callable[[], None]) -> Callable[[], None]:
    """A run that returns when the device has done it."""
    import torch  # pyright: ignore[reportMissingImports]

    if device() == "cpu":
        return run

    def waiting() -> None:
        run()
        torch.cuda.synchronize()

    return waiting


def adapted_model(request: dict[str, Any]) -> Any:
    """transformers' model of the request, of random weights if it has none, with PEFT's LoRA on all projections."""
    import torch  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]

    torch.backends.cuda.matmul.allow_tf32 = True
    model = base_model(request["model"], getattr(torch, request["computed"]["dtype"]))
    lora = request["lora"]
    targets = lora.get("targets") or "all-linear"
    config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def base_model(name: str, dtype: Any) -> Any:
    """The base on its device, in a type of torch."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if has_weights(name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="sdpa")
        return loaded.to(device())
    fields = model_json(name)
    config = CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields))
    torch.manual_seed(0)
    with torch.device(device()):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def trained_parameters(model: Any) -> list[Any]:
    """Those of the adapter."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _round(model: Any, request: dict[str, Any]) -> Callable[[], None]:
    """Clients in turn, each from the received adapter with a fresh optimizer; the deltas' mean at the end."""
    import torch  # pyright: ignore[reportMissingImports]

    shape = RoundShape(**request["shape"])
    adapter = trained_parameters(model)
    received = [parameter.detach().clone() for parameter in adapter]
    batches = random_batches(model, shape)
    stepped = torch.compile(model) if request["compile"] else model

    def run() -> None:
        total = [torch.zeros_like(parameter) for parameter in adapter]
        for _ in range(shape.clients):
            with torch.no_grad():
                torch._foreach_copy_(adapter, received)
            train(stepped, adapter, batches)
            with torch.no_grad():
                torch._foreach_add_(total, torch._foreach_sub(adapter, received))
        torch._foreach_div_(total, shape.clients)

    return run


def random_batches(model: Any, shape: RoundShape) -> Any:
    """[steps, batch, length] random tokens on the device."""
    import torch  # pyright: ignore[reportMissingImports]

    return torch.randint(0, model.config.vocab_size, (shape.steps, shape.batch, shape.length), device=device())


def train(model: Any, adapter: Sequence[Any], batches: Any) -> None:
    """A client's local steps, with a fresh optimizer and clipped gradients."""
    import torch  # pyright: ignore[reportMissingImports]

    optimizer = torch.optim.AdamW(adapter, lr=LEARNING_RATE, fused=True)
    for tokens in batches:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _generate(model: Any, request: dict[str, Any]) -> Callable[[], None]:
    """Greedy `generate` with a dynamic cache; no row ends before its limit."""
    import torch  # pyright: ignore[reportMissingImports]

    shape = DecodingShape(**request["shape"])
    if shape.adapter == "merged":
        model = model.merge_and_unload()
    prompts = torch.randint(0, model.config.vocab_size, (shape.rows, shape.prompt), device=device())
    options = {"do_sample": False, "min_new_tokens": shape.new, "max_new_tokens": shape.new, "pad_token_id": 0}

    def run() -> None:
        with torch.inference_mode():
            model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **options)

    return run


def _score(model: Any, request: dict[str, Any]) -> Callable[[], None]:
    """Probabilities of one verdict against another, pairs sorted by length and padded to a batch's longest."""
    import torch  # pyright: ignore[reportMissingImports]

    shape = ScoreShape(**request["shape"])
    vocabulary = model.config.vocab_size
    texts = [torch.randint(0, vocabulary, (length,)) for length in sorted(shape.lengths)]
    scored = torch.compile(model, dynamic=True) if request["compile"] else model

    def run() -> None:
        found = []
        with torch.inference_mode():
            for begin in range(0, len(texts), shape.batch):
                tokens, mask = padded_left(texts[begin : begin + shape.batch])
                output = scored(
                    input_ids=tokens.to(device()), attention_mask=mask.to(device()), logits_to_keep=1, use_cache=False
                )
                found.append(output.logits[:, -1, [1, 2]].float().softmax(-1)[:, 1])
            torch.cat(found).cpu()

    return run


def padded_left(texts: Sequence[Any]) -> tuple[Any, Any]:
    """Texts as one batch, padded to the longest, and which of its tokens are theirs."""
    import torch  # pyright: ignore[reportMissingImports]

    length = max(len(text) for text in texts)
    tokens = torch.zeros((len(texts), length), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, text in enumerate(texts):
        tokens[row, length - len(text) :] = text
        mask[row, length - len(text) :] = 1
    return tokens, mask


if __name__ == "__main__":
    serve(prepare)
