"""A model whose columns are split four ways computes what one device does, by two sums a layer each way.

`tensor_parts.py FOLDER`, which is written to. What devices send each other in a step of training is read off its HLO.
"""

import re
import sys
from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.data.examples import Examples
from fedjax_rai.mesh import AXES, base_shardings, make_mesh, replicated
from fedjax_rai.model.decoder import LM, Decoder, abstract_base, init_base
from fedjax_rai.model.families import decoder_config
from fedjax_rai.model.lora import Lora, init_adapter
from fedjax_rai.model.weights import load_base, save_base
from fedjax_rai.train.losses import sft

RAW = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": False,
}  # fmt: skip
COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
SHAPE = re.compile(r"[a-z0-9]+\[([0-9,]*)\]")

folder = Path(sys.argv[1])
plain = decoder_config(RAW, "raw")
save_base(folder, RAW, init_base(plain, jax.random.key(0)), "float32")
lora = Lora(plain.targets, rank=2, alpha=2.0)
adapter = init_adapter(plain, lora, jax.random.key(1))
tokens = np.random.default_rng(0).integers(1, 512, (4, 48)).astype(np.int32)
texts = Examples(*map(jnp.asarray, (tokens, tokens > 128, np.ones_like(tokens))))


def step(lm, adapter, texts):
    return jax.value_and_grad(lambda adapter: sft(lm, adapter, texts).mean())(adapter)


config = replace(plain, parts=4)
mesh = make_mesh(tensor=4)
base = load_base(folder, config, base_shardings(mesh, abstract_base(config)))
a, t = jax.device_put((adapter, texts), replicated(mesh))
c = jax.jit(step).lower(LM(Decoder(config, lora), base), a, t).compile()
comp=None
for line in c.as_text().splitlines():
    if line.startswith(('%','ENTRY')): comp=line.split(' ')[0]+line.split(' ')[1][:60]
    m=COLLECTIVE.search(line)
    if m: print(comp[:50], m.group(2), m.group(1), re.findall(r'op_name="([^"]*)"', line)[0][-110:])
