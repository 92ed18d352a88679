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
from fedjax_rai.cai.align import (
    Drawn,
    Pool,
    Progress,
    align,
    align_in_place,
    begin,
    draw,
    make_pool,
    objective_loss,
    stack,
    with_reference_logps,
)
from fedjax_rai.cai.options import METHODS, Numbers, Options
from fedjax_rai.data.examples import Examples, take
from fedjax_rai.model.lora import init_adapter
from fedjax_rai.train import losses, step
from fedjax_rai.train.losses import PREFERENCES
from tests import small
from tests.cai.common import options

REVISIONS, REPLAYED, BATCH = 8, 3, 4
KEY = jax.random.key(1)
LEARNING_RATE, BETA = 1e-2, 0.3
FRESH = init_adapter(small.CONFIG, small.LORA, jax.random.key(5))


def part(rows: int, seed: int) -> Examples:
    """Answers to train on; the prompts of two seeds are the same, as are those of revision and response."""
    answers, prompts = small.corpus(rows, seed), small.corpus(rows, 0)
    return answers._replace(tokens=answers.tokens.at[:, :2].set(prompts.tokens[:, :2]))


def pool(replay: int = REPLAYED, usable: Any = None, paired: Any = None) -> Pool:
    """Revisions, responses and `replay` others; all usable and paired unless other masks are given."""
    masks = [np.ones(REVISIONS, bool) if mask is None else mask for mask in (usable, paired)]
    usable, paired = map(jnp.asarray, masks)
    return make_pool(part(REVISIONS, 1), part(REVISIONS, 2), small.corpus(replay, 3), usable, paired)


def numbers(
    iterations: int = 1, learning_rate: float = LEARNING_RATE, beta: float = BETA, replay: float = 0.3
) -> Numbers:
    return Numbers(jnp.int32(iterations), jnp.float32(learning_rate), jnp.float32(replay), jnp.float32(beta), {})


def options_of(method: str, preference: str = "sigmoid", **changes: Any) -> Options:
    return options(objective=METHODS[method](PREFERENCES[preference]), **({"batch_size": BATCH} | changes))


_with_reference = jax.jit(with_reference_logps, static_argnames="rows")


def with_reference(of: Pool, adapter: Adapter | None, rows: int = REVISIONS) -> Pool:
    return _with_reference(small.LM, adapter, of, rows=rows)


def train(of: Options, progress: Progress, on: Pool, to: int, **given: float) -> Progress:
    """Up to so many iterations."""
    return align(small.LM, of, progress, on, numbers(to, **given), KEY)


def assert_same(x, y) -> None:
    jax.tree.map(np.testing.assert_array_equal, x, y)


# ---- iterations


@pytest.mark.slow
@pytest.mark.parametrize("method", [small.slow("sft"), "sft+dpo"])
def test_zero_iterations_leave_everything_untouched(method):
    whole, start = pool(), begin(small.adapter())
    whole = with_reference(whole, small.adapter()) if method != "sft" else whole
    assert_same(train(options_of(method), start, whole, 0), start)
    later = start._replace(iterations=jnp.int32(7))
    for to in (7, 3):
        assert_same(train(options_of(method), later, whole, to), later)


@pytest.mark.slow
@pytest.mark.parametrize("method", [small.slow("sft"), "sft+dpo"])
def test_a_longer_run_passes_through_every_shorter_one(method):
    """Bitwise, the optimizer's state and the counts of tokens included."""
    on, start = pool(), begin(small.adapter())
    on = with_reference(on, small.adapter()) if method != "sft" else on
    run = partial(train, options_of(method), on=on)
    whole, two = (run(start, to=to) for to in (5, 2))
    assert (int(two.iterations), int(whole.iterations)) == (2, 5)
    assert_same(run(two, to=5), whole)
    assert small.distance(two.state.adapter, whole.state.adapter) > 1e-3
    anew = two._replace(iterations=jnp.int32(0))  # the same first rows again
    assert small.distance(run(anew, to=3).state.adapter, whole.state.adapter) > 1e-3
    assert 0 < two.trained_tokens < whole.trained_tokens and two.trained_tokens < two.step_tokens < whole.step_tokens


