"""The scale of an adapter, and the pairs that the decoder multiplies by, by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.model.architecture import DecoderConfig, LayerKind, plain_rope
from fedjax_rai.model.lora import Lora, paired

# One layer: two query heads and two of keys and values, of two channels each.
CONFIG = DecoderConfig(5, 3, 4, 1, 2, 2, 2, (LayerKind(plain_rope(2)),))


def test_the_scale_is_alpha_over_rank_or_over_its_root():
    """Rank 4 and alpha 8: 2, and 4 where ranks are stabilised (arXiv 2312.03732)."""
    assert Lora(("q_proj",), rank=4, alpha=8.0).scales("q_proj", 2) == (2.0, 2.0)
    assert Lora(("q_proj",), rank=4, alpha=8.0, rslora=True).scales("q_proj", 1) == (4.0,)


def pair(width: int, start: float) -> dict[str, jax.Array]:
    """Of rank 1, for an input of 3 channels: a from `start` on, b its negative."""
    return {"a": start + jnp.arange(3.0).reshape(1, 3, 1), "b": -start - jnp.arange(float(width)).reshape(1, 1, width)}


@pytest.mark.parametrize(
    ("parts", "q_columns", "v_columns"),
    [
        (1, [0, 1, 2, 3], [8, 9, 10, 11]),  # q0 q1 k0 k1 v0 v1
        (2, [0, 1, 6, 7], [4, 5, 10, 11]),  # q0 k0 v0, then q1 k1 v1
    ],
)
def test_a_kernel_s_pair_by_hand(parts, q_columns, v_columns):
    """Of q|k|v, q and v are adapted, v by another alpha: two columns of a, two rows of b, each in its own columns."""
    lora = Lora(("q_proj", "v_proj"), rank=1, alpha=2.0, alpha_pattern=(("v_proj", 3.0),))
    q, v = pair(4, 1.0), pair(4, 10.0)
    pairs = paired(replace(CONFIG, parts=parts), lora, {"layers": {"q_proj": q, "v_proj": v}})
    assert [*pairs.kernels] == ["qkv_proj"]
    a, b = pairs.kernels["qkv_proj"]
    np.testing.assert_array_equal(a[0], [[1, 10], [2, 11], [3, 12]])
    expected = np.zeros((2, 12))
    expected[0, q_columns] = [-2, -4, -6, -8]
    expected[1, v_columns] = [-30, -33, -36, -39]
    np.testing.assert_array_equal(b[0], expected)


def test_a_fused_module_has_all_columns_of_its_kernel():
    """One pair for q|k|v: with two parts its columns are sorted as the kernel's are."""
    lora = Lora(("qkv_proj",), rank=1, alpha=1.0)
    config = replace(CONFIG, modules_fused=True, parts=2, dtype="bfloat16")
    a, b = paired(config, lora, {"layers": {"qkv_proj": pair(12, 0.0)}}).kernels["qkv_proj"]
    assert a.dtype == b.dtype == jnp.bfloat16
    np.testing.assert_array_equal(-b[0, 0].astype(jnp.float32), [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11])


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "v_proj", "o_proj"]])
def test_an_adapter_of_other_targets_has_no_pairs(targets):
    """One that lacks a target, or has one that nothing would be made of."""
    lora = Lora(("q_proj", "v_proj"), rank=1, alpha=1.0)
    with pytest.raises(ValueError, match=r"for a model whose targets are \['q_proj', 'v_proj'\]"):
        paired(CONFIG, lora, {"layers": {target: pair(4, 1.0) for target in targets}})
