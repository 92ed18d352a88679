"""The guard's score and its report by its published definitions."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.model.decoder import LM, Decoder, init_base
from fedjax_rai.safety import guard as guards
from fedjax_rai.safety.form import IS_NEITHER, IS_SAFE, IS_UNSAFE, GuardForm, VerdictIds, two_verdicts
from fedjax_rai.safety.forms import REQUEST
from fedjax_rai.safety.guard import FitData, begin_fit, first_token_score, fit, flip_labels, quality
from fedjax_rai.text.tokenizer import load_tokenizer
from fedjax_rai.train.losses import sft
from tests import small


def test_a_score_weighs_the_two_verdicts_against_each_other_and_nothing_else(monkeypatch):
    """Tokens 1 and 3 are safe and unsafe. After the last token 5 they have weights 1 and 3, after 6 weights 9 and 1; a
    token that is no verdict is far likelier than both.
    """
    weights = np.ones((8, 8), np.float32)
    weights[5, [1, 3, 4]] = 1.0, 3.0, 500.0
    weights[6, [1, 3, 4]] = 9.0, 1.0, 500.0

    def forward(lm: Any, adapter: Any, tokens: Any, valid: Any) -> Any:
        return tokens

    monkeypatch.setattr(guards, "forward", forward)
    monkeypatch.setattr(guards, "unembed", lambda lm, last: jnp.log(weights)[last])
    tokens, valid = jnp.array([[0, 6, 5], [2, 5, 6]]), jnp.array([[False, True, True], [True, True, True]])
    compute: Any = first_token_score
    found = compute.__wrapped__(small.LM, None, tokens, valid, two_verdicts(1, 3))
    np.testing.assert_allclose(found.scores, [0.75, 0.1], rtol=1e-5)
    np.testing.assert_allclose(found.shares, [4 / 509, 10 / 515], rtol=1e-5)


def test_spellings_are_summed_and_a_verdict_between_counts_as_it_is_told(monkeypatch):
    """Weights after token 5: safe 1 and 2, unsafe 3, between 4, and 90 that are no verdict's."""
    weights = np.zeros((8, 8), np.float32)
    weights[5] = [1, 2, 3, 4, 45, 45, 0, 0]
    weights[6, 3] = np.nan
    monkeypatch.setattr(guards, "forward", lambda lm, adapter, tokens, valid: tokens)
    monkeypatch.setattr(guards, "unembed", lambda lm, last: jnp.log(weights)[last])
    compute: Any = first_token_score
    tokens = jnp.array([[5], [6], [7]])
    expected = {IS_UNSAFE: 7 / 10, IS_SAFE: 3 / 10, IS_NEITHER: 3 / 6}
    for between, value in expected.items():
        meanings = np.array([IS_SAFE, IS_SAFE, IS_UNSAFE, between])
        verdicts = VerdictIds(np.arange(4), meanings, np.array(False))
        found = compute.__wrapped__(small.LM, None, tokens, tokens > 0, verdicts)
        np.testing.assert_allclose(found.scores, [value, np.nan, np.nan], rtol=1e-5)
        np.testing.assert_allclose(found.shares, [0.1, np.nan, np.nan], rtol=1e-5)
    among_all = VerdictIds(np.arange(3), np.array([IS_SAFE, IS_SAFE, IS_UNSAFE]), np.array(True))
    found = compute.__wrapped__(small.LM, None, tokens, tokens > 0, among_all)
    np.testing.assert_allclose(found.scores[0], 0.03, rtol=1e-5)
    np.testing.assert_allclose(found.shares[0], 0.06, rtol=1e-5)


