"""Losses and gradients are TRL's on models, adapters and pairs drawn here; test_losses.py has stored ones."""

import runpy

import pytest

from tests.model.common import FIXTURES
from tests.train.test_losses import check_reference


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of TRL and transformers, about each other
@pytest.mark.parametrize("seed", range(3))
def test_losses_and_gradients_are_trls(seed, tmp_path):
    """Any Llama that make_models draws, every module adapted."""
    for library in ("torch", "peft", "trl"):
        pytest.importorskip(library, reason="the parity extra (torch, peft, trl) is not installed")
    import peft  # pyright: ignore[reportMissingImports]

    models, preferences = (runpy.run_path(str(FIXTURES / f"make_{name}.py")) for name in ("models", "preferences"))
    size = models["random_config"]("llama", seed)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    preferences["draw_base"](base, size, seed)
    own = {"r": seed + 1, "lora_alpha": 2 * seed + 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    config = peft.LoraConfig(**own, init_lora_weights=False)
    preferences["draw_adapter"](base, adapter, config, seed)
    expected = preferences["reference"](base, adapter, preferences["draw_pairs"](seed, size["vocab_size"]))
    check_reference(base, adapter, expected, tmp_path / "gradient")
