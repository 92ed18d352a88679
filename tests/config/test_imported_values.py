"""Values of the user's own, named in a config, take the place of the package's in an experiment."""

import numpy as np
import pytest
from jax.sharding import AbstractMesh

from fedjax_rai.cai.constitution import Constitution, Principle, find_constitution
from fedjax_rai.config.files import digests
from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.fed.algorithm import make_algorithm
from fedjax_rai.runs.folder import VERSIONS, check_folder, note_versions
from fedjax_rai.safety.guard import Scorer, score
from fedjax_rai.train.optimizers import learning_rate
from tests.tiny_runs import vary

KIND = Constitution((Principle("kind", "Is it kind?", "Make it kind."),))


def first_clients_have_one(pairs, clients: int, seed: int) -> list[np.ndarray]:
    """One example for each client but the last, who holds the rest."""
    return [np.arange(i, i + 1) for i in range(clients - 1)] + [np.arange(clients - 1, len(pairs))]


def by_label(pairs, clients: int, seed: int) -> list[np.ndarray]:
    """All harmful pairs to the first client, the others to the second, nothing to the rest."""
    harmful = np.array([pair.harmful for pair in pairs])
    return [np.flatnonzero(harmful), np.flatnonzero(~harmful), *[np.zeros(0, int)] * (clients - 2)]


def overlapping(pairs, clients: int, seed: int) -> list[np.ndarray]:
    return [np.arange(2)] * clients


def long_is_unsafe(pairs) -> list[float]:
    return [float(len(response) > 45) for _, response in pairs]


def test_a_partition_deals_out_the_pairs(config) -> None:
    setting = Setting(vary(config, data={"partition": f"{__name__}:first_clients_have_one"}))
    assert [len(rows) for rows in setting.client_rows] == [1, 1, 1, 37]
    setting = Setting(vary(config, data={"partition": f"{__name__}:by_label"}))
    assert [len(rows) for rows in setting.client_rows] == [12, 28, 0, 0]
    with pytest.raises(InputError, match="^data.partition = .*:overlapping: pair 0 stands twice"):
        Setting(vary(config, data={"partition": f"{__name__}:overlapping"}))


def test_a_function_is_a_guard_for_filter_and_scores(config) -> None:
    named = vary(config, guard={"scorer": f"{__name__}:long_is_unsafe"}, filter={"enabled": True})
    setting = Setting(named)
    setting.check()
    lengths = np.array([len(pair.response) for pair in setting.texts.materials.pairs])
    assert 0 < (lengths > 45).sum() < len(lengths)
    guarding = setting.guarding
    assert guarding.possible and guarding.scores.tolist() == (lengths > 45).astype(float).tolist()
    assert guarding.quality["fitted"] is None and guarding.quality["released"] is not None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.5], r"shape \(1,\); must be \(2,\)"),
        ([[0.5], [0.5]], r"shape \(2, 1\); must be \(2,\)"),
        ([0.5, 1.5], "numbers from 0.5 to 1.5; must be p"),
        ([float("nan"), -1.0], "numbers from -1 to -1; must be p"),
        (["safe", "unsafe"], "no array of numbers"),
        (None, r"shape \(\); must be \(2,\)"),
    ],
)
def test_a_guard_that_gives_no_probabilities_is_refused(answer, message) -> None:
    with pytest.raises(InputError, match=f"^guard.scorer = mine:f: gave .*{message}"):
        score(Scorer(lambda pairs: answer, "mine:f"), [("q", "r"), ("q", "s")])


def test_a_guard_without_a_score_says_so() -> None:
    found = score(Scorer(lambda pairs: [float("nan"), 0.25], "mine:f"), [("q", "r"), ("q", "s")])
    assert np.isnan(found[0]) and found[1] == 0.25


def test_a_constitution_is_a_value() -> None:
    assert find_constitution(f"{__name__}:KIND") == KIND
    assert find_constitution("default").principles
    with pytest.raises(InputError, match="is of the type function; must be of the type Constitution"):
        find_constitution(f"{__name__}:long_is_unsafe")


