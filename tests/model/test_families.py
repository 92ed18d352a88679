"""Every family computes what transformers computes; a config that we do not compute is refused by name."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.model import families
from fedjax_rai.model.architecture import DecoderConfig, LayerKind, Rope, plain_rope
from tests.model.common import FIXTURES, MODELS, check_reference

LLAMA3: Any = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_matches_transformers_on_the_fixtures(folder):
    check_reference(folder, np.load(folder / "reference.npz"))


def test_every_family_has_a_fixture():
    kinds = {json.loads((folder / "config.json").read_text())["model_type"] for folder in MODELS}
    assert kinds == set(families.FAMILIES)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_matches_transformers_on_random_models(family, seed, tmp_path):
    pytest.importorskip("torch", reason="the parity extra (torch) is not installed")
    make = runpy.run_path(str(FIXTURES / "make_models.py"))
    torch_model, expected = make["build_clear"](family, make["random_config"](family, seed), seed)
    torch_model.save_pretrained(tmp_path)
    check_reference(tmp_path, expected)


# ---- config.json


def config_of(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> DecoderConfig:
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
    return families.read_config(folder)


def rope_of(folder: Path, **fields: Any) -> Rope:
    (kind,) = config_of(folder, head_dim=128, **fields).kinds
    assert kind.rope is not None and kind.window is None
    return kind.rope


@pytest.mark.parametrize(
    ("fields", "theta"),
    [
        ({}, 10_000.0),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
    ],
)
def test_plain_rope_is_read_in_the_new_and_the_old_form(fields, theta, tmp_path):
    got = rope_of(tmp_path, **fields)
    np.testing.assert_allclose(got.frequencies, plain_rope(128, theta).frequencies, rtol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    ],
)
def test_the_rotary_frequencies_of_llama_3_1(fields, tmp_path):
    """In every form; the three bands of the published rule, from the wavelengths, the smooth one between the others."""
    scaled, plain = (np.array(rope.frequencies) for rope in (rope_of(tmp_path, **fields), plain_rope(128, 5e5)))
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192 / 1
    middle = ~short & ~long
    assert short.any() and long.any() and middle.any()
    np.testing.assert_allclose(scaled[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    assert np.all((scaled[middle] < plain[middle]) & (scaled[middle] > plain[middle] / 8))


def test_linear_scaling_divides_the_frequencies(tmp_path):
    got = rope_of(tmp_path, rope_scaling={"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(got.frequencies, np.array(plain_rope(128).frequencies) / 4, rtol=1e-6)


def test_longrope_is_its_short_factors_within_a_limit(tmp_path):
    factors = [1.0, 2.0, 4.0]
    scaling = {"type": "longrope", "short_factor": factors, "long_factor": factors}
    given: Any = {"rope_scaling": scaling, "max_position_embeddings": 4096, "original_max_position_embeddings": 512}
    (kind,) = config_of(tmp_path, model_type="phi3", bos_token_id=0, eos_token_id=0, pad_token_id=0, **given).kinds
    assert kind.rope is not None and kind.rope.limit == 512
    assert math.isclose(kind.rope.magnitude, math.sqrt(1 + math.log(8) / math.log(512)))
    np.testing.assert_allclose(kind.rope.frequencies, np.array(plain_rope(6).frequencies) / factors, rtol=1e-6)


def test_absent_fields_take_the_defaults_of_transformers(tmp_path):
    got = config_of(tmp_path)
    assert (got.head_dim, got.num_key_value_heads, got.rms_norm_eps, got.tie_word_embeddings) == (6, 4, 1e-6, False)
    assert (got.biases, got.activation, got.layer_kinds) == ((), "silu", ())
    assert config_of(tmp_path, head_dim=None, num_key_value_heads=None) == got
    given = config_of(tmp_path, head_dim=16, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True)
    assert (given.head_dim, given.num_key_value_heads, given.rms_norm_eps) == (16, 2, 1e-5)
    assert given.tie_word_embeddings


def test_which_layers_see_how_far(tmp_path):
    """Gemma 3: five layers of a window and a short-wave rope to one that sees everything; Qwen: from a layer on."""
    gemma = config_of(tmp_path, model_type="gemma3_text", num_hidden_layers=7, sliding_window=5, head_dim=8)
    assert [gemma.kinds[i].window for i in gemma.layer_kinds] == [5] * 5 + [None] + [5]
    local, whole = (gemma.kinds[gemma.layer_kinds[i]].rope for i in (0, 5))
    assert local and whole and local != whole
    np.testing.assert_allclose(whole.frequencies, plain_rope(8, 1e6).frequencies, rtol=1e-6)
    old = config_of(
        tmp_path, model_type="gemma3_text", num_hidden_layers=7, sliding_window=5, head_dim=8, rope_theta=1e6,
        rope_local_base_freq=1e4, sliding_window_pattern=6,
    )  # fmt: skip
    assert old == gemma
    qwen: Any = {"model_type": "qwen2", "num_hidden_layers": 3, "sliding_window": 9, "max_window_layers": 2}
    assert config_of(tmp_path, **qwen).kinds == (LayerKind(config_of(tmp_path, **qwen).kinds[0].rope),)
    on = config_of(tmp_path, use_sliding_window=True, **qwen)
    assert [on.kinds[i].window for i in on.layer_kinds] == [None, None, 9]
    assert config_of(tmp_path, model_type="mistral", sliding_window=None).kinds[0].window is None
    assert config_of(tmp_path, model_type="mistral").kinds[0].window == 4096


@pytest.mark.parametrize(
    "said",
    [{}, {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
     {"hidden_act": "gelu", "hidden_activation": None}],
)  # fmt: skip
def test_gemma_1_has_the_approximation_of_gelu_whatever_its_config_says(said, tmp_path):
    """Its first configs say `gelu` for it; embeddings are scaled by the root of the width, norms store weight - 1."""
    config = config_of(tmp_path, model_type="gemma", hidden_size=16, num_key_value_heads=1, head_dim=8, **said)
    assert (config.activation, config.embed_scale, config.unit_offset) == ("gelu_pytorch_tanh", 4.0, True)
    assert (config.post_norms, config.query_scale, config.attention_softcap, config.logit_softcap) == (
        False,
        *[None] * 3,
    )
    assert (config.num_key_value_heads, config.head_dim, config.tie_word_embeddings) == (1, 8, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gpt2"},
            r"model_type 'gpt2' is not supported, only: gemma, gemma2, gemma3_text, granite, llama",
        ),
        ({"model_type": "qwen"}, r"'qwen' is not supported \(did you mean 'qwen3'\?\)"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', only silu, gelu, gelu_pytorch_tanh are supported"),
        ({"model_type": "gemma", "hidden_activation": "gelu"}, "hidden_activation is 'gelu', only None or 'gelu_py"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention is True, only Non"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is .*bits.*, only None is supported"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported, only: default, linear"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "llama3 rope needs|transformers does not accept"),
        ({"drop": ("vocab_size", "hidden_size")}, "vocab_size is missing; hidden_size is missing"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, must be a whole number > 0"),
        ({"vocab_size": "32"}, "vocab_size is '32', must be a whole number > 0"),
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_heads"),
        ({"hidden_size": 25}, "transformers does not accept it .*25"),
        ({"hidden_act": "relu", "rope_scaling": {"type": "yarn", "factor": 2.0}}, "hidden_act.*; rope_type 'yarn'"),
    ],
)
def test_a_config_that_we_do_not_compute_is_refused_by_name(changes, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        config_of(tmp_path, **changes)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_config_that_is_not_there_or_not_json_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        families.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json:1:2: not valid JSON"):
        families.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json: not a JSON object"):
        families.read_config(tmp_path)


# ---- the forms of published config.json files (transformers 4): field names and values that matter

LONG = [1.0 + i / 8 for i in range(48)]
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0, "rope_scaling": {**LLAMA3, "rope_type": "llama3"}, "torch_dtype": "bfloat16",
        "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "eos_token_id": [128001, 128008, 128009],
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "max_window_layers": 28,
        "rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": False, "torch_dtype": "bfloat16",
    },
    "Qwen3-8B": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_window_layers": 36, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "use_sliding_window": False, "attention_bias": False,
    },
    "gemma-2b": {
        "model_type": "gemma", "vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384,
        "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
        "hidden_act": "gelu", "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    },
    "gemma-7b": {
        "model_type": "gemma", "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
        "hidden_act": "gelu", "hidden_activation": None, "rope_scaling": None, "rope_theta": 10000.0,
    },
    "gemma-2-9b": {
        "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 3584, "intermediate_size": 14336,
        "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "cache_implementation": "hybrid",
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_size": 4096, "rope_theta": 10000.0,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912,
        "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
    "Phi-3-mini-4k": {
        "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "rope_scaling": None,
        "rope_theta": 10000.0, "sliding_window": 2047, "original_max_position_embeddings": 4096,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    },
    "Phi-3.5-mini": {
        "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": LONG, "long_factor": LONG},
        "sliding_window": 262144, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
    },
    "Phi-4-mini": {
        "model_type": "phi3", "vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", "short_factor": LONG, "long_factor": LONG}, "rope_theta": 10000.0,
        "bos_token_id": 199999, "eos_token_id": 199999, "pad_token_id": 199999, "tie_word_embeddings": True,
        "sliding_window": 262144, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
    },
    "Mistral-7B-v0.1": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 10000.0,
        "sliding_window": 4096, "torch_dtype": "bfloat16",
    },
    "SmolLM3-3B": {
        "model_type": "smollm3", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008,
        "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4, "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
        "use_sliding_window": False, "tie_word_embeddings": True,
    },
}  # fmt: skip
PARAMETERS = {  # as their model cards count them, in billions
    "Llama-3.1-8B": 8.03, "Qwen2.5-7B": 7.62, "Qwen3-8B": 8.19, "gemma-2b": 2.51, "gemma-7b": 8.54,
    "gemma-2-9b": 9.24, "gemma-3-1b": 1.00, "Phi-3-mini-4k": 3.82, "Phi-3.5-mini": 3.82, "Phi-4-mini": 3.84,
    "Mistral-7B-v0.1": 7.24, "SmolLM3-3B": 3.08,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name):
    raw = PUBLISHED[name]
    if raw["model_type"] in ("qwen3", "gemma2", "gemma3_text", "smollm3") and "tie_word_embeddings" not in raw:
        raw = {**raw, "tie_word_embeddings": raw["model_type"] != "qwen3"}
    config = families.decoder_config(raw, name)
    count = sum(math.prod(place.shape) for place in families.places(config).values())
    assert round(count / 1e9, 2) == PARAMETERS[name]
    windows = [config.kinds[i].window for i in config.layer_kinds or (0,) * config.num_hidden_layers]
    expected = {"gemma-2-9b": 21, "gemma-3-1b": 22, "Mistral-7B-v0.1": 32}
    if name in expected:
        assert sum(window is not None for window in windows) == expected[name]
    for kind in config.kinds:
        if kind.rope:
            assert len(kind.rope.frequencies) == (48 if name.startswith("Phi") else config.head_dim // 2)
    assert config.layer_kinds.count(1) == (9 if name == "SmolLM3-3B" else config.layer_kinds.count(1))
