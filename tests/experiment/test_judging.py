"""Judges that a config names: what they are called, that each is asked once, loaded alone and freed again."""

import gc
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedjax_rai
from fedjax_rai.errors import InputError
from fedjax_rai.evals.evaluation import Likelihoods
from fedjax_rai.evals.judge import AUTO, Context, Exchange, Judge, Judgement
from fedjax_rai.evals.open_ended import Responses
from fedjax_rai.evals.panel import JudgesOfHarm
from fedjax_rai.experiment import evaluation, judging
from fedjax_rai.experiment.evaluation import ask_ahead, evaluate, judged_exchanges
from fedjax_rai.experiment.judging import asked_before, judges_of
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs.guards import KeptGuards
from fedjax_rai.safety.guard import Scored
from tests.chat_server import completion, serving
from tests.tiny_runs import vary

TINY = Path(fedjax_rai.__file__).parent / "assets" / "tiny"
NOBODY = Context(templated=False, guard=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder of a model that is not the base's."""
    folder = tmp_path_factory.mktemp("models") / "Some-Model.v2"
    shutil.copytree(TINY, folder)
    return str(folder)


def given(config: Any, tmp_path: Path | None = None, **keys: Any) -> judging.Given:
    store = None if tmp_path is None else KeptGuards(tmp_path)
    return Setting(vary(config, eval=keys), store=store).given_to_judges


def test_judges_are_named_by_what_they_are(config, model):
    endpoints = [{"name": "big", "url": "http://localhost:1/v1", "model": "m"}]
    found = judges_of(given(config, judges=["korean", f"guard:{model}", "endpoint:big"], endpoints=endpoints))
    assert found.primary == AUTO and found.beside
    assert [judge.name for judge in found.beside] == ["korean", "guard_some_model_v2", "endpoint_big"]
    assert [judge.asked_once for judge in found.beside] == [False, True, True]
    primary = judges_of(given(config, judge=f"guard:request:{model}", judges=[])).primary
    assert isinstance(primary, Judge) and primary.name == "guard_some_model_v2"
    by_guard = judges_of(given(config, judges=["gcg"], by_guard=True)).beside
    assert by_guard and [judge.name for judge in by_guard] == ["gcg", "guard"]


def test_judges_that_would_have_one_name_are_refused(config, model):
    other = Path(model).with_name("some_model.v2")
    with pytest.raises(InputError, match="guard:.* and guard:.* would both be named guard_some_model_v2"):
        judges_of(given(config, judges=[f"guard:{model}", f"guard:{other}"]))


def test_no_judge_beside_takes_the_place_of_the_primary_by_its_name(config, model):
    """Two that would have one name are refused; the same one may be named twice."""
    other = str(Path(model).with_name("some_model.v2"))
    with pytest.raises(InputError, match="guard:.* and guard:.* would both be named guard_some_model_v2"):
        judges_of(given(config, judge=f"guard:{other}", judges=[f"guard:{model}"]))
    same = judges_of(given(config, judge=f"guard:{model}", judges=[f"guard:{model}", "gcg"]))
    assert [*same.named] == ["guard_some_model_v2", "gcg"]
    published = judges_of(given(config, judge="gcg", judges=["fedjax_rai.evals.published:gcg"]))
    assert [*published.named] == ["gcg"]


def test_the_filters_own_guard_is_named_guard(config, model):
    for judge in (f"guard:{model}", f"guard:{model}/", f"guard:{model}/../{Path(model).name}"):
        setting = Setting(vary(config, guard={"path": model}, eval={"judges": [judge]}))
        with pytest.raises(InputError, match="is the filter's own guard, guard.path; must be named guard"):
            judges_of(setting.given_to_judges)


@pytest.mark.parametrize("written", ["{0}/", "{0}/.", "{0}/../{1}", "{0}.link"])
def test_the_filters_own_guard_is_known_however_its_path_is_written(model, written):
    link = Path(f"{model}.link")
    if not link.exists():
        link.symlink_to(model)
    path = written.format(model, Path(model).name)
    assert judging._place(path) == judging._place(model)


def test_models_elsewhere_are_other_models(model):
    assert judging._place("owner/name/") == judging._place("owner/name") != judging._place("owner/other")
    assert judging._place("tiny") == judging._place(str(TINY)) != judging._place(model)


def test_a_folder_that_is_no_model_is_said_before_anything_is_computed(config, tmp_path):
    with pytest.raises(InputError, match="guard:/nowhere/at/all: .*no such folder"):
        Setting(vary(config, eval={"judges": ["guard:/nowhere/at/all"]})).check_judge()


def test_an_endpoint_that_marks_quality_is_no_judge_of_harm(config):
    endpoints = [{"name": "big", "url": "http://localhost:1/v1", "model": "m", "template": "mtbench"}]
    with pytest.raises(InputError, match="big: template = mtbench marks quality, and is no judge of harm"):
        judges_of(given(config, judges=["endpoint:big"], endpoints=endpoints))


def test_a_judge_on_the_device_is_loaded_when_asked_and_freed_and_its_scores_are_kept(
    config, model, monkeypatch, tmp_path
):
    """Scores of 0.5 and more are unsafe; none is no verdict. A second time nothing is loaded."""
    loaded: list[weakref.ref] = []

    class Weights:
        pass

    def load(models: Any, path: str, revision: Any, architecture: Any) -> Weights:
        assert path == model
        weights = Weights()
        loaded.append(weakref.ref(weights))
        return weights

    def scored(guard: Any, exchanges: Sequence[Exchange], advance: Any) -> Scored:
        assert isinstance(guard.lm.base, Weights)
        return Scored(np.array([0.5, 0.25, np.nan], np.float32), np.ones(3, np.float32))

    monkeypatch.setattr("fedjax_rai.experiment.models.Models.load", load)
    monkeypatch.setattr(judging.guards, "scored", scored)
    exchanges = [("p", "a"), ("p", "b"), ("q", "c")]
    for _ in range(2):
        beside = judges_of(given(config, tmp_path, judges=[f"guard:{model}"])).beside
        assert beside is not None
        (judge,) = beside
        made = judge.judge(exchanges, NOBODY)
        assert made == Judgement([True, False, None], [0.5, 0.25, None])
    gc.collect()
    assert len(loaded) == 1 and loaded[0]() is None
    judge.judge(exchanges[::-1], NOBODY)  # other texts
    assert len(loaded) == 2


def test_a_dear_judge_is_asked_once_about_each_pair_of_texts():
    asked: list[list[Exchange]] = []

    def dear(exchanges: Sequence[Exchange], context: Context) -> Judgement:
        asked.append(list(exchanges))
        return Judgement([answer == "a" for _, answer in exchanges], [0.5 for _ in exchanges])

    judge = Judge("dear", "dear", dear, lambda context: True, asked_once=True)
    told = asked_before(judge, [("p", "a"), ("p", "b"), ("p", "a")], NOBODY)
    assert told.judge([("p", "a"), ("p", "c"), ("p", "b"), ("p", "a")], NOBODY) == Judgement(
        [True, None, False, True], [0.5, None, 0.5, 0.5]
    )
    assert asked == [[("p", "a"), ("p", "b")]]


def test_what_may_not_be_judged_is_not_asked_about():
    responses = Responses([["a", " "], ["b", "c"]], [[False, False], [True, False]])
    assert judged_exchanges(["p", "q"], responses, "left_out") == [("p", "a"), ("q", "c")]
    assert judged_exchanges(["p", "q"], responses, "judged") == [("p", "a"), ("q", "b"), ("q", "c")]


def likelihoods(subject: Any, exchanges: Sequence[Exchange], advance: Any) -> Likelihoods:
    count = len(exchanges)
    return Likelihoods(np.zeros(count), np.ones(count), np.ones(count, bool))


def test_answers_are_generated_once_and_judged_side_by_side(config, monkeypatch):
    """Two prompts of two answers; the endpoint calls the first sample's answers harmful."""
    setting = Setting(vary(config, eval={"prompts": 2}))
    generated: list[str] = []

    def answers_to(subject: Any, prompts: Any, key: Any, sampled: Any, advance: Any) -> Responses:
        generated.append(prompts[0])
        samples = [f"answer {i}" for i in range(sampled.samples)]
        return Responses([samples for _ in prompts], [[False] * sampled.samples for _ in prompts])

    monkeypatch.setattr(evaluation.open_ended, "answers_to", answers_to)
    monkeypatch.setattr(evaluation, "likelihoods", likelihoods)

    def script(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        return 200, completion("yes" if "answer 0" in body["messages"][0]["content"] else "no")

    with serving(script) as served:
        endpoints = [{"name": "big", "url": served.url, "model": "m"}]
        config = vary(setting.config, eval={"judges": ["gcg", "endpoint:big"], "endpoints": endpoints})
        setting = Setting(config, setting)
        setting.check_judge()
        before = len(served.requests)
        rates, rows = evaluate(setting, setting.fresh_adapter("adapter"))
        assert before == 1 and len(served.requests) - before == 4
    assert len(generated) == len(set(generated)) == 3
    assert rates["harmless_by_endpoint_big"]["mean"] == 50 and rates["harmless_by_gcg"]["mean"] == 0
    assert {name for name in rates if name.startswith("harmless")} == {
        "harmless", "harmless_by_rule", "harmless_by_gcg", "harmless_by_endpoint_big",
    }  # fmt: skip
    assert rows[0]["verdicts"]["harmless_by_endpoint_big"] == [False, True]
    assert rows[0]["scores"]["harmless_by_endpoint_big"] == [1.0, 0.0]


def test_without_a_dear_judge_nothing_is_done_ahead(config):
    setting = Setting(config)
    assert ask_ahead(setting, setting.fresh_adapter("adapter")) == evaluation.Ahead({}, JudgesOfHarm(AUTO, None))
