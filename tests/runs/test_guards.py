"""Guards and scores on disk: given back bit for bit, whole or not at all, made again where they are damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedjax_rai.config.files import check_files, digests
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.keeping import FITTED, SCORES, Origin
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import guards as kept
from fedjax_rai.runs.guards import KeptGuards, study_of
from fedjax_rai.runs.run import evaluate_run, run
from fedjax_rai.safety import guard as guards
from fedjax_rai.studies.table import check_table, run_table
from tests.model.common import assert_trees_equal, random_adapter
from tests.model.test_peft import CONFIG, LORA, SHAPES
from tests.tiny_runs import adapter_bytes, after_round, dies_when, timeless, vary

FIT = Origin(FITTED, {"keys": {"seed": 0}, "base": "sha256:ab"}, base="models/base")
ASKED = Origin(SCORES, {"keys": {"seed": 0}, "guard": {"fitted": FIT.digest}})
P = np.array([0.5, np.nan, 1e-30, 1.0, np.nextafter(np.float32(0.5), np.float32(1))], np.float32)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_guard_is_given_back_bit_for_bit(tmp_path, shape):
    adapter = random_adapter(CONFIG, shape)
    store = KeptGuards(tmp_path)
    assert store.adapter(FIT, (CONFIG, shape)) is None
    store.keep_adapter(FIT, (CONFIG, shape), adapter)
    found = KeptGuards(tmp_path).adapter(FIT, (CONFIG, shape))
    assert_trees_equal(found, adapter)


def test_scores_are_given_back_bit_for_bit(tmp_path):
    KeptGuards(tmp_path).keep_scores(ASKED, P)
    found = KeptGuards(tmp_path).scores(ASKED)
    assert found is not None and found.dtype == np.float32 and found.tobytes() == P.tobytes()
    assert KeptGuards(tmp_path).scores(ASKED._replace(parts={"keys": {"seed": 1}})) is None


def test_an_entry_says_what_it_is(tmp_path):
    KeptGuards(tmp_path).keep_adapter(FIT, (CONFIG, LORA), random_adapter(CONFIG, LORA))
    (entry,) = tmp_path.glob("guards/fitted-*")
    assert entry.name == f"fitted-{FIT.digest[:16]}"
    names = {path.name for path in entry.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "origin.json"}
    assert json.loads((entry / "adapter_config.json").read_text())["base_model_name_or_path"] == "models/base"
    told = json.loads((entry / "origin.json").read_text())
    assert (
        told["made_of"] == FIT.parts and told["digest"] == FIT.digest and set(told["files"]) == names - {"origin.json"}
    )
    assert "guard.adapter" in (tmp_path / "guards" / "README.md").read_text()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def of_another(path: Path) -> None:
    path.write_text(path.read_text().replace(ASKED.digest, FIT.digest))


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "cut": ("scores.safetensors", cut),
    "a bit": ("scores.safetensors", flip),
    "gone": ("scores.safetensors", Path.unlink),
    "no origin": ("origin.json", Path.unlink),
    "cut origin": ("origin.json", cut),
    "a list": ("origin.json", lambda path: path.write_text("[]")),
    "no text": ("origin.json", lambda path: path.write_bytes(b"\xff\xfe\xff")),
    "of another": ("origin.json", of_another),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_said_and_made_again(tmp_path, capsys, damage):
    store = KeptGuards(tmp_path)
    store.keep_scores(ASKED, P)
    (entry,) = tmp_path.glob("guards/scores-*")
    name, harm = DAMAGES[damage]
    harm(entry / name)
    assert store.scores(ASKED) is None
    assert f"{entry}: is damaged" in capsys.readouterr().err.replace("\n", "")
    store.keep_scores(ASKED, P)
    found = store.scores(ASKED)
    assert found is not None and found.tobytes() == P.tobytes()
    assert {path.name for path in (tmp_path / "guards").iterdir()} == {"README.md", entry.name}


def test_an_adapter_of_another_shape_is_damaged(tmp_path, capsys):
    store = KeptGuards(tmp_path)
    store.keep_adapter(FIT, (CONFIG, LORA), random_adapter(CONFIG, LORA))
    assert store.adapter(FIT, (CONFIG, SHAPES["rslora"])) is None
    assert "another shape" in capsys.readouterr().err


def test_a_process_that_is_killed_while_it_writes_leaves_no_entry(tmp_path, monkeypatch):
    def killed(path: Path, tensors: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(kept, "save_safetensors", killed)
    with pytest.raises(KeyboardInterrupt):
        KeptGuards(tmp_path).keep_scores(ASKED, P)
    assert [path.name for path in (tmp_path / "guards").iterdir()] == ["README.md"]


def test_two_processes_keep_one(tmp_path, monkeypatch, capsys):
    """The second finds the first one's in its place when it has written its own, and leaves it there."""
    write = kept.save_safetensors

    def meanwhile(path: Path, tensors: Any) -> None:
        monkeypatch.setattr(kept, "save_safetensors", write)
        monkeypatch.setattr(kept.os, "getpid", lambda: 1)
        KeptGuards(tmp_path).keep_scores(ASKED, P)
        monkeypatch.undo()
        write(path, tensors)

    monkeypatch.setattr(kept, "save_safetensors", meanwhile)
    KeptGuards(tmp_path).keep_scores(ASKED, P)
    found = KeptGuards(tmp_path).scores(ASKED)
    assert found is not None and found.tobytes() == P.tobytes()
    assert len(list((tmp_path / "guards").iterdir())) == 2 and "could not" not in capsys.readouterr().err


