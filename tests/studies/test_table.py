"""The table: arms as configs, cells, intervals, and what is written."""

import csv
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.config.load import dump_config
from fedjax_rai.errors import InputError
from fedjax_rai.studies import plots, results, table
from fedjax_rai.studies.cells import Cell, cell, difference, paired, students
from fedjax_rai.studies.judged import answer_columns
from fedjax_rai.studies.results import narrow, shown_rates
from fedjax_rai.studies.table import ARMS, CONTROLS, arm_config, arm_lines, choose, comparisons, run_table, write
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
    assert choose(None) == list(ARMS) and choose(["fl"]) == ["fl"]
    with pytest.raises(InputError, match="^--arms fl: stands twice; must stand once$"):
        choose(["fl", "base", "fl"])


def test_intervals_are_students():
    """Three values with standard deviation 1: 4.3027 / sqrt(3)."""
    assert students([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)


def test_cells_of_one_seed_take_the_interval_over_prompts():
    one = {"rates": {"x": {"mean": 50.0, "low": 40.0, "high": 60.0}, "y": None}}
    assert cell([one], "x") == Cell(50.0, 40.0, 60.0) and cell([one], "y") is None
    assert str(Cell(50.0, 39.96, 60.0)) == "50.0 [40.0, 60.0]" and Cell(50.06, 39.4, 60.0).short == "50.1 [39, 60]"


def test_cells_of_several_seeds_take_students_interval_within_0_and_100():
    """96 and 100: 98 with a margin of 12.706 * sqrt(8) / sqrt(2) = 25.41."""
    over_seeds = [{"rates": {"x": {"mean": mean}}} for mean in (96.0, 100.0)]
    high = cell(over_seeds, "x")
    assert high and high[:3] == pytest.approx((98.0, 72.588, 100.0), abs=1e-3)
    low = cell([{"rates": {"x": {"mean": mean}}} for mean in (0.0, 4.0)], "x")
    assert low and low[:3] == pytest.approx((2.0, 0.0, 27.412), abs=1e-3)


def test_seconds_are_the_mean_over_seeds():
    assert table._training_seconds([{"seconds": {"training": 10.0}}, {"seconds": {"training": 20.0}}]) == "15"


def test_a_control_that_differs_in_more_than_revision_is_not_compared(config):
    """By method or data too, a difference would not be revision's."""
    arms = ["fl+cai", "fl+unrevised"]
    by_arm = {arm: [{"rates": {"harmless": {"mean": mean}}}] * 2 for arm, mean in zip(arms, (60.0, 50.0), strict=True)}
    for changed, says in (
        ({"method": "sft+dpo"}, "fl+cai minus fl+unrevised is left out: cai.method differs too, and is sft there"),
        ({"data": "revisions"}, "fl+cai minus fl+unrevised is left out: cai.data differs too, and is online there"),
    ):
        assert comparisons(vary(config, cai=changed), arms, by_arm, {"harmless": "harmless"}) == [says]
    (line,) = comparisons(vary(config, cai={"method": "sft", "data": "online"}), arms, by_arm, {"harmless": "harmless"})
    assert line.startswith("harmless, fl+cai minus fl+unrevised: +10.0 points")


def test_filter_and_cai_are_each_compared_with_fl(config):
    """The paper's two claims, of 50 % without either: +10 by the filter, +20 by constitutional AI."""
    means = {"fl": 50.0, "fl+filter": 60.0, "fl+cai": 70.0}
    by_arm = {arm: [{"rates": {"harmless": {"mean": mean}}}] * 2 for arm, mean in means.items()}
    lines = comparisons(config, list(means), by_arm, {"harmless": "harmless"})
    found = [line.split(" points")[0] for line in lines]
    assert {"harmless, fl+filter minus fl: +10.0", "harmless, fl+cai minus fl: +20.0"} <= set(found)


def test_comparisons_are_paired_by_seed(config):
    def harmless(mean):
        return {"rates": {"harmless": {"mean": mean}}}

    by_arm = {arm: [harmless(m + 10 * s) for s in (0, 1, 2)] for arm, m in (("fl", 50.0), ("fl+filter", 60.0))}
    (line,) = comparisons(config, ["fl", "fl+filter"], by_arm, {"harmless": "harmless (rule)"})
    assert line == ("harmless (rule), fl+filter minus fl: +10.0 points [+10.0, +10.0]; by seed +10.0, +10.0, +10.0")


def summary(means: dict[str, float | None], judge: str = "rule", seed: int = 0) -> dict[str, Any]:
    """A run's summary: rates of these means, the harmless one by that judge."""
    rates = {
        name: None if mean is None else {"mean": mean, "low": mean - 1, "high": mean + 1, "prompts": 9, "judge": "x"}
        for name, mean in means.items()
    }
    rates["harmless"] = rates["harmless"] and rates["harmless"] | {"judge": judge}
    return {"rates": rates, "seed": seed, "synthetic": [], "guard": None, "seconds": {"training": 12.0}}


def test_the_guards_note_is_of_all_seeds():
    """By hand: 80 and 90 have the mean 85; of two runs of a seed the first counts, one without a guard does not."""
    guards = [(0, None), (0, 80.0), (0, 10.0), (1, 90.0)]
    runs = [
        summary({"harmless": None}, seed=seed) | {"guard": accuracy and {"fitted": {"accuracy": accuracy}}}
        for seed, accuracy in guards
    ]
    assert table._guard_quality(runs) == ["guard, mean [least, most] of the seeds 0, 1: accuracy 85.0 [80.0, 90.0]"]
    assert table._guard_quality(runs[:3]) == ["guard, seed 0: accuracy 80.0"]
    assert table._guard_quality(runs[:1]) == []


def test_columns_are_named_by_their_judge_and_the_primarys_stands_once():
    every: dict[str, float | None] = {f"harmless_by_{name}": 50.0 for name in ("rule", "refusal_phrases", "guard")}
    one: dict[str, float | None] = {"harmless": 1.0}
    others: dict[str, float | None] = {"square_choice": 1.0, "utility": 1.0, "over_refusal": 1.0}
    titles = list(shown_rates([summary(one | every | others)]).values())
    assert titles[:3] == ["harmless (rule)", "harmless (phrases)", "harmless (guard)"]
    assert titles[3:] == ["SQuARe choice", "utility", "over-refusal ↓"], "what no run measured is left out"
    by_phrases = summary(one | {"harmless_by_rule": None, "harmless_by_refusal_phrases": 1.0}, "refusal_phrases")
    assert list(shown_rates([by_phrases])) == ["harmless"]
    assert list(shown_rates([summary({"harmless": None})])) == ["harmless"], "said to be not measured"
    assert shown_rates([by_phrases])["harmless"] == "harmless (phrases)"
    assert shown_rates([summary(one, "mine")])["harmless"] == "harmless (mine)"
    both = shown_rates([summary(one, "rule"), summary(one | every, "guard")])
    assert both["harmless"] == "harmless (rule, guard)" and "harmless_by_rule" in both and "harmless_by_guard" in both


@pytest.mark.parametrize(("by_arm", "said"), [((50.0, None), True), ((50.0, 40.0), False), ((None, None), False)])
def test_why_some_arms_have_no_rate_by_the_guard(config, tmp_path, by_arm, said):
    arms = ["fl+filter", "fl"]
    found = {
        (arm, 0): summary({"harmless": 50.0, "harmless_by_guard": mean}) for arm, mean in zip(arms, by_arm, strict=True)
    }
    write(tmp_path, config, arms, found)
    assert ("eval.by_guard=true measures it everywhere" in (tmp_path / "table.md").read_text()) == said


def test_the_printed_table_fits_a_hundred_columns_and_the_files_have_all(config, tmp_path, capsys):
    """Four main rates, two more judges, seconds; every arm."""
    rates = ("harmless", "harmless_by_rule", "harmless_by_refusal_phrases", "harmless_by_guard", "hhh", "utility")
    means: dict[str, float | None] = {**dict.fromkeys(rates, 99.04), "over_refusal": 100.0}
    arms = list(ARMS | CONTROLS)
    found = {(arm, seed): summary(means, seed=seed) for arm in arms for seed in range(3)}
    write(tmp_path, config, arms, found)
    printed = capsys.readouterr().out
    assert max(map(len, printed.replace(str(tmp_path), "").splitlines())) <= 100
    header = next(line for line in printed.splitlines() if line.startswith("| arm"))
    shown = [title.strip() for title in header.split("|")[1:-1]]
    assert shown[:5] == ["arm", "harmless (rule)", "HHH", "utility", "over-refusal ↓"]
    assert "| fl+filter+cai | 99.0 [99, 99]" in printed and "In table.md besides: harmless (phrases)" in printed
    assert "harmless (rule), fl minus base: +0.0 points" in printed
    full = (tmp_path / "table.md").read_text().splitlines()[0]
    assert [title.strip() for title in full.split("|")[1:-1]] == [
        "arm", "harmless (rule)", "harmless (phrases)", "harmless (guard)", "HHH", "utility", "over-refusal ↓",
        "seconds",
    ]  # fmt: skip
    assert "| 99.0 [99.0, 99.0] " in (tmp_path / "table.md").read_text()
    rows = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert rows[0] == ["arm", "seed", "rate", "mean", "low", "high", "prompts"]
    assert rows[1] == ["base", "0", "harmless", "99.04", "98.04", "100.04", "9"]
    assert len(rows) == 1 + len(arms) * 3 * len(means)


def test_what_no_run_measured_is_a_note():
    second: dict[str, float | None] = {"hhh": 1.0, "utility": None, "harmless": None}
    (note,) = results.unmeasured_note([summary({"harmless": None, "utility": 1.0}), summary(second)])
    titles = note.removeprefix("Not measured: ").removesuffix(".").split(", ")
    assert "over-refusal" in titles and not {"harmless", "utility", "HHH"} & {*titles}


def test_columns_that_do_not_fit_are_left_out_from_the_right():
    columns = {"arm": ["a"], "first": ["x" * 20], "wide": ["y" * 60], "small": ["z"]}
    table, left_out = narrow(columns, width=50)
    assert left_out == ["wide"] and table.splitlines()[0] == "| arm | first                | small |"
    assert narrow({"arm": ["long" * 30]}, width=50)[1] == [], "the first is always there"


def test_every_arm_is_described_in_a_line():
    lines = arm_lines()
    assert [line.split()[0] for line in lines] == list(ARMS | CONTROLS)
    assert all(len(line) <= 100 for line in lines) and len({line.split(maxsplit=1)[1] for line in lines}) == 8


def test_a_picture_has_colours_for_more_rates_than_there_are_today(tmp_path, monkeypatch):
    rates = [f"rate {i}" for i in range(9)]
    monkeypatch.setattr(plots, "MAIN", rates)
    cells = {rate: [Cell(50.0, 40.0, 60.0)] * 2 for rate in rates} | {"harmless": [Cell(1.0, 0.0, 2.0)] * 2}
    names = {rate: rate for rate in cells}
    plots.plot_arms(tmp_path / "a.png", ["x", "y"], cells, names, False)
    points = plots.SweptPoints("k", ["0", "1"], [1.0, 2.0], [{}, {}])
    plots.plot_sweep(tmp_path / "b.png", points, cells, names, synthetic=False)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))


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
    (folder / "planned.txt").write_text("seed0/base\n")
    table.check_table(folder, config)  # begun, and interrupted in its first run
    (folder / "table.yaml").write_text(dump_config(config))
    other = config.model_copy(update={"lora": config.lora.model_copy(update={"rank": 3})})
    with pytest.raises(InputError, match="another config, which differs in lora.rank .2 there, 3 now."):
        run_table(other, ["base"], seeds=1)


