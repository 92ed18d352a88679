"""The guard's score and its report by its published definitions."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.safety import guard as guards
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
    found = compute.__wrapped__(small.LM, None, tokens, valid, jnp.array([1, 3]))
    np.testing.assert_allclose(found, [0.75, 0.1], rtol=1e-5)


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
    found = iter([np.array([np.nan, 0.25]), np.array([np.nan, 0.5])])
    monkeypatch.setattr(guards, "first_token_score", lambda *_: next(found))
    np.testing.assert_array_equal(guards.score(guard, pairs), [np.nan, 0.25, np.nan])
    monkeypatch.setattr(guards, "first_token_score", lambda *_: np.full(2, np.nan))
    with pytest.raises(InputError, match="guard.path: the guard gives no score, its logits are no numbers") as caught:
        guards.score(guard, pairs)
    assert ("guard.learning_rate" in str(caught.value)) == fitted
    assert len(guards.score(guard, [])) == 0


def test_pairs_without_a_label_are_in_no_quality():
    """Two of five have no label: of the other three one is right as unsafe, one right as safe, one missed."""
    scores = np.array([0.9, 0.1, 0.2, 0.9, 0.1])
    report = measured(scores, [True, False, True, None, None])
    assert report["accuracy"] == pytest.approx(200 / 3) and report["precision"] == 100.0 and report["recall"] == 50.0
