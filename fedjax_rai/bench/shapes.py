"""What is measured: models by name or folder, and the sizes of each work. The standard library alone, for peers too."""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple


def _llama(width: int, inner: int, layers: int, heads: int, groups: int, **others: Any) -> dict[str, Any]:
    """A Llama's `config.json`; `others`: its vocabulary, and whether it ties its embeddings."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": width // heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        **others,
    }


MODELS: dict[str, dict[str, Any]] = {
    "tiny": _llama(256, 688, 6, 8, 4, vocab_size=4096, tie_word_embeddings=True),
    # the shapes of SmolLM2 135M, Llama 3.2 1B and Llama 3.1 8B
    "135M": _llama(576, 1536, 30, 9, 3, vocab_size=49152, tie_word_embeddings=True),
    "1B": _llama(2048, 8192, 16, 32, 8, vocab_size=128256, tie_word_embeddings=True),
    "8B": _llama(4096, 14336, 32, 32, 8, vocab_size=128256, tie_word_embeddings=False),
}
"""The `config.json` of every named shape; weights are random."""

RANK = 16  # of adapters, on all projections; alpha is twice the rank


def model_json(model: str) -> dict[str, Any]:
    """The `config.json` of a named shape, or of a Hugging Face folder."""
    if model in MODELS:
        return MODELS[model]
    return json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))


def has_weights(model: str) -> bool:
    """Whether a model is a folder with weights; else they are random."""
    return model not in MODELS and any(Path(model).glob("*.safetensors"))


ORDERS = ("queue", "batches")
"""How a job is answered: a row whose answer has ended takes the next prompt, or a batch after the other has ended."""
ADAPTERS = ("apart", "merged")
"""Where the adapter of a model that generates is: beside the base, or added to a copy of it (`model.answering`)."""


def around(count: int, mean: int) -> list[int]:
    """So many lengths: whole numbers from a half to three halves of `mean`, the same in every process."""
    drawn = random.Random(0)
    return [drawn.randint(-(-mean // 2), mean * 3 // 2) for _ in range(count)]


class RoundShape(NamedTuple):
    """A federated round; the defaults are the paper's but for the length, which it does not give."""

    clients: int = 5
    steps: int = 25
    batch: int = 16
    length: int = 512
    chunk: int = 1  # clients that are mapped at once

    @property
    def tokens(self) -> int:
        """Tokens that all clients train on; there is no padding."""
        return self.clients * self.steps * self.batch * self.length


class DecodingShape(NamedTuple):
    """Greedy decoding, in which no row ends before its limit; with `answers`, a job of sampled answers."""

    rows: int = 16
    prompt: int = 64  # of a job's prompts in the mean
    new: int = 128
    answers: int | None = None  # of different lengths, which end by chance, a third of `new` in the mean
    order: str | None = None  # a job's: one of `ORDERS`
    adapter: str | None = None  # one of `ADAPTERS`; None: the first

    @property
    def tokens(self) -> int:
        """Tokens that are generated where no row ends before its limit."""
        return self.rows * self.new

    @property
    def prompts(self) -> list[int]:
        """Tokens of each of a job's prompts."""
        return around(self.answers or 0, self.prompt)


class CaiShape(NamedTuple):
    """A phase of constitutional AI: respond, critique, revise, and train; no answer ends before its limit."""

    prompts: int = 64
    chunk: int | None = None  # prompts that are answered at once; None: all
    prompt: int = 64  # tokens of a prompt
    request: int = 32  # tokens that ask for a critique, and so many for a revision
    new: int = 64  # tokens of a response, a critique or a revision
    revisions: int = 1
    iterations: int = 50
    batch: int = 16  # examples of an iteration
    adapter: str | None = None  # where it is while texts are generated: one of `ADAPTERS`; None: the first

    @property
    def chunks(self) -> int:
        """How many chunks the prompts are answered in."""
        return -(-self.prompts // (self.chunk or self.prompts))

    @property
    def turns(self) -> int:
        """Texts that are generated for a prompt."""
        return 1 + 2 * self.revisions

    @property
    def trained(self) -> int:
        """Tokens that go through the iterations: prompts and answers."""
        return self.iterations * self.batch * (self.prompt + self.new)

    @property
    def tokens(self) -> int:
        """Tokens that go through the model once: generated, read in order to generate, and trained on."""
        conversation = self.prompt + self.turns * self.new + 2 * self.revisions * self.request
        return self.prompts * conversation + self.trained


class ScoreShape(NamedTuple):
    """The guard's scores of pairs of different lengths, `length` in the mean."""

    pairs: int = 1000
    length: int = 128
    batch: int = 64

    @property
    def lengths(self) -> list[int]:
        """Tokens of each pair: whole numbers from a half to three halves of `length`, the same in every process."""
        return around(self.pairs, self.length)

    @property
    def tokens(self) -> int:
        """Tokens that are read, padding not counted."""
        return sum(self.lengths)


SHAPES: dict[str, Any] = {"round": RoundShape, "generate": DecodingShape, "cai": CaiShape, "score": ScoreShape}
"""The sizes of each work, by its name."""
