"""A base whose columns are split four ways computes what one device does; `tensor_parts.py FOLDER` writes there.

Devices hold whole heads, and gate and up of the same channels: a layer's programs send two sums, forward and backward
each. What is trained is written in the order of Hugging Face's columns, whatever the mesh.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from fedjax_rai.config.schema import FederatedConfig
from fedjax_rai.data.examples import Examples, Prompts
from fedjax_rai.experiment.together import federated_round
from fedjax_rai.fed.algorithm import make_algorithm
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Cohort
from fedjax_rai.mesh import AXES, base_shardings, make_mesh, replicated
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder, abstract_base, forward, init_base, unembed
from fedjax_rai.model.families import decoder_config
from fedjax_rai.model.lora import Lora, init_adapter
from fedjax_rai.model.peft import save_adapter
from fedjax_rai.model.weights import load_base, save_base
from fedjax_rai.train.generate import Decoding, Sampling, generate
from fedjax_rai.train.losses import sft
from fedjax_rai.train.speaker import merged
from tests.programs import every_stage

PARTS = 4
RAW = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "fused modules": {"model_type": "phi3"},
    "fewer key heads than parts": {"model_type": "llama", "num_key_value_heads": 2},
}  # fmt: skip
COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
SHAPE = re.compile(r"[a-z0-9]+\[([0-9,]*)\]")
ONE = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
SEVERAL = make_mesh(tensor=PARTS)
TOKENS = np.random.default_rng(0).integers(1, 64, (4, 12)).astype(np.int32)


def check_close(found: Any, expected: Any) -> None:
    def check(one: Any, other: Any) -> None:
        np.testing.assert_allclose(one, other, atol=2e-6, rtol=2e-5)

    jax.tree.map(check, found, expected)


def loaded(folder: Path, config: DecoderConfig, mesh: Any) -> LM:
    base = load_base(folder, config, base_shardings(mesh, abstract_base(config)))
    return LM(Decoder(config, Lora(config.targets, rank=2, alpha=2.0)), base)


def trained_adapter(config: DecoderConfig) -> Any:
    fresh = init_adapter(config, Lora(config.targets, rank=2, alpha=2.0), jax.random.key(1))
    return jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(2), leaf.shape), fresh)


@jax.jit
def computed(lm: LM, adapter: Any) -> Any:
    """Logits, and the gradient of a loss."""
    texts = Examples(jnp.asarray(TOKENS), jnp.asarray(TOKENS) > 16, jnp.ones_like(TOKENS))
    logits = unembed(lm, forward(lm, adapter, texts.tokens, texts.segments))
    return logits, jax.grad(lambda adapter: sft(lm, adapter, texts).mean())(adapter)


def check_model(folder: Path, changes: dict[str, Any], quantize: str = "none") -> None:
    """Logits, gradients, answers and the merged base of a family, read on several devices, are those on one."""
    raw = RAW | changes
    plain = decoder_config(raw, "raw", quantize=quantize)
    base = init_base(replace(plain, quantize="none"), jax.random.key(0))
    keys = jax.random.split(jax.random.key(3), len(jax.tree.leaves(base)))  # biases, too, that are not all alike
    drawn = [
        leaf + jax.random.normal(key, leaf.shape) / 8 for key, leaf in zip(keys, jax.tree.leaves(base), strict=True)
    ]
    save_base(folder, raw, jax.tree.unflatten(jax.tree.structure(base), drawn), "float32")
    dealt = replace(plain, parts=PARTS)
    adapter = trained_adapter(plain)
    one, several = loaded(folder, plain, ONE), loaded(folder, dealt, SEVERAL)
    check_close(computed(several, jax.device_put(adapter, replicated(SEVERAL))), computed(one, adapter))
    check_close(computed(merged(several, adapter), None)[0], computed(one, adapter)[0])
    for heat in (0.0, 1.0):
        answers = []
        for lm, mesh in ((one, ONE), (several, SEVERAL)):
            prompts, given = jax.device_put(
                (Prompts(*map(jnp.asarray, (TOKENS, TOKENS > 0))), adapter), replicated(mesh)
            )
            keys = jax.random.split(jax.random.key(4), len(TOKENS))
            answers.append(generate(lm, given, prompts, keys, Decoding(Sampling(jnp.float32(heat)), np.array([0]), 8)))
        jax.tree.map(np.testing.assert_array_equal, *answers)


def check_round(folder: Path) -> None:
    """Two rounds by one program, and what they train: its file is that of one device, column by column."""
    plain = decoder_config(RAW | MODELS["biases"], "raw")
    federated = FederatedConfig(clients=3, cohort=3, batch_size=2)
    rows = np.arange(12, dtype=np.int32).reshape(3, 2, 2) % len(TOKENS)
    written = []
    for mesh, parts in ((ONE, 1), (SEVERAL, PARTS)):
        lm = loaded(folder, replace(plain, parts=parts), mesh)
        algorithm = make_algorithm(federated, {}, mesh)
        texts = Examples(jnp.asarray(TOKENS), jnp.asarray(TOKENS) > 16, jnp.ones_like(TOKENS))
        batch = RoundBatch(texts, Cohort(jnp.arange(3), jnp.asarray(rows), jnp.ones(3)), jnp.float32(1e-2))
        state, batch = jax.device_put((algorithm.init(trained_adapter(plain)), batch), replicated(mesh))
        program: Any = federated_round
        before = program._cache_size()
        for _ in range(2):
            state, _ = program(algorithm, state, lm, batch)
        assert program._cache_size() == before + 1, "the second round compiled anew"
        save_adapter(folder / f"adapter {parts}", lm.model.config, lm.model.lora, state.adapter, "base")
        written.append(load_file(folder / f"adapter {parts}" / "adapter_model.safetensors"))
    one, several = written
    fresh = trained_adapter(plain)["layers"]["q_proj"]["b"][0].T
    assert np.abs(one["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"] - fresh).max() > 1e-3
    assert one.keys() == several.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(several[name], tensor, atol=2e-5, err_msg=name)


def sent(lowered: Any) -> Iterator[tuple[str, str, str, list[tuple[int, ...]]]]:
    """(kind, computation, name of the operation, shapes) of every collective in a compiled program."""
    within = ""
    for line in lowered.compile().as_text().splitlines():
        if line.startswith(("%", "ENTRY")):
            within = line
        found = COLLECTIVE.search(line)
        if found:
            (name,) = re.findall(r'op_name="([^"]*)"', line) or [""]
            shapes = [tuple(map(int, filter(None, sizes.split(",")))) for sizes in SHAPE.findall(found[1])]
            yield found[2], within, name, shapes


def check_sent() -> None:
    """Two sums a layer, forward and backward each; else sums a program, adapters, and the likeliest of each part."""
    every_stage.CONFIG = replace(every_stage.CONFIG, parts=PARTS)
    on = every_stage.placed(SEVERAL)
    adapters = {leaf.shape for leaf in jax.tree.leaves(on.adapter)}
    for name, lowered in every_stage.stages(on):
        by_layer: Counter[str] = Counter()
        for kind, within, operation, shapes in sent(lowered):
            if kind == "all-reduce":
                by_layer[within] += "/layers/" in operation
                continue
            assert kind == "all-gather", (name, kind, operation)
            for shape in shapes:
                likeliest = shape in ((every_stage.ROWS, PARTS), (every_stage.QUEUED, PARTS))
                assert likeliest or shape in adapters, (name, kind, shape, operation)
        loops = [count for count in by_layer.values() if count]
        print(name, loops)
        assert loops and max(loops) <= 2, (name, by_layer)


if __name__ == "__main__":
    assert jax.device_count() == PARTS
    folder = Path(sys.argv[1])
    for name, changes in MODELS.items():
        check_model(folder / name, changes)
    check_model(folder / "int8", MODELS["biases"], "int8")
    check_round(folder / "biases")
    check_sent()