@pytest.mark.slow
def test_in_place_it_is_the_same_and_takes_the_states_memory_over():
    """The adapter and Adam's two moments: three adapters, and the count of steps, are not there twice."""
    how, on = options_of("sft"), pool()
    whole = train(how, begin(small.adapter()), on, 3)
    before = begin(small.adapter())
    given = small.LM, how, before.state, before._replace(state=step.TrainState({}, ())), on, numbers(3), KEY
    analysis = align_in_place.lower(*given).compile().memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(small.adapter()))
    assert analysis is not None and analysis.alias_size_in_bytes >= 3 * size
    assert_same(align_in_place(*given), whole)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.state.adapter))
    assert not before.iterations.is_deleted()


@pytest.mark.slow
def test_another_count_or_number_compiles_nothing():
    run = partial(train, options_of("sft+dpo"), begin(FRESH), with_reference(pool(), FRESH))
    run(1)
    before = small.compilations(align)
    ends = [run(to) for to in (0, 1, 10, 500)]
    ends += [run(3, **given) for given in ({}, {"learning_rate": 1e-3}, {"beta": 2}, {"replay": 0}, {"replay": 1})]
    assert small.compilations(align) == before
    for i, end in enumerate(ends):
        assert bool(trees.all_finite(end.state.adapter))
        assert all(small.distance(end.state.adapter, other.state.adapter) > 1e-5 for other in ends[:i])


# ---- what is drawn


@partial(jax.jit, static_argnums=2)
def drawn_of(of: Pool, share: float, batch_size: int = 20_000) -> Drawn:
    return draw(of, jnp.argsort(~of.usable, stable=True), jnp.float32(share), KEY, batch_size)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_only_usable_rows_and_replayed_ones_are_drawn_each_as_likely(share):
    usable = [False, True, False, False, True, True, False, False]
    rows, replayed = (np.asarray(column) for column in drawn_of(pool(usable=usable), share))
    np.testing.assert_allclose(replayed.mean(), share, atol=0.015)
    np.testing.assert_array_equal(replayed, rows >= REVISIONS)
    shares = np.bincount(rows, minlength=REVISIONS + REPLAYED) / len(rows)
    expected = np.concatenate([np.array(usable) * (1 - share) / sum(usable), np.full(REPLAYED, share / REPLAYED)])
    assert not shares[expected == 0].any()
    np.testing.assert_allclose(shares, expected, atol=0.015)


def test_without_usable_revisions_all_is_replayed_and_without_replay_nothing():
    nothing = np.zeros(REVISIONS, bool)
    rows, replayed = drawn_of(pool(usable=nothing), 0.0)
    assert replayed.all() and set(np.asarray(rows).tolist()) == set(range(REVISIONS, REVISIONS + REPLAYED))
    rows, replayed = drawn_of(pool(replay=0), 1.0)
    assert not replayed.any() and set(np.asarray(rows).tolist()) == set(range(REVISIONS))


def test_every_iteration_draws_anew():
    keys = [rng.stream(KEY, "align", iteration=i) for i in range(5)]
    drawn = [draw(pool(), jnp.arange(REVISIONS), jnp.float32(0.3), key, 16) for key in keys]
    assert len({tuple(of.rows.tolist()) for of in drawn}) == 5


