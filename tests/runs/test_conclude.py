"""What a summary says of a run's rounds, worked out by hand: the filter's shares, costs by phase, clients left out."""

from collections.abc import Sequence

import numpy as np
import pytest

from fedjax_rai.data.sources import Pair
from fedjax_rai.experiment import cost
from fedjax_rai.experiment.cost import Epoch, Parameters
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import conclude, files, rows
from fedjax_rai.runs.conclude import cost_of, filtered, guard_quality, pairs_of, seconds_of, summarize
from fedjax_rai.runs.rows import Filtered, PairCounts, Probe
from tests.tiny_runs import PHASE, ROUND, vary


def scored(setting: Setting, harmful: Sequence[bool | None], scores: list[float]) -> Setting:
    """A setting whose clients' pairs are harmful or not, and have these scores; one pair of four to each client."""
    pairs = [Pair("q", "r", value, "x") for value in harmful]
    setting.texts.materials = setting.texts.materials._replace(pairs=pairs)
    setting.client_rows = np.array_split(np.arange(len(pairs)), 4)
    vars(setting.guarding).pop("scores", None)
    vars(setting.guarding)["exchange_scores"] = np.array(scores, np.float32)
    return setting


def test_what_the_filter_left_by_hand(config):
    """Of eight pairs, four harmful: three safe ones and one harmful are kept, one has no score, three are dropped."""
    harmful = [True, True, True, True, False, False, False, False]
    scores = [0.1, 0.9, 0.8, np.nan, 0.2, 0.3, 0.4, 0.5]
    setting = scored(Setting(vary(config, filter={"enabled": True}, guard={"threshold": 0.5})), harmful, scores)
    assert filtered(setting) == Filtered(kept=4, dropped=4, without_score=1, harmful_share_kept=0.25)
    nothing = scored(setting, harmful, [0.9] * 8)
    assert filtered(nothing) == Filtered(kept=0, dropped=8, without_score=0, harmful_share_kept=None)
    partly = scored(setting, harmful, scores)
    partly.client_rows = [np.array([0, 1]), np.array([4]), np.array([], int), np.array([7])]
    assert filtered(partly) == Filtered(kept=2, dropped=2, without_score=0, harmful_share_kept=0.5)


def test_the_guards_quality_is_told_by_who_it_is_of(config):
    setting = Setting(config)
    fitted, released = ({"accuracy": x, "precision": x, "recall": x, "hmean": x} for x in (90.0, 60.0))
    vars(setting.guarding)["quality"] = {"fitted": fitted, "released": released}
    told = guard_quality(setting)
    assert told and told.fitted and (told.fitted.accuracy, told.released.accuracy) == (90.0, 60.0)


def test_what_has_no_label_is_in_no_share(config):
    """Of six pairs two are harmful, one is acceptable, three have no label; one of each kind is kept."""
    labels = [True, True, False, None, None, None]
    scores = [0.1, 0.9, 0.2, 0.9, 0.9, 0.3]
    setting = Setting(vary(config, filter={"enabled": True}, guard={"threshold": 0.5}))
    assert filtered(scored(setting, labels, scores)).harmful_share_kept == 0.5
    unlabelled = scored(setting, [None] * 6, scores)
    assert filtered(unlabelled) == Filtered(kept=3, dropped=3, without_score=0, harmful_share_kept=None)
    assert guard_quality(unlabelled) is None


ROUNDS = [
    ROUND._replace(round=1, seconds=100.0, local_seconds=60.0, cai_seconds=30.0, probe=Probe(0.5, 10.0), cai=PHASE),
    ROUND._replace(round=2, seconds=9.0, local_seconds=4.0, probe=Probe(0.5, 1.0)),
    ROUND._replace(
        round=3, seconds=7.0, local_seconds=2.0, cai_seconds=3.0, probe=Probe(0.5, 2.0),
        cai=PHASE._replace(usable=0),
    ),
]  # fmt: skip


def test_costs_are_those_of_each_phase(config, monkeypatch):
    """220 FLOPs a token forward, 460 a step (100 and 10 parameters). A phase generates and reads 100 tokens and takes
    80 through its steps, local training 90 a round; the second phase had nothing usable.
    """
    monkeypatch.setattr(cost, "parameters", lambda *_: Parameters(kernels=100, unembedding=40, adapter=10, remat=False))
    monkeypatch.setattr(cost, "full_epoch", lambda _: Epoch(20, prompts=10, replay=0, batch_size=5, iterations=2))
    found = cost_of(Setting(config), ROUNDS)
    assert (found.local.flops, found.local.step_tokens, found.local.seconds) == (3 * 90 * 460, 270, 3 * 3.0)
    assert found.probe == (3, 3 * 1.5)
    assert found.cai is not None
    phase = 100 * 220 + 80 * 460
    assert (found.cai.flops, found.cai.phases, found.cai.untrained_phases) == (2 * phase, 2, 1)
    assert (found.cai.generated_tokens, found.cai.read_tokens, found.cai.seconds) == (60, 140, 2 * 3.0)
    full = 2 * 100 * 220 + 2 * 80 * 460  # twice the prompts; 4 iterations in place of 2
    assert found.cai.full_epoch_flops == full
    assert found.cai.share_saved == pytest.approx(1 - 2 * phase / full)
    plain = cost_of(Setting(config), [ROUND])
    assert plain.probe is None and plain.cai is None


def test_seconds_of_training_leave_out_the_round_that_compiles():
    """100, 9 and 7: three times 8, and 116 in all; the first step 12.3 after the start, where that is known."""
    assert seconds_of(ROUNDS, 2.5) == (24.0, 116.0, 2.5, None)
    assert seconds_of([ROUNDS[0]._replace(start_seconds=12.3), *ROUNDS[1:]], 2.5).start == 12.3
    assert seconds_of([], 2.5).start is None


def test_what_became_of_conversations_is_summed_over_phases():
    """PHASE: 3 pairs and one cut off of 4; then 1 pair, 2 cut off, 3 equal and 4 empty of 10; prepared ones of 5."""
    second = PHASE._replace(pairs=1, usable=2, cut_off=2, equal=3, empty=4)
    found = pairs_of([PHASE, second])
    assert found == PairCounts(14, pairs=4, usable=5, held_out=0, cut_off=3, empty=4, equal=3)
    prepared = PHASE._replace(pairs=2, usable=2, cut_off=1, equal=0, empty=None, held_out=2)
    assert pairs_of([prepared]) == PairCounts(5, pairs=2, usable=2, held_out=2, cut_off=1, empty=0, equal=0)
    assert pairs_of([]) is None


def test_a_summary_adds_up_the_clients_that_diverged(config, monkeypatch, tmp_path):
    """Two in the first round, none in the second, one in the third; one example of three was cut."""
    setting = Setting(config)
    vars(setting.texts)["_encoded"] = (None, np.array([True, False, False]))
    monkeypatch.setattr(conclude, "cost_of", lambda *_: cost_of(setting, [ROUND]))
    diverged = [row._replace(diverged=float(number)) for row, number in zip(ROUNDS, (2, 0, 1), strict=True)]
    files.write_rows(tmp_path / "metrics.jsonl", [rows.flat(row) for row in diverged])
    summary = summarize(setting, tmp_path, {"hhh": None}, 2.5)
    assert (summary.diverged_clients, summary.truncated_examples, summary.critique) == (3, 1, None)
    assert summary.guard is summary.filter is None, "there was no filter"
