"""Who trains on what in a round, worked out by hand: cohort, rows, weights, tokens, rates, and when the probe is."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.data.examples import Examples
from fedjax_rai.experiment import round as rounds
from fedjax_rai.experiment.phase import make_options
from fedjax_rai.experiment.round import Federation, play_round
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.together import federated_rounds
from fedjax_rai.fed.base import FedAlgorithm, RoundBatch, ServerState
from tests import small
from tests.tiny_runs import vary


def federation(setting: Setting, kept: list[Any], lengths: list[int] | None = None) -> Federation:
    """Clients who kept those rows of a corpus of examples of those lengths."""
    made = Federation(setting)
    made.kept = [np.asarray(rows, int) for rows in kept]
    vars(made.setting.texts)["lengths"] = np.asarray(lengths or [1] * 1000)
    vars(made.setting.texts)["answer_tokens"] = np.ones(1000, int)
    none: Any = np.zeros((1, 10), np.int32)
    vars(made.setting.texts)["corpus"] = Examples(none, none > 0, none)
    return made


def drawn_rows(made: Federation, t: int) -> dict[int, list[int]]:
    """The rows of each client of round t, in the order in which it trains on them."""
    cohort, _ = made.cohort(t)
    rows = np.asarray(cohort.rows).reshape(len(cohort.client), -1).tolist()
    return dict(zip(np.asarray(cohort.client).tolist(), rows, strict=True))


def test_local_batches_are_drawn_anew_in_every_round_and_by_every_client(config, arm):
    """Four clients of the same thousand rows, two steps of two rows each, three rounds."""
    made = federation(arm(vary(config, federated={"cohort": 4})), [range(1000)] * 4)
    drawn = [rows for t in range(3) for rows in drawn_rows(made, t).values()]
    assert all(len(set(rows)) == 4 for rows in drawn), "none twice while there are others"
    assert len({tuple(rows) for rows in drawn}) == 12
    assert drawn_rows(made, 1) == drawn_rows(made, 1), "but a round by itself always draws the same"


def test_a_client_of_few_rows_uses_them_up_before_it_takes_one_again(config, arm):
    """Eight rows of a round from three: each twice, and two of them once more."""
    alone = {"clients": 1, "cohort": 1, "local_steps": 4}
    made = federation(arm(vary(config, federated=alone)), [[5, 6, 7]])
    for t in range(3):
        (rows,) = drawn_rows(made, t).values()
        assert sorted(rows[:3]) == sorted(rows[3:6]) == [5, 6, 7] and len(set(rows[6:])) == 2


def test_a_cohort_is_drawn_anew_in_every_round_nobody_twice(config, arm):
    made = federation(arm(vary(config, federated={"clients": 30, "cohort": 10})), [[0]] * 30)
    cohorts = [np.asarray(made.cohort(t)[0].client).tolist() for t in range(4)]
    assert all(len(set(clients)) == 10 for clients in cohorts)
    assert len({frozenset(clients) for clients in cohorts}) == 4


def test_a_client_reports_the_number_of_examples_that_it_kept(config, arm):
    """Of a round of four rows, whatever the weight: clients who kept 3, 0, 7 and 1."""
    made = federation(arm(vary(config, federated={"cohort": 4, "weight": "examples"})), [[1, 2, 3], [], range(7), [9]])
    cohort, _ = made.cohort(0)
    weights = dict(zip(np.asarray(cohort.client).tolist(), np.asarray(cohort.weight).tolist(), strict=True))
    assert weights == {0: 3, 1: 0, 2: 7, 3: 1}


def test_a_client_without_an_answer_token_has_nothing_to_train_on(config, arm):
    """Answers of rows 1 and 2 were cut off: clients with 1 and 2, with none, with 2 and 3, with 0."""
    setting = arm(vary(config, federated={"cohort": 4, "weight": "examples"}, cai={"enabled": False}))
    made = federation(setting, [[1, 2], [], [2, 3], [0]])
    vars(made.setting.texts)["answer_tokens"] = np.array([5, 0, 0, 4])
    cohort, _ = made.cohort(0)
    weights = dict(zip(np.asarray(cohort.client).tolist(), np.asarray(cohort.weight).tolist(), strict=True))
    assert weights == {0: 0, 1: 0, 2: 2, 3: 1}
    made.algorithm = stepping()
    vars(made.setting.texts)["corpus"] = small.corpus()
    end = play_round([made], [ServerState({"x": jnp.float32(1.0)}, ())], 1)[0][0]
    assert end.outcome.local["without_data"] == 2
    made.kept[0] = made.kept[1] = np.array([3])
    end = play_round([made], [ServerState({"x": jnp.float32(1.0)}, ())], 0)[0][0]
    assert "without_data" not in end.outcome.local


@pytest.mark.parametrize("packing", [False, True])
def test_tokens_of_the_local_steps_are_those_of_all_batches_packed_or_not(config, arm, packing):
    """Clients of one row each, six times a round: rows of 2, 3 and 5 tokens; one of 7 that its client dropped.

    Packed to 10 tokens, three of 5 take two rows, and places of a row stay empty.
    """
    setting = arm(vary(config, federated={"cohort": 4, "batch_size": 3}, data={"packing": packing}))
    made = federation(setting, [[0], [1], [2], []], [2, 3, 5, 7])
    cohort, counts = made.cohort(0)
    assert counts["step_tokens"] == 6 * (2 + 3 + 5)
    assert cohort.rows.ndim == (4 if packing else 3)


def filtered_rows(setting: Setting) -> list[list[int]]:
    """What two clients keep of rows 0, 1, 2 and 3, 4 with scores 0.2, 0.6, none, 0.5 and 0.49."""
    setting.client_rows = [np.array([0, 1, 2]), np.array([3, 4])]
    vars(setting.guarding)["exchange_scores"] = np.array([0.2, 0.6, np.nan, 0.5, 0.49], np.float32)
    return [rows.tolist() for rows in Federation(setting).kept]


def test_what_a_filter_keeps(config, arm):
    """A score at the threshold of 0.5 is unsafe; no score is never safe; the control drops nothing."""
    assert filtered_rows(arm(vary(config, filter={"enabled": True}))) == [[0], [4]]
    later = {"filter": {"enabled": True}, "guard": {"threshold": 0.625}}
    assert filtered_rows(arm(vary(config, **later))) == [[0, 1], [3, 4]]
    assert filtered_rows(arm(vary(config, filter={"enabled": True, "action": "keep"}))) == [[0, 1, 2], [3, 4]]
    assert filtered_rows(arm(vary(config, filter={"enabled": False}))) == [[0, 1, 2], [3, 4]]


def test_the_clients_rate_is_that_of_the_round(config, arm):
    """From 8 to 2 in four rounds by half a cosine: 5 in the middle."""
    falling = {"schedule": "cosine", "learning_rate": 8.0, "final_learning_rate": 2.0, "rounds": 4}
    made = Federation(arm(vary(config, federated=falling)))
    assert [float(made.learning_rate(t)) for t in (0, 2)] == [8.0, 5.0]


def test_every_round_drops_other_inputs(config, arm):
    made = Federation(arm(vary(config, lora={"dropout": 0.25})))
    drops = [made.dropout(t) for t in range(3)]
    assert all(drop is not None and float(drop.rate) == 0.25 for drop in drops)
    assert len({str(drop and drop.key) for drop in drops}) == 3


def stepping() -> FedAlgorithm:
    """Takes the learning rate off the adapter."""

    def round(state: ServerState, lm: Any, batch: RoundBatch) -> tuple[ServerState, dict[str, Any]]:
        return state._replace(adapter={"x": state.adapter["x"] - batch.learning_rate}), {"train_loss": jnp.zeros(())}

    return FedAlgorithm(lambda adapter: ServerState(adapter, ()), round)


def test_runs_that_go_together_have_each_its_rate():
    """1 and 2, less 0.25 and 0.5; the rate of the batch is nobody's."""
    states = [ServerState({"x": jnp.float32(x)}, ()) for x in (1.0, 2.0)]
    batch = RoundBatch(small.corpus(), small.cohort([0]), jnp.float32(100.0))
    ends = federated_rounds(stepping(), states, small.LM, batch, [jnp.float32(0.25), jnp.float32(0.5)])
    assert [float(state.adapter["x"]) for state, _ in ends] == [0.75, 1.5]


