"""A base that is written is what is read, by us and by transformers; what does not fit is refused by name."""

import json
import shutil
import weakref
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fedjax_rai.errors import InputError
from fedjax_rai.model import families, quantize, weights
from fedjax_rai.model.architecture import FUSED
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.model.lora import Lora
from tests import small
from tests.model.common import (
    FIXTURES,
    MODELS,
    assert_trees_equal,
    edit_tensors,
    logits,
    random_adapter,
    random_base,
    read_tensors,
)
from tests.processes import succeed

TIED, UNTIED = FIXTURES / "models/llama3_tied_sharded", FIXTURES / "models/plain_untied"
RAW: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 19,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
}
EXTRAS: dict[str, dict[str, Any]] = {  # what sets a family's flags that RAW leaves at their defaults
    "llama": {"attention_bias": True, "mlp_bias": True},
    "gemma2": {"num_hidden_layers": 3, "sliding_window": 4},
    "phi3": {"head_dim": None, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0}},
    "smollm3": {"num_hidden_layers": 4},
}
CONFIG = families.decoder_config(RAW, "RAW")


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


# ---- the base


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_a_base_round_trips(family, tmp_path):
    raw = {**RAW, **EXTRAS.get(family, {}), "model_type": family}
    config = families.decoder_config(raw, family)
    base = random_base(config)
    weights.save_base(tmp_path, raw, base, "float32")
    assert families.read_config(tmp_path) == config
    assert_trees_equal(weights.load_base(tmp_path, config), base)


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_hugging_face_folder_round_trips(folder, tmp_path):
    config, raw = families.read_config(folder), json.loads((folder / "config.json").read_text())
    weights.save_base(tmp_path, raw, weights.load_base(folder, config), "float32")
    original = {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in read_tensors(shard).items()}
    got = read_tensors(tmp_path / "model.safetensors")
    assert got.keys() == original.keys()
    assert_trees_equal(got, original)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_parameter_dtype_follows_the_config(stored, dtype, tmp_path):
    base = random_base(CONFIG)
    weights.save_base(tmp_path, RAW, base, stored)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == stored
    assert {str(tensor.dtype) for tensor in read_tensors(tmp_path / "model.safetensors").values()} == {stored}
    loaded = weights.load_base(tmp_path, replace(CONFIG, dtype=dtype))
    assert_trees_equal(loaded, jax.tree.map(lambda leaf: leaf.astype(stored).astype(dtype), base))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded)} == {dtype}


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_is_that_of_the_whole_kernels(kind):
    config = families.read_config(UNTIED)
    plain = weights.load_base(UNTIED, config)
    loaded = weights.load_base(UNTIED, replace(config, quantize=kind))
    for name in FUSED:
        whole, expected = loaded["layers"].pop(name), quantize.quantize(plain["layers"].pop(name), kind)
        assert whole.kind == kind
        assert_trees_equal(whole, expected)
    assert_trees_equal(loaded, plain)


def test_a_base_is_placed_on_load():
    config = families.read_config(UNTIED)
    mesh = jax.make_mesh((len(jax.devices()),), ("fsdp",), axis_types=(AxisType.Auto,))
    whole = weights.load_base(UNTIED, config)

    def own(leaf):  # the last axis of kernels; the rest everywhere
        return NamedSharding(mesh, PartitionSpec(None, None, "fsdp") if leaf.ndim == 3 else PartitionSpec())

    shardings = jax.tree.map(own, whole)
    placed = weights.load_base(UNTIED, config, shardings)
    assert_trees_equal(placed, whole)
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, placed, shardings)))
    with pytest.raises(ValueError, match="lm_head"):
        weights.load_base(UNTIED, config, {name: leaf for name, leaf in shardings.items() if name != "lm_head"})


def test_files_are_read_a_tensor_at_a_time(monkeypatch):
    """Each tensor is on its device before the next one is read: the host never holds two."""
    alive = []
    read = weights.Stored.read

    def watched(stored, index=..., dtype=None):
        array = read(stored, index, dtype)
        assert not any(reference() is not None for reference in alive), f"{stored.name} beside another tensor"
        alive.append(weakref.ref(array))
        return array

    monkeypatch.setattr(weights.Stored, "read", watched)
    monkeypatch.setattr(weights.jax, "make_array_from_callback", _copied)
    weights.load_base(TIED, families.read_config(TIED))
    assert len(alive) > 10


