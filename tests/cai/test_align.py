"""Training on revisions: what is drawn, what is minimised, and iterations that are a prefix of more iterations."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai import rng, trees
from fedjax_rai.aliases import Adapter
from fedjax_rai.cai import align as cai
from fedjax_rai.cai import programs
from fedjax_rai.cai.align import METHODS, Pool, Progress, Rates
from fedjax_rai.data.examples import Examples, take
from fedjax_rai.model.lora import init_adapter
from fedjax_rai.train import losses, step
from fedjax_rai.train.losses import PREFERENCES
from tests import small
from tests.cai.test_revise import options

REVISIONS, REPLAYED, BATCH = 8, 3, 4
KEY = jax.random.key(1)
LEARNING_RATE, BETA = 1e-2, 0.3
FRESH = init_adapter(small.CONFIG, small.LORA, jax.random.key(5))


def part(rows: int, seed: int) -> Examples:
    """Answers to train on; the prompts of two seeds are the same, as are those of revision and response."""
    own, prompts = small.corpus(rows, seed), small.corpus(rows, 0)
    return own._replace(tokens=own.tokens.at[:, :2].set(prompts.tokens[:, :2]))


def pool(replay: int = REPLAYED, usable: Any = None, paired: Any = None) -> Pool:
    """Revisions, responses and `replay` others; all usable and paired unless it is said."""
    everything = np.ones(REVISIONS, bool)
    usable, paired = (jnp.asarray(everything if own is None else own) for own in (usable, paired))
    return cai.pool(part(REVISIONS, 1), part(REVISIONS, 2), small.corpus(replay, 3), usable, paired)


def rates(learning_rate: float = LEARNING_RATE, beta: float = BETA, replay: float = 0.3) -> Rates:
    return Rates(jnp.float32(learning_rate), jnp.float32(beta), jnp.float32(replay))


def trained_for(method: str, preference: str = "sigmoid", batch_size: int = BATCH) -> programs.Options:
    return options(objective=METHODS[method](preference), batch_size=batch_size)


_refer = jax.jit(cai.refer, static_argnames="rows")


def refer(own: Pool, adapter: Adapter | None, rows: int = REVISIONS) -> Pool:
    return _refer(small.LM, adapter, own, rows=rows)


def train(own: programs.Options, progress: Progress, of: Pool, first: int, last: int, at: Rates) -> Progress:
    return programs.train(small.MODEL, own, small.BASE, progress, of, jnp.int32(first), jnp.int32(last), at, KEY)


def assert_same(x, y) -> None:
    jax.tree.map(np.testing.assert_array_equal, x, y)


# ---- iterations


@pytest.mark.parametrize("method", [small.slow("sft"), "sft+dpo"])
def test_zero_iterations_leave_everything_untouched(method):
    own, start = pool(), cai.begin(small.adapter())
    own = refer(own, small.adapter()) if method != "sft" else own
    for first in (0, 7):
        assert_same(train(trained_for(method), start, own, first, first, rates()), start)


@pytest.mark.parametrize("method", [small.slow("sft"), "sft+dpo"])
def test_a_longer_run_passes_through_every_shorter_one(method):
    """Bitwise, the optimizer's state and the counts of tokens included."""
    own, start = pool(), cai.begin(small.adapter())
    own = refer(own, small.adapter()) if method != "sft" else own
    run = partial(train, trained_for(method), of=own, at=rates())
    whole, two = (run(start, first=0, last=last) for last in (5, 2))
    assert_same(run(two, first=2, last=5), whole)
    assert small.distance(two.state.adapter, whole.state.adapter) > 1e-3
    assert small.distance(run(two, first=0, last=3).state.adapter, whole.state.adapter) > 1e-3
    assert 0 < two.trained < whole.trained and two.trained < two.read < whole.read


def test_another_count_or_rate_compiles_nothing():
    run = partial(train, trained_for("sft+dpo"), cai.begin(FRESH), refer(pool(), FRESH), 0)
    run(1, rates())
    before = small.compilations(programs.train)
    ends = [run(last, rates()) for last in (0, 1, 10, 500)]
    ends += [run(3, at) for at in (rates(), rates(1e-3), rates(beta=2), rates(replay=0), rates(replay=1))]
    assert small.compilations(programs.train) == before
    for i, one in enumerate(ends):
        assert bool(trees.all_finite(one.state.adapter))
        assert all(small.distance(one.state.adapter, other.state.adapter) > 1e-5 for other in ends[:i])


# ---- what is drawn


