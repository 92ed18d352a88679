"""A federated round by TRL's SFTTrainer, one for each client in turn, as OpenFedLLM does it.

python -m fedjax_rai.bench.trl_peer. What a trainer does besides is part of it: its data loading, and being made anew.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedjax_rai.bench.protocol import Prepared, serve
from fedjax_rai.bench.shapes import RoundShape
from fedjax_rai.bench.torch_peer import (
    LEARNING_RATE,
    about,
    adapted_model,
    device,
    memory,
    random_batches,
    synchronised,
    trained_parameters,
)


def prepare(request: dict[str, Any]) -> Prepared:
    """A round of the request."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers
    import trl  # pyright: ignore[reportMissingImports]

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    run = synchronised(_round(adapted_model(request), request))
    versions = f"trl {trl.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    return Prepared(run, lambda: about(versions), memory)


def _round(model: Any, request: dict[str, Any]) -> Callable[[], None]:
    """Each client from the received adapter, by a trainer of its own; the deltas' mean at the end."""
    import datasets
    import torch  # pyright: ignore[reportMissingImports]

    shape = RoundShape(**request["shape"])
    adapter = trained_parameters(model)
    received = [parameter.detach().clone() for parameter in adapter]
    rows = random_batches(model, shape).reshape(-1, shape.length).tolist()
    corpus = datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})
    tokenizer = _tokenizer(model.config.vocab_size)
    arguments = _arguments(shape, request["computed"]["dtype"], request["compile"])

    def run() -> None:
        total = [torch.zeros_like(parameter) for parameter in adapter]
        for _ in range(shape.clients):
            with torch.no_grad():
                torch._foreach_copy_(adapter, received)
            _trainer(model, arguments, corpus, tokenizer).train()
            with torch.no_grad():
                torch._foreach_add_(total, torch._foreach_sub(adapter, received))
        torch._foreach_div_(total, shape.clients)

    return run


def _trainer(model: Any, arguments: Any, corpus: Any, tokenizer: Any) -> Any:
    from trl import SFTTrainer  # pyright: ignore[reportMissingImports]

    trainer = SFTTrainer(model=model, args=arguments, train_dataset=corpus, processing_class=tokenizer)
    for callback in ("PrinterCallback", "ProgressCallback"):
        known = [each for each in trainer.callback_handler.callbacks if type(each).__name__ == callback]
        for each in known:
            trainer.remove_callback(each)
    return trainer


def _arguments(shape: RoundShape, dtype: str, compiled: bool) -> Any:
    """As OpenFedLLM's, without what only slows it down: no checkpointing, no logging, nothing saved."""
    from trl import SFTConfig  # pyright: ignore[reportMissingImports]

    return SFTConfig(
        output_dir=str(Path(tempfile.gettempdir()) / "fedjax_rai_trl_peer"),
        max_steps=shape.steps,
        per_device_train_batch_size=shape.batch,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=device() == "cpu",
        bf16=dtype == "bfloat16",
        gradient_checkpointing=False,
        torch_compile=compiled,
        max_length=shape.length,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=device() == "cuda",
        disable_tqdm=True,
    )


def _tokenizer(vocabulary: int) -> Any:
    """One that the trainer asks for padding and for nothing else, as all is tokens already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {str(number): number for number in range(2, vocabulary)}
    model = Tokenizer(WordLevel(words, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>")


if __name__ == "__main__":
    serve(prepare)
