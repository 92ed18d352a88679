"""The Python API: light to import, strict, and values of the user's own by names that a run can note."""

from pathlib import Path

import numpy as np
import pytest

import fedjax_rai as rai
from fedjax_rai import api, terminal
from fedjax_rai.cai.constitution import Constitution, Principle, find_constitution
from fedjax_rai.config.files import digests
from fedjax_rai.config.keys import schemas
from fedjax_rai.config.names import look_up
from fedjax_rai.config.schema import DataConfig
from fedjax_rai.config.views import value_at
from fedjax_rai.data.partition import PARTITIONS, iid
from fedjax_rai.runs import files
from tests.processes import succeed


def test_importing_loads_nothing_heavy_and_is_quick() -> None:
    succeed("front_door")


def test_loading_a_config_needs_no_jax() -> None:
    succeed("config_without_jax")


@pytest.mark.parametrize("name", ["run", "table", "sweep", "evaluate", "generate"])
def test_what_computes_silences_libraries_before_it_loads_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silenced(Exception):
        pass

    def silenced() -> None:
        raise Silenced

    monkeypatch.setattr(terminal, "quiet_libraries", silenced)
    with pytest.raises(Silenced):
        getattr(rai, name)("nothing", [])


def test_everything_that_is_offered_is_there_and_nothing_else() -> None:
    assert {name: hasattr(rai, name) for name in rai.__all__} == dict.fromkeys(rai.__all__, True)
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = rai.rum  # pyright: ignore[reportAttributeAccessIssue]


def test_a_config_is_loaded_from_a_file_a_mapping_or_another(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lora: {rank: 4}\n")
    from_file = rai.load_config(tmp_path / "a.yaml", ["seed=2"])
    assert (from_file.lora.rank, from_file.seed, from_file.output) == (4, 2, "runs/a")
    given = {"lora": {"rank": 4}, "seed": 2}
    assert rai.load_config(given) == from_file.model_copy(update={"output": "runs/run"})
    assert given == {"lora": {"rank": 4}, "seed": 2}
    assert rai.load_config(from_file) == rai.load_config(str(tmp_path / "a.yaml"), ["seed=2"]) == from_file


def test_run_table_and_sweep_of_one_loaded_config_have_folders_of_their_own(tmp_path: Path, monkeypatch) -> None:
    """Unless the config, or `output`, names one; a config that was loaded twice or copied is as one that was not."""
    from fedjax_rai.runs import run
    from fedjax_rai.studies import sweep, table

    monkeypatch.setattr(run, "run", lambda config: config.output)
    monkeypatch.setattr(table, "run_table", lambda config, arms, seeds: config.output)
    monkeypatch.setattr(sweep, "run_sweep", lambda points, together: Path(points[0].config.output).parent)

    def folders(config, **given) -> list[str]:
        done = [rai.run(config, **given), rai.table(config, **given), rai.sweep(config, {"seed": [1]}, **given)]
        return [str(each.folder) for each in done]

    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\n")
    config = rai.load_config(path)
    expected = ["runs/a", "runs/a-table", "runs/a-sweep"]
    assert folders(config) == folders(path) == folders(rai.load_config(config, ["seed=2"])) == expected
    assert folders(config.model_copy(update={"seed": 2})) == folders(config, partition=iid) == expected
    assert folders(rai.load_config({})) == ["runs/run", "runs/run-table", "runs/run-sweep"]
    assert folders(rai.load_config(path, ["output=runs/a"])) == folders(config, output="runs/a") == ["runs/a"] * 3
    assert folders(config.model_copy(update={"output": "runs/b"})) == ["runs/b"] * 3


def test_what_is_wrong_with_a_mapping_is_all_said() -> None:
    with pytest.raises(rai.InputError) as caught:
        rai.load_config({"lora": {"rnk": 3}, "guard": None, "seed": -1, "data": 3}, ["cai.prompts=0"])
    assert str(caught.value).split("\n") == [
        "the given config: seed = -1: must be a whole number >= 0 and < 2147483648",
        "the given config: lora.rnk: no such key; did you mean lora.rank?",
        f"the given config: data = 3: must be a section of keys: {', '.join(DataConfig.model_fields)}",
        "override 'cai.prompts=0': cai.prompts = 0: must be a whole number >= 1",
    ]


def test_values_of_the_users_own_are_named_noted_and_found() -> None:
    kind = Constitution((Principle("kind", "Is it kind?", "Make it kind."),))

    def deal(n: int, clients: int, seed: int) -> list[np.ndarray]:
        return [np.arange(i, n, clients) for i in range(clients)]

    plain = rai.load_config({})
    config = api.with_values(plain, {"partition": deal, "constitution": kind})
    noted = digests(config)
    assert config.data.partition.startswith("given:deal_") and config.cai.constitution.startswith("given:Constitution_")
    assert noted["data.partition"].startswith(f"{config.data.partition}, sha256:")
    assert look_up(PARTITIONS, config.data.partition, "data.partition") is deal
    named = api.with_values(plain, {"columns": "alpaca"}), api.with_values(plain, {"columns": lambda row: None})
    assert named[0].data.columns == "alpaca" and named[1].data.columns.startswith("given:")
    by_names = {"prompt": "q", "response": "a"}
    assert api.with_values(plain, {"columns": by_names}).data.columns == by_names
    assert find_constitution(config.cai.constitution) is kind
    assert api.with_values(plain, {"partition": iid}).data.partition == "fedjax_rai.data.partition:iid"
    assert api.with_values(plain, {"partition": "iid"}) == api.with_values(plain, {}) == plain


def test_every_key_that_takes_a_value_of_the_users_own_has_a_word() -> None:
    takers = {key for key, schema in schemas().items() if "attribute" in schema}
    assert takers == {*api.VALUES.values()}


def test_a_method_a_preference_loss_and_a_tracker_are_values() -> None:
    def method(loss) -> None: ...

    def preference(ratios, beta) -> None: ...

    def tracker(folder) -> None: ...

    values = {"method": method, "preference": preference, "tracker": tracker}
    config = api.with_values(rai.load_config({}), values)
    for key in ("cai.method", "cai.preference", "tracker"):
        name = value_at(config, key)
        assert look_up({}, name, key) is values[key.rpartition(".")[2]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"partitoin": iid}, "partitoin: no such value; must be one of algorithm, .*; did you mean partition"),
        ({"partition": np.zeros(3)}, r"given:ndarray.*: is of the type ndarray; must be callable"),
        ({"constitution": iid}, "must be of the type Constitution"),
        ({"aggregator": "weighted_maen"}, "federated.aggregator = 'weighted_maen': .*did you mean weighted_mean"),
        ({"aggregator": 3}, "federated.aggregator = 3: must be "),
    ],
)
def test_a_value_that_its_key_does_not_take_is_refused(values, message) -> None:
    with pytest.raises(rai.InputError, match=message):
        api.with_values(rai.load_config({}), values)