@partial(jax.jit, static_argnums=2)
def draw(own: Pool, share: float, batch_size: int = 20_000):
    return cai.draw(own, jnp.argsort(~own.usable, stable=True), jnp.float32(share), KEY, batch_size)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_only_usable_rows_and_replayed_ones_are_drawn_each_as_likely(share):
    usable = [False, True, False, False, True, True, False, False]
    rows, replayed = (np.asarray(column) for column in draw(pool(usable=usable), share))
    np.testing.assert_allclose(replayed.mean(), share, atol=0.015)
    np.testing.assert_array_equal(replayed, rows >= REVISIONS)
    shares = np.bincount(rows, minlength=REVISIONS + REPLAYED) / len(rows)
    expected = np.concatenate([np.array(usable) * (1 - share) / sum(usable), np.full(REPLAYED, share / REPLAYED)])
    assert not shares[expected == 0].any()
    np.testing.assert_allclose(shares, expected, atol=0.015)


def test_without_usable_revisions_all_is_replayed_and_without_replay_nothing():
    nothing = np.zeros(REVISIONS, bool)
    rows, replayed = draw(pool(usable=nothing), 0.0)
    assert replayed.all() and set(np.asarray(rows).tolist()) == set(range(REVISIONS, REVISIONS + REPLAYED))
    rows, replayed = draw(pool(replay=0), 1.0)
    assert not replayed.any() and set(np.asarray(rows).tolist()) == set(range(REVISIONS))


def test_every_iteration_draws_anew():
    own = pool()
    firsts = jnp.argsort(~own.usable, stable=True)
    drawn = [
        cai.draw(own, firsts, jnp.float32(0.3), rng.stream(KEY, "align", iteration=i), 16)[0].tolist() for i in range(5)
    ]
    assert len({tuple(rows) for rows in drawn}) == 5


def test_pool_pads_the_shorter_sets_and_keeps_their_order():
    revisions, responses, replay = part(3, 1), part(3, 2), small.corpus(2, 3)
    wide = Examples(*(jnp.pad(c, ((0, 0), (0, 4))) for c in responses))
    own = cai.pool(revisions, wide, replay, jnp.ones(3, bool), jnp.ones(3, bool))
    assert own.answers.tokens.shape == (5, small.LENGTH + 4) and not own.answers.valid[:, small.LENGTH :].any()
    for got, expected in ((own.answers, cai.stack(revisions, replay)), (own.responses, responses)):
        assert_same(Examples(*(c[:, : small.LENGTH] for c in got)), expected)


# ---- what is minimised


@partial(jax.jit, static_argnames=("method", "preference"))
def objective(adapter, own: Pool, rows, replayed, method: str, preference: str = "sigmoid"):
    """((loss, (loss, margin, trained tokens, read tokens)), gradient)."""

    def loss(adapter):
        return cai.objective_loss(
            small.LM, adapter, own, rows, replayed, jnp.float32(BETA), METHODS[method](preference),
            lambda batch: batch,
        )  # fmt: skip

    return jax.value_and_grad(loss, has_aux=True)(adapter)


@jax.jit
def sft(adapter, batch: Examples):
    """(loss, gradient) of supervised fine-tuning."""
    return jax.value_and_grad(lambda own: losses.sft(small.LM, own, batch).mean())(adapter)


NONE = jnp.zeros(BATCH, bool)
# each is a program or two of its own to compile
QUICK = ["sigmoid", *(small.slow(name) for name in PREFERENCES if name != "sigmoid")]
QUICK_METHODS = ["sft+dpo", *(small.slow(name) for name in METHODS if name != "sft+dpo")]


