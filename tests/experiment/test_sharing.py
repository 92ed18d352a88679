"""Arms share what reads the same keys with the same values: no key is forgotten, none forbids sharing in vain."""

from typing import Any

import pytest

from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import View, all_keys, relevant, value_at
from fedjax_rai.experiment.setting import PARTS, Setting, keys_of
from tests.tiny_runs import vary

# Another valid value of every key whose kind of value does not tell one by itself.
OTHERS: dict[str, Any] = {
    "output": "elsewhere",
    "tracker": "elsewhere:sink",
    "model.path": "owner/name",
    "model.revision": None,  # only of a name on the hub
    "guard.path": "tiny",
    "guard.revision": None,
    "guard.augment": ("leetspeak",),
    "lora.targets": ("q_proj",),
    "lora.layers": (0,),
    "lora.rank_pattern": {"q_proj": 1},
    "lora.alpha_pattern": {"q_proj": 1.0},
    "data.train": "elsewhere.json",
    "data.columns": "alpaca",
    "data.name": "other",
    "data.train_split": "test",
    "data.revision": "other",
    "cai.trigger": 0.5,
    "cai.top_k": 5,
    "cai.top_p": 0.5,
    "cai.min_p": 0.5,
    "cai.prompts_per_chunk": 2,
    "cai.data": "elsewhere",
    "cai.constitution": "elsewhere.yaml",
    "eval.advbench": "elsewhere.csv",
}


def other(key: str, value: Any) -> Any:
    """Another value of a key."""
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 + 0.125 if isinstance(value, float) else value + 1
    if value is None:
        return 1
    section, _, name = key.rpartition(".")
    schema = ExperimentConfig.model_fields[section].annotation.model_json_schema()["properties"][name]  # pyright: ignore
    choices = [*schema.get("enum", ()), f"not {value}"]
    return next(choice for choice in choices if choice != value)


def changed(config: ExperimentConfig, key: str) -> ExperimentConfig:
    """The config with another value of one key, whether or not the two would go together."""
    value = other(key, value_at(config, key))
    section, _, name = key.rpartition(".")
    if not section:
        return config.model_copy(update={name: value})
    inner = getattr(config, section).model_copy(update={name: value})
    return config.model_copy(update={section: inner})


def reads(part: Any, key: str) -> bool:
    return key in keys_of(part) or key.partition(".")[0] in keys_of(part)


VARIED = [key for key in all_keys() if key not in ("model.revision", "guard.revision")]


@pytest.mark.parametrize("key", VARIED)
def test_a_part_is_shared_if_and_only_if_every_key_that_it_reads_is_equal(config, key):
    one, another = config, changed(config, key)
    assert value_at(one, key) != value_at(another, key), "the case changes something"
    for part in PARTS:
        equal = View(one, keys_of(part)) == View(another, keys_of(part))
        assert equal == (not reads(part, key)), part.__name__


def test_a_key_that_is_not_named_cannot_be_read(config):
    view = View(config, ["seed", "data", "cai.probe"])
    assert (view.seed, view.data.max_length, view.cai.probe) == (0, 64, 0)
    for read in (lambda: view.model, lambda: view.cai.iterations):
        with pytest.raises(AttributeError):
            read()


def test_a_setting_takes_over_the_parts_whose_keys_are_equal(config, tmp_path):
    first = Setting(config)
    every = {"models", "texts", "revising", "guarding", "replay"}
    expected = {
        "cai.iterations": every,
        "federated.clients": every,
        "data.packing": every,
        "lora.dropout": every,
        "cai.max_new_tokens": every - {"replay"},
        "cai.constitution": every - {"revising"},
        "cai.data": every - {"revising"},
        "guard.steps": every - {"guarding"},
        "lora.rank": every - {"guarding"},
        "cai.probe": {"models"},
        "seed": {"models"},
        "model.dtype": set(),
    }
    for key, shared in expected.items():
        second = Setting(changed(config, key), first)
        assert {name for name in every if getattr(second, name) is getattr(first, name)} == shared, key


def test_commits_of_the_hub_are_part_of_what_is_shared(config):
    first = Setting(config, pins={"guard_commit": "a"})
    assert Setting(config, first, {"guard_commit": "a"}).models is first.models
    assert Setting(config, first, {"guard_commit": "b"}).models is not first.models


def test_another_number_of_clients_is_another_partition(config):
    first = Setting(config)
    second = Setting(vary(config, federated={"clients": 5}), first)
    assert (len(first.client_rows), len(second.client_rows)) == (4, 5)


@pytest.mark.parametrize("key", all_keys())
def test_every_key_but_where_it_is_written_can_move_a_number(config, key):
    assert (key in relevant(config)) == (key not in ("output", "tracker"))
    assert key not in relevant(config, but=[key])