def _copied(shape, sharding, callback):
    """What an accelerator does; a CPU may keep the host's memory as its own."""
    return jax.device_put(jnp.array(callback((slice(None),) * len(shape)), copy=True), sharding)


def test_every_tensor_that_does_not_fit_is_listed_in_one_error(tmp_path):
    weights.save_base(tmp_path, RAW, random_base(CONFIG), "float32")

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
    raw = {**RAW, "tie_word_embeddings": True}
    config = replace(CONFIG, tie_word_embeddings=True)
    base = random_base(config)
    weights.save_base(tmp_path, raw, base, "float32")
    path = tmp_path / "model.safetensors"
    edit_tensors(path, lambda own: own.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3)}))
    edit_tensors(path, lambda own: own.update({"lm_head.weight": own["model.embed_tokens.weight"]}))
    assert_trees_equal(weights.load_base(tmp_path, config), base)
    edit_tensors(path, lambda own: own.update({"lm_head.weight": np.ones((19, 8), np.float32)}))
    with pytest.raises(InputError, match="ties the head to the embedding, but lm_head.weight differs from it"):
        weights.load_base(tmp_path, config)


def test_files_that_are_not_there_or_broken_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        weights.load_base(tmp_path, CONFIG)
    folder = tmp_path / "shards"
    shutil.copytree(TIED, folder)
    first, second, _ = sorted(folder.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(InputError, match=f"names files that are not there: {first.name}"):
        weights.load_base(folder, families.read_config(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(InputError, match=r"index\.json: must have a weight_map"):
        weights.load_base(folder, families.read_config(folder))
    shutil.copy(TIED / "model.safetensors.index.json", folder)
    first.write_bytes(b"not a file of tensors")
    with pytest.raises(InputError, match=f"{first.name}: not a whole safetensors file"):
        weights.load_base(folder, families.read_config(folder))


def test_a_tree_of_another_model_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="the model's are"):
        weights.save_base(tmp_path, RAW, random_base(replace(CONFIG, num_hidden_layers=3)), "float32")
    assert not list(tmp_path.iterdir())


# ---- merged


@pytest.mark.parametrize(
    "folder",
    [(pytest.param if folder.name == "phi3" else small.slow)(folder, id=folder.name) for folder in MODELS],
)
def test_a_merged_model_is_base_and_adapter(folder, tmp_path):
    config = families.read_config(folder)
    own = Lora(config.targets, 3, 4.0, rslora=True, layers=(1,))
    adapter = random_adapter(config, own)
    weights.save_merged(tmp_path, folder, config, own, adapter, "float32")
    base, merged = weights.load_base(folder, config), weights.load_base(tmp_path, families.read_config(tmp_path))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 20))
    expected = logits(Decoder(config, own), base, adapter, tokens)
    np.testing.assert_allclose(logits(Decoder(config), merged, None, tokens), expected, atol=1e-4, rtol=0)
    assert np.abs(expected - logits(Decoder(config), base, None, tokens)).max() > 1e-2


def test_a_large_model_is_written_in_shards(tmp_path, monkeypatch):
    config = families.read_config(UNTIED)
    base, raw = weights.load_base(UNTIED, config), json.loads((UNTIED / "config.json").read_text())
    monkeypatch.setattr(weights, "SHARD", 20_000)
    weights.save_base(tmp_path, raw, base, "float32")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and all(file.name.endswith(f"-of-{len(files):05}.safetensors") for file in files)
    assert all(sum(t.nbytes for t in read_tensors(file).values()) <= 20_000 for file in files)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    assert_trees_equal(weights.load_base(tmp_path, config), base)


# ---- with transformers


def test_importing_loads_neither_torch_nor_transformers():
    succeed("imported_modules", "torch,transformers,peft", "fedjax_rai.model.peft")


@pytest.mark.parity
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_what_we_write(tied, stored, tmp_path):
    torch = pytest.importorskip("torch", reason="the parity extra (torch) is not installed")
    from transformers import AutoModelForCausalLM

    raw = {**RAW, "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": None}
    config = families.decoder_config(raw, "raw")
    weights.save_base(tmp_path, raw, random_base(config), stored)
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