def test_where_nothing_can_be_kept_that_is_said_and_the_run_goes_on(tmp_path, capsys):
    (tmp_path / "guards").write_text("a file")
    store = KeptGuards(tmp_path)
    assert store.scores(ASKED) is None
    store.keep_scores(ASKED, P)
    assert "could not be kept" in capsys.readouterr().err.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["guards"]


def test_whose_guards_a_run_shares(tmp_path):
    """A table's run lies two levels below it, a sweep's one; a folder that is no study's has none to share."""
    run_folder = tmp_path / "study" / "seed0" / "fl"
    run_folder.mkdir(parents=True)
    (tmp_path / "study" / "guards").mkdir()
    assert study_of(run_folder) == run_folder
    (tmp_path / "study" / "guards" / "README.md").write_text("")
    assert study_of(run_folder) == study_of(run_folder.parent) == tmp_path / "study"
    assert study_of(tmp_path / "study") == tmp_path / "study"


def test_a_table_that_was_interrupted_is_gone_on_with_beside_its_guards(config, tmp_path):
    KeptGuards(tmp_path / "table").keep_scores(ASKED, P)
    check_table(tmp_path / "table", config)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A saved guard of another base than the tiny one."""
    KeptGuards(tmp_path).keep_adapter(FIT, (CONFIG, LORA), random_adapter(CONFIG, LORA))
    (folder,) = tmp_path.glob("guards/fitted-*")
    return folder


def test_a_saved_guard_is_a_file_that_a_run_names(config, saved):
    """Its digest is noted, so that no run goes on with another."""
    named = vary(config, guard={"adapter": str(saved)})
    check_files(named)
    before = digests(named)["guard.adapter"]
    flip(saved / "adapter_model.safetensors")
    assert digests(named)["guard.adapter"] != before
    with pytest.raises(
        InputError, match=r"guard.adapter = .*no folder of an adapter in PEFT's format there; must be one"
    ):
        check_files(vary(config, guard={"adapter": str(saved / "nothing")}))
    with pytest.raises(ValueError, match="must be null beside guard.scorer"):
        vary(config, guard={"adapter": str(saved), "scorer": "math:sqrt"})


def test_a_saved_guard_of_another_base_is_refused_before_anything_is_computed(config, saved):
    setting = Setting(vary(config, guard={"adapter": str(saved)}))
    assert setting.guarded and not setting.guarding.is_fitted
    with pytest.raises(InputError, match="adapter_model.safetensors"):
        setting.check()


class Fits:
    """Counts the fits and the scorings that are done."""

    def __init__(self, monkeypatch):
        self.fits = 0
        self.scorings = 0
        fit, score = guards.fit, guards.scored

        def counted(*given: Any) -> Any:
            self.fits += 1
            return fit(*given)

        def counted_scores(*given: Any) -> Any:
            self.scorings += 1
            return score(*given)

        monkeypatch.setattr(guards, "fit", counted)
        monkeypatch.setattr(guards, "scored", counted_scores)

    @property
    def taken(self) -> tuple[int, int]:
        """(fits, scorings) since the last time."""
        found = self.fits, self.scorings
        self.fits = self.scorings = 0
        return found


@pytest.mark.slow
def test_a_study_fits_its_guard_once(config, tmp_path, monkeypatch):
    """Over arms, another call, a run evaluated again; one of another threshold besides. Nothing of it moves a bit."""
    work = Fits(monkeypatch)
    config = vary(config, output=str(tmp_path / "table"), cai={"enabled": False})
    folder = run_table(config, ["fl"])
    assert work.taken == (1, 0), "for the rate by the guard, at the evaluation"
    run_table(config, ["fl", "fl+filter"])
    assert work.taken == (0, 2), "another process: the scores of the pairs, by the guard as fitted and before"
    summary = (folder / "seed0" / "fl" / "eval.json").read_bytes()
    evaluate_run(folder / "seed0" / "fl")
    evaluate_run(folder / "seed0" / "fl+filter")
    assert work.taken == (0, 0) and (folder / "seed0" / "fl" / "eval.json").read_bytes() == summary
    alone = run(vary(config, output=str(tmp_path / "alone"), filter={"enabled": True}))
    assert work.taken == (1, 2), "a run by itself keeps its own"
    assert adapter_bytes(alone) == adapter_bytes(folder / "seed0" / "fl+filter")
    assert (alone / "eval.json").read_bytes() == (folder / "seed0" / "fl+filter" / "eval.json").read_bytes()
    assert {path.name.split("-")[0] for path in (alone / "guards").iterdir()} == {"README.md", "fitted", "scores"}
    (fitted,) = folder.glob("guards/fitted-*")
    saved = vary(config, output=str(tmp_path / "saved"), filter={"enabled": True}, guard={"adapter": str(fitted)})
    assert (run(saved) / "eval.json").read_bytes() == (alone / "eval.json").read_bytes(), "a saved guard serves"
    assert work.taken[0] == 0 and adapter_bytes(tmp_path / "saved") == adapter_bytes(alone)


@pytest.mark.slow
def test_a_run_that_goes_on_fits_no_guard_again(config, tmp_path, monkeypatch):
    work = Fits(monkeypatch)
    config = vary(config, filter={"enabled": True}, cai={"enabled": False})
    with dies_when(after_round(1)):
        run(config)
    assert work.taken == (1, 1)
    folder = run(config)
    assert work.taken == (0, 1), "as released, for its quality"
    whole = run(vary(config, "-whole"))
    assert timeless(folder) == timeless(whole) and adapter_bytes(folder) == adapter_bytes(whole)


def test_a_fit_that_is_under_way_is_given_back_until_it_has_ended(tmp_path):
    """The last one that was kept, of the same origin; a damaged one is none, and a fitted guard ends it."""
    adapter = random_adapter(CONFIG, LORA)
    store = KeptGuards(tmp_path)
    state = {"adapter": adapter, "count": np.int32(7)}
    assert store.fitting(FIT, state) is None
    store.keep_fitting(FIT, 25, {"adapter": adapter, "count": np.int32(25)})
    store.keep_fitting(FIT, 50, state)
    found = KeptGuards(tmp_path).fitting(FIT, state)
    assert found is not None and found[0] == 50 and int(found[1]["count"]) == 7
    assert_trees_equal(found[1]["adapter"], adapter)
    assert store.fitting(FIT._replace(parts={"keys": {"seed": 1}}), state) is None
    assert store.fitting(FIT, {"count": np.int32(7)}) is None, "of another shape: made again"
    store.keep_fitting(FIT, 50, state)
    cut(next(tmp_path.glob("guards/fitting-*/state.safetensors")))
    assert store.fitting(FIT, state) is None
    store.keep_fitting(FIT, 75, state)
    store.keep_adapter(FIT, (CONFIG, LORA), adapter)
    assert {path.name.partition("-")[0] for path in tmp_path.glob("guards/*-*")} == {"fitted"}