def test_pool_pads_the_shorter_sets_and_keeps_their_order():
    revisions, responses, replay = part(3, 1), part(3, 2), small.corpus(2, 3)
    wide = Examples(*(jnp.pad(c, ((0, 0), (0, 4))) for c in responses))
    made = make_pool(revisions, wide, replay, jnp.ones(3, bool), jnp.ones(3, bool))
    assert made.answers.tokens.shape == (5, small.LENGTH + 4) and not made.answers.valid[:, small.LENGTH :].any()
    for got, expected in ((made.answers, stack(revisions, replay)), (made.rejected, responses)):
        assert_same(Examples(*(c[:, : small.LENGTH] for c in got)), expected)


# ---- what is minimised


@partial(jax.jit, static_argnames=("method", "preference"))
def objective(adapter, of: Pool, rows, replayed, method: str, preference: str = "sigmoid"):
    """((loss, (loss, margin, trained tokens, read tokens)), gradient)."""
    compiled, drawn = options_of(method, preference), Drawn(rows, replayed)

    def loss(adapter):
        return objective_loss(small.LM, compiled, adapter, of, drawn, numbers())

    return jax.value_and_grad(loss, has_aux=True)(adapter)


@jax.jit
def sft(adapter, batch: Examples):
    """(loss, gradient) of supervised fine-tuning."""
    return jax.value_and_grad(lambda adapter: losses.sft(small.LM, adapter, batch).mean())(adapter)


NONE = jnp.zeros(BATCH, bool)
# each is a program or two of its own to compile
QUICK = ["sigmoid", *(small.slow(name) for name in PREFERENCES if name != "sigmoid")]
QUICK_METHODS = ["sft+dpo", *(small.slow(name) for name in METHODS if name != "sft+dpo")]


