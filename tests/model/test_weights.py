"""A base that is written is what is read, by us and by transformers; what does not fit is refused by name."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors import safe_open

from fedjax_rai.errors import InputError
from fedjax_rai.model import decoder, lora, weights
from fedjax_rai.model.decoder import Decoder, DecoderConfig, RopeScaling

FIXTURES = Path(__file__).parents[1] / "fixtures"
TIED, UNTIED = FIXTURES / "llama/llama3_tied_sharded", FIXTURES / "llama/plain_untied"
CONFIG = DecoderConfig(
    vocab_size=19,
    hidden_size=8,
    intermediate_size=10,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    rope_theta=500.0,
    rope_scaling=RopeScaling(4.0, 1.0, 4.0, 32),
    rms_norm_eps=1e-6,
)
LLAMA3: Any = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def random_like(tree, seed: int = 0):
    """No two numbers alike, so that nothing may be swapped unseen; norms around one."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def random_base(config: DecoderConfig):
    return random_like(lora.init_base(Decoder(config), jax.random.key(0)))


def assert_trees_equal(got, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def logits(model, base, adapter, tokens):
    hidden = decoder.forward(model, base, adapter, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    return decoder.unembed(model, base, hidden)


def edit_tensors(path: Path, change) -> None:
    tensors = read_tensors(path)
    change(tensors)
    weights.save_safetensors(path, tensors)


# ---- save_safetensors


def test_arrays_of_any_layout_survive(tmp_path):
    path = tmp_path / "deep" / "x.safetensors"
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors: dict[str, np.ndarray] = {
        "transposed": wide.T,
        "strided": wide[:, ::2],
        "reversed": wide[::-1],
        "broadcast": np.broadcast_to(wide[:1], (3, 4)),
        "scalar": np.array(3.5, np.float32),
        "bfloat16": np.asarray(jnp.asarray(wide, jnp.bfloat16)).T,
    }
    weights.save_safetensors(path, tensors)
    got = read_tensors(path)
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape
        np.testing.assert_array_equal(got[name], tensor)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    weights.save_safetensors(path, {"x": np.ones(2)})

    def half_written(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(weights, "save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        weights.save_safetensors(path, {"x": np.zeros(2)})
    np.testing.assert_array_equal(read_tensors(path)["x"], np.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


# ---- read_config


@pytest.mark.parametrize(
    ("fields", "theta", "scaling"),
    [
        ({}, 10_000.0, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, 5e5, RopeScaling(**LLAMA3)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}, 5e5, RopeScaling(**LLAMA3)),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}, 5e5, RopeScaling(**LLAMA3)),
    ],
)
def test_rope_is_read_in_the_new_and_the_old_form(fields, theta, scaling, tmp_path):
    config = _config_of(tmp_path, **fields)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


def _config_of(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> DecoderConfig:
    raw = {
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **changes,
    }
    for name in drop:
        del raw[name]
    (folder / "config.json").write_text(json.dumps(raw))
    return weights.read_config(folder, dtype="bfloat16", remat=True)


def test_absent_fields_take_the_defaults_of_transformers(tmp_path):
    expected = DecoderConfig(32, 24, 48, 2, 4, 4, 6, rms_norm_eps=1e-6, dtype="bfloat16", remat=True)
    assert _config_of(tmp_path) == expected
    assert _config_of(tmp_path, head_dim=None, num_key_value_heads=None) == expected
    given: Any = {"head_dim": 16, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    assert _config_of(tmp_path, **given) == replace(expected, **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"config\.json: model_type 'gpt2' is not supported, only: llama"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu' is supported"),
        ({"attention_bias": True}, "attention_bias is True, only False"),
        ({"mlp_bias": True}, "mlp_bias is True, only False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is .*bits"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported, only: default, llama3"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type 'linear' is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "llama3 rope needs low_freq_factor"),
        ({"drop": ("vocab_size", "hidden_size")}, "vocab_size is missing; hidden_size is missing"),
        ({"mlp_bias": True, "hidden_act": "relu"}, "hidden_act is 'relu'.*; mlp_bias is True"),
    ],
)
def test_a_config_that_we_do_not_compute_is_refused_by_name(changes, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        _config_of(tmp_path, **changes)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_config_that_is_not_there_or_not_json_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        weights.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not JSON"):
        weights.read_config(tmp_path)


# ---- the base


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_base_round_trips(tied, scaled, tmp_path):
    config = replace(CONFIG, tie_word_embeddings=tied, rope_scaling=CONFIG.rope_scaling if scaled else None)
    base = random_base(config)
    weights.save_base(tmp_path, config, base, "float32")
    assert weights.read_config(tmp_path) == config
    assert_trees_equal(weights.load_base(tmp_path, config), base)


@pytest.mark.parametrize("folder", [TIED, UNTIED], ids=lambda folder: folder.name)
def test_a_hugging_face_folder_round_trips(folder, tmp_path):
    config = weights.read_config(folder)
    weights.save_base(tmp_path, config, weights.load_base(folder, config), "float32")
    original = {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in read_tensors(shard).items()}
    got = read_tensors(tmp_path / "model.safetensors")
    assert got.keys() == original.keys()
    assert_trees_equal(got, original)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("dtype", "parameters"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_the_parameter_dtype_follows_the_config(stored, dtype, parameters, tmp_path):
    base = random_base(CONFIG)
    weights.save_base(tmp_path, CONFIG, base, stored)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == stored
    assert {str(tensor.dtype) for tensor in read_tensors(tmp_path / "model.safetensors").values()} == {stored}
    loaded = weights.load_base(tmp_path, replace(CONFIG, dtype=dtype))
    assert_trees_equal(loaded, jax.tree.map(lambda leaf: leaf.astype(stored).astype(parameters), base))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded)} == {parameters}


def test_extra_fields_reach_the_config_but_change_no_shape(tmp_path):
    weights.save_base(tmp_path, CONFIG, random_base(CONFIG), "float32", extra={"eos_token_id": 7, "vocab_size": 1})
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["eos_token_id"] == 7 and raw["vocab_size"] == CONFIG.vocab_size


def test_a_base_is_placed_on_load():
    config = weights.read_config(UNTIED)
    mesh = jax.make_mesh((len(jax.devices()),), ("fsdp",), axis_types=(AxisType.Auto,))
    whole = weights.load_base(UNTIED, config)

    def own(leaf):  # the last axis of kernels; the rest everywhere
        return NamedSharding(mesh, PartitionSpec(None, None, "fsdp") if leaf.ndim == 3 else PartitionSpec())

    shardings = jax.tree.map(own, whole)
    placed = weights.load_base(UNTIED, config, shardings)
    assert_trees_equal(placed, whole)
    jax.tree.map(lambda leaf, sharding: _check(leaf.sharding == sharding), placed, shardings)
    with pytest.raises(ValueError, match="lm_head"):
        weights.load_base(UNTIED, config, {name: leaf for name, leaf in shardings.items() if name != "lm_head"})


def _check(condition: bool) -> None:
    assert condition


def test_every_tensor_that_does_not_fit_is_listed_in_one_error(tmp_path):
    weights.save_base(tmp_path, CONFIG, random_base(CONFIG), "float32")

    def spoil(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(24, np.float32)
        tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"].T

    edit_tensors(tmp_path / "model.safetensors", spoil)
    with pytest.raises(InputError) as caught:
        weights.load_base(tmp_path, CONFIG)
    header, *lines = str(caught.value).split("\n  ")
    assert header == f"{tmp_path}: tensors do not fit the model"
    assert lines == [
        "missing: model.layers.1.mlp.up_proj.weight",
        "missing: model.norm.weight",
        "surplus: model.layers.0.self_attn.q_proj.bias",
        "shape of model.layers.0.mlp.down_proj.weight: (10, 8), expected (8, 10)",
    ]


def test_stored_frequencies_and_a_tied_head_are_ignored(tmp_path):
    config = replace(CONFIG, tie_word_embeddings=True)
    base = random_base(config)
    weights.save_base(tmp_path, config, base, "float32")
    path = tmp_path / "model.safetensors"
    edit_tensors(path, lambda own: own.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3)}))
    edit_tensors(path, lambda own: own.update({"lm_head.weight": np.ones((19, 8))}))
    assert_trees_equal(weights.load_base(tmp_path, config), base)


def test_files_that_are_not_there_or_broken_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        weights.load_base(tmp_path, CONFIG)
    folder = tmp_path / "shards"
    shutil.copytree(TIED, folder)
    first, second, _ = sorted(folder.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(InputError, match=f"names files that are not there: {first.name}"):
        weights.load_base(folder, weights.read_config(folder))
    first.write_bytes(b"not a file of tensors")
    with pytest.raises(InputError, match=f"{first.name}: not a safetensors file"):
        weights.load_base(folder, weights.read_config(folder))


def test_a_tree_of_another_model_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="the model's are"):
        weights.save_base(tmp_path, CONFIG, random_base(replace(CONFIG, num_hidden_layers=3)), "float32")
    assert not list(tmp_path.iterdir())


# ---- with transformers


def test_importing_loads_neither_torch_nor_transformers():
    code = "import sys, fedjax_rai.model.weights; print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parity
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_what_we_write(tied, stored, tmp_path):
    torch = pytest.importorskip("torch", reason="the parity extra (torch) is not installed")
    from transformers import AutoModelForCausalLM

    config = replace(CONFIG, tie_word_embeddings=tied)
    weights.save_base(tmp_path, config, random_base(config), stored)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32", output_loading_info=True)
    theirs, report = loaded
    assert not any(report.values()), report
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    ours = logits(Decoder(config), weights.load_base(tmp_path, config), None, tokens)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_others_may_read_what_is_saved(tmp_path):
    weights.save_safetensors(tmp_path / "x.safetensors", {"x": np.zeros(2, np.float32)})
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644
