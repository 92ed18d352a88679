"""The guard of an experiment: what it is fitted on, that the fitted one is used, and what is reported of it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai import trees
from fedjax_rai.data.sources import Pair
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.safety import guard as guards
from fedjax_rai.safety.forms import REQUEST
from fedjax_rai.text.prompts import Turn
from tests.tiny_runs import vary

FITTED = {"fitted": jnp.ones(())}


class Fits:
    """Notes what a guard is fitted on, in place of fitting it."""

    def __init__(self, monkeypatch):
        self.pairs: list[Pair] = []
        self.fitted: list[tuple[Any, ...]] = []
        encode = guards.training_examples

        def training_examples(tokenizer: Any, form: Any, pairs: list[Pair], max_length: int) -> Any:
            self.pairs.extend(pairs)
            return encode(tokenizer, form, pairs, max_length)

        monkeypatch.setattr(guards, "training_examples", training_examples)
        monkeypatch.setattr(guards, "fit", lambda *given: self.fitted.append(given) or FITTED)


def with_pairs(config, count: int, **guard: Any) -> Setting:
    """A setting whose guard is fitted on so many pairs, every other one unsafe."""
    setting = Setting(vary(config, guard=guard))
    pairs = [Pair(f"q{i}", f"r{i}", i % 2 == 0, "x") for i in range(count)]
    setting.texts.materials = setting.texts.materials._replace(guard_pairs=pairs)
    return setting


@pytest.mark.parametrize(("noise", "least", "most"), [(0.0, 0, 0), (0.2, 160, 240), (0.4, 350, 450)])
def test_the_labels_that_a_guard_learns_are_flipped_as_often_as_configured(config, monkeypatch, noise, least, most):
    """Of a thousand pairs; what is asked and answered stays as it is."""
    fits, setting = Fits(monkeypatch), with_pairs(config, 1000, label_noise=noise)
    assert setting.guarding.guard
    given = setting.texts.materials.guard_pairs
    assert [pair[:2] for pair in fits.pairs] == [pair[:2] for pair in given]
    flipped = sum(a.harmful != b.harmful for a, b in zip(fits.pairs, given, strict=True))
    assert least <= flipped <= most


def test_the_guard_is_the_fitted_one_which_met_every_pair_as_often_as_any_other(config, monkeypatch):
    """Twelve pairs, six steps of four rows: each pair twice, and each half of the rows holds it once."""
    fits, setting = Fits(monkeypatch), with_pairs(config, 12, steps=6, batch_size=4, learning_rate=0.25)
    guard = setting.guarding.guard
    assert isinstance(guard, guards.Guard) and guard.adapter is FITTED and setting.guarding.untuned.adapter is None
    ((_, (done, state), (examples, learnt, learning_rate), *_),) = fits.fitted
    rows = np.asarray(learnt)
    assert done == 0 and rows.shape == (6, 4) and learning_rate == np.float32(0.25)
    assert sorted(rows[:3].ravel()) == sorted(rows[3:].ravel()) == list(range(12))
    assert rows[:3].tolist() != rows[3:].tolist()
    factors = [leaf for path, leaf in trees.paths(state.adapter) if path.endswith(".b")]
    assert len(examples.tokens) == 12 and factors and not any(factor.any() for factor in factors)


def test_a_guard_learns_to_call_unsafe_what_is_labelled_harmful(config):
    tokenizer = Setting(config).models.tokenizer
    pairs = [Pair("q", "r", True, "x"), Pair("q", "r", False, "x")]
    examples, cut = guards.training_examples(tokenizer, REQUEST, pairs, 64)
    learnt = [tokenizer.decode(examples.tokens[i][examples.loss_mask[i]]).strip() for i in range(2)]
    assert [text.split()[0] for text in learnt] == ["unsafe", "safe"] and not cut.any()


def test_a_guards_quality_is_told_as_fitted_and_as_released(config, monkeypatch):
    """Four pairs, of which the first two are harmful: fitted, one is missed; released, one alarm is false besides."""
    setting = Setting(vary(config, guard={"threshold": 0.5}))
    pairs = [Pair("q", "r", i < 2, "x") for i in range(4)]
    setting.texts.materials = setting.texts.materials._replace(pairs=pairs)
    vars(setting.guarding)["scores"] = np.array([0.9, 0.1, 0.2, 0.3], np.float32)
    vars(setting.guarding)["untuned"] = None
    before = guards.Scored(np.array([0.9, 0.1, 0.8, 0.3], np.float32), None)
    monkeypatch.setattr(guards, "scored", lambda guard, asked, advance=None: before)
    fitted = {"accuracy": 75, "precision": 100, "recall": 50, "hmean": 200 / 3}
    released = {"accuracy": 50, "precision": 50, "recall": 50, "hmean": 50}
    assert setting.guarding.quality == {"fitted": pytest.approx(fitted), "released": pytest.approx(released)}


def asked_and(answer: str) -> tuple[Turn, Turn]:
    return Turn("user", "q"), Turn("assistant", answer)


def test_a_conversation_is_as_unsafe_as_its_most_unsafe_answer(config, monkeypatch):
    """Three pairs of one, three and two answers; of the last one answer has no score, so it is not known to be safe."""
    told = {"a": 0.1, "b": 0.2, "c": 0.9, "d": 0.3, "e": np.nan, "f": 0.4}
    setting = Setting(config)
    pairs = [
        Pair("q", "a", None),
        Pair("q", "d", None, before=(*asked_and("b"), *asked_and("c"))),
        Pair("q", "f", True, before=(Turn("system", "s"), *asked_and("e"))),
    ]
    setting.texts.materials = setting.texts.materials._replace(pairs=pairs)
    vars(setting.guarding)["guard"] = None

    def scored(guard: Any, asked: Any, advance: Any = None) -> Any:
        assert asked == [("q", letter) for letter in "abcdef"]
        return guards.Scored(np.array([told[answer] for _, answer in asked], np.float32), None)

    monkeypatch.setattr(guards, "scored", scored)
    assert setting.guarding.scores == pytest.approx(np.array([0.1, 0.9, np.nan], np.float32), nan_ok=True)
