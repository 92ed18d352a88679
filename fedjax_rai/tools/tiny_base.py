"""Makes the shipped tiny tokenizer and base from a seed: python -m fedjax_rai.tools.tiny_base OUT

Minutes on two cores, less on an accelerator. Bits differ between machines; the printed metrics should not, much.
"""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer

from fedjax_rai import rng
from fedjax_rai.aliases import Base
from fedjax_rai.data import tiny_world
from fedjax_rai.data.examples import Examples, bucket
from fedjax_rai.model.decoder import LM, Decoder, init_base
from fedjax_rai.model.families import decoder_config
from fedjax_rai.model.weights import save_base
from fedjax_rai.text.prompts import ASSISTANT, Segment, chat
from fedjax_rai.text.tokenizer import BOS, Tokenizer, train_tokenizer
from fedjax_rai.train import losses

VOCABULARY = 1024
ROW_TOKENS = 6144  # tokens of a batch, padding included
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "hidden_act": "silu",
}
CONFIG = decoder_config(SHAPE, "the tiny base")


def segments(tokenizer: Tokenizer, document: tiny_world.Document) -> list[Segment]:
    """A document's text; of a conversation only the assistant's turns from `first` on are trained on."""
    if not document.turns[0].role:
        return [Segment(BOS + document.turns[0].text + tokenizer.end_of_turn, True)]
    answers = [i for i, turn in enumerate(document.turns) if turn.role == ASSISTANT]
    untrained = sum(i < document.first for i in answers)
    found = []
    for i, segment in enumerate(chat(tokenizer, document.turns)):
        answer = i // 2  # segments alternate: what leads to an answer, and the answer
        found.append(segment._replace(train=segment.train and answer >= untrained))
    return found


def batches(tokenizer: Tokenizer, documents: list[tiny_world.Document], seed: int) -> Iterator[Examples]:
    """Endless batches of one bucket each, about ROW_TOKENS tokens, in a new order every epoch."""
    encoded = [tokenizer.encode_segments(segments(tokenizer, d)) for d in documents]
    sizes = np.array([bucket(len(ids)) for ids, _ in encoded])
    epoch = 0
    while True:
        g = rng.host(seed, "tiny base order", epoch=epoch)
        plans = []
        for size in np.unique(sizes):
            documents_of_size = g.permutation(np.flatnonzero(sizes == size))
            rows = ROW_TOKENS // int(size)
            for begin in range(0, len(documents_of_size) - rows + 1, rows):
                plans.append((int(size), documents_of_size[begin : begin + rows]))
        for i in g.permutation(len(plans)):
            size, batch = plans[i]
            yield _pad([encoded[document] for document in batch], size, tokenizer.pad_id)
        epoch += 1


def _pad(rows: list[tuple[list[int], list[bool]]], size: int, pad: int) -> Examples:
    tokens: Any = np.array([ids + [pad] * (size - len(ids)) for ids, _ in rows], np.int32)
    mask: Any = np.array([m + [False] * (size - len(m)) for _, m in rows])
    segments: Any = np.array([[1] * len(m) + [0] * (size - len(m)) for _, m in rows], np.int32)
    return Examples(tokens, mask, segments)


def pretrain(tokenizer: Tokenizer, documents: list[tiny_world.Document], steps: int, peak: float, seed: int) -> Base:
    """AdamW, warm-up and cosine, on the loss of trained tokens."""
    model = Decoder(CONFIG)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps, 0.02 * peak)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(base: Base, state: Any, batch: Examples) -> tuple[Base, Any, losses.Sum]:
        def loss(base: Base) -> tuple[jax.Array, losses.Sum]:
            terms = losses.sft(LM(model, base), None, batch)
            return terms.mean(), terms

        gradient, terms = jax.grad(loss, has_aux=True)(base)
        updates, state = optimizer.update(gradient, state, base)
        return optax.apply_updates(base, updates), state, terms

    base = init_base(CONFIG, rng.stream(jax.random.key(seed), "tiny base"))
    state = optimizer.init(base)
    began = time.perf_counter()
    seen = []
    for i, batch in zip(range(steps), batches(tokenizer, documents, seed), strict=False):
        base, state, terms = step(base, state, batch)
        seen.append(terms)
        if (i + 1) % 100 == 0:
            total, weight = (jnp.stack(column).sum() for column in zip(*seen[-100:], strict=True))
            seconds = time.perf_counter() - began
            print(f"step {i + 1}/{steps} loss {total / weight:.4f} {seconds:.0f} s", flush=True)
    return base


def main(out: Path, seed: int = 0, documents: int = 60_000, steps: int = 2000, peak: float = 4e-3) -> None:
    """Write tokenizer, base and recipe.json to the folder OUT."""
    out.mkdir(parents=True, exist_ok=True)
    texts = list(tiny_world.corpus(documents, seed))
    tokenizer = train_tokenizer((turn.text for d in texts[:20_000] for turn in d.turns), VOCABULARY, out)
    base = pretrain(tokenizer, texts, steps, peak, seed)
    ids = {name: getattr(tokenizer.hf, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    save_base(out, {**SHAPE, **ids}, base, "float16")
    recipe = {"seed": seed, "documents": documents, "steps": steps, "peak_learning_rate": peak}
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