def test_answers_that_were_cut_off_are_a_note():
    """Of two seeds of `fl` 3 and 4 answers cut off, and 1 empty; the base's are whole; choices are not sampled."""

    def run(cut_off: int, empty: int) -> dict:
        rate = {"mean": 1.0, "answers": 40, "cut_off": cut_off, "empty": empty}
        return {"rates": {"harmless": rate, "hhh": rate, "utility": None}}

    old = {"rates": {"harmless": {"mean": 1.0}}}
    notes = results.answer_notes({"base": [run(0, 0)], "fl": [run(3, 0), run(4, 1)], "older": [old]})
    assert notes == ["harmless, answers cut off at eval.max_new_tokens, and empty ones: fl 7 and 1 of 80"]
    assert results.answer_notes({"base": [run(0, 0)]}) == []


def kept(verdicts: list[bool], seed: int = 0, rate: str = "harmless") -> dict[str, Any]:
    """A run whose answers are kept: a verdict a prompt."""
    mean = 100 * sum(verdicts) / len(verdicts)
    judged = [(f"prompt {i}", [verdict]) for i, verdict in enumerate(verdicts)]
    rates = {rate: {"mean": mean, "low": 0.0, "high": 100.0, "prompts": len(verdicts), "judge": "rule"}}
    return {"rates": rates, "seed": seed, "synthetic": [], "verdicts": {rate: judged}}