def test_the_sft_method_minimises_the_sft_loss_of_the_rows_drawn():
    whole, adapter = pool(), small.adapter()
    rows, replayed = jnp.array([1, 5, REVISIONS + 2, 5]), jnp.array([False, False, True, False])
    (value, (reported, _, trained, read)), gradient = objective(adapter, whole, rows, replayed, "sft")
    batch = take(whole.answers, rows)
    expected, slope = sft(adapter, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert value == reported
    small.assert_trees_close(gradient, slope)
    assert (trained, read) == (batch.loss_mask.sum(), batch.valid.sum())


def test_an_iteration_of_sft_is_a_step_of_supervised_fine_tuning():
    whole, state = pool(), step.start(small.adapter())
    rows = draw(whole, jnp.arange(REVISIONS), jnp.float32(0.3), rng.stream(KEY, "align", iteration=0), BATCH).rows
    expected, _ = jax.jit(step.update)(small.LM, state, take(whole.answers, rows), jnp.float32(LEARNING_RATE))
    got = train(options_of("sft"), begin(small.adapter()), whole, 1)
    small.assert_trees_close(got.state.adapter, expected.adapter)


@pytest.mark.parametrize("preference", QUICK)
def test_both_together_are_the_sum_of_both(preference):
    adapter, rows = small.adapter(), jnp.array([0, 2, 3, 6])
    whole = with_reference(pool(paired=[True, True, False, True, True, False, True, True]), None)
    values, slopes = {}, {}
    for method in METHODS:
        kind = "sigmoid" if method == "sft" else preference
        ((values[method], _), slopes[method]) = objective(adapter, whole, rows, NONE, method, kind)
    np.testing.assert_allclose(values["sft+dpo"], values["sft"] + values["dpo"], rtol=1e-6)
    small.assert_trees_close(slopes["sft+dpo"], trees.add(slopes["sft"], slopes["dpo"]), atol=2e-6)
    assert small.distance(slopes["sft"], slopes["dpo"]) > 1e-3


def test_replayed_answers_are_learnt_whatever_is_preferred():
    """The likelihood that DPO adds is of them alone, and none of them is in a pair."""
    whole, adapter = with_reference(pool(), None), small.adapter()
    pairs, again = jnp.array([0, 3]), jnp.array([REVISIONS, REVISIONS + 2])
    rows, replayed = jnp.concatenate([pairs, again]), jnp.array([False, False, True, True])
    (mixed, _), gradient = objective(adapter, whole, rows, replayed, "dpo")
    (preferred, _), slope = objective(adapter, whole, jnp.tile(pairs, 2), NONE, "dpo")
    learnt, other = sft(adapter, take(whole.answers, jnp.tile(again, 2)))
    np.testing.assert_allclose(mixed, preferred + learnt, rtol=1e-6)
    small.assert_trees_close(gradient, trees.add(slope, other))


@pytest.mark.parametrize("preference", QUICK)
def test_a_degenerate_pair_changes_neither_loss_nor_gradient_of_dpo(preference):
    whole, adapter = with_reference(pool(paired=np.arange(REVISIONS) != 4), None), small.adapter()

    def of(rows: list[int], on: Pool = whole):
        return objective(adapter, on, jnp.array(rows), NONE, "dpo", preference)

    ((alone, _), slope), ((among, _), gradient) = of([0, 3, 0, 3]), of([0, 4, 3, 4])
    np.testing.assert_allclose(among, alone, rtol=1e-6)
    small.assert_trees_close(gradient, slope)
    rejected = whole.rejected._replace(tokens=whole.rejected.tokens.at[4].set(3))
    assert_same(of([0, 4, 3, 4], whole._replace(rejected=rejected)), of([0, 4, 3, 4]))
    everything = whole._replace(paired=pool().paired)
    assert abs(of([0, 4, 3, 4], everything)[0][0] - alone) > 1e-3, "a pair that is not degenerate does"


@pytest.mark.parametrize("base", [False, True], ids=["round", "base"])
def test_dpo_starts_at_ln_2_and_falls(base):
    """The fresh adapter is the base, and so are both references."""
    whole = with_reference(pool(replay=0), None if base else FRESH)
    ends = [train(options_of("dpo"), begin(FRESH), whole, to) for to in (1, 20)]
    np.testing.assert_allclose(ends[0].loss, math.log(2), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ends[0].margin, 0, atol=1e-5)
    assert ends[1].loss < 0.8 * math.log(2) and ends[1].margin > 0.1


def test_the_reference_is_each_pairs_own():
    adapter = small.adapter()
    whole = with_reference(pool(), adapter)
    reference: Any = whole.reference_logps
    small.assert_trees_close(with_reference(pool(), adapter, rows=3).reference_logps, reference)
    for row in range(REVISIONS):
        for part_of, logps in ((whole.answers, reference[0]), (whole.rejected, reference[1])):
            batch = take(part_of, jnp.full(BATCH, row))
            np.testing.assert_allclose(-sft(adapter, batch)[0] * batch.loss_mask[0].sum(), logps[row], rtol=1e-5)


# log p(answer) of pairs 0 to 3 under the policy, more than under the reference: of the chosen and the rejected answers
ABOVE = [3.0, 1.0, -2.0, 5.0], [1.0, 2.0, -2.5, 5.0]


def above_reference() -> Pool:
    """A pool whose reference is such that the log-ratios under `small.adapter()` are those of `ABOVE`."""
    of_policy: Any = with_reference(pool(), small.adapter()).reference_logps
    rest = [0.0] * (REVISIONS - len(ABOVE[0]))
    chosen, rejected = (logps - jnp.array([*above, *rest]) for logps, above in zip(of_policy, ABOVE, strict=True))
    return pool(paired=np.arange(REVISIONS) != 3)._replace(reference_logps=(chosen, rejected))


def test_margin_and_loss_of_log_ratios_worked_out_by_hand():
    """beta = 0.3. Pairs 0, 1, 2 differ by 2, -1 and 0.5, so the margin is 0.3 (2 - 1 + 0.5) / 3 = 0.15; pair 3 is none.

    The loss is the mean of ln(1 + exp(-0.3 * 2)), ln(1 + exp(0.3)) and ln(1 + exp(-0.3 * 0.5)).
    """
    rows = jnp.array([0, 1, 2, 3])
    (value, (reported, margin, _, _)), _ = objective(small.adapter(), above_reference(), rows, NONE, "dpo")
    np.testing.assert_allclose(margin, 0.15, atol=1e-5)
    np.testing.assert_allclose(value, (0.4374879 + 0.8543552 + 0.6209567) / 3, atol=1e-5)
    assert value == reported


def lengths_as_examples(rows: list[tuple[int, int]]) -> Examples:
    """Rows of so many prompt tokens and so many answer tokens; what they are does not matter."""
    valid = np.zeros((len(rows), small.LENGTH), bool)
    targets = valid.copy()
    for row, (prompt, tokens) in enumerate(rows):
        valid[row, : prompt + tokens] = True
        targets[row, prompt : prompt + tokens] = True
    return Examples(jnp.asarray(valid, jnp.int32), jnp.asarray(targets), jnp.asarray(valid, jnp.int32))


@pytest.mark.parametrize(
    ("method", "trained", "read"),
    [
        small.slow("sft", 3 + 2 + 4 + 4, (2 + 3) + (1 + 2) + 2 * (3 + 4)),
        small.slow("dpo", (3 + 5) + 4 + 4, (2 + 3) + (1 + 2) + 2 * (3 + 4) + (2 + 5) + 3 * (1 + 1)),
        ("sft+dpo", (3 + 5) + 2 + 4 + 4, (2 + 3) + (1 + 2) + 2 * (3 + 4) + (2 + 5) + 3 * (1 + 1)),
    ],
)
def test_tokens_of_an_iteration_counted_by_hand(method, trained, read):
    """Pair 0 has an answer of 3 tokens preferred to one of 5, behind 2 of a prompt; pair 1 an answer of 2 that is only
    to be learnt, and the rejected one of which is read and not trained on; the third row, twice, is replayed: 4 tokens
    behind 3, and, in the place of a rejected answer, the last pair's, which is read."""
    chosen, rejected = lengths_as_examples([(2, 3), (1, 2)]), lengths_as_examples([(2, 5), (1, 1)])
    replay, both = lengths_as_examples([(3, 4)]), jnp.ones(2, bool)
    made = make_pool(chosen, rejected, replay, both, jnp.array([True, False]))
    made = with_reference(made, None, rows=2)
    rows, replayed = jnp.array([0, 1, 2, 2]), jnp.array([False, False, True, True])
    (_, (_, _, found_trained, found_read)), _ = objective(small.adapter(), made, rows, replayed, method)
    assert (int(found_trained), int(found_read)) == (trained, read)


# ---- every method


@pytest.mark.parametrize("preference", QUICK)
@pytest.mark.parametrize("method", QUICK_METHODS)
def test_every_method_and_preference_trains(method, preference):
    start = small.adapter()
    whole = pool(usable=np.arange(REVISIONS) != 2, paired=np.arange(REVISIONS) % 4 != 2)
    if method != "sft":
        whole = with_reference(whole, start)
    first, last = (train(options_of(method, preference), begin(start), whole, to, replay=0) for to in (1, 30))
    assert bool(trees.all_finite(last))
    assert small.distance(last.state.adapter, start) > 1e-2
    assert last.loss < first.loss
    assert (last.margin > first.margin) == (method != "sft")


@pytest.mark.parametrize("method", QUICK_METHODS)
def test_a_pool_of_nothing_usable_leaves_the_adapter_untouched(method):
    nothing = np.zeros(REVISIONS, bool)
    whole, start = pool(replay=0, usable=nothing, paired=nothing), small.adapter()
    whole = with_reference(whole, start) if method != "sft" else whole
    end = train(options_of(method), begin(start), whole, 3)
    assert_same(end.state.adapter, start)
    assert bool(trees.all_finite(end)) and end.loss == 0 and end.trained_tokens == 0
