"""A run is refused before anything is written where its base, or its adapter, computes no numbers."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.text.hub import resolve
from tests.model.common import edit_tensors
from tests.text.test_lost_text import english_only
from tests.tiny_runs import vary
from tests.tools.test_generate import huge, overflowing


def test_a_base_whose_first_logits_are_no_numbers_is_refused(config, tmp_path):
    folder = Path(shutil.copytree(resolve("tiny"), tmp_path / "large"))
    edit_tensors(folder / "model.safetensors", overflowing)
    spoilt = Setting(vary(config, model={"path": str(folder)}))
    with pytest.raises(InputError, match=f"model.path = {folder}: the first logits of the model are no numbers"):
        spoilt.check()
    whole = Setting(config)
    whole.check_logits(None)
    whole.check_logits(whole.fresh_adapter("adapter"))
    large = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 3e38), whole.fresh_adapter("adapter"))
    with pytest.raises(
        InputError, match="model.path = tiny: the first logits of the model with its adapter are no numbers"
    ):
        whole.check_logits(large)


def test_a_base_whose_logits_are_all_one_number_is_refused(config, tmp_path):
    folder = Path(shutil.copytree(resolve("tiny"), tmp_path / "huge"))
    edit_tensors(folder / "model.safetensors", huge)
    with pytest.raises(InputError, match="the first logits of the model are no numbers .*, or all one number"):
        Setting(vary(config, model={"path": str(folder)})).check()


def test_a_released_guard_without_numbers_is_refused_before_anything_is_written(config, tmp_path):
    folder = Path(shutil.copytree(resolve("tiny"), tmp_path / "large"))
    edit_tensors(folder / "model.safetensors", overflowing)
    setting = Setting(vary(config, guard={"path": str(folder)}))
    with pytest.raises(InputError, match=f"guard.path = {folder}: the first logits of the model are no numbers"):
        setting.check()


def test_korean_data_need_a_tokenizer_that_has_hangul(config, monkeypatch):
    setting = Setting(vary(config, data={"language": "ko"}))
    setting._check_language()
    monkeypatch.setattr(setting.models, "tokenizer", english_only())
    with pytest.raises(InputError, match="data.language = ko: the tokenizer of model.path = tiny has no Hangul"):
        setting._check_language()
    Setting(config)._check_language()
