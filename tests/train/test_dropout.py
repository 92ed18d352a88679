"""LoRA dropout: on the input of every `a`, anew for each client, local step, layer and target; off everywhere else."""

from dataclasses import replace
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai import rng
from fedjax_rai.data.examples import take
from fedjax_rai.data.packing import batches, plan
from fedjax_rai.fed.base import RoundBatch
from fedjax_rai.fed.client import Mapper, Task, local_update
from fedjax_rai.model import decoder
from fedjax_rai.model.architecture import FUSED
from fedjax_rai.model.decoder import LM, Decoder, forward, init_base
from fedjax_rai.model.lora import Dropout, abstract_adapter
from fedjax_rai.model.quantize import QUANTIZATIONS, quantize
from fedjax_rai.train import generate, losses
from tests import small

RATE = jnp.float32(3e-2)


def dropout(rate: float, seed: int = 0) -> Dropout:
    return Dropout(jax.random.key(seed), jnp.float32(rate))


def hidden(adapter, drops=None, lm=small.LM):
    examples = small.corpus(6)
    return jax.jit(forward)(lm, adapter, examples.tokens, examples.segments, drops)


def test_an_input_is_dropped_or_scaled_and_its_mean_stays():
    x = jnp.ones((400, 50))
    dropped = np.asarray(dropout(0.2).drop(x, "q_proj"))
    assert sorted(set(dropped.ravel().tolist())) == pytest.approx([0.0, 1.25])
    assert (dropped == 0).mean() == pytest.approx(0.2, abs=0.01)
    assert dropped.mean() == pytest.approx(1.0, abs=0.01)
    assert np.asarray(dropout(0.2).drop(x.astype(jnp.bfloat16), "q_proj")).dtype == jnp.bfloat16


def test_targets_layers_and_names_have_masks_of_their_own():
    x, drops = jnp.ones((30, 20)), dropout(0.5)
    layers = drops.each("layer", 3)
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in (0, 1))
    masks = [
        own.drop(x, target)
        for own, target in ((first, "q_proj"), (first, "k_proj"), (second, "q_proj"), (drops.at(client=1), "q_proj"))
    ]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert float(jnp.mean(one != other)) > 0.3
    np.testing.assert_array_equal(first.drop(x, "q_proj"), drops.at(layer=0).drop(x, "q_proj"))


def test_each_target_reads_its_own_dropped_input():
    """drop(x) a, which b and the scale follow: PEFT's lora_B(lora_A(dropout(x))) * scaling."""
    drops = dropout(0.3)
    g = np.random.default_rng(0)
    x = jnp.asarray(g.normal(size=(5, 4)), jnp.float32)
    kernels = {name: jnp.asarray(g.normal(size=(4, 2)), jnp.float32) for name in ("q_proj", "v_proj")}
    got = decoder._thin(x, jnp.concatenate([*kernels.values()], axis=1), dict.fromkeys(kernels, 2), drops)
    for place, (name, a) in enumerate(kernels.items()):
        kept = np.asarray(jax.random.bernoulli(rng.stream(drops.key, name), 0.7, x.shape))
        expected = (np.where(kept, np.asarray(x), 0) / 0.7) @ np.asarray(a)
        np.testing.assert_allclose(got[:, 2 * place : 2 * place + 2], expected, atol=1e-6)


def test_the_base_is_not_dropped():
    """A fresh adapter, whose b is 0, adds nothing, dropped or not; one that does something is heard less of."""
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if path[-1].key == "b" else leaf, small.adapter()
    )
    np.testing.assert_allclose(hidden(silent, dropout(0.5)), hidden(silent), atol=1e-6)
    assert float(jnp.abs(hidden(small.adapter(), dropout(0.5)) - hidden(small.adapter())).max()) > 1e-2
    np.testing.assert_allclose(hidden(small.adapter(), dropout(0.0)), hidden(small.adapter()), atol=1e-5)


def test_on_average_nothing_is_dropped():
    """To first order in the adapter; this one is small."""
    weak = small.adapter(strength=0.03)
    many = jax.jit(jax.vmap(lambda seed: hidden(weak, Dropout(jax.random.key(seed), jnp.float32(0.3)))))
    mean = many(jnp.arange(400)).mean(axis=0)
    plain = hidden(weak)
    base = hidden(jax.tree.map(jnp.zeros_like, weak))
    noise = float(jnp.abs(mean - plain).max())
    assert noise < 0.2 * float(jnp.abs(plain - base).max())


