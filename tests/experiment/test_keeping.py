"""A guard is fitted where something reads it, and once: what is kept is told apart by all that it was made of."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import View
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import guarding as guarding_module
from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.guard_fit import FITTED_BY
from fedjax_rai.experiment.guarding import SCORED_BY, Guarding
from fedjax_rai.experiment.keeping import Origin
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs.guards import KeptGuards
from fedjax_rai.safety import guard as guards
from fedjax_rai.text.hub import contents, resolve
from tests.experiment.test_sharing import changed
from tests.tiny_runs import vary


class InMemory:
    """A store without files, which counts what it gave back."""

    def __init__(self):
        self.kept: dict[str, Any] = {}
        self.origins: list[Origin] = []
        self.found = 0

    def adapter(self, origin: Origin, shape: Any) -> Any:
        return self.scores(origin)

    def scores(self, origin: Origin) -> Any:
        self.found += origin.digest in self.kept
        return self.kept.get(origin.digest)

    def notes(self, origin: Origin) -> Any:
        return self.kept.get(f"notes of {origin.digest}")

    def keep_adapter(self, origin: Origin, shape: Any, adapter: Any, notes: Any) -> None:
        self.keep_scores(origin, adapter)
        self.kept[f"notes of {origin.digest}"] = notes

    def fitting(self, origin: Origin, like: Any) -> Any:
        return self.kept.get(f"fit of {origin.digest}")

    def keep_fitting(self, origin: Origin, steps: int, state: Any) -> None:
        self.kept[f"fit of {origin.digest}"] = steps, state

    def keep_scores(self, origin: Origin, scores: Any) -> None:
        self.kept[origin.digest] = scores
        self.origins.append(origin)

    def replies(self, name: str) -> Any:
        raise AssertionError(f"nobody asks an endpoint here, nor {name}")


class Work:
    """Counts fits and scorings, in place of doing them: the adapter is a number, a score that of its pair."""

    def __init__(self, monkeypatch):
        self.fits = 0
        self.scorings = 0
        monkeypatch.setattr(guards, "fit", self._fit)
        monkeypatch.setattr(guards, "scored", self._scored)

    def _fit(self, *given: Any) -> Any:
        self.fits += 1
        return {"fitted": jnp.float32(self.fits)}

    def _scored(self, guard: Any, pairs: Any, advance: Any = None) -> guards.Scored:
        self.scorings += 1
        return guards.Scored(np.linspace(0, 1, len(pairs), dtype=np.float32), np.full(len(pairs), 0.5, np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The tiny base in a folder of its own, as a model of the user's is."""
    link = tmp_path_factory.mktemp("models") / "model"
    link.symlink_to(resolve("tiny"))
    return link


def guarding(setting: Setting, store: Any) -> Guarding:
    """The setting's guarding as another process has it, with a store."""
    return Guarding(setting._views["Guarding"], {}, setting.models, setting.texts, store)


