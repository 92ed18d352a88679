"""The scale of an adapter, by hand."""

from fedjax_rai.model.lora import Lora


def test_the_scale_is_alpha_over_rank_or_over_its_root():
    """Rank 4 and alpha 8: 2, and 4 where ranks are stabilised (arXiv 2312.03732)."""
    assert Lora(("q_proj",), rank=4, alpha=8.0).scales("q_proj", 2) == (2.0, 2.0)
    assert Lora(("q_proj",), rank=4, alpha=8.0, rslora=True).scales("q_proj", 1) == (4.0,)
