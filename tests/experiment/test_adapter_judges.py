"""Judges that were released as adapters: the base that they name is loaded, and the adapter with it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.evals.judge import Context, Exchange, Judgement
from fedjax_rai.experiment import judging
from fedjax_rai.experiment.judging import device_judges, judges_of
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.sizes import sizes
from fedjax_rai.model import lora, peft
from fedjax_rai.model.families import read_config
from fedjax_rai.model.lora import Lora
from fedjax_rai.safety.guard import Scored
from fedjax_rai.text.hub import resolve
from tests.model.common import assert_trees_equal, edit_json, random_adapter
from tests.tiny_runs import vary

TINY = resolve("tiny")
SHAPE = read_config(TINY)
LORA = Lora(("q_proj", "down_proj"), rank=3, alpha=6.0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model that is not the experiment's."""
    return Path(shutil.copytree(TINY, tmp_path / "base"))


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """An adapter on it, with no tokenizer of its own."""
    folder = tmp_path / "harm-15k"
    peft.save_adapter(folder, SHAPE, LORA, random_adapter(SHAPE, LORA), str(base))
    return folder


def judge_of(config: Any, path: Path, **keys: Any) -> judging.DeviceJudge:
    (judge,) = device_judges(Setting(vary(config, eval={"judges": [f"guard:{path}"]}, **keys)).given_to_judges)
    return judge


def test_it_is_asked_with_its_adapter_on_the_base_that_it_names(config, base, adapter, monkeypatch):
    loaded: list[str] = []
    asked: list[Any] = []

    def scored(guard: Any, exchanges: Sequence[Exchange], advance: Any) -> Scored:
        asked.append(guard)
        return Scored(np.array([0.75], np.float32), np.ones(1, np.float32))

    monkeypatch.setattr("fedjax_rai.experiment.models.Models.load", lambda models, path, *_: loaded.append(path))
    monkeypatch.setattr(judging.guards, "scored", scored)
    setting = Setting(vary(config, eval={"judges": [f"guard:{adapter}"]}))
    beside = judges_of(setting.given_to_judges).beside
    assert beside is not None
    (judge,) = beside
    assert judge.name == "guard_harm_15k"
    assert judge.judge([("p", "a")], Context(templated=False, guard=None)) == Judgement([True], [0.75])
    assert loaded == [str(base)]
    assert asked[0].lm.model.lora == LORA
    assert_trees_equal(asked[0].adapter, random_adapter(SHAPE, LORA))


def test_one_on_the_experiments_own_base_loads_no_other(config, adapter, monkeypatch):
    edit_json(adapter / peft.CONFIG, base_model_name_or_path="tiny")
    monkeypatch.setattr("fedjax_rai.experiment.models.Models.load", lambda *_: pytest.fail("loaded twice"))
    setting = Setting(vary(config, eval={"judges": [f"guard:{adapter}"]}))
    monkeypatch.setattr(type(setting.models), "base", "the base")
    (judge,) = device_judges(setting.given_to_judges)
    assert judge.is_base
    assert judge._load(8).lm.base == "the base"


def test_its_tokenizer_is_its_own_or_its_bases(config, base, adapter):
    whole = judge_of(config, base)
    assert judge_of(config, adapter).tokenizer.hf.get_vocab() == whole.tokenizer.hf.get_vocab()
    for file in base.glob("token*"):
        shutil.move(file, adapter / file.name)
    assert judge_of(config, adapter).tokenizer.hf.get_vocab() == whole.tokenizer.hf.get_vocab()


def test_kept_scores_are_of_adapter_and_base(config, base, adapter):
    """What is kept is another's as soon as one of the two is another."""
    first = judge_of(config, adapter)._origin([]).digest
    assert judge_of(config, adapter)._origin([]).digest == first
    edit_json(base / "config.json", rms_norm_eps=1e-3)
    second = judge_of(config, adapter)._origin([]).digest
    edit_json(adapter / peft.CONFIG, lora_alpha=7)
    assert len({first, second, judge_of(config, adapter)._origin([]).digest}) == 3


def test_the_memory_plan_counts_the_adapter(config, base, adapter):
    """4 bytes a number: of rank 3, for two layers of each projection's width in and out."""
    whole, adapted = (
        sizes(Setting(vary(config, eval={"judges": [f"guard:{path}"]}))).judges for path in (base, adapter)
    )
    assert adapted[0].weights - whole[0].weights == 4 * lora.size(SHAPE, LORA)
    assert adapted[0]._replace(weights=0, name="") == whole[0]._replace(weights=0, name="")


def test_an_adapter_that_names_no_base_is_refused(config, adapter):
    edit_json(adapter / peft.CONFIG, base_model_name_or_path=None)
    with pytest.raises(InputError, match="guard:.*harm-15k: .*adapter_config.json names no base; must have base_model"):
        Setting(vary(config, eval={"judges": [f"guard:{adapter}"]})).check_judge()


def test_the_filters_own_adapter_is_named_guard(config, base, adapter):
    with pytest.raises(InputError, match="is the filter's own guard, guard.adapter; must be named guard"):
        judge_of(config, adapter, guard={"path": str(base), "adapter": str(adapter)})


def test_what_the_filters_adapter_is_on_is_a_judge_of_its_own(config, base, adapter):
    """Without the adapter it is another guard than the filter's."""
    assert judge_of(config, base, guard={"path": str(base), "adapter": str(adapter)}).name.startswith("guard_")
    with pytest.raises(InputError, match="is the filter's own guard, guard.path; must be named guard"):
        judge_of(config, base, guard={"path": str(base)})


def test_commits_of_an_adapter_and_its_base_are_kept_apart(config, base, adapter, tmp_path):
    """As they lie in the hub's cache; a run that goes on asks for the same ones."""
    cache = tmp_path / "cache"
    for folder, place in ((base, "models--a--base/snapshots/c1"), (adapter, "models--a--harm-15k/snapshots/c2")):
        shutil.copytree(folder, cache / place)
    edit_json(
        cache / "models--a--harm-15k/snapshots/c2" / peft.CONFIG,
        base_model_name_or_path=str(cache / "models--a--base/snapshots/c1"),
    )
    judge = judge_of(config, cache / "models--a--harm-15k/snapshots/c2")
    assert judge.commits == {"guard_c2": "c2", "guard_c2 base": "c1"}
    raw = json.loads((adapter / peft.CONFIG).read_text())
    edit_json(adapter / peft.CONFIG, base_model_name_or_path="owner/name", revision="main")
    given = judge_of(config, adapter)._given
    pinned = judging.DeviceJudge(
        str(adapter), "auto", "eval.judges", given._replace(pins={"judge guard_harm_15k base": "c9"})
    )
    assert pinned._base == ("owner/name", "c9") and judge_of(config, adapter)._base == ("owner/name", "main")
    assert raw["revision"] is None