# what the arm has: (guarded, judged by the guard), of a real model; rounds are 2, the guard would be fitted
READERS: dict[str, tuple[dict[str, Any], tuple[bool, bool]]] = {
    "nothing": ({}, (False, False)),
    "filter": ({"filter": {"enabled": True}}, (True, True)),
    "filter, rate not wanted": ({"filter": {"enabled": True}, "eval": {"by_guard": False}}, (True, False)),
    "probe": ({"cai": {"probe": 2}}, (True, True)),
    "probe without rounds": ({"cai": {"probe": 2}, "federated": {"rounds": 0}}, (False, False)),
    "judge": ({"eval": {"judge": "guard"}}, (True, True)),
    "judge, whose rate is the headline": ({"eval": {"judge": "guard", "by_guard": False}}, (True, True)),
    "rate wanted": ({"eval": {"by_guard": True}}, (True, True)),
    "released": ({"guard": {"path": "tiny"}}, (True, True)),
    "function": ({"guard": {"scorer": "math:sqrt"}}, (True, True)),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_guard_is_needed_where_something_reads_it(config, arm, folder, reader):
    fields, (guarded, judged) = READERS[reader]
    setting = arm(vary(config, model={"path": str(folder)}, **fields))
    assert (setting.guarded, setting.judged_by_guard) == (guarded, judged)
    assert (setting.guard_scores() is not None) == judged


def test_the_tiny_worlds_guard_judges_unless_it_is_not_wanted(config, arm):
    assert arm(config).judged_by_guard
    assert not arm(vary(config, eval={"by_guard": False})).guarded


def test_an_arm_that_reads_no_guard_checks_and_plans_without_one(config, arm, folder, monkeypatch):
    """Neither its form nor its lengths are asked for, and a rate that is wanted of no guard is refused."""
    monkeypatch.setattr(guarding_module, "form_for", lambda *given: pytest.fail("the guard's form was asked for"))
    off = {"cai": {"enabled": False}, "federated": {"rounds": 1}, "model": {"path": str(folder)}}
    setting = arm(vary(config, **off))
    setting.check()
    known = sizes.sizes(setting)
    assert not known.guarded and known.lengths.guard_request == 0
    nobody = arm(vary(config, **off, eval={"by_guard": True}))
    monkeypatch.setattr(nobody.texts, "materials", nobody.texts.materials._replace(guard_pairs=[]))
    with pytest.raises(InputError, match="eval.by_guard = true: needs a guard"):
        nobody.check()


def fitted(made) -> Any:
    """The adapter of the guard that was fitted, or found."""
    guard = made.guard
    assert isinstance(guard, guards.Guard)
    return guard.adapter


def test_a_guard_is_fitted_and_its_scores_computed_once(config, arm, monkeypatch):
    """Two processes with one store: the second fits and scores nothing, and has the same numbers."""
    work, store = Work(monkeypatch), InMemory()
    first, second, alone = (guarding(arm(config), given) for given in (store, store, None))
    assert (fitted(first), work.fits) == ({"fitted": 1}, 1)
    scores = first.scores
    assert first.quality["fitted"] is not None and (work.fits, work.scorings) == (1, 2)
    assert second.scores.tolist() == scores.tolist() and second.quality == first.quality
    assert fitted(second) == {"fitted": 1} and (work.fits, work.scorings) == (1, 2)
    assert store.found == 3 and [origin.kind for origin in store.origins] == ["fitted", "scores", "scores"]
    assert alone.guard and work.fits == 2, "without a store it is fitted"
    (leaf,) = jax.tree.leaves(fitted(second))
    assert leaf.sharding.mesh.shape == arm(config).models.mesh.shape, "it lies where a fitted one does"


def test_a_setting_hands_its_store_to_the_guard(config):
    store = InMemory()
    assert Setting(config, store=store).guarding._store is store


def test_a_guard_of_numbers_that_are_none_is_not_kept(config, arm, monkeypatch):
    store = InMemory()
    monkeypatch.setattr(guards, "fit", lambda *given: {"fitted": jnp.float32(np.nan)})
    assert guarding(arm(config), store).guard and not store.kept


def test_what_a_function_says_is_not_kept(config, arm):
    store = InMemory()
    setting = arm(vary(config, guard={"scorer": "tests.experiment.test_keeping:nothing_is_unsafe"}))
    assert guarding(setting, store).scores.tolist() == [0] * 40 and not store.kept


def nothing_is_unsafe(pairs: Any) -> Any:
    return np.zeros(len(pairs))


def digests(setting: Setting, config: ExperimentConfig | None = None, **materials: Any) -> tuple[str, str]:
    """Of the guard that would be fitted, and of the scores that it would give; read through another config if given."""
    given = setting.texts.materials
    setting.texts.materials = given._replace(**materials)
    made = guarding(setting, None)
    read = config or setting.config
    made._config = View(read, made._config.plain())
    layout, setting.models.layout = setting.models.layout, read.mesh
    found = made.fit_origin.digest, made.origin_of_scores().digest
    setting.texts.materials, setting.models.layout = given, layout
    return found


@pytest.mark.parametrize("key", sorted({*FITTED_BY, *SCORED_BY}))
def test_another_value_of_a_key_that_is_read_is_another_digest(config, arm, key):
    """The scores of a fitted guard hang on all that it was fitted by."""
    fit, scores = digests(arm(config))
    other_fit, other_scores = digests(arm(config), changed(config, key))
    assert (fit != other_fit) == (key in FITTED_BY) and scores != other_scores


@pytest.mark.parametrize("key", ["guard.threshold", "filter.enabled", "federated.clients"])
def test_a_key_that_neither_fit_nor_scores_read_is_the_same_digest(config, arm, key):
    assert digests(arm(changed(config, key))) == digests(arm(config))


def test_a_fit_reads_no_key_that_it_is_not_told_apart_by(config, arm, monkeypatch):
    """Reading another key of the config than these is an error."""
    monkeypatch.setattr("fedjax_rai.experiment.guard_fit.FITTED_BY", [key for key in FITTED_BY if key != "guard.steps"])
    with pytest.raises(AttributeError, match="steps"):
        _ = guarding(arm(config), None).guard


def test_texts_and_weights_count_by_what_is_in_them(config, arm):
    """Another pair, another label, another order; who is asked counts for scores alone."""
    pairs = [Pair("q", "r", True, "x"), Pair("s", "t", False, "x")]
    setting = arm(config)
    fit, scores = digests(setting, guard_pairs=pairs, pairs=pairs)
    relabelled = [pairs[0], pairs[1]._replace(harmful=True)]
    reworded = [pairs[0], pairs[1]._replace(response="u")]
    for other in (relabelled, reworded, pairs[::-1], pairs[:1]):
        assert digests(setting, guard_pairs=other, pairs=pairs)[0] != fit
    asked_less = digests(setting, guard_pairs=pairs, pairs=pairs[:1])
    assert asked_less[0] == fit and asked_less[1] != scores


def test_a_base_counts_by_its_bytes_and_not_by_its_name(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "README.md").write_text(name)
    one, other = tmp_path / "one", tmp_path / "other"
    before = contents(one)
    assert before == contents(other)
    (other / "model.safetensors").write_bytes(b"weighty")
    assert contents(other) != before
    (other / "model.safetensors").rename(other / "another.safetensors")
    assert contents(other) != before
    snapshot = tmp_path / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    assert contents(snapshot) == "commit:0a1b2c"


def test_seeds_share_no_guard_and_the_order_of_patterns_counts(config, arm):
    """The first pattern that matches wins, so the same patterns in another order are another guard."""
    setting = arm(config)
    assert digests(setting, vary(config, seed=1))[0] != digests(setting)[0]
    orders = ({"q_proj": 1, "k_proj": 2}, {"k_proj": 2, "q_proj": 1})
    one, other = (digests(setting, vary(config, lora={"rank_pattern": patterns})) for patterns in orders)
    assert one[0] != other[0]


@pytest.mark.slow
def test_a_fit_goes_on_where_it_was_left_bit_for_bit(config, arm, monkeypatch, tmp_path):
    """Five steps, two in a piece, killed after the second piece: one step is left, and what was kept is given up."""
    setting = arm(vary(config, guard={"steps": 5}))
    whole = fitted(guarding(setting, None))
    monkeypatch.setattr(guards, "PIECE", 2)
    monkeypatch.setattr("fedjax_rai.experiment.guard_fit.SECONDS_BETWEEN_FITTINGS", 0.0)
    in_pieces = fitted(guarding(setting, None))
    steps = guards.fit_steps
    done: list[tuple[int, int]] = []

    def counted(*given: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((int(given[3]), int(given[4])))
        return steps(*given)

    monkeypatch.setattr(guards, "fit_steps", counted)
    with pytest.raises(KeyboardInterrupt):
        fitted(guarding(setting, KeptGuards(tmp_path)))
    assert done == [(0, 2), (2, 4)] and len(list(tmp_path.glob("guards/fitting-*"))) == 1
    done.clear()
    resumed = fitted(guarding(setting, KeptGuards(tmp_path)))
    assert done == [(4, 5)] and not list(tmp_path.glob("guards/fitting-*"))
    for other in (in_pieces, resumed):
        jax.tree.map(np.testing.assert_array_equal, other, whole)
    assert len(list(tmp_path.glob("guards/fitted-*"))) == 1
