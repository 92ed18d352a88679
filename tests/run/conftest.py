"""A model folder of the small fake, and a config for it: two whole rounds in seconds once compiled."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from fedjax_rai.config import ExperimentConfig
from fedjax_rai.model.decoder import Decoder
from fedjax_rai.model.lora import init_base
from fedjax_rai.model.weights import save_base
from fedjax_rai.text.tokenizer import load_tokenizer, resolve
from tests import small


@pytest.fixture(scope="session")
def fake_folder(tmp_path_factory) -> Path:
    """A random two-layer model with the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("fake")
    for file in resolve("tiny").iterdir():
        if "token" in file.name or "template" in file.name:
            shutil.copy(file, folder)
    shape = replace(small.CONFIG, vocab_size=len(load_tokenizer("tiny").hf))
    save_base(folder, shape, init_base(Decoder(shape), jax.random.key(0)), "float32")
    return folder


@pytest.fixture
def config(fake_folder, tmp_path) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "model": {"path": str(fake_folder)},
            "lora": {"rank": 2, "alpha": 4},
            "data": {"red": 12, "acceptable": 28, "max_length": 64},
            "federated": {"clients": 4, "cohort": 2, "rounds": 2, "local_steps": 2, "batch_size": 2},
            "guard": {"pairs": 8, "steps": 2, "batch_size": 4},
            "filter": {"enabled": False},
            "cai": {"iterations": 2, "prompts": 4, "replay": 4, "batch_size": 4, "max_new_tokens": 4},
            "eval": {"prompts": 4, "samples": 2, "max_new_tokens": 4, "batch_size": 8},
        }
    )
