"""The shape of an adapter: what a config's `lora` section gives on a model, and what that model cannot have."""

from typing import Any

import pytest

from fedjax_rai.config.schema import LoraConfig
from fedjax_rai.errors import InputError
from fedjax_rai.model import families
from fedjax_rai.model.lora import lora_shape
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
