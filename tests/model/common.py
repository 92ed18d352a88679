"""What several tests of models share: random trees, files of tensors, transformers' numbers."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from fedjax_rai.model import decoder, families, lora, weights
from fedjax_rai.model.decoder import Decoder

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = sorted(folder for folder in (FIXTURES / "models").iterdir() if folder.is_dir())


def random_like(tree, seed: int = 0):
    """No two numbers alike, so that nothing may be swapped unseen; norms around one."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def random_adapter(config, own: lora.Lora, seed: int = 0):
    """Both matrices random, and zero where a layer's rank ends."""
    like = random_like(lora.init_adapter(config, own, jax.random.key(0)), seed)

    def zeroed(path, leaf):
        target, part = path[-2].key, path[-1].key
        ranks = np.array(own.ranks(target, leaf.shape[0]))[:, None, None]
        axis = np.arange(leaf.shape[2])[None, None] if part == "a" else np.arange(leaf.shape[1])[None, :, None]
        return jnp.where(axis < ranks, leaf, 0.0)

    return jax.tree_util.tree_map_with_path(zeroed, like)


def random_base(config):
    return random_like(decoder.init_base(config, jax.random.key(0)))


def assert_trees_equal(got, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def edit_tensors(path: Path, change) -> None:
    tensors = read_tensors(path)
    change(tensors)
    weights.save_safetensors(path, tensors)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@partial(jax.jit, static_argnums=0)
def traced_logits(model, base, adapter, tokens, segments):
    """Of every position, as a program that may stand within another: differentiated, mapped or lowered."""
    lm = decoder.LM(model, base)
    return decoder.unembed(lm, decoder.forward(lm, adapter, tokens, segments))


def logits(model, base, adapter, tokens, valid=None) -> np.ndarray:
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    return np.asarray(traced_logits(model, base, adapter, jnp.asarray(tokens), jnp.asarray(valid)))


def check_reference(folder: Path, expected, atol: float = 1e-4) -> None:
    """Logits within 1e-4 of transformers', and the same greedy tokens, on ragged rows padded on either side.

    The greedy tokens are checked in one pass: each is the likeliest after those before it.
    """
    config = families.read_config(folder)
    base, model = weights.load_base(folder, config), Decoder(config)
    lengths, greedy = expected["lengths"], expected["greedy"]
    steps, longest = greedy.shape[1], expected["tokens"].shape[1]
    for left in (True, False):
        tokens, valid = (
            np.zeros((len(lengths), longest + steps), np.int32),
            np.zeros((len(lengths), longest + steps), bool),
        )
        for row, length in enumerate(lengths):
            whole = np.concatenate([expected["tokens"][row, longest - length :], greedy[row]])
            at = slice(-len(whole), None) if left else slice(len(whole))
            tokens[row, at], valid[row, at] = whole, True
        ours = logits(model, base, None, tokens, valid)
        for row, length in enumerate(lengths):
            own = ours[row, valid[row]]
            np.testing.assert_allclose(own[:length], expected["logits"][row, longest - length :], atol=atol, rtol=0)
            np.testing.assert_array_equal(own[length - 1 : -1].argmax(-1), greedy[row])