def test_the_probe_is_of_the_adapter_that_the_round_left_and_before_its_phase(config, arm, monkeypatch):
    """1 less a rate of 0.25; the phase would come after every second round."""
    made = Federation(arm(vary(config, cai={"probe": 4, "every": 2}, federated={"learning_rate": 0.25})))
    made.algorithm = stepping()
    none = jnp.zeros((1, 4), jnp.int32)
    vars(made.setting.texts)["corpus"] = Examples(none, none.astype(bool), none)
    vars(made.setting.texts)["lengths"] = np.ones(40, int)
    vars(made.setting.texts)["answer_tokens"] = np.ones(40, int)
    monkeypatch.setattr(rounds, "probe", lambda setting, prompts, adapter: {"probe_harmless": float(adapter["x"])})
    (((_, outcome),), _) = play_round([made], [ServerState({"x": jnp.float32(1.0)}, ())], 0)
    assert outcome.local["probe_harmless"] == 0.75 and outcome.cai is None


def test_the_host_has_done_its_part_before_it_waits_for_a_probe(config, arm, monkeypatch):
    """The phase's prompts and the next round's rows are drawn while the device trains, and not again when it is due."""
    made = Federation(arm(vary(config, cai={"probe": 4, "every": 2}, federated={"rounds": 3})))
    calls: list[str] = []

    def call(name: str, result: Any = None) -> Any:
        calls.append(name)
        return result

    trained = ServerState({}, ()), {"train_loss": jnp.zeros(())}
    monkeypatch.setattr(rounds, "federated_round", lambda *_: call("train", trained))
    monkeypatch.setattr(rounds, "probe", lambda *_: call("probe", {"probe_harmless": 0.5}))
    monkeypatch.setattr(rounds, "_aligned", lambda federation, end, t, counts: call(f"phase {t}", [end]))
    vars(made)["cohort"] = lambda t: call(f"cohort {t}", (small.cohort([0]), {"step_tokens": 7}))
    vars(made)["phase"] = SimpleNamespace(prepare=lambda t: call(f"prompts {t}"))
    for t in range(3):
        ((end,), _) = play_round([made], [trained[0]], t)
        assert end.outcome.local["step_tokens"] == 7
    assert calls == [
        "cohort 0", "train", "cohort 1", "probe",
        "train", "prompts 1", "cohort 2", "probe", "phase 1",
        "train", "probe",
    ]  # fmt: skip


