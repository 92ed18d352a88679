"""Log-probabilities by slices of positions: those of whole logits, in a fraction of their memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from fedjax_rai.aliases import PyTree
from fedjax_rai.data.examples import Examples
from fedjax_rai.memory.footprint import loaded
from fedjax_rai.model.decoder import LM, Decoder, forward, unembed
from fedjax_rai.model.lora import abstract_adapter
from fedjax_rai.train import losses
from fedjax_rai.train.losses import positions_at_once
from tests import small

FLOAT = 4  # bytes


@pytest.mark.parametrize(
    ("rows", "positions", "vocabulary", "devices", "width"),
    [
        (64, 511, 1024, 1, 511),  # 64 * 511 = 32,704 of 2^25 / 1024 = 32,768 tokens: all at once
        (64, 513, 1024, 1, 257),  # 32,832: two slices, of 257 and 256 positions
        (8, 511, 32000, 1, 128),  # 2^25 / 32000 = 1048 tokens, 131 positions of 8 rows: four slices
        (16, 511, 128256, 1, 32),  # 512 tokens, as 2^25 / 128256 = 261 are fewer: 32 positions of 16 rows
        (32, 511, 128256, 8, 128),  # 512 on each of 8 devices
        (2000, 7, 128256, 1, 1),  # a position at least
        (4, 0, 100, 1, 0),  # rows of a token, which nothing predicts
    ],
)
def test_a_slice_has_as_many_tokens_as_are_stated(rows, positions, vocabulary, devices, width):
    assert positions_at_once(rows, positions, vocabulary, devices) == width


def test_every_shape_of_the_tiny_world_is_one_slice():
    """1024 tokens; at most 64 rows (`eval.batch_size`) of 512 (`data.max_length`) tokens: its numbers do not move."""
    for rows in range(1, 65):
        for length in range(1, 513):
            assert positions_at_once(rows, length - 1, 1024) == length - 1


def packed(rows: int, length: int) -> Examples:
    """Rows of two sequences and padding."""
    place = np.arange(length)
    segments = np.where(place < length // 3, 1, np.where(place < length - 2, 2, 0))
    tokens = np.random.default_rng(0).integers(1, small.VOCAB, (rows, length))
    mask = (place % 4 > 0) & (segments > 0)
    columns = [tokens, np.broadcast_to(mask, tokens.shape), np.broadcast_to(segments, tokens.shape)]
    return Examples(jnp.asarray(columns[0], jnp.int32), jnp.asarray(columns[1]), jnp.asarray(columns[2], jnp.int32))


BATCHES = {"ragged": lambda: small.corpus(5), "packed": lambda: packed(3, 12)}  # of 8 and of 11 positions


def plain_loss(lm: LM, adapter: PyTree, batch: Examples) -> tuple[jax.Array, jax.Array]:
    """The loss and each row's log p by whole logits and `log_softmax`."""
    logits = unembed(lm, forward(lm, adapter, batch.tokens, batch.segments)[:, :-1])
    logps = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.sum(logps * jax.nn.one_hot(batch.tokens[:, 1:], logits.shape[-1]), axis=-1)
    counted = batch.loss_mask[:, 1:] & (batch.segments[:, 1:] == batch.segments[:, :-1])
    rows = jnp.sum(jnp.where(counted, chosen, 0), axis=1)
    return -jnp.sum(rows) / jnp.sum(counted), rows


@pytest.mark.parametrize("how", [{}, small.slow({"logit_softcap": 3.0}), small.slow({"tie_word_embeddings": False})])
@pytest.mark.parametrize("batch", BATCHES)
def test_slices_are_the_whole(monkeypatch, batch, how):
    """Values and gradients, where the slices divide neither the positions nor the vocabulary."""
    examples, adapter = BATCHES[batch](), small.adapter()
    rows, length = examples.tokens.shape
    monkeypatch.setattr(losses, "SLICE_TOKENS", 3 * rows + 1)
    monkeypatch.setattr(losses, "SLICE_LOGITS", 1)
    width = positions_at_once(rows, length - 1, small.VOCAB)
    assert width == 3 and (length - 1) % width
    model = Decoder(replace(small.CONFIG, **how), small.LORA)
    head = {} if how.get("tie_word_embeddings", True) else {"lm_head": 0.5 * small.BASE["embed_tokens"].T}
    lm = LM(model, small.BASE | head)

    def sliced_loss(adapter: PyTree) -> tuple[jax.Array, jax.Array]:
        rows_logps, _ = losses.answer_logps(lm, adapter, examples)
        return losses.sft(lm, adapter, examples).mean(), rows_logps

    found = jax.jit(jax.value_and_grad(sliced_loss, has_aux=True))(adapter)
    expected = jax.jit(jax.value_and_grad(lambda a: plain_loss(lm, a, examples), has_aux=True))(adapter)
    (value, rows_logps), gradient = found
    (whole_value, whole_logps), whole_gradient = expected
    np.testing.assert_allclose(value, whole_value, rtol=1e-6)
    np.testing.assert_allclose(rows_logps, whole_logps, rtol=1e-6)
    for leaf, whole in zip(jax.tree.leaves(gradient), jax.tree.leaves(whole_gradient), strict=True):
        largest = float(jnp.abs(whole).max())
        assert largest > 0
        np.testing.assert_allclose(leaf, whole, atol=1e-6 * largest, rtol=0)


@pytest.fixture
def three_at_once(monkeypatch):
    """Slices of three positions of five rows."""
    monkeypatch.setattr(losses, "SLICE_TOKENS", 15)
    monkeypatch.setattr(losses, "SLICE_LOGITS", 1)
    assert positions_at_once(5, small.LENGTH - 1, small.VOCAB) == 3


