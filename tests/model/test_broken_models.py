"""Models and adapters with something wrong in their files are refused by name, once for all commands."""

import json
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.model import families, peft, weights
from fedjax_rai.model.lora import Lora
from tests.model.common import FIXTURES, edit_json, edit_tensors, random_adapter, random_base
from tests.model.test_weights import CONFIG, RAW, UNTIED
from tests.test_model_json import POINTER

LORA = Lora(CONFIG.targets, rank=2, alpha=3.0)
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
NONE = {"NaN": math.nan, "an infinity": math.inf, "-an infinity": -math.inf}
# a tensor of every kind of leaf: a whole one, a kernel's column, a norm
TENSORS = ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"]


def spoil(path, name: str, value: float, dtype: Any = np.float32) -> None:
    """One number of a tensor, all of which are stored in `dtype`."""

    def change(tensors):
        for other in tensors:
            tensors[other] = tensors[other].astype(dtype)
        tensors[name].flat[5] = value

    edit_tensors(path, change)


# ---- numbers that are none


@pytest.mark.parametrize("words", NONE)
@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_the_largest_magnitude_is_that_of_the_numbers(words, stored):
    numbers = np.linspace(-3, 2, 1000).astype(stored)
    assert float(weights.largest(numbers)) == 3.0
    assert float(weights.largest(numbers[::-1])) == 3.0
    assert float(weights.largest(np.zeros(0, stored))) == 0.0
    numbers[700] = NONE[words]
    found = float(weights.largest(numbers.reshape(10, 100).T))
    assert math.isnan(found) if words == "NaN" else found == math.inf


def test_a_number_is_found_wherever_it_stands():
    numbers = np.zeros(2 * weights.PIECE + 3, np.float32)
    for place in (0, weights.PIECE - 1, weights.PIECE, len(numbers) - 1):
        numbers[place] = -7.0
        assert float(weights.largest(numbers)) == 7.0
        numbers[place] = 0.0


@pytest.mark.parametrize("words", NONE)
@pytest.mark.parametrize("name", TENSORS)
def test_a_base_with_a_number_that_is_none_is_refused(words, name, tmp_path):
    weights.save_base(tmp_path, RAW, random_base(CONFIG), "float32")
    spoil(tmp_path / "model.safetensors", name, NONE[words])
    with pytest.raises(InputError) as caught:
        weights.load_base(tmp_path, CONFIG)
    words = words.removeprefix("-")
    assert str(caught.value).startswith(f"{tmp_path / 'model.safetensors'}: {name}: holds {words};")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_is_looked_at_too(kind, tmp_path):
    config = families.read_config(UNTIED)
    raw = json.loads((UNTIED / "config.json").read_text())
    weights.save_base(tmp_path, raw, weights.load_base(UNTIED, config), "float32")
    name = "model.layers.0.mlp.down_proj.weight"
    spoil(tmp_path / "model.safetensors", name, math.nan)
    with pytest.raises(InputError, match=f"{name}: holds NaN"):
        weights.load_base(tmp_path, replace(config, quantize=kind))


@pytest.mark.parametrize(
    ("value", "stored", "dtype", "fits"),
    [
        (3.39e38, np.float32, "bfloat16", True),
        (3.4e38, np.float32, "bfloat16", False),  # above the middle of bfloat16's largest number and infinity
        (3.4e38, np.float32, "float32", True),
        (1e39, np.float64, "float32", False),
        (65504.0, np.float16, "bfloat16", True),
    ],
)
def test_a_number_that_is_none_in_the_dtype_that_is_computed_is_refused(value, stored, dtype, fits, tmp_path):
    weights.save_base(tmp_path, RAW, random_base(CONFIG), "float32")
    spoil(tmp_path / "model.safetensors", "model.norm.weight", value, stored)
    config = replace(CONFIG, dtype=dtype)
    if fits:
        assert np.isfinite(np.asarray(weights.load_base(tmp_path, config)["norm"]["weight"], np.float32)).all()
        return
    with pytest.raises(InputError, match=f"model.norm.weight: holds .* which is none in {dtype}"):
        weights.load_base(tmp_path, config)


@pytest.mark.parametrize("words", NONE)
def test_an_adapter_with_a_number_that_is_none_is_refused(words, tmp_path):
    peft.save_adapter(tmp_path, CONFIG, LORA, random_adapter(CONFIG, LORA), "base")
    spoil(tmp_path / "adapter_model.safetensors", Q_A, NONE[words])
    with pytest.raises(InputError, match=f"{Q_A}: holds {words.removeprefix('-')}"):
        peft.load_adapter(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("float16", 65504.0, True),
        ("float16", 65519.0, True),  # is rounded to 65504
        ("float16", 65520.0, False),
        ("float16", -1e5, False),
        ("bfloat16", 3e38, True),
        ("bfloat16", 3.4e38, False),
    ],
)
def test_what_would_overflow_is_not_written(dtype, value, fits, tmp_path):
    tensor = np.array([[0.5, value]], np.float32)
    if fits:
        assert np.isfinite(weights.cast(tensor, dtype, "x").astype(np.float32)).all()
        return
    with pytest.raises(InputError, match=f"x: holds .* which is none in {dtype}"):
        weights.cast(tensor, dtype, "x")
    adapter = jax.tree.map(lambda leaf: leaf.at[0, 0, 0].set(value), random_adapter(CONFIG, LORA))
    with pytest.raises(InputError, match=f"lora_A.weight: holds .* which is none in {dtype}"):
        peft.save_adapter(tmp_path / "adapter", CONFIG, LORA, adapter, "base", dtype=dtype)
    base = random_base(CONFIG)
    base["norm"]["weight"] = base["norm"]["weight"].at[0].set(value)
    with pytest.raises(InputError, match=f"model.norm.weight: holds .* which is none in {dtype}"):
        weights.save_base(tmp_path / "model", RAW, base, dtype)
    assert not list(tmp_path.iterdir())


