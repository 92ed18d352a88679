"""What a config asks of a model is checked against the model, before anything is loaded or written."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest

from fedjax_rai.config.schema import ExperimentConfig, LoraConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import models, sizes
from fedjax_rai.experiment.models import check_attention
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory import advice
from fedjax_rai.model import families
from fedjax_rai.model.lora import lora_shape
from fedjax_rai.runs import folder as folders
from fedjax_rai.runs import run
from fedjax_rai.text.hub import resolve
from tests.model.common import FIXTURES

PHI = families.read_config(FIXTURES / "models" / "phi3")
TINY = families.read_config(resolve("tiny"))


def test_the_shape_of_adapters_is_what_the_config_says():
    own: Any = {"rank": 4, "alpha": 8.0, "targets": ("v_proj", "q_proj"), "layers": (1,), "rslora": True}
    got = lora_shape(LoraConfig(**own, rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.*v_proj": 3.0}), TINY)
    assert got.targets == ("q_proj", "v_proj")
    assert got.ranks("q_proj", 3) == (0, 2, 0) and got.ranks("v_proj", 3) == (0, 4, 0)
    assert got.scales("q_proj", 2) == (0.0, 8 / 2**0.5) and got.scales("v_proj", 2) == (0.0, 3 / 4**0.5)
    assert lora_shape(LoraConfig(), PHI).targets == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ("q_proj", "o_proj")}, "lora.targets: this model has no q_proj; must be some of qkv_proj, o_proj"),
        ({"layers": (0, 2)}, "lora.layers: this model has no layer 2; must be below 2"),
        ({"rank_pattern": {"q_prj": 4}}, "lora.rank_pattern: 'q_prj' matches no adapted module; must match the end"),
        ({"layers": (0,), "alpha_pattern": {"layers.1.*": 4}}, "lora.alpha_pattern: 'layers.1..' matches no adapted"),
    ],
)
def test_an_adapter_that_the_model_cannot_have_is_refused(fields, message):
    with pytest.raises(InputError, match=message.replace("..'", r"\.\*'")):
        lora_shape(LoraConfig(**fields), PHI)


def test_an_attention_that_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setattr(models.jax, "default_backend", lambda: "cpu")
    for name, needed in (("cudnn", "GPU"), ("splash", "TPU")):
        with pytest.raises(InputError, match=f"model.attention = {name}: needs a {needed}, this is a CPU"):
            check_attention(replace(TINY, attention=name))
    monkeypatch.setattr(models.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(models.jax, "device_count", lambda: 4)
    with pytest.raises(InputError, match="splash: runs on one device only"):
        check_attention(replace(TINY, attention="splash"))
    monkeypatch.setattr(models.jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="cudnn: computes no model.dtype = float32"):
        check_attention(replace(TINY, attention="cudnn"))
    half = replace(TINY, attention="cudnn", dtype="bfloat16")
    with pytest.raises(InputError, match="cudnn: computes no soft-capped"):
        check_attention(replace(half, attention_softcap=5.0))
    check_attention(half)


def test_a_guard_that_is_the_base_is_loaded_once(config):
    fields = config.model_dump()
    fields["guard"]["path"] = "tiny"
    made = Setting(ExperimentConfig.model_validate(fields))
    assert made.guarding.untuned.lm.base is made.models.base


def test_a_limit_of_the_rotary_embedding_is_found_before_the_run(config, tmp_path, monkeypatch):
    rope = TINY.kinds[0].rope
    assert rope is not None
    longest = replace(TINY.kinds[0], rope=replace(rope, limit=80))
    monkeypatch.setattr(models, "read_config", lambda *args, **how: replace(TINY, kinds=(longest,), **how))
    with pytest.raises(InputError, match=r"cai.max_new_tokens = 24: gives sequences of \d+ tokens; this"):
        advice.announce(config, sizes.sizes(Setting(config)))


@pytest.mark.slow
def test_a_run_of_the_hub_keeps_its_commit(config, tmp_path, monkeypatch):
    """Where no revision was given, what comes later uses the one that the run began with."""
    folder = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    shutil.copytree(resolve("tiny"), folder)
    asked = []
    monkeypatch.setattr(models, "resolve", lambda path, revision=None, weights=False: asked.append(revision) or folder)
    monkeypatch.setattr(models, "load_tokenizer", lambda path, revision=None: _tokenizer())
    fields = config.model_dump()
    fields["model"]["path"], fields["federated"]["rounds"] = "a/b", 0
    hubs = ExperimentConfig.model_validate(fields)
    done = run.run(hubs)
    assert set(asked) == {None}
    assert folders.pinned(done, hubs).model.revision == "c0ffee"
    raw = json.loads((done / "adapter" / "adapter_config.json").read_text())
    assert (raw["base_model_name_or_path"], raw["revision"]) == ("a/b", "c0ffee")
    asked.clear()
    run.evaluate_run(done)
    assert set(asked) == {"c0ffee"}


def _tokenizer():
    from fedjax_rai.text.tokenizer import load_tokenizer

    return load_tokenizer("tiny")