def test_the_sft_method_minimises_the_sft_loss_of_the_rows_drawn():
    own, adapter = pool(), small.adapter()
    rows, replayed = jnp.array([1, 5, REVISIONS + 2, 5]), jnp.array([False, False, True, False])
    (value, (reported, _, trained, read)), gradient = objective(adapter, own, rows, replayed, "sft")
    batch = take(own.answers, rows)
    expected, slope = sft(adapter, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert value == reported
    small.assert_trees_close(gradient, slope)
    assert (trained, read) == (batch.loss_mask.sum(), batch.valid.sum())


def test_an_iteration_of_sft_is_a_step_of_supervised_fine_tuning():
    own, state = pool(), step.start(small.adapter())
    rows, _ = cai.draw(own, jnp.arange(REVISIONS), jnp.float32(0.3), rng.stream(KEY, "align", iteration=0), BATCH)
    expected, _ = jax.jit(step.update)(small.LM, state, take(own.answers, rows), jnp.float32(LEARNING_RATE))
    got = train(trained_for("sft"), cai.begin(small.adapter()), own, 0, 1, rates())
    small.assert_trees_close(got.state.adapter, expected.adapter)


@pytest.mark.parametrize("preference", QUICK)
def test_both_together_are_the_sum_of_both(preference):
    own, adapter = pool(paired=[True, True, False, True, True, False, True, True]), small.adapter()
    own, rows = refer(own, None), jnp.array([0, 2, 3, 6])
    values, slopes = {}, {}
    for method in METHODS:
        kind = "sigmoid" if method == "sft" else preference
        ((values[method], _), slopes[method]) = objective(adapter, own, rows, NONE, method, kind)
    np.testing.assert_allclose(values["sft+dpo"], values["sft"] + values["dpo"], rtol=1e-6)
    small.assert_trees_close(slopes["sft+dpo"], trees.add(slopes["sft"], slopes["dpo"]), atol=2e-6)
    assert small.distance(slopes["sft"], slopes["dpo"]) > 1e-3


def test_replayed_answers_are_liked_whatever_is_preferred():
    """The likelihood that DPO adds is of them alone, and none of them is in a pair."""
    own, adapter = refer(pool(), None), small.adapter()
    pairs, again = jnp.array([0, 3]), jnp.array([REVISIONS, REVISIONS + 2])
    rows, replayed = jnp.concatenate([pairs, again]), jnp.array([False, False, True, True])
    (mixed, _), gradient = objective(adapter, own, rows, replayed, "dpo")
    (preferred, _), slope = objective(adapter, own, jnp.tile(pairs, 2), NONE, "dpo")
    liked, other = sft(adapter, take(own.answers, jnp.tile(again, 2)))
    np.testing.assert_allclose(mixed, preferred + liked, rtol=1e-6)
    small.assert_trees_close(gradient, trees.add(slope, other))


@pytest.mark.parametrize("preference", QUICK)
def test_a_degenerate_pair_changes_neither_loss_nor_gradient_of_dpo(preference):
    own, adapter = refer(pool(paired=np.arange(REVISIONS) != 4), None), small.adapter()

    def of(rows: list[int], own: Pool = own):
        return objective(adapter, own, jnp.array(rows), NONE, "dpo", preference)

    ((alone, _), slope), ((among, _), gradient) = of([0, 3, 0, 3]), of([0, 4, 3, 4])
    np.testing.assert_allclose(among, alone, rtol=1e-6)
    small.assert_trees_close(gradient, slope)
    other = own._replace(responses=own.responses._replace(tokens=own.responses.tokens.at[4].set(3)))
    assert_same(of([0, 4, 3, 4], other), of([0, 4, 3, 4]))
    whole = own._replace(paired=pool().paired)
    assert abs(of([0, 4, 3, 4], whole)[0][0] - alone) > 1e-3, "a pair that is not degenerate does"


@pytest.mark.parametrize("base", [False, True], ids=["round", "base"])
def test_dpo_starts_at_ln_2_and_falls(base):
    """The fresh adapter is the base, and so are both references."""
    own, run = refer(pool(replay=0), None if base else FRESH), trained_for("dpo")
    ends = [train(run, cai.begin(FRESH), own, 0, last, rates()) for last in (1, 20)]
    np.testing.assert_allclose(ends[0].loss, math.log(2), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ends[0].margin, 0, atol=1e-5)
    assert ends[1].loss < 0.8 * math.log(2) and ends[1].margin > 0.1


def test_the_reference_is_each_pairs_own():
    adapter = small.adapter()
    own = refer(pool(), adapter)
    reference: Any = own.reference
    small.assert_trees_close(refer(pool(), adapter, rows=3).reference, reference)
    for row in range(REVISIONS):
        for part_of, logps in ((own.answers, reference.chosen), (own.responses, reference.rejected)):
            batch = take(part_of, jnp.full(BATCH, row))
            np.testing.assert_allclose(-sft(adapter, batch)[0] * batch.loss_mask[0].sum(), logps[row], rtol=1e-5)


# ---- every method


@pytest.mark.parametrize("preference", QUICK)
@pytest.mark.parametrize("method", QUICK_METHODS)
def test_every_method_and_preference_trains(method, preference):
    own, start = pool(usable=np.arange(REVISIONS) != 2, paired=np.arange(REVISIONS) % 4 != 2), small.adapter()
    own = refer(own, start) if METHODS[method](preference).preference else own
    run = partial(train, trained_for(method, preference), cai.begin(start), own, 0)
    first, last = (run(count, rates(replay=0)) for count in (1, 30))
    assert bool(trees.all_finite(last))
    assert small.distance(last.state.adapter, start) > 1e-2
    assert last.loss < first.loss
    assert (last.margin > first.margin) == (method != "sft")


@pytest.mark.parametrize("method", QUICK_METHODS)
def test_a_pool_of_nothing_usable_leaves_the_adapter_untouched(method):
    nothing = np.zeros(REVISIONS, bool)
    own, start = pool(replay=0, usable=nothing, paired=nothing), small.adapter()
    own = refer(own, start) if method != "sft" else own
    end = train(trained_for(method), cai.begin(start), own, 0, 3, rates())
    assert_same(end.state.adapter, start)
    assert bool(trees.all_finite(end)) and end.loss == 0 and end.trained == 0
