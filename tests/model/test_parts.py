"""Columns that are sorted by the parts that devices hold: where the tensors of a checkpoint lie in them."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from fedjax_rai.model.architecture import DecoderConfig, LayerKind, in_parts, parts_of, plain_rope
from fedjax_rai.model.decoder import _split
from fedjax_rai.model.families import places

# 4 heads and 2 key heads of 2 channels: q has 8 columns, k and v 4 each; gate and up have 6 each
SHAPE = DecoderConfig(9, 8, 6, 1, 4, 2, 2, (LayerKind(plain_rope(2)),), tie_word_embeddings=True)


def test_a_part_has_whole_heads():
    assert [parts_of(replace(SHAPE, parts=parts), "qkv_proj") for parts in (1, 2, 4)] == [1, 2, 1]  # 2 key heads
    assert [parts_of(replace(SHAPE, parts=parts), "gate_up_proj") for parts in (1, 2, 3, 4)] == [1, 2, 3, 1]  # 6 each
    assert parts_of(replace(SHAPE, parts=2), "o_proj") == parts_of(replace(SHAPE, parts=2), "down_proj") == 1


def test_a_part_has_its_share_of_every_projection():
    """q|k|v in two parts: columns 0-7 are q, 8-11 k, 12-15 v; each part holds half of each, side by side."""
    by_part = jnp.array([[0, 1, 2, 3, 8, 9, 12, 13, 4, 5, 6, 7, 10, 11, 14, 15]])
    q, k, v = _split(by_part, [8, 4, 4], 2)
    np.testing.assert_array_equal(jnp.concatenate([q, k, v], axis=1)[0], np.arange(16))
    np.testing.assert_array_equal(in_parts(by_part, 2)[0, 1], [4, 5, 6, 7, 10, 11, 14, 15])


def test_a_place_tells_the_parts_and_the_projections():
    found = places(replace(SHAPE, parts=2))
    k, up = found["model.layers.0.self_attn.k_proj.weight"], found["model.layers.0.mlp.up_proj.weight"]
    assert (k.column, k.parts, k.widths) == (8, 2, (4,))
    assert (up.column, up.parts, up.widths) == (6, 2, (6,))
    assert found["model.layers.0.self_attn.o_proj.weight"].parts == 1
    fused = places(replace(SHAPE, parts=2, modules_fused=True))["model.layers.0.self_attn.qkv_proj.weight"]
    assert (fused.shape, fused.column, fused.parts, fused.widths) == ((16, 8), 0, 2, (8, 4, 4))