def test_a_sum_that_overflows_is_not_written(tmp_path):
    weights.save_base(tmp_path / "base", RAW, random_base(CONFIG), "float32")
    adapter = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e30), random_adapter(CONFIG, LORA))
    with pytest.raises(InputError, match="proj.weight: holds an infinity"):
        weights.save_merged(tmp_path / "merged", tmp_path / "base", CONFIG, LORA, adapter, "float32")
    assert not (tmp_path / "merged").exists()


# ---- files that are not what they should be


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (POINTER, "is a pointer of Git LFS"),
        (b"", "not a whole safetensors file"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "tensors do not fit the model"),
        ("half", "not a whole safetensors file"),
    ],
)
@pytest.mark.parametrize("what", ["base", "adapter"])
def test_a_file_of_weights_that_is_none_is_named(data, message, what, tmp_path):
    weights.save_base(tmp_path, RAW, random_base(CONFIG), "float32")
    peft.save_adapter(tmp_path, CONFIG, LORA, random_adapter(CONFIG, LORA), "base")
    path = tmp_path / ("model.safetensors" if what == "base" else "adapter_model.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if data == "half" else data)
    load = weights.load_base if what == "base" else peft.load_adapter
    with pytest.raises(InputError, match=f"{message}|adapts none"):
        load(tmp_path, CONFIG)


@pytest.mark.parametrize("listed", [{"a": 3}, {"a": None}, {"a": ["x"]}, [], "x", {}])
def test_an_index_that_names_no_files_is_refused(listed, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(InputError, match="must have a weight_map, of tensors' names to files"):
        weights.load_base(tmp_path, CONFIG)


def test_weights_that_are_no_floats_are_refused(tmp_path):
    weights.save_base(tmp_path, RAW, random_base(CONFIG), "float32")
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(tmp_path / "model.safetensors", lambda tensors: tensors.update({name: np.zeros((10, 8), np.int8)}))
    with pytest.raises(InputError, match=f"type of {name}: I8, must be one of BF16, F16, F32, F64"):
        weights.load_base(tmp_path, CONFIG)


# kind -> (an exporter's name of a tensor, how many of the 21 have another, what the message says of them)
RENAMED = {
    "a prefix that all lack": (lambda name: name.removeprefix("model."), 20, "without `model.`"),
    "a prefix in excess": (lambda name: f"transformer.{name}", 21, "with `transformer.`"),
    "a piece within": (lambda name: name.replace("model.", "model.language_model."), 20, "with `language_model.`"),
    "a piece near the end": (lambda name: name.replace(".weight", ".default.weight"), 21, "with `default.`"),
}


@pytest.mark.parametrize("kind", RENAMED)
def test_many_tensors_are_summed_up_with_the_likely_cause(kind, tmp_path):
    change, count, words = RENAMED[kind]
    weights.save_base(tmp_path, RAW, random_base(CONFIG), "float32")

    def rename(tensors):
        assert len(tensors) == 21  # 9 a layer, the embedding, the last norm and the head
        for name in list(tensors):
            tensors[change(name)] = tensors.pop(name)

    edit_tensors(tmp_path / "model.safetensors", rename)
    with pytest.raises(InputError) as caught:
        weights.load_base(tmp_path, CONFIG)
    lines = str(caught.value).split("\n  ")
    assert len(lines) == 10
    assert lines[1].startswith(f"likely cause: {count} of the {count} missing tensors are there {words} in their names")
    assert f"missing: {count - 3} more" in lines and f"surplus: {count - 3} more" in lines


def test_tensors_that_only_are_not_there_have_no_likely_cause():
    assert weights.likely_cause(["model.norm.weight", "lm_head.weight"], ["model.layers.0.x.bias"]) == []
    assert weights.likely_cause(["a.b", "c.d", "e.f"], ["x.a.b", "g.h"]) == []


# ---- settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", {}),
        ("model_type", ["llama"]),
        ("vocab_size", "19"),
        ("vocab_size", 10**400),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", True),
        ("head_dim", 10**19),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", -1.0),
        ("rms_norm_eps", math.nan),
        ("tie_word_embeddings", "false"),
        ("attention_bias", 1),
        ("max_position_embeddings", -1),
        ("max_position_embeddings", 2048.0),
        ("rope_theta", "10000"),
        ("rope_parameters", [1]),
        ("rope_parameters", {"rope_type": 3}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "x"}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0}),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}),
        ("hidden_act", {"a": 1}),
        ("layer_types", "full_attention"),
        ("layer_types", ["full_attention"]),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(field, value):
    with pytest.raises(InputError, match="^here: ") as caught:
        families.decoder_config({**RAW, field: value}, "here")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert field in str(caught.value) or "rope" in field and "rope" in str(caught.value)