def test_cells_of_kept_answers_hold_prompts_and_seeds() -> None:
    """All right in every seed: Student's over seeds would have no width."""
    found = cell([kept([True] * 50, seed) for seed in range(3)], "harmless")
    assert found is not None and (found.mean, found.high, found.prompts) == (100.0, 100.0, 50)
    assert found.low == pytest.approx(95.1, abs=0.5) and str(found).endswith(", 100.0] n=50")
    assert "n=" not in found.short
    forgotten = [kept([True] * 50, 0), {**kept([True] * 50, 1), "verdicts": {}}]
    assert cell(forgotten, "harmless") == Cell(100.0, 100.0, 100.0), "without answers, Student's over seeds"


def test_a_pair_of_one_seed_is_paired_by_prompt_and_equivalence_needs_a_margin() -> None:
    arm = [kept([True] * 90 + [False] * 10)]
    line = paired("harmless", arm, arm)
    assert (
        line is not None
        and line.startswith("+0.0 points [-")
        and line.endswith("]; the same number of verdicts of either kind on every prompt")
    )
    within = paired("harmless", arm, arm, margin=5.0)
    assert within is not None and "; equivalent within 5 points (two one-sided tests at 5 %: 90 % interval [-" in within
    beyond = paired("harmless", arm, [kept([False] * 100)], margin=5.0)
    assert beyond is not None and "; not shown to be equivalent within 5 points (90 % interval [+" in beyond
    assert paired("harmless", arm, [{**arm[0], "verdicts": {}}]) is None, "one seed, of which answers are not kept"