def sft_of(adapter: PyTree) -> jax.Array:
    return losses.sft(small.LM, adapter, small.corpus(5)).mean()


@pytest.mark.slow
def test_clients_that_are_mapped_have_gradients_of_their_own(three_at_once):
    """Those of each by itself, of two adapters that differ; float32's sums in another order."""
    adapters = small.adapter(), jax.tree.map(lambda leaf: 2 * leaf, small.adapter())
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
    mapped = jax.vmap(jax.grad(sft_of))(stacked)
    for client, adapter in enumerate(adapters):
        for leaf, alone in zip(jax.tree.leaves(mapped), jax.tree.leaves(jax.grad(sft_of)(adapter)), strict=True):
            np.testing.assert_allclose(leaf[client], alone, atol=1e-5 * float(jnp.abs(alone).max()), rtol=0)


def products_with_the_unembedding(jaxpr: Any) -> Iterator[Any]:
    """Those of a program, also within its loops."""
    for equation in jaxpr.eqns:
        is_product = equation.primitive.name == "dot_general"
        if is_product and any(small.VOCAB in operand.aval.shape for operand in equation.invars):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from products_with_the_unembedding(inner)


def meetings() -> int:
    """How often a step on a batch meets the unembedding."""
    traced = jax.make_jaxpr(jax.value_and_grad(sft_of))(small.adapter())
    return len(list(products_with_the_unembedding(traced.jaxpr)))


def test_hidden_states_in_one_piece_meet_the_unembedding_twice():
    """Once for their logits and once for the gradient: the backward pass does not compute logits again."""
    assert meetings() == 2


def test_a_slice_meets_the_unembedding_twice(three_at_once):
    assert meetings() == 2


def test_slices_have_no_gradient_of_the_base(three_at_once):
    """It is refused, and not partly zero; the adapter's is there."""

    def loss(base: PyTree, adapter: PyTree) -> jax.Array:
        return losses.sft(LM(small.MODEL, base), adapter, small.corpus(5)).mean()

    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(jax.grad(loss, argnums=1)(small.BASE, small.adapter())))
    with pytest.raises(ValueError, match="no gradient of the base"):
        jax.grad(loss)(small.BASE, small.adapter())


def test_rows_weigh_what_they_are_given(three_at_once, monkeypatch):
    """Cotangents that differ from row to row, as those of preferences do."""
    weights = jnp.array([1.0, -2.0, 0.0, 0.5, 3.0])

    def loss(adapter: PyTree) -> jax.Array:
        return jnp.sum(weights * losses.answer_logps(small.LM, adapter, small.corpus(5))[0])

    sliced = jax.grad(loss)(small.adapter())
    monkeypatch.setattr(losses, "SLICE_TOKENS", 10**6)
    for leaf, whole in zip(jax.tree.leaves(sliced), jax.tree.leaves(jax.grad(loss)(small.adapter())), strict=True):
        np.testing.assert_allclose(leaf, whole, atol=1e-5 * float(jnp.abs(whole).max()), rtol=0)


@pytest.mark.slow
def test_in_bfloat16_slices_round_as_the_whole_does(three_at_once, monkeypatch):
    """Both are compared with float32: slices are at most a fifth further from it, of the largest in each leaf."""
    model = Decoder(replace(small.CONFIG, dtype="bfloat16"), small.LORA)

    def gradient(model: Decoder) -> list[jax.Array]:
        lm = LM(model, small.BASE)
        return jax.tree.leaves(jax.grad(lambda a: losses.sft(lm, a, small.corpus(5)).mean())(small.adapter()))

    def distance(found: list[jax.Array]) -> float:
        pairs = zip(found, exact, strict=True)
        return max(float(jnp.abs(leaf - whole).max() / jnp.abs(whole).max()) for leaf, whole in pairs)

    exact, sliced = gradient(small.MODEL), gradient(model)
    monkeypatch.setattr(losses, "SLICE_TOKENS", 10**6)
    whole = gradient(model)
    assert 0 < distance(whole) < 0.1
    assert distance(sliced) < 1.2 * distance(whole)


def test_whole_logits_are_never_held():
    """Loss and gradient of [8, 512] tokens of 32,000: whole logits are 8 * 511 * 32,000 * 4 bytes, 499 MiB.

    A slice's are a quarter of that, and are held with their cotangents: 250 MiB. All the rest, of two layers 16
    wide, is below 20 MiB, so less than whole logits once is held at any time.
    """
    rows, length, vocabulary = 8, 512, 32000
    config = replace(small.CONFIG, vocab_size=vocabulary, dtype="float32", attention="chunked")
    lm = LM(Decoder(config, small.LORA), loaded(config))
    adapter = abstract_adapter(config, small.LORA)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch = Examples(tokens, jax.ShapeDtypeStruct((rows, length), jnp.bool_), tokens)  # pyright: ignore

    def loss(adapter: PyTree, lm: LM, batch: Examples) -> jax.Array:
        return losses.sft(lm, adapter, batch).mean()

    analysis = jax.jit(jax.value_and_grad(loss)).lower(adapter, lm, batch).compile().memory_analysis()
    assert analysis is not None
    whole = rows * (length - 1) * vocabulary * FLOAT
    slice_logits = rows * 128 * vocabulary * FLOAT
    assert 2 * slice_logits + 20 * 2**20 < whole
    assert analysis.temp_size_in_bytes < 2 * slice_logits + 20 * 2**20