@pytest.mark.parametrize("marks", [{}, {"a": 1}, "x", math.nan, [], [1], ["a"], True, 1.5])
def test_marks_of_layers_without_positions_must_be_one_a_layer(marks):
    with pytest.raises(InputError, match="no_rope_layers"):
        families.decoder_config({**RAW, "model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layers": marks}, "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_pattern": {"(q_proj": 4}}, "rank_pattern has '\\(q_proj', which is no regular expression"),
        ({"alpha_pattern": {"*": 4}}, "alpha_pattern has '\\*', which is no regular expression"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is \\['q_proj'\\], must be an object"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern of 'q_proj' is '4', must be a whole number > 0"),
        ({"rank_pattern": {"q_proj": -4}}, "rank_pattern of 'q_proj' is -4"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern of 'q_proj' is None, must be a number > 0"),
        ({"r": "2"}, "r is '2', must be a whole number > 0"),
        ({"r": 2.5}, "r is 2.5"),
        ({"r": True}, "r is True"),
        ({"r": 10**400}, "r is a number of too many digits"),
        ({"lora_alpha": "16"}, "lora_alpha is '16', must be a number > 0"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf"),
        ({"lora_alpha": 10**400}, "lora_alpha is a number of too many digits"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes', must be true or false"),
        ({"layers_to_transform": "0"}, "layers_to_transform is '0'"),
        ({"layers_to_transform": [-1]}, "layers_to_transform is \\[-1\\]"),
        ({"layers_to_transform": [0, 7]}, "layers_to_transform has 7, must be below 2"),
        ({"target_modules": {"a": 1}}, "target_modules is {'a': 1}"),
        ({"target_modules": [3]}, "target_modules is \\[3\\]"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3, must be a text"),
        ({"peft_type": {}}, "peft_type {} is not supported"),
        ({"bias": []}, "bias \\[\\] is not supported"),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights {'a': 1} is not supported"),
    ],
)
def test_an_adapters_settings_are_checked_by_name(changes, message, tmp_path):
    peft.save_adapter(tmp_path, CONFIG, LORA, random_adapter(CONFIG, LORA), "base")
    edit_json(tmp_path / "adapter_config.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        peft.load_adapter(tmp_path, CONFIG)
    assert str(caught.value).startswith(f"{tmp_path / 'adapter_config.json'}: ")


def test_settings_that_are_not_known_are_named(tmp_path, capsys):
    peft.save_adapter(tmp_path, CONFIG, LORA, random_adapter(CONFIG, LORA), "base")
    edit_json(tmp_path / "adapter_config.json", use_something=True, use_nothing=False, lora_dropout=0.1)
    peft.load_adapter(tmp_path, CONFIG)
    assert capsys.readouterr().err.endswith("not known to this version, so not computed: use_something\n")


@pytest.mark.parametrize(
    ("named", "model", "other"),
    [
        ("another/model", "tiny", True),
        ("tiny", "tiny", False),
        ("runs/base", "/data/base", False),  # moved
        ("runs/base/", "./base", False),
        ("meta-llama/Llama-3.1-8B", "/models/Llama-3.1-8B", False),  # a local copy
        ("meta-llama/Llama-3.1-8B", "meta-llama/llama-3.1-8b", False),
        ("meta-llama/Llama-3.1-8B", "unsloth/Llama-3.1-8B", True),
        ("meta-llama/Llama-3.1-8B", "/models/Llama-3.1-8B-Instruct", True),
        ("/cache/models--meta-llama--Llama-3.1-8B/snapshots/0123", "meta-llama/Llama-3.1-8B", False),
        (None, "tiny", False),
        ("", "tiny", False),
    ],
)
def test_an_adapter_of_another_base_is_named(named, model, other, tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    line = peft.name_other_base(tmp_path, model)
    assert (line is not None) == other
    assert capsys.readouterr().err == (f"{tmp_path}: is an adapter of {named}, not of {model}\n" if other else "")


def test_an_adapter_of_another_revision_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b", "revision": "x"}')
    assert peft.name_other_base(tmp_path, "a/b", "x") is None
    assert peft.name_other_base(tmp_path, "a/b") is None
    assert "at revision x, not at y" in (peft.name_other_base(tmp_path, "a/b", "y") or "")


def test_the_length_that_a_model_was_made_for_is_its_own_or_its_rotary_embeddings():
    assert families.decoder_config(RAW, "raw").longest is None
    assert families.decoder_config({**RAW, "max_position_embeddings": 64}, "raw").longest == 64
    assert families.read_config(FIXTURES / "models" / "phi3").longest == 128  # where its short factors hold