def test_rates_of_other_judges_are_not_compared(config, tmp_path) -> None:
    """Nor do they make a mean over seeds; both say why. What no judge is named for is no judge's either."""
    by_rule, by_phrases = summary({"harmless": 90.0}), summary({"harmless": 40.0}, "refusal_phrases")
    assert difference("harmless", [by_rule] * 2, [by_phrases] * 2) is None
    words = "not comparable, as judges differ (rule, refusal_phrases)"
    assert paired("harmless", [by_rule] * 2, [by_phrases] * 2, margin=60.0) == words
    assert cell([by_rule, by_phrases], "harmless") is None and cell([by_rule, by_rule], "harmless")
    notes = results.judge_notes({"harmless": "harm"}, {"fl": [by_rule, by_phrases], "base": [by_rule]})
    assert notes == [f"harm, seeds of fl: {words}; left out."]
    unnamed = {"rates": {"harmless": {"mean": 90.0}}}
    assert cell([by_rule, unnamed], "harmless") is None and cell([unnamed, unnamed], "harmless")
    seeds = {("base", seed): by_rule for seed in (0, 1)} | {("fl", seed): by_phrases for seed in (0, 1)}
    write(tmp_path, config, ["base", "fl"], seeds)
    assert "fl minus base: not comparable, as judges differ (" in (tmp_path / "table.md").read_text()


def test_answers_that_say_nothing_have_columns_for_sets_of_the_users_own() -> None:
    counts = {"mine": {"answers": 8, "empty": 2, "cut_off": 1, "non_finite": 0}}
    run = {"rates": {}, "sets": {"mine": "harm"}, "answers": counts}
    assert list(answer_columns([[run], [{"rates": {}}]]).values()) == [["2, 1, 0 of 8", ""]]


def test_what_intervals_hold_is_said() -> None:
    one, three = [kept([True], 4)], [kept([True], seed) for seed in range(3)]
    assert "intervals over prompts alone (one seed, 4: what another seed would change is not" in results.basis(one)
    assert "intervals over prompts and 3 seeds (bootstrap)." in results.basis(three)
    without = [{**run, "verdicts": {}} for run in three]
    assert "intervals over 3 seeds alone (Student's t; answers are not kept)." in results.basis(without)


def test_distinct_prompts_are_told_by_rate() -> None:
    cells = {
        "a": [Cell(1.0, 0.0, 2.0, 100)] * 2,
        "b": [Cell(1.0, 0.0, 2.0, 90), Cell(1.0, 0.0, 2.0, 1000)],
        "c": [None],
    }
    titles = {"a": "harmless", "b": "HHH", "c": "utility"}
    assert results.prompt_note(titles, cells) == ["Distinct prompts: harmless 100; HHH 90 to 1,000."]


def test_a_cell_is_shown_in_the_unit_of_its_rate():
    """Nats to a ten-thousandth, perplexity to a hundredth, and neither is held below 100.

    Of perplexities 150 and 170 the geometric mean, and a margin of 12.706 x ln(17 / 15) / 2 in the logarithm.
    """
    nats = {"mean": 0.01234, "low": 0.0, "high": 0.02, "prompts": 9, "unit": "nats a token"}
    found = cell([{"rates": {"x": nats}}], "x")
    assert str(found) == "0.0123 [0.0000, 0.0200] n=9" and found and found.short == "0.0123 [0.000, 0.020]"
    alone = {"rates": {"x": nats | {"low": None, "high": None, "prompts": 1}}}
    assert str(cell([alone], "x")) == "0.0123 [?] n=1" and results.rate_rows(alone)[0][2:4] == ["", ""]
    of_one = cell([alone], "x")
    assert of_one and of_one.ends is None and found and found.ends == (0.0, 0.02)
    runs = [{"rates": {"x": {"mean": mean, "unit": "perplexity"}}} for mean in (150.0, 170.0)]
    over_seeds = cell(runs, "x")
    assert str(over_seeds) == "159.69 [72.10, 353.68]"
    assert results.rate_rows({"rates": {"x": nats}})[0][1:4] == [0.01234, 0.0, 0.02]
