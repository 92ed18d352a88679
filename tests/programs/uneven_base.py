"""An axis that the mesh does not divide is whole on every device: `uneven_base.py FOLDER`, which is written to."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from fedjax_rai.model import decoder, families, weights
from tests.programs.split_bases import load, share

# No size but the embedding's is even, or a kernel's only on one side; with 66 rows, codes split and scales do not.
RAW = {
    "model_type": "llama", "vocab_size": 33, "hidden_size": 66, "intermediate_size": 15, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "tie_word_embeddings": False,
}  # fmt: skip

folder = Path(sys.argv[1])
plain = families.decoder_config(RAW, "raw")
base = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, decoder.init_base(plain, jax.random.key(0)))
weights.save_base(folder, RAW, base, "float32")
tokens = jnp.arange(24).reshape(2, 12)


@jax.jit
def logits(lm: decoder.LM) -> jax.Array:
    return decoder.unembed(lm, decoder.forward(lm, None, tokens, tokens >= 0))


for kind in ("none", "int8"):
    model = decoder.Decoder(replace(plain, quantize=kind))
    one, eight = load(folder, model.config)
    assert eight["embed_tokens"].sharding.spec == P(None, "fsdp")
    assert share(eight["embed_tokens"]) == 1 / 2
    assert eight["lm_head"].sharding.spec == P("fsdp", None)
    down = jax.tree.leaves(eight["layers"]["down_proj"])[0]
    assert down.sharding.spec == P(None, None, "fsdp")
    up = jax.tree.leaves(eight["layers"]["gate_up_proj"])[0]
    assert up.sharding.spec == P(None, "fsdp", "tensor")
    found, expected = (logits(decoder.LM(model, loaded)) for loaded in (eight, one))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
