"""The fit of a guard: what it is fitted on and what is held out, when it ends, and what is kept beside the adapter."""

import json
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import guard_fit
from fedjax_rai.experiment.guard_fit import GuardFit, Watched, after_check, plain_notes, question_digests, saved_notes
from fedjax_rai.experiment.materials import balanced, hold_out
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.model.lora import init_adapter
from fedjax_rai.runs.guards import KeptGuards
from fedjax_rai.safety import guard as guards
from fedjax_rai.safety.calibration import calibrate, parse_notes
from fedjax_rai.text.compare import same
from fedjax_rai.train.step import TrainState
from tests.experiment.test_keeping import InMemory, guarding
from tests.tiny_runs import vary

HELD_OUT = {"pairs": 40, "held_out": 0.3, "batch_size": 8, "epochs": 6.0}


def pairs(questions: int, answers: int = 3) -> list[Pair]:
    """Questions with several answers each, the first of which is harmful."""
    return [Pair(f"q{i}", f"r{j}", j == 0) for i in range(questions) for j in range(answers)]


# --- what is held out ---


def test_no_question_is_on_both_sides():
    """In no spelling, and in no language that a row ties to it; about the share is held out, and nothing is lost."""
    given = pairs(300)
    given += [pair._replace(query=f"  {pair.query}​ ") for pair in given[:30]]
    given += [pair._replace(query=f"질문 {i // 3}") for i, pair in enumerate(given[:30])]
    ties = {same(f"질문 {i}"): f"q{i}" for i in range(10)}
    kept, held_out = hold_out(given, 0.25, 0, ties)
    sides = [{ties.get(same(pair.query), same(pair.query)) for pair in side} for side in (kept, held_out)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 300
    assert 50 < len(sides[1]) < 100 and len(kept) + len(held_out) == len(given)
    assert hold_out(given, 0.25, 1, ties)[1] != held_out, "another seed holds out others"
    assert hold_out(given, 0.0, 0, ties) == (given, [])


@pytest.mark.parametrize(
    ("n", "share", "harmful", "acceptable"),
    [(10, 0.5, 5, 5), (11, 0.5, 5, 5), (10, 0.3, 3, 7), (1000, 0.5, 20, 20), (1000, 0.3, 17, 40), (1000, 0.8, 20, 5)],
)
def test_the_mix_of_what_it_is_fitted_on(n, share, harmful, acceptable):
    """Of 20 harmful and 40 acceptable pairs, as far as they go: 40 / 0.7 = 57, of which 17 are harmful."""
    drawn = balanced(pairs(20), n, 0, share)
    labels: list[Any] = [pair.harmful for pair in drawn]
    assert (sum(labels), len(labels) - sum(labels)) == (harmful, acceptable)
    assert len(set(drawn)) == len(drawn)


def test_the_tiny_worlds_pairs_are_what_they_were_unless_the_keys_say_otherwise(config, arm):
    """Its own pairs, in their order, half of them harmful; else as many at the share that is asked for, and others."""
    plain = arm(vary(config, guard={"pairs": 40})).texts.materials
    assert [pair.harmful for pair in plain.guard_pairs] == [True, False] * 20 and not plain.guard_held_out
    mixed = arm(vary(config, guard={"pairs": 40, "harmful_share": 0.3, "held_out": 0.25})).texts.materials
    fitted, held_out = ({mixed.question(pair) for pair in part} for part in (mixed.guard_pairs, mixed.guard_held_out))
    assert sum(bool(pair.harmful) for pair in mixed.guard_pairs) / len(mixed.guard_pairs) == pytest.approx(
        0.3, abs=0.03
    )
    assert held_out and not fitted & held_out


def test_held_out_questions_of_one_kind_are_refused_before_the_fit(config):
    setting = Setting(vary(config, guard=HELD_OUT))
    made = setting.texts.materials
    setting.texts.materials = made._replace(guard_held_out=[Pair("q", "r", True)])
    with pytest.raises(InputError, match=r"guard.held_out = 0.3: holds out 1 harmful and 0 acceptable"):
        setting.guarding.check()


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ({"patience": 1}, "needs guard.held_out > 0"),
        ({"adapter": "x", "fit": True}, "a saved guard is not fitted again"),
        ({"scorer": "math:sqrt", "fit": True}, "a function is not fitted"),
        ({"scorer": "math:sqrt", "adapter": "x"}, "a function takes no adapter"),
        ({"choose": "best"}, "must be max-hmean, recall=SHARE or drop=SHARE"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(config, guard, message):
    with pytest.raises(ValueError, match=message):
        vary(config, guard=guard)


def test_a_rule_needs_held_out_questions(config):
    with pytest.raises(InputError, match="guard.choose = recall=0.9: needs questions that were held out"):
        Setting(vary(config, guard={"choose": "recall=0.9"})).guarding.check()


# --- when it ends ---


def watched(loss: float, waited: int = 0) -> Watched:
    state = TrainState({"now": jnp.float32(1)}, ())
    numbers: list[Any] = [np.float32(loss), np.int32(5), np.int32(10), np.int32(waited)]
    return Watched(state, {"best": jnp.float32(0)}, *numbers)


def test_a_check_keeps_the_best():
    better, worse = after_check(watched(0.5, 1), 15, 0.4), after_check(watched(0.5, 1), 15, 0.5)
    assert (better.best, float(better.loss), better.steps, better.waited) == (
        {"now": 1}, pytest.approx(0.4), 15, 0,
    )  # fmt: skip
    assert (worse.best, worse.loss, worse.steps, worse.waited) == ({"best": 0}, 0.5, 5, 2)
    assert better.checked == worse.checked == 15
    assert after_check(watched(np.inf), 5, float("inf")).waited == 1, "no score at all is no improvement"


class Passes:
    """Counts passes in place of fitting: after each the adapter is how many steps there were, its loss as listed."""

    def __init__(self, monkeypatch, losses: Sequence[float], steps: int, killed_after: int | None = None):
        self.done: list[int] = []
        self._killed_after = killed_after

        def fit_to(lm: Any, fitting: Any, data: Any, end: int, micro_batch: Any, advance: Any) -> Any:
            self.done.append(end)
            adapter = {name: jnp.full_like(leaf, end) for name, leaf in fitting.state.adapter.items()}
            fitting = guards.Fitting(end, fitting.state._replace(adapter=adapter))
            advance(fitting)
            if len(self.done) == self._killed_after:
                raise KeyboardInterrupt
            return fitting

        monkeypatch.setattr(guards, "fit_to", fit_to)
        monkeypatch.setattr(guard_fit, "init_adapter", lambda *given: {"fitted": jnp.zeros(())})
        monkeypatch.setattr(guard_fit, "SECONDS_BETWEEN_FITTINGS", -1.0)
        monkeypatch.setattr(
            GuardFit, "_held_out_loss", lambda _, guard: losses[ceil(int(guard.adapter["fitted"]) / steps) - 1]
        )
        monkeypatch.setattr(guards, "score", lambda guard, pairs, advance=None: np.linspace(0, 1, len(pairs)))


@pytest.mark.parametrize(
    ("losses", "patience", "passes", "best"),
    [
        ((0.7, 0.5, 0.6, 0.55, 0.1, 0.1), 2, 4, 2),
        ((0.7, 0.5, 0.6, 0.4, 0.5, 0.6), 2, 6, 4),
        ((0.6, 0.5, 0.4, 0.3, 0.2, 0.1), 1, 6, 6),
        ((0.6, 0.6, 0.1, 0.1, 0.1, 0.1), 1, 2, 1),
    ],
)
def test_a_fit_ends_when_held_out_questions_say_so(config, arm, monkeypatch, losses, patience, passes, best):
    """It is looked at after each of six passes, the last of which is not whole; the adapter is the best pass's."""
    setting = arm(vary(config, guard=HELD_OUT | {"patience": patience}))
    each, total = steps_of(setting)
    work = Passes(monkeypatch, losses, each)
    fitted = guarding(setting, None).fitted
    assert work.done == [min(each * (i + 1), total) for i in range(passes)]
    assert fitted.adapter["fitted"] == fitted.notes.steps == min(each * best, total)
    assert fitted.notes.stopped_early == (passes < 6)


def steps_of(setting: Setting) -> tuple[int, int]:
    """(updates of a pass, of six passes) in batches of eight."""
    pairs = len(setting.texts.materials.guard_pairs)
    return ceil(pairs / 8), ceil(6 * pairs / 8)


def test_a_fit_that_was_killed_ends_as_it_would_have(config, arm, monkeypatch):
    """It was killed after the third pass and before its check, which is done when it goes on."""
    losses = (0.7, 0.5, 0.6, 0.4, 0.5, 0.6)
    setting, store = arm(vary(config, guard=HELD_OUT | {"patience": 2})), InMemory()
    each, total = steps_of(setting)
    Passes(monkeypatch, losses, each, killed_after=3)
    with pytest.raises(KeyboardInterrupt):
        _ = guarding(setting, store).fitted
    work = Passes(monkeypatch, losses, each)
    assert guarding(setting, store).fitted.adapter["fitted"] == each * 4
    assert work.done == [each * 3, each * 4, each * 5, total], "the third pass is there, and is checked"


# --- what is kept beside it ---


@pytest.fixture
def saved(config, tmp_path, monkeypatch) -> tuple[Setting, Path]:
    """A setting whose guard was fitted with held-out questions, and the folder that it is kept in."""

    def fresh(lm: Any, fitting: Any, *others: Any) -> Any:
        return fitting.state.adapter

    monkeypatch.setattr(guards, "fit", fresh)
    monkeypatch.setattr(guards, "score", lambda guard, pairs, advance=None: scores_of(pairs))
    setting = Setting(vary(config, guard=HELD_OUT | {"choose": "recall=0.5"}), store=KeptGuards(tmp_path))
    assert setting.guarding.guard
    return setting, next(tmp_path.glob("guards/fitted-*"))


def scores_of(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """A score that is known by the place of a pair."""
    return np.linspace(0.125, 0.875, len(pairs)).astype(np.float32)


def test_a_guard_is_kept_with_its_calibration(saved):
    """The threshold is that which its rule chooses on the held-out answers, worked out from what is in the file."""
    setting, folder = saved
    made = setting.texts.materials
    raw = json.loads((folder / "guard.json").read_text())
    held_out = raw["calibration"]
    assert (held_out["rule"], len(held_out["scores"])) == ("recall=0.5", len(made.guard_held_out))
    assert held_out["harmful"] == [pair.harmful for pair in made.guard_held_out]
    found = sorted((s for s, h in zip(held_out["scores"], held_out["harmful"], strict=True) if h), reverse=True)
    half = found[-(-len(found) // 2) - 1]
    below = max(score for score in held_out["scores"] if score < half)
    assert held_out["threshold"] == pytest.approx((half + below) / 2) == pytest.approx(setting.guarding.threshold)
    asked = {made.question(pair) for pair in (*made.guard_pairs, *made.guard_held_out)}
    assert set(raw["questions"]) == question_digests(asked)
    assert raw["pairs"] == len(made.guard_pairs) and raw["base"] == setting.guarding.fit_origin.parts["base"]
    assert json.loads((folder / "origin.json").read_text())["files"]["guard.json"].startswith("sha256:")


def test_a_saved_guard_is_used_with_its_calibration(saved, config):
    """Another rule chooses on the same answers, and a number is taken as it is."""
    setting, folder = saved
    uses = Setting(vary(config, guard={"adapter": str(folder)}), setting).guarding
    uses.check()
    assert uses.threshold == setting.guarding.threshold != 0.5
    other = Setting(vary(config, guard={"adapter": str(folder), "choose": "recall=1"}), setting).guarding
    assert other.threshold < uses.threshold
    assert Setting(vary(config, guard={"adapter": str(folder), "threshold": 0.25}), setting).guarding.threshold == 0.25


def test_a_saved_guard_is_refused_in_another_form(saved, config):
    setting, folder = saved
    raw = json.loads((folder / "guard.json").read_text())
    (folder / "guard.json").write_text(json.dumps(raw | {"request": "in other words"}))
    with pytest.raises(InputError, match="was fitted in another form than it would be asked in"):
        Setting(vary(config, guard={"adapter": str(folder)}), setting).guarding.check()


def test_a_saved_guard_of_another_base_is_said(saved, config, capsys):
    setting, folder = saved
    raw = json.loads((folder / "guard.json").read_text())
    (folder / "guard.json").write_text(json.dumps(raw | {"base": "sha256:0"}))
    Setting(vary(config, guard={"adapter": str(folder)}), setting).guarding.check()
    assert "was fitted on another tiny than tiny is now" in capsys.readouterr().err


@pytest.mark.parametrize(
    "harm",
    [
        {"calibration": {"scores": [0.5]}},
        {"calibration": 3},
        {"calibration": {"scores": [2.0], "harmful": [True], "questions": [0], "rule": "max-hmean",
                         "threshold": 0.5, "temperature": 1.0}},
    ],
)  # fmt: skip
def test_notes_that_are_damaged_are_refused(tmp_path, harm):
    notes = parse_notes(NOTES, "guard.json")
    (tmp_path / "guard.json").write_text(json.dumps(plain_notes(notes) | harm))
    with pytest.raises(InputError, match="does not hold what is known of a fitted guard"):
        saved_notes(tmp_path)
    assert saved_notes(tmp_path / "nothing") is None


NOTES = {
    "form": "request", "request": "asked", "base": "sha256:1", "base_name": "tiny", "data": "2", "pairs": 4,
    "harmful": 2, "steps": 3, "stopped_early": False, "questions": [], "calibration": None,
}  # fmt: skip


def test_notes_are_given_back():
    made = calibrate(np.array([0.9, 0.2, np.nan], np.float32), [True, False, True], ["a", "b", "a"], None)
    assert (made.rule, made.without_score, made.questions) == ("max-hmean", 1, [0, 1])
    assert made.threshold == pytest.approx(0.55)
    notes = parse_notes(NOTES | {"calibration": made._asdict()}, "x")
    assert parse_notes(json.loads(json.dumps(plain_notes(notes))), "x") == notes


# --- a released guard ---


def test_a_released_guard_is_fitted_where_the_config_says_so(config, monkeypatch):
    """On its own model, with an adapter of the experiment's shape; as released it is asked without."""
    monkeypatch.setattr(guards, "fit", lambda lm, fitting, *others: fitting.state.adapter)
    released = Setting(vary(config, guard={"path": "tiny"}))
    assert not released.guarding.is_fitted and not released.guarding.is_adapted
    setting = Setting(vary(config, guard={"path": "tiny", "fit": True}), released)
    guard = setting.guarding.guard
    assert setting.guarding.is_fitted and isinstance(guard, guards.Guard)
    assert guard.lm.model.lora.rank == 2 and guard.max_length > config.data.max_length
    assert guard.adapter is not None
    shape = init_adapter(guard.lm.model.config, guard.lm.model.lora, jax.random.key(0))
    assert {leaf.shape for leaf in shape["layers"]["q_proj"].values()} == {
        leaf.shape for leaf in guard.adapter["layers"]["q_proj"].values()
    }
    assert setting.guarding.untuned.adapter is None
    assert not Setting(vary(config, guard={"fit": False}), released).guarding.is_fitted
