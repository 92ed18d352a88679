"""The table: arms as configs, cells, intervals, and what is written."""

import csv
from pathlib import Path

import pytest

from fedjax_rai.config.load import dump_config
from fedjax_rai.errors import InputError
from fedjax_rai.studies.results import Cell, cell, interval
from fedjax_rai.studies.table import ARMS, CONTROLS, arm_config, choose, comparisons, run_table
from tests.tiny_runs import vary


def test_every_arm_is_a_config(config, tmp_path):
    for arm in ARMS | CONTROLS:
        own = arm_config(config, arm, 7, tmp_path)
        assert own.seed == 7 and own.output == str(tmp_path / "seed7" / arm)
    assert arm_config(config, "base", 0, tmp_path).federated.rounds == 0
    flags = {arm: arm_config(config, arm, 0, tmp_path) for arm in ARMS}
    assert [(c.filter.enabled, c.cai.enabled) for c in flags.values()] == [
        (False, False), (False, False), (True, False), (False, True), (True, True),
    ]  # fmt: skip


def test_the_control_on_unrevised_answers_is_one_of_any_config(config, tmp_path):
    for changed in ({"method": "sft+dpo"}, {"data": "revisions"}):
        own = arm_config(vary(config, cai=changed), "fl+unrevised", 0, tmp_path)
        assert (own.cai.method, own.cai.data, own.cai.target) == ("sft", "online", "response")


def test_unknown_arms_are_named():
    with pytest.raises(InputError, match="--arms fl\\+cia: no such arm; did you mean fl\\+cai"):
        choose(["fl", "fl+cia"])
    assert choose(None) == list(ARMS) and choose(["fl", "fl"]) == ["fl"]


def test_intervals_are_students():
    """Three values with standard deviation 1: 4.3027 / sqrt(3)."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)


def test_cells_of_one_seed_take_the_interval_over_prompts():
    one = {"rates": {"x": {"mean": 50.0, "low": 40.0, "high": 60.0}, "y": None}}
    assert cell([one], "x") == Cell(50.0, 40.0, 60.0) and cell([one], "y") is None
    assert str(Cell(50.0, 39.96, 60.0)) == "50.0 [40.0, 60.0]"


def test_comparisons_are_paired_by_seed():
    def summary(mean):
        return {"rates": {"harmless": {"mean": mean}}}

    by_arm = {arm: [summary(m + 10 * s) for s in (0, 1, 2)] for arm, m in (("fl", 50.0), ("fl+filter", 60.0))}
    (line,) = comparisons(["fl", "fl+filter"], by_arm)
    assert line == "harmless, fl+filter - fl: 10.0 [10.0, 10.0] (seeds: +10.0, +10.0, +10.0)"


@pytest.mark.slow
def test_a_table_is_written_and_taken_up_again(config, capsys):
    folder = run_table(config, ["base", "fl+filter+cai"], seeds=2)
    printed = capsys.readouterr().out
    assert "| base " in printed and "SYNTHETIC" in printed and printed.strip().endswith(str(folder))
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert {(row["arm"], row["seed"]) for row in rows} == {(a, s) for a in ("base", "fl+filter+cai") for s in "01"}
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG") and (folder / "table.md").exists()
    before = {p: p.stat().st_mtime_ns for p in folder.glob("seed*/**/*") if p.is_file()}
    run_table(config, ["base", "fl+filter+cai"], seeds=2)
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("seed*/**/*") if p.is_file()}


def test_a_table_does_not_mix_with_another(config):
    folder = Path(config.output)
    folder.mkdir()
    (folder / "table.yaml").write_text(dump_config(config))
    other = config.model_copy(update={"lora": config.lora.model_copy(update={"rank": 3})})
    with pytest.raises(InputError, match="another config, which differs in lora.rank .2 there, 3 now."):
        run_table(other, ["base"], seeds=1)
