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
    assert (local, whole) != (whole, local)
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
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"config\.json: model_type 'gpt2' is not supported, only: gemma2, gemma3_text, llama"),
        ({"model_type": "qwen"}, r"'qwen' is not supported \(did you mean 'qwen3'\?\)"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', only silu, gelu, gelu_pytorch_tanh are supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is .*bits.*, only None is supported"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported, only: default, linear"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "llama3 rope needs|transformers does not accept"),
        ({"drop": ("vocab_size", "hidden_size")}, "vocab_size is missing; hidden_size is missing"),
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
    with pytest.raises(InputError, match=r"config\.json: not JSON"):
        families.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json: not a JSON object"):
        families.read_config(tmp_path)