def test_a_round_that_was_prepared_is_what_it_would_have_been(config, arm):
    made = federation(arm(vary(config, federated={"cohort": 4})), [range(1000)] * 4)
    (expected, counts), other = made.cohort(3), made.cohort(2)[0]
    made.prepare(3)
    (found, found_counts), unprepared = made.drawn(3), made.drawn(2)[0]
    assert found_counts == counts
    for a, b in zip((*found, *unprepared), (*expected, *other), strict=True):
        np.testing.assert_array_equal(a, b)


OPTIONS = [
    # (a key of section cai, its value, the option that it sets, the option's value)
    ("critic", "policy", "critic_is_policy", True),
    ("critic", "base", "critic_is_policy", False),
    ("target", "revision", "train_on_revisions", True),
    ("target", "response", "train_on_revisions", False),
    ("reference", "base", "reference_is_base", True),
    ("reference", "round", "reference_is_base", False),
    ("max_new_tokens", 7, "max_new", 7),
    ("batch_size", 3, "batch_size", 3),
]


@pytest.mark.parametrize(("key", "value", "option", "expected"), OPTIONS)
def test_who_criticises_and_what_is_learnt_is_as_configured(config, arm, key, value, option, expected):
    setting = arm(vary(config, cai={key: value}))
    assert getattr(make_options(setting, setting.config), option) == expected