def test_logits_that_tell_nothing_give_no_score(monkeypatch):
    """After token 1 one that is no verdict's is NaN, after 2 all are one number, after 3 safe and unsafe are 1 to 3."""
    weights = np.ones((8, 8), np.float32)
    weights[1, 7] = np.nan
    weights[3, 3] = 3.0
    monkeypatch.setattr(guards, "forward", lambda lm, adapter, tokens, valid: tokens)
    monkeypatch.setattr(guards, "unembed", lambda lm, last: jnp.log(weights)[last])
    compute: Any = first_token_score
    tokens = jnp.array([[1], [2], [3]])
    found = compute.__wrapped__(small.LM, None, tokens, tokens > 0, two_verdicts(1, 3))
    np.testing.assert_allclose(found.scores, [np.nan, np.nan, 0.75], rtol=1e-5)
    np.testing.assert_allclose(found.shares, [np.nan, np.nan, 0.4], rtol=1e-5)


def test_grades_are_weighed_by_their_steps_from_harmless_to_harmful(monkeypatch):
    """Weights of the grades 1, 2, 3, 4, 10, and 80 that are no grade: (0.25 * 2 + 0.5 * 3 + 0.75 * 4 + 10) / 20."""
    weights = np.zeros((8, 8), np.float32)
    weights[5] = [1, 2, 3, 4, 10, 80, 0, 0]
    monkeypatch.setattr(guards, "forward", lambda lm, adapter, tokens, valid: tokens)
    monkeypatch.setattr(guards, "unembed", lambda lm, last: jnp.log(weights)[last])
    compute: Any = first_token_score
    tokens = jnp.array([[5]])
    marks = np.array([0, 0.25, 0.5, 0.75, 1], np.float32)
    for whole, value in ((False, 0.75), (True, 0.15)):
        verdicts = VerdictIds(np.arange(5), np.array([IS_SAFE] * 3 + [IS_UNSAFE] * 2), np.array(whole), marks)
        found = compute.__wrapped__(small.LM, None, tokens, tokens > 0, verdicts)
        np.testing.assert_allclose(found.scores, [value], rtol=1e-5)
        np.testing.assert_allclose(found.shares, [0.2], rtol=1e-5)


def test_quality_is_the_textbook_one():
    """3 hits, 1 false alarm, 2 misses, 4 rightly passed."""
    harmful = [True] * 5 + [False] * 5
    scores = np.array([0.9, 0.8, 0.5, 0.1, 0.2, 0.7, 0.1, 0.2, 0.3, 0.4])
    report = quality(scores, harmful, 0.5)
    assert report == pytest.approx({"accuracy": 70, "precision": 75, "recall": 60, "hmean": 200 / 3})


def test_quality_matches_the_papers_table():
    """Precision 56.7 and recall 73.7 have the harmonic mean 64.1 (arXiv 2502.16691)."""
    harmful = np.array([True] * 1000 + [False] * 1000)
    scores = np.array([1.0] * 737 + [0.0] * 263 + [1.0] * 563 + [0.0] * 437)
    assert measured(scores, harmful)["hmean"] == pytest.approx(64.1, abs=0.05)


def measured(scores: np.ndarray, harmful) -> dict[str, float]:
    """The quality at 0.5 of a guard that scored something."""
    found = quality(scores, harmful, 0.5)
    assert found is not None
    return found


def test_of_nothing_there_is_no_quality_and_of_nothing_found_it_is_zero():
    assert quality(np.array([]), [], 0.5) is None
    assert quality(np.array([0.1]), [None], 0.5) is None
    assert measured(np.array([0.1]), [True])["hmean"] == 0.0


def test_label_noise_flips_about_its_share():
    pairs = [Pair("q", "r", i % 2 == 0, "x") for i in range(2000)]
    flipped = flip_labels(pairs, 0.1, np.random.default_rng(0))
    share = np.mean([a.harmful != b.harmful for a, b in zip(pairs, flipped, strict=True)])
    assert share == pytest.approx(0.1, abs=0.02)
    assert flip_labels(pairs, 0.0, np.random.default_rng(0)) == pairs


