"""Drift and perplexity: by hand on vocabularies of two, and on a small model against its own logits."""

from math import exp, log
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.config.schema import DataConfig, EvalConfig
from fedjax_rai.data.examples import Examples, take
from fedjax_rai.data.sources import Pair
from fedjax_rai.evals import drift, suite
from fedjax_rai.evals.choice import read_once
from fedjax_rai.evals.drift import answered_examples, divergences
from fedjax_rai.evals.evaluation import BaseAnswers, Bench, EvalSet, Item, Likelihoods, Sources, TokensRow, measure
from fedjax_rai.evals.means import MARK, NATS, PERPLEXITY, Total, mean_rate
from fedjax_rai.evals.open_ended import Subject
from fedjax_rai.model.decoder import forward, unembed
from fedjax_rai.model.lora import init_adapter
from fedjax_rai.train import losses
from tests import small


def bench(**given: Any) -> Bench:
    absent: Any = None
    return Bench(EvalConfig(), absent, absent, None, tiny_model=False, judge="auto")._replace(**given)


def test_a_divergence_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): ln 2 / 2 + ln(2/3) / 2; the other way round it would be 0.131."""
    p, q = jnp.log(jnp.array([[[0.5, 0.5]]])), jnp.log(jnp.array([[[0.25, 0.75]]]))
    assert float(losses.divergences(p, q)[0, 0]) == pytest.approx(0.5 * log(2) + 0.5 * log(2 / 3), abs=1e-6)
    assert float(losses.divergences(p, p + 7)[0, 0]) == pytest.approx(0, abs=1e-6), "logits are up to a constant"
    sure = jnp.array([[[0.0, -jnp.inf]]])
    assert float(losses.divergences(sure, q)[0, 0]) == pytest.approx(log(4), abs=1e-6), "0 ln 0 is 0"


@pytest.mark.parametrize("side", [0, 1])
def test_a_divergence_of_what_is_no_number_is_none(side):
    logits = [jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 2))]
    logits[side] = jnp.array([[[jnp.nan, 0.0]]])
    assert np.isnan(losses.divergences(*logits)[0, 0])


def by_numpy(adapter: Any, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """The same from the logits of every position, in float64."""

    def probabilities(adapter: Any) -> np.ndarray:
        hidden = forward(small.LM, adapter, examples.tokens, examples.segments)
        logits = np.asarray(unembed(small.LM, hidden), np.float64)
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    p, q = probabilities(None), probabilities(adapter)
    kl = (p * np.log(p / q)).sum(-1)
    mask = np.asarray(examples.loss_mask)
    return (kl[:, :-1] * mask[:, 1:]).sum(1), mask[:, 1:].sum(1)


def test_the_drift_of_a_small_model_is_that_of_its_logits(monkeypatch):
    """In one slice; in several, the rows split over the devices; and 0 for a fresh adapter."""
    examples = take(small.corpus(), np.arange(6))
    adapter = small.adapter()
    wanted, tokens = by_numpy(adapter, examples)
    assert (wanted > 1e-3).all()
    for width, measured in ((small.LENGTH - 1, losses.answer_divergences), (3, losses.split_answer_divergences)):
        monkeypatch.setattr(losses, "positions_at_once", lambda *_, width=width: width)
        totals, weights = jax.jit(measured)(small.LM, adapter, examples)
        np.testing.assert_allclose(totals, wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(weights, tokens)
    fresh = init_adapter(small.CONFIG, small.LORA, jax.random.key(3))
    totals, _ = jax.jit(losses.answer_divergences)(small.LM, fresh, examples)
    assert float(jnp.abs(totals).max()) <= 1e-6


def test_a_mean_is_over_tokens_and_its_interval_over_prompts():
    """2 nats of 1 token and 1 of 3 are 3/4 a token, and not the mean 7/6 of 2 and 1/3.

    The residuals are 5/4 and -5/4, the standard error sqrt(2 x 25/8) / 4 = 0.625, and the interval begins at 0.
    """
    rate = mean_rate([Total(2.0, 1), Total(1.0, 3)], NATS, "base")
    assert rate and (rate.mean, rate.low) == (0.75, 0.0)
    assert rate.high == pytest.approx(0.75 + 1.96 * 0.625) and (rate.prompts, rate.unit) == (2, "nats a token")
    with_none = mean_rate([Total(2.0, 1), None, Total(float("nan"), 4), Total(0.0, 0), Total(1.0, 3)], NATS, "base")
    assert with_none == rate._replace(without_verdict=3)
    assert mean_rate([Total(float("inf"), 1), Total(0.0, 0)], NATS, "base") is None
    alone = mean_rate([Total(2.0, 4)], NATS, "base")
    assert alone and alone.mean == 0.5 and np.isnan([alone.low, alone.high]).all(), "one prompt shows no spread"
    in_marks = mean_rate([Total(6.0, 1)], MARK, "mine")
    assert in_marks and in_marks.mean == 6.0 and np.isnan([in_marks.low, in_marks.high]).all()


def test_intervals_of_means_in_their_units():
    """1, 2 and 3 nats of a token each: 2 -+ 1.96 sqrt(2 x 3/2) / 3. Of 2 and 3 nats: 5/2 -+ 1.96 / 2, exponentiated.

    Marks of 10 and 8: 9 -+ 1.96, and no mark is more than 10.
    """
    nats = mean_rate([Total(n, 1) for n in (1.0, 2.0, 3.0)], NATS, "base")
    perplexity = mean_rate([Total(2.0, 1), Total(3.0, 1)], PERPLEXITY, "base")
    marks = mean_rate([Total(10.0, 1), Total(8.0, 1)], MARK, "mine")
    assert nats and nats[:3] == pytest.approx((2, 2 - 1.96 / 3**0.5, 2 + 1.96 / 3**0.5))
    assert perplexity and perplexity[:3] == pytest.approx((exp(2.5), exp(1.52), exp(3.48)))
    assert marks and marks[:3] == pytest.approx((9, 7.04, 10))


def test_the_perplexity_of_uniform_logits_is_the_vocabulary_s_size():
    """A base of zeros finds every token as likely as any other."""
    zeros = small.decoder.LM(small.MODEL, jax.tree.map(jnp.zeros_like, small.BASE))
    logps, tokens = losses.answer_logps(zeros, None, take(small.corpus(), np.arange(4)))
    assert len(set(np.asarray(tokens).tolist())) > 1
    found = Likelihoods(np.asarray(logps), np.asarray(tokens), np.ones(4, bool))
    given = EvalSet([Item(f"q{i}", "a") for i in range(4)], synthetic=False)
    measured = measure(suite.EVALUATIONS["perplexity"], given, bench(likelihoods=lambda exchanges: found))
    rate = measured.rates["perplexity"]
    assert rate and rate.mean == pytest.approx(small.VOCAB, rel=1e-4) and rate.unit == "perplexity"


def test_perplexity_by_hand_and_from_its_rows():
    """8 nats of 4 tokens and 1 of 2: exp(9/6). One answer has no number, another was cut before it began."""
    given = EvalSet([Item(prompt, "a") for prompt in "pqrs"], synthetic=False)
    found = Likelihoods(np.array([-8.0, -1.0, np.nan, 0.0]), np.array([4, 2, 3, 0.0]), np.array([1, 1, 1, 0], bool))
    asked: list[Any] = []
    measured = measure(
        suite.EVALUATIONS["perplexity"], given, bench(likelihoods=lambda read: asked.append(read) or found)
    )
    rate = measured.rates["perplexity"]
    assert asked == [[("p", "a"), ("q", "a"), ("r", "a"), ("s", "a")]]
    assert rate and rate.mean == pytest.approx(exp(1.5)) and rate.low >= 1
    assert (rate.prompts, rate.without_verdict, rate.answers, rate.cut_off) == (2, 2, 4, 1)
    assert measured.rows[0] == TokensRow("perplexity", "p", "a", 8.0, 4) and measured.rows[2].total is None  # pyright: ignore
    assert [row.found("perplexity") for row in measured.rows] == [[True], [True], [None], [None]]


def test_drift_is_of_the_base_s_answers():
    given = EvalSet([Item("p"), Item("q")], synthetic=False)
    examples = answered_examples([[1, 2], [3]], [[4], [5, 6]], pad_id=0)
    answers = BaseAnswers(["four", ""], examples)
    measured = measure(
        suite.EVALUATIONS["drift"], given,
        bench(base_answers=lambda: answers, divergences=lambda found: [Total(0.5, 1), Total(0.1, 2)]),
    )  # fmt: skip
    rate = measured.rates["drift"]
    assert rate and rate.mean == pytest.approx(0.2) and (rate.answers, rate.empty, rate.judge) == (2, 1, "base")
    assert measured.rows == [TokensRow("drift", "p", "four", 0.5, 1), TokensRow("drift", "q", "", 0.1, 2)]


def test_answers_stand_behind_their_prompts():
    examples = answered_examples([[1, 2], [3]], [[4], [5, 6, 7]], pad_id=9)
    assert examples.tokens[:, :5].tolist() == [[1, 2, 4, 9, 9], [3, 5, 6, 7, 9]]
    assert examples.loss_mask[:, :5].tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 1, 0]]
    assert examples.segments[:, :5].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]


def test_a_last_batch_that_is_filled_up_counts_once(monkeypatch):
    rows: list[int] = []

    def answer_divergences(lm: Any, adapter: Any, examples: Examples) -> Any:
        rows.append(len(examples.tokens))
        return np.asarray(examples.tokens)[:, 0] * 1.0, np.full(len(examples.tokens), 2.0)

    monkeypatch.setattr(drift, "_answer_divergences", answer_divergences)
    absent: Any = None
    examples = answered_examples([[n] for n in range(5)], [[7]] * 5, pad_id=0)
    batches: list[int] = []
    found = divergences(Subject(absent, None, absent, 64, 2), examples, lambda: batches.append(1))
    assert found == [Total(n, 2.0) for n in range(5)] and rows == [2, 2, 2] and len(batches) == 3


def test_an_exchange_is_read_once():
    """In the order of the call, whoever asked first."""
    asked: list[Any] = []

    def read(exchanges: Any) -> Likelihoods:
        asked.append(exchanges)
        return Likelihoods(np.array([float(answer) for _, answer in exchanges]), np.ones(len(exchanges)),
                           np.array([answer != "2" for _, answer in exchanges]))  # fmt: skip

    reading = read_once(read)
    assert reading([("q", "1"), ("q", "2")]).logps.tolist() == [1, 2]
    found = reading([("q", "2"), ("q", "3"), ("q", "1")])
    assert found.logps.tolist() == [2, 3, 1] and found.whole.tolist() == [False, True, True]
    assert asked == [[("q", "1"), ("q", "2")], [("q", "3")]]
    assert len(reading([("q", "1")]).logps) == 1 and len(asked) == 2


def test_what_is_read_and_asked_of_real_data_and_of_the_tiny_world(tmp_path):
    """Acceptable answers to questions alone; each question once; the tiny world's choices, read in any case."""
    earlier: Any = Pair("x", "y", False).turns
    held_out = [
        Pair("one", "bad", True), Pair("one", "good", False), Pair("one ", "fine", False),
        Pair("two", "no label", None), Pair("later", "good", False, before=earlier), Pair("three", "good", False),
    ]  # fmt: skip
    sources = Sources(EvalConfig(drift_prompts=2, perplexity_pairs=2), DataConfig(train="x.json"), 0, held_out)
    found = suite.load_sets(sources)
    assert found["perplexity"].items == [Item("one", "good"), Item("one ", "fine")]
    assert (found["perplexity"].left_out, found["perplexity"].limit) == (1, "eval.perplexity_pairs")
    assert found["drift"].prompts == ["one ", "three"]
    (tmp_path / "benign.csv").write_text("prompt,other\na,1\nb,2\nc,3\n")
    named = suite.load_sets(sources._replace(eval=EvalConfig(drift=str(tmp_path / "benign.csv"), drift_prompts=2)))
    assert named["drift"] == EvalSet([Item("a"), Item("b")], False, [Item("c")], 1, "eval.drift_prompts")
    tiny = suite.load_sets(Sources(EvalConfig(), DataConfig(), 0, []))
    assert tiny["drift"].prompts == tiny["utility"].prompts[:32] and tiny["drift"].synthetic
    goods = [(choice.query, choice.good) for choice in tiny["synthetic_choice"].items]  # pyright: ignore
    read = suite.EVALUATIONS["perplexity"].way.read(tiny["perplexity"])
    assert read == goods[:64]
    off = suite.load_sets(Sources(EvalConfig(drift_prompts=0, perplexity_pairs=0), DataConfig(), 0, []))
    assert not off["drift"].items and not off["perplexity"].items
