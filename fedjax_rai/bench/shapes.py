"""Shapes that are measured: decoders by name with random weights, and the work of a federated round or of decoding."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.data.examples import Examples, Prompts
from fedjax_rai.model.decoder import LM, Decoder, init_base
from fedjax_rai.model.families import decoder_config
from fedjax_rai.model.lora import Lora


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

LORA = Lora(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), rank=16, alpha=32.0)


class RoundShape(NamedTuple):
    """A federated round; the defaults are the paper's but for the length, which it does not give."""

    clients: int = 5
    steps: int = 25
    batch: int = 16
    length: int = 512
    chunk: int = 1

    @property
    def tokens(self) -> int:
        """Tokens that all clients train on; there is no padding."""
        return self.clients * self.steps * self.batch * self.length


class DecodingShape(NamedTuple):
    """Greedy decoding; no row ends before its limit."""

    rows: int = 16
    prompt: int = 64
    new: int = 128


def random_lm(model: str, **computed: str) -> LM:
    """A decoder of that name with random weights; `computed`: dtype, attention, remat."""
    config = decoder_config(MODELS[model], model, **computed)
    base = jax.jit(partial(init_base, config))(jax.random.key(0))
    return LM(Decoder(config, LORA), base)


def random_examples(vocabulary: int, rows: int, length: int) -> Examples:
    """[rows, length] random tokens, all trained on."""
    tokens: Any = np.random.default_rng(0).integers(0, vocabulary, (rows, length), np.int32)
    ones = jnp.ones(tokens.shape, jnp.int32)
    return Examples(jnp.asarray(tokens), ones.astype(bool), ones)


def random_prompts(vocabulary: int, shape: DecodingShape) -> Prompts:
    """[rows, prompt] random tokens, none of them padding."""
    tokens: Any = np.random.default_rng(1).integers(0, vocabulary, (shape.rows, shape.prompt), np.int32)
    return Prompts(jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