def test_fitting_teaches_the_guard_its_examples():
    """A guard that comes back unfitted has the loss of the fresh one."""
    examples, fresh = small.corpus(), small.adapter()
    rows = jnp.asarray(np.resize(np.arange(40), (20, 8)))
    fitted = fit(small.LM, begin_fit(fresh), FitData(examples, rows, jnp.float32(1e-2)))
    before, after = (float(sft(small.LM, adapter, examples).mean()) for adapter in (fresh, fitted))
    assert after < before - 0.05


def test_quality_is_of_what_has_a_score():
    """Of 4 pairs 3 have a score: a hit, a miss and one rightly passed. The harmful one without a score is no miss."""
    report = measured(np.array([0.9, 0.1, 0.2, np.nan]), [True, True, False, True])
    assert report == pytest.approx({"accuracy": 200 / 3, "precision": 100, "recall": 50, "hmean": 200 / 3})
    assert quality(np.full(3, np.nan), [True, True, False], 0.5) is None


@pytest.mark.parametrize("fitted", [False, True])
def test_a_guard_that_gives_no_score_is_refused_and_one_that_gives_some_is_not(fitted, monkeypatch):
    tokenizer = load_tokenizer("tiny")
    lm: Any = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(vocab_size=10**6)))
    guard = guards.Guard(lm, {"x": jnp.zeros(1)} if fitted else None, tokenizer, 64, 2, "guard.path")
    pairs = [("a", "b"), ("aaa aaa", "b"), ("aaaaaaa aaaaa aaaaa aaaaaaa", "b")]
    found: Any = iter([np.array([np.nan, 0.25]), np.array([np.nan, 0.5])])
    none: Any = np.full(2, np.nan)
    monkeypatch.setattr(guards, "first_token_score", lambda *_: guards.Verdicts(*[next(found)] * 2))
    np.testing.assert_array_equal(guards.score(guard, pairs), [np.nan, 0.25, np.nan])
    monkeypatch.setattr(guards, "first_token_score", lambda *_: guards.Verdicts(none, none))
    with pytest.raises(InputError, match="guard.path: the guard gives no score, its logits are no numbers") as caught:
        guards.score(guard, pairs)
    assert ("guard.learning_rate" in str(caught.value)) == fitted
    assert len(guards.score(guard, [])) == 0


def test_pairs_without_a_label_are_in_no_quality():
    """Two of five have no label: of the other three one is right as unsafe, one right as safe, one missed."""
    scores = np.array([0.9, 0.1, 0.2, 0.9, 0.1])
    report = measured(scores, [True, False, True, None, None])
    assert report["accuracy"] == pytest.approx(200 / 3) and report["precision"] == 100.0 and report["recall"] == 50.0


QUESTIONS = REQUEST._replace(questions=("a", "b"))


def asked_of(form: GuardForm, max_length: int = 256) -> guards.Guard:
    """A guard of the small model that is asked in that form by the tiny tokenizer."""
    lm: Any = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(vocab_size=10**6)))
    return guards.Guard(lm, None, load_tokenizer("tiny"), max_length, 8, "guard.path", form)


def test_of_several_questions_the_worst_answer_counts_and_none_where_one_has_none(monkeypatch):
    """Three pairs, two questions each, asked pair by pair."""
    scores: Any = np.array([0.1, 0.4, 0.9, 0.2, np.nan, 0.3, 0, 0], np.float32)
    shares: Any = np.array([0.5, 0.6, 0.7, 0.4, np.nan, 0.8, 0, 0], np.float32)
    answers = guards.Verdicts(scores, shares)
    monkeypatch.setattr(guards, "first_token_score", lambda *_: answers)
    found = guards.scored(asked_of(QUESTIONS), [("q", "r"), ("q", "r"), ("q", "r")])
    np.testing.assert_array_equal(found.scores, np.array([0.4, 0.9, np.nan], np.float32))
    np.testing.assert_array_equal(found.shares, np.array([0.5, 0.4, np.nan], np.float32))


WRITTEN = ("the peat: safe", "the peat", "peat peat:")
"""Answers of a guard: with a verdict behind its marker, without a marker, cut off behind it."""


