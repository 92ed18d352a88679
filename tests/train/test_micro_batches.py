"""A step computed by parts is the step of its whole batch, up to rounding, in less memory."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, PyTree
from fedjax_rai.cai.align import align, begin, make_pool, with_reference_logps
from fedjax_rai.cai.options import METHODS, Numbers
from fedjax_rai.config.schema import CaiConfig, FederatedConfig, GuardConfig
from fedjax_rai.data.examples import Examples
from fedjax_rai.memory.footprint import loaded
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import Dropout, abstract_adapter
from fedjax_rai.train.losses import sigmoid
from fedjax_rai.train.step import PLAIN, Trainer, descend_by_parts, micro_batches, rows_at_once, start, update
from tests import small
from tests.cai.common import options

RATE = jnp.float32(0.1)


@pytest.mark.parametrize(
    ("rows", "micro_batch", "devices", "size"),
    [
        (16, None, 1, 16),
        (16, 4, 1, 4),
        (16, 16, 1, 16),
        (16, 32, 1, 16),
        (12, 8, 1, 6),  # packed rows, which 8 does not divide: fewer at once
        (16, 2, 8, 8),  # a row on each of eight devices
        (16, 12, 4, 8),
        (5, 4, 1, 1),
        (12, 4, 8, 4),  # eight devices divide no part of twelve rows
    ],
)
def test_how_many_rows_are_computed_at_once(rows, micro_batch, devices, size):
    assert rows_at_once(rows, micro_batch, devices) == size


def test_every_part_has_rows_of_every_device():
    """Of two devices with rows 0, 1, 2 and 3, 4, 5: three parts of two rows, one of each."""
    np.testing.assert_array_equal(micro_batches(jnp.arange(6), 2), [[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize(("section", "batch"), [(FederatedConfig, 12), (GuardConfig, 32), (CaiConfig, 16)])
def test_a_micro_batch_divides_its_batch(section, batch):
    given = {"batch_size": batch}
    assert section.model_validate(given | {"micro_batch": 4}).micro_batch == 4
    with pytest.raises(ValidationError, match=f"divide batch_size = {batch} of the same section: one of 1, 2, "):
        section.model_validate(given | {"micro_batch": 5})


def test_parts_by_hand():
    """x = 3; the gradients of 2 x and x^2 / 2 are 2 and 3, that of the penalty 5 x^2 is 30: 35 in all."""
    trainer = Trainer(small.SGD.optimizer, penalty=lambda adapter: 5 * adapter["x"] ** 2)
    slopes, halves = jnp.array([2.0, 0.0]), jnp.array([0.0, 0.5])

    def loss(adapter: Adapter, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        slope, half = part
        return slope * adapter["x"] + half * adapter["x"] ** 2, slope + half

    before = start({"x": jnp.float32(3.0)}, trainer)
    after, more = descend_by_parts(loss, (slopes, halves), before, jnp.float32(0.1), trainer)
    assert float(after.adapter["x"]) == pytest.approx(3.0 - 3.5) and float(more) == 2.5


def packed(rows: int) -> Examples:
    """Rows of two sequences, of 1 to 7 trained tokens."""
    examples = small.corpus(rows)
    place = jnp.arange(small.LENGTH)
    return examples._replace(segments=jnp.where(examples.valid, 1 + (place >= 4), 0))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "micro_batch"), [(small.corpus, 1), (small.corpus, 4), (packed, 4)])
def test_a_step_by_parts_is_that_of_the_whole_batch(make, micro_batch):
    """Rows have different numbers of trained tokens, so that means of parts would not add up; a penalty counts once."""
    batch = make(12)
    start_adapter = small.adapter()

    def penalty(adapter: Adapter) -> jax.Array:
        return 0.5 * trees.squared_norm(trees.sub(adapter, small.adapter(seed=9)))

    ends = []
    for size in (None, micro_batch):
        trainer = small.SGD._replace(penalty=penalty, micro_batch=size)
        step = jax.jit(lambda adapter, trainer=trainer: update(small.LM, start(adapter, trainer), batch, RATE, trainer))
        ends.append(step(start_adapter))
    (whole, whole_terms), (by_parts, terms) = ends
    small.assert_trees_close(by_parts.adapter, whole.adapter, atol=1e-7)
    assert small.distance(whole.adapter, start_adapter) > 1e-3
    np.testing.assert_allclose(terms.total, whole_terms.total, rtol=1e-6)
    assert float(terms.weight) == float(whole_terms.weight)


@pytest.mark.slow
def test_every_part_drops_other_inputs():
    """Of two equal rows, each a part, the second does not repeat what the first one gives."""
    drop = Dropout(jax.random.key(0), jnp.float32(0.5))
    row = small.corpus(1)
    rows = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), row)
    before, trainer = start(small.adapter(), small.SGD), small.SGD._replace(micro_batch=1)
    first, _ = jax.jit(update, static_argnames="trainer")(
        small.LM, before, row, RATE, trainer=small.SGD, dropout=drop.at(micro_batch=0)
    )
    both, _ = jax.jit(update, static_argnames="trainer")(small.LM, before, rows, RATE, trainer=trainer, dropout=drop)
    assert small.distance(first.adapter, both.adapter) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "sft+dpo"])
def test_training_on_revisions_by_parts_is_that_of_whole_batches(method):
    """Parts have other numbers of learnt tokens, and of pairs: some are replayed, some are no pair."""
    paired = jnp.arange(8) % 3 > 0
    pool = make_pool(small.corpus(8, 1), small.corpus(8, 2), small.corpus(5, 3), jnp.ones(8, bool), paired)
    pool = jax.jit(with_reference_logps, static_argnames="rows")(small.LM, small.adapter(2), pool, rows=8)
    numbers = Numbers(jnp.int32(3), jnp.float32(0.05), jnp.float32(0.4), jnp.float32(0.3), {})
    ends = []
    for size in (None, 2):
        trainer = small.SGD._replace(micro_batch=size)
        how = options(objective=METHODS[method](sigmoid), batch_size=8, trainer=trainer, mesh=small.mesh(1))
        ends.append(align(small.LM, how, begin(small.adapter(), trainer), pool, numbers, jax.random.key(1)))
    whole, by_parts = ends
    small.assert_trees_close(by_parts.state.adapter, whole.state.adapter, atol=1e-6)
    assert small.distance(whole.state.adapter, small.adapter()) > 1e-3
    for name in ("loss", "margin", "trained_tokens", "step_tokens"):
        np.testing.assert_allclose(getattr(by_parts, name), getattr(whole, name), rtol=1e-5)


@pytest.mark.slow
def test_parts_need_memory_of_their_own_rows_alone():
    """Of 16 rows of 256 tokens two at once: an eighth of the activations, and one more adapter, which is small."""
    config = replace(small.CONFIG, dtype="float32", hidden_size=64, intermediate_size=192, num_hidden_layers=4)
    lm, adapter = LM(Decoder(config, small.LORA), loaded(config)), abstract_adapter(config, small.LORA)
    tokens = jax.ShapeDtypeStruct((16, 256), jnp.int32)
    batch = Examples(tokens, jax.ShapeDtypeStruct((16, 256), jnp.bool_), tokens)  # pyright: ignore
    held = []
    for size in (None, 2):
        trainer = PLAIN._replace(micro_batch=size)

        def step(adapter: PyTree, lm: LM, batch: Examples, trainer: Trainer = trainer) -> PyTree:
            return update(lm, start(adapter, trainer), batch, RATE, trainer)

        analysis = jax.jit(step).lower(adapter, lm, batch).compile().memory_analysis()
        assert analysis is not None
        held.append(analysis.temp_size_in_bytes)
    assert held[1] < held[0] / 6