def test_a_run_does_not_go_on_with_a_value_that_is_another_now(config, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "dealt.py"
    path.write_text("def deal(n, clients, seed): ...\n")
    named = vary(config, data={"partition": "dealt:deal"})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(named))
    note_versions(folder / VERSIONS, {"files": digests(named)})
    assert check_folder(folder, named) is False
    path.write_text("def deal(n, clients, seed): return []\n")
    with pytest.raises(InputError, match=r"run: began with other contents of\n  data\.partition = dealt:deal\nname"):
        check_folder(folder, named)


def no_aggregator() -> str:
    return "mean"


def no_optimizer(weight_decay: float) -> str:
    return "adam"


def no_algorithm(local, aggregator, mapper) -> None:
    return None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("algorithm", "os.path:join", r"calling it failed \(.*\); must be a function of trainer, aggregator"),
        ("algorithm", f"{__name__}:no_algorithm", "gives a value of the type NoneType; must be .* a FedAlgorithm"),
        ("aggregator", "os.path:join", r"calling it failed \(.*\); must be a function without arguments"),
        ("aggregator", f"{__name__}:no_aggregator", "gives a value of the type str; must be .* an Aggregator"),
        ("optimizer", "os.path:join", r"calling it failed \(.*\); must be a function of the weight decay"),
        ("optimizer", f"{__name__}:no_optimizer", r"calling it failed \(gives a value of the type str\); must be"),
    ],
)
def test_what_is_no_algorithm_aggregator_or_optimizer_is_refused(config, key, value, message) -> None:
    named = vary(config, federated={key: value})
    with pytest.raises(InputError, match=f"^federated.{key} = {value}: {message}"):
        make_algorithm(named.federated, dict(named), AbstractMesh((1,), ("clients",)))


def to_zero(t: int, rounds: int, initial: float, final: float) -> float:
    return initial * (1 - t / 2)


def not_a_number(t: int, rounds: int, initial: float, final: float) -> float:
    return float("nan")


def too_small(t: int, rounds: int, initial: float, final: float) -> float:
    return 1e-60


def of_the_round(t: int) -> float:
    return 1.0


def rising(t: int, rounds: int, initial: float, final: float) -> float:
    return initial + (final - initial) * t / rounds


@pytest.mark.parametrize(
    ("name", "t", "message"),
    [
        ("to_zero", 2, r"gives 0.0 in round 2 \(from 0\); must be a finite number > 0"),
        ("to_zero", 3, r"gives -0.\d+ in round 3"),
        ("not_a_number", 0, "gives nan in round 0"),
        ("too_small", 0, "gives 1e-60 in round 0"),
        ("of_the_round", 0, "calling it in round 0 .* failed"),
    ],
)
def test_a_schedule_that_gives_no_rate_is_refused(config, name, t, message) -> None:
    named = vary(config, federated={"schedule": f"{__name__}:{name}"})
    with pytest.raises(InputError, match=f"^federated.schedule = {__name__}:{name}: {message}"):
        learning_rate(named.federated, t)


def test_a_schedule_is_checked_in_every_round_before_a_run(config) -> None:
    with pytest.raises(InputError, match="gives 0.0 in round 2"):
        Setting(vary(config, federated={"schedule": f"{__name__}:to_zero", "rounds": 3})).check()


def test_a_schedule_of_the_users_own_may_rise(config) -> None:
    rates = {"learning_rate": 1.0, "final_learning_rate": 3.0, "rounds": 4}
    named = vary(config, federated={"schedule": f"{__name__}:rising", **rates})
    assert [learning_rate(named.federated, t) for t in (0, 2)] == [1.0, 2.0]
    with pytest.raises(InputError, match="schedules fall"):
        load_config({"federated": {"schedule": "cosine", **rates}})