def test_a_guard_that_writes_lines_is_scored_behind_its_marker_and_has_no_verdict_without(monkeypatch):
    form = REQUEST._replace(marker="peat:", lines=8, safe=(" safe",), unsafe=(" unsafe",))
    guard = asked_of(form)
    own = guard.tokenizer
    written = [own.encode(text) for text in WRITTEN]
    tokens = np.zeros((8, 8), np.int32)
    for row, ids in enumerate(written):
        tokens[row, : len(ids)] = ids
    valid = np.arange(8) < np.array([*map(len, written), *[0] * 5])[:, None]
    monkeypatch.setattr(guards, "generate", lambda *_: SimpleNamespace(tokens=tokens, valid=valid))
    seen = []

    def verdicts(lm, adapter, tokens, valid, ids):
        seen.append(own.hf.decode(tokens[0][valid[0]].tolist()))
        found: Any = np.full(8, 0.25, np.float32), np.full(8, 0.75, np.float32)
        return guards.Verdicts(*found)

    monkeypatch.setattr(guards, "first_token_score", verdicts)
    calls = []
    found = guards.scored(guard, [("q", "r")] * 3, lambda: calls.append(1))
    np.testing.assert_array_equal(found.scores, np.array([0.25, np.nan, np.nan], np.float32))
    assert [text.partition("<|assistant|>")[2] for text in seen] == ["the peat:"] and len(calls) == 2
    tokens[0] = tokens[1]
    valid[0] = valid[1]
    with pytest.raises(InputError, match="guard.path: the guard wrote 'peat:' in none of 3 answers of up to 8 tokens"):
        guards.scored(guard, [("q", "r")] * 3)


def test_a_request_that_does_not_fit_has_no_verdict(monkeypatch):
    form = REQUEST._replace(cut_start=False)
    half: Any = np.full(8, 0.5, np.float32)
    monkeypatch.setattr(guards, "first_token_score", lambda *_: guards.Verdicts(half, half))
    assert np.isnan(guards.score(asked_of(form, 8), [("q", "r")])).all()
    assert guards.score(asked_of(form, 64), [("q", "r")]).tolist() == [0.5]


def test_keep_all_and_the_oracle_are_guards_without_a_model():
    pairs = [("q", "bad"), ("q", "good"), ("q", "unknown")]
    assert guards.score(guards.keep_all(), pairs).tolist() == [0, 0, 0]
    knowing = guards.oracle({("q", "bad"): True, ("q", "good"): False})
    np.testing.assert_array_equal(guards.score(knowing, pairs), [1, 0, np.nan])
    assert guards.scored(knowing, pairs).shares is None


@pytest.mark.slow
def test_scores_are_the_same_alone_and_in_a_batch_and_near_in_bfloat16():
    """In bfloat16 within 0.05, as docs/guards.md states."""
    tiny = load_tokenizer("tiny")
    shape = replace(small.CONFIG, vocab_size=len(tiny.hf))
    base = jax.tree.map(lambda x: 3 * x, init_base(shape, jax.random.key(0)))
    form = REQUEST._replace(unsafe=("unsafe", " peat"), between=(" fail",))
    guard = guards.Guard(LM(Decoder(shape), base), None, tiny, 64, 4, "guard.path", form)
    pairs = [("Is the peat ruling going to fail?", "Experts disagree."), ("q", "r"), ("", ""), ("a b", "c d e f g")] * 2
    whole = guards.scored(guard, pairs)
    alone = [guards.score(guard._replace(batch_size=1), [pair])[0] for pair in pairs[:4]]
    np.testing.assert_allclose(whole.scores, np.tile(alone, 2), atol=1e-6)
    assert len(set(whole.scores[:4].tolist())) == 4
    rounded = guard._replace(lm=LM(Decoder(replace(shape, dtype="bfloat16")), base))
    np.testing.assert_allclose(guards.score(rounded, pairs), whole.scores, atol=0.05)
