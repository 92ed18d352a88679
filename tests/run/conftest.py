"""The shipped tiny base, and a config so small that two whole rounds take seconds once compiled."""

import pytest

from fedjax_rai.config import ExperimentConfig


@pytest.fixture
def config(tmp_path) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "model": {"dtype": "float32"},
            "lora": {"rank": 2, "alpha": 4},
            "data": {"red": 12, "acceptable": 28, "max_length": 64},
            "federated": {"clients": 4, "cohort": 2, "rounds": 2, "local_steps": 2, "batch_size": 2},
            "guard": {"pairs": 8, "steps": 2, "batch_size": 4},
            "filter": {"enabled": False},
            "cai": {"iterations": 2, "prompts": 4, "replay": 4, "batch_size": 4, "max_new_tokens": 24},
            "eval": {"prompts": 4, "samples": 2, "max_new_tokens": 8, "batch_size": 8},
        }
    )