def updated(drops, client: int = 0):
    examples = take(small.corpus(), small.cohort([2]).rows[0])
    own = None if drops is None else drops.at(client=client)
    return jax.jit(local_update, static_argnums=0)(
        small.SGD, small.LM, small.adapter(), Task(examples, jnp.float32(1), RATE, own)
    )


@pytest.mark.slow
def test_clients_with_the_same_data_train_apart():
    one, same, other, none = updated(dropout(0.3)), updated(dropout(0.3)), updated(dropout(0.3), 1), updated(None)
    small.assert_trees_close(one.delta, same.delta, atol=0)
    assert small.distance(one.delta, other.delta) > 1e-4
    assert small.distance(one.delta, none.delta) > 1e-4


@pytest.mark.slow
def test_every_local_step_drops_anew():
    """The loss of steps that change nothing (learning rate 0) on one batch: without dropout all are the same."""
    rows = jnp.repeat(small.cohort([2]).rows[0][:1], 2, axis=0)
    examples = take(small.corpus(), rows)
    first, twice = (jax.tree.map(lambda leaf, k=k: leaf[:k], examples) for k in (1, 2))
    for rate, apart in ((0.0, False), (0.4, True)):
        totals = [
            float(local_update(small.SGD, small.LM, small.adapter(), task).metrics["loss_total"])
            for task in (Task(batch, jnp.float32(1), jnp.float32(0.0), dropout(rate)) for batch in (first, twice))
        ]
        assert (abs(totals[1] - 2 * totals[0]) > 1e-2) == apart


@pytest.mark.slow
def test_a_round_names_its_clients_and_another_rate_compiles_nothing():
    """Two clients of the same rows: their mean under dropout is neither's alone, and 0 drops nothing."""
    algorithm = small.algorithm("fedavg", Mapper(4))
    step = jax.jit(algorithm.round)
    one, two = small.cohort([1]), small.cohort([1, 2])
    two = two._replace(rows=jnp.repeat(one.rows, 2, axis=0))

    def play(cohort, drops):
        return step(algorithm.init(small.adapter()), small.LM, RoundBatch(small.corpus(), cohort, RATE, drops))[0]

    plain, nothing = play(two, None), play(two, dropout(0.0))
    small.assert_trees_close(plain, nothing, atol=1e-6)
    assert small.distance(play(two, dropout(0.4)).adapter, play(one, dropout(0.4)).adapter) > 1e-4
    small.assert_trees_close(plain.adapter, play(one, None).adapter)
    before = small.compilations(step)
    play(two, dropout(0.1, seed=5))
    assert small.compilations(step) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_it_meets_quantised_packed_and_recomputed_training(kind):
    """One step each way: recomputing draws the same masks, and packing and quantising change no shape that matters."""
    plain = replace(small.CONFIG, hidden_size=64, intermediate_size=64, head_dim=32)
    base, config, deltas = init_base(plain, jax.random.key(0)), replace(plain, quantize=kind), []
    base["layers"] |= {name: quantize(base["layers"][name], kind) for name in FUSED}
    for remat in ("none", "full"):
        model = Decoder(replace(config, remat=remat), small.LORA)
        lm = LM(model, base)
        shapes = abstract_adapter(config, small.LORA)
        adapter = jax.tree.map(lambda leaf: 0.1 * jnp.ones(leaf.shape), shapes)
        wide = jax.tree.map(lambda column: jnp.pad(column, ((0, 0), (0, 15))), small.corpus())
        lengths = np.asarray(wide.valid.sum(axis=1))
        rows = jnp.asarray(plan(np.asarray(small.cohort([0], batch=6).rows), lengths, 24))[0]
        task = Task(batches(wide, rows), jnp.float32(1), RATE, dropout(0.3))
        deltas.append(jax.jit(local_update, static_argnums=0)(small.SGD, lm, adapter, task).delta)
    small.assert_trees_close(deltas[0], deltas[1], atol=1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(deltas[0])) > 1e-5


def test_nothing_else_drops():
    """Scores, reference log-probabilities and sampling have no argument for it."""
    for function in (losses.answer_logps, generate.generate, generate.sample, decoder.forward_cached):
        assert "dropout" not in signature(function).parameters