def test_a_sweep_takes_lists_of_values() -> None:
    for wrong in ("0,1", 3):
        with pytest.raises(rai.InputError, match="cai.iterations = .*: must be a list of values to sweep over"):
            rai.sweep({}, {"cai.iterations": wrong})  # pyright: ignore[reportArgumentType]
    with pytest.raises(rai.InputError, match="nothing to sweep"):
        rai.sweep({}, {"cai.iterations": []})


def test_a_prompt_is_not_many() -> None:
    with pytest.raises(rai.InputError, match="must be a list of texts, not one text"):
        rai.generate("tiny", "Hello")
    with pytest.raises(rai.InputError, match="max_nwe: no such setting; .*did you mean max_new"):
        rai.generate("tiny", ["Hello"], max_nwe=3)


def test_a_run_that_is_not_finished_says_so_and_one_that_is_not_there_too(config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(rai.InputError, match=f"{folder}: no run there"):
        rai.open_run(folder)
    folder.mkdir()
    (folder / "config.yaml").write_text(api.load.dump_config(config))
    files.append_row(folder / "metrics.jsonl", {"round": 1, "train_loss": 2.5})
    run = rai.open_run(str(folder))
    assert repr(run) == f"Run('{folder}': 1 rounds, unfinished)"
    assert (run.config, run.metrics, run.answers) == (config, [{"round": 1, "train_loss": 2.5}], [])
    for name in ("summary", "adapter"):
        with pytest.raises(rai.InputError, match="not finished"):
            getattr(run, name)
    rate = {"mean": 50.0, "low": 0.0, "high": 100.0, "prompts": 2}
    files.write_json(folder / "summary.json", {"rates": {"harmless": rate, "utility": None, "hhh": rate}})
    assert repr(run) == f"Run('{folder}': 1 rounds, harmless 50.0)"


def test_a_run_does_not_go_on_with_another_value(config, tmp_path: Path) -> None:
    def dealer(step: int):
        return lambda pairs, clients, seed: [np.arange(i, len(pairs), step) for i in range(clients)]

    folder = tmp_path / "run"
    folder.mkdir()
    begun = api.with_values(config, {"partition": dealer(4)})
    (folder / "config.yaml").write_text(api.load.dump_config(begun))
    with pytest.raises(rai.InputError, match=r"holds a run of another config; [^\n]*\n  data\.partition: 'given:"):
        rai.run(config, partition=dealer(5))
