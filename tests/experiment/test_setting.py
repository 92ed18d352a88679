"""What a config asks of a model is checked against the model, before anything is loaded or written."""

import json
import shutil
from dataclasses import replace

import pytest

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import models, sizes
from fedjax_rai.experiment.models import check_computed
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory import advice
from fedjax_rai.memory.plan import COMPUTED
from fedjax_rai.model import families
from fedjax_rai.runs import folder as folders
from fedjax_rai.runs import run
from fedjax_rai.text.hub import resolve
from tests.tiny_runs import vary

TINY = families.read_config(resolve("tiny"))


def test_an_attention_that_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setattr(models.jax, "default_backend", lambda: "cpu")
    for name, needed in (("cudnn", "GPU"), ("splash", "TPU")):
        with pytest.raises(InputError, match=f"model.attention = {name}: needs a {needed}, this is a CPU"):
            check_computed(replace(TINY, attention=name))
    monkeypatch.setattr(models.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(models.jax, "device_count", lambda: 4)
    with pytest.raises(InputError, match="splash: runs on one device only"):
        check_computed(replace(TINY, attention="splash"))
    monkeypatch.setattr(models.jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="cudnn: computes no model.dtype = float32"):
        check_computed(replace(TINY, attention="cudnn"))
    half = replace(TINY, attention="cudnn", dtype="bfloat16")
    with pytest.raises(InputError, match="cudnn: computes no soft-capped"):
        check_computed(replace(half, attention_softcap=5.0))
    check_computed(half)


@pytest.mark.parametrize("key", COMPUTED)
def test_what_a_config_says_of_computing_reaches_the_model(config, key):
    """Each of these keys by a value that is not its default."""
    other = {"dtype": "bfloat16", "attention": "chunked", "quantize": "nf4", "kv_cache": "bfloat16", "remat": "full"}
    value = (other | {"answering": "merged"}).get(key, "none")  # unrolled, a CPU computes nothing
    found = Setting(vary(config, model={key: value})).models.architecture
    assert getattr(found, key) == value and (value == "none") == (key == "unroll")


def test_unrolling_is_refused_where_it_gains_nothing(monkeypatch):
    monkeypatch.setattr(models.jax, "default_backend", lambda: "cpu")
    unrolled = replace(TINY, unroll="full")
    with pytest.raises(InputError, match="model.unroll = full: needs a GPU or TPU"):
        check_computed(unrolled)
    monkeypatch.setattr(models.jax, "default_backend", lambda: "gpu")
    check_computed(unrolled)
    with pytest.raises(InputError, match="must be none with model.remat = full"):
        check_computed(replace(unrolled, remat="full"))


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
