"""Means that are no rates in tables and reports: cells, paired differences and their units, pictures."""

from math import log
from typing import Any

import pytest

from fedjax_rai.evals.evaluation import ConversationRow, TokensRow
from fedjax_rai.evals.intervals import Difference
from fedjax_rai.evals.means import MARK, NATS, PERPLEXITY
from fedjax_rai.studies import report_pictures
from fedjax_rai.studies.cells import (
    TEMPERATURE,
    Cell,
    cell,
    difference,
    equivalence,
    incomparable,
    paired,
    with_answers,
)
from fedjax_rai.studies.report_parts import _gap_fields
from fedjax_rai.studies.table import comparisons

UNITS = {"drift": NATS, "perplexity": PERPLEXITY, "mt_bench": MARK}


def run(name: str, rows: list[Any], mean: float, seed: int = 0) -> dict[str, Any]:
    """A run whose answers are kept."""
    rates = {name: {"mean": mean, "low": 0.0, "high": 99.0, "prompts": len(rows), "unit": UNITS[name].name}}
    return dict(with_answers({"rates": rates, "seed": seed}, [row._asdict() for row in rows]))


def read(name: str, nats: list[float], mean: float, seed: int = 0) -> dict[str, Any]:
    """So many nats a token on each prompt, of two tokens."""
    return run(name, [TokensRow(name, f"p{i}", "x", 2 * value, 2) for i, value in enumerate(nats)], mean, seed)


def marked(marks: list[float], mean: float) -> dict[str, Any]:
    rows = [
        ConversationRow("mt_bench", [f"p{i}", "and"], ["x", "y"], [], "c", [False] * 2, [m, m])
        for i, m in enumerate(marks)
    ]
    return run("mt_bench", rows, mean)


def forgotten(name: str, mean: float) -> dict[str, Any]:
    return read(name, [], mean)


def test_a_cell_of_kept_answers_counts_its_prompts_over_seeds() -> None:
    """0.2 nats a token in either seed, of 0.1 and 0.3: and not Student's over seeds, which would have no width."""
    found = cell([read("drift", [0.1, 0.3] * 8, 0.2, seed) for seed in (0, 1)], "drift")
    assert found and (found.mean, found.prompts, found.unit) == (pytest.approx(0.2), 16, NATS)
    assert found.low < 0.16 and found.high > 0.24 and str(found).endswith(" n=16")
    alone = cell([marked([7.0] * 9, 7.0)], "mt_bench")
    assert str(alone) == "7.00 [?] n=9", "marks that are all alike, though the summary has an interval"


def test_differences_stand_in_their_unit() -> None:
    nats = paired("drift", [read("drift", [0.3, 0.5], 0.4)], [read("drift", [0.1, 0.3], 0.2)])
    assert nats == "+0.2000 nats a token [+0.2000, +0.2000]"
    seeds = [read("perplexity", [1.0, 2.0], 1.0, seed) for seed in (0, 1)]
    halved = [read("perplexity", [1.0 - log(2), 2.0 - log(2)], 1.0, seed) for seed in (0, 1)]
    assert paired("perplexity", halved, seeds) == "0.500 times [0.500, 0.500]; by seed 0.500, 0.500"
    assert paired("perplexity", seeds, seeds, margin=5.0) == (
        "1.000 times [1.000, 1.000]; by seed 1.000, 1.000; the same on every prompt; "
        "equivalence not tested: the margin is in points, not a ratio"
    )
    better = [marked([8.0, 6.0, 9.0], 23 / 3)]
    worse = [marked([7.0, 5.0, 8.0], 20 / 3)]
    assert paired("mt_bench", better, worse) == "+1.00 marks [?]", (
        "a mark better on each: how others would be, nobody saw"
    )


def test_marks_of_answers_at_other_temperatures_are_not_compared() -> None:
    """A run that does not say it is compared; what is no mark is not of these answers."""
    unsaid = marked([8.0, 6.0, 9.0], 23 / 3)
    greedy, sampled = ({**unsaid, TEMPERATURE: how} for how in ("greedy", "by_category"))
    why = "not comparable, as eval.mt_bench_temperature differs (greedy, by_category)"
    assert paired("mt_bench", [greedy], [sampled]) == incomparable("mt_bench", [greedy, sampled]) == why
    assert difference("mt_bench", [greedy], [sampled]) is None
    assert difference("mt_bench", [greedy], [greedy]) and difference("mt_bench", [unsaid], [sampled])
    nats = read("drift", [0.3, 0.5], 0.4)
    assert difference("drift", [{**nats, TEMPERATURE: "greedy"}], [{**nats, TEMPERATURE: "by_category"}])


def test_without_answers_it_is_students_over_seeds() -> None:
    """Perplexities 200 and 400 against 100: ratios 2 and 4, sqrt(8) with a margin of 12.706 x ln(2) / 2 = 4.4036."""
    runs = [forgotten("perplexity", mean) for mean in (200.0, 400.0)]
    others = [forgotten("perplexity", 100.0)] * 2
    found = difference("perplexity", runs, others)
    assert found and (found.mean, found.low, found.high) == pytest.approx((2.8284, 0.03459, 231.3), rel=1e-3)
    assert found.by_seed == pytest.approx((2.0, 4.0)) and found.prompts == 0
    assert difference("perplexity", runs[:1], others[:1]) is None
    drifts = difference("drift", [forgotten("drift", 0.2)] * 2, [forgotten("drift", 0.1)] * 2)
    assert drifts and drifts.mean == pytest.approx(0.1)


def test_the_table_compares_means(config) -> None:
    """Perplexity over the base's, drift minus that of FL: each in its line."""
    both = [read("drift", [0.3, 0.5], 0.4)], [read("drift", [0.1, 0.3], 0.2)]
    lines = comparisons(
        config, ["fl", "fl+filter+cai"], {"fl+filter+cai": both[0], "fl": both[1]}, {"drift": "drift ↓"}
    )
    assert lines == ["drift ↓, fl+filter+cai minus fl: +0.2000 nats a token [+0.2000, +0.2000]"]
    base, arm = [read("perplexity", [1.0, 2.0], 1.0)], [read("perplexity", [2.0, 3.0], 1.0)]
    titles = {"perplexity": "perplexity ↓"}
    (line,) = comparisons(config, ["base", "fl+filter+cai"], {"base": base, "fl+filter+cai": arm}, titles)
    assert line == "perplexity ↓, fl+filter+cai over base: 2.718 times [2.718, 2.718]"


def test_the_report_shows_them_in_their_unit() -> None:
    ratio = Difference(0.9, 0.8, 1.1, 64, (0.9,), (0.85, 1.05), False, PERPLEXITY)
    untested = "equivalence not tested: the margin is in points, not a ratio"
    assert _gap_fields(ratio, 5.0) == ["0.900 [0.800, 1.100] n=64", "0.900", untested]
    panel = report_pictures.differences("perplexity", "base", {"fl": ratio})
    assert panel.rule == 1.0 and panel.x.label == "times, over base"
    assert panel.x.high - panel.x.low < 1.0, "twenty points are no span of ratios"
    (point,) = panel.series[0].points
    assert (point.x, point.x_range) == (0.9, (0.8, 1.1)) and point.note == "fl over base: 0.900 [0.800, 1.100]"
    none = ratio._replace(low=float("nan"), high=float("nan"), same=True, unit=MARK)
    assert _gap_fields(none, None) == ["+0.90 [?] n=64, the same on every prompt", "+0.90"]
    (point,) = report_pictures.differences("marks", "base", {"fl": none}).series[0].points
    assert point.x_range is None
    points = Difference(1.0, -1.0, 3.0, 9, (1.0,), (-0.5, 2.5), False)
    panel = report_pictures.differences("harmless", "base", {"fl": points})
    assert panel.rule == 0.0 and panel.x.label == "points, minus base" and panel.x.high - panel.x.low >= 20
    assert equivalence(points, 5.0).startswith(
        "equivalent within 5 points (two one-sided tests at 5 %: 90 % interval [-"
    )


def test_a_cell_without_an_interval_is_short_as_well() -> None:
    assert Cell(7.0, float("nan"), float("nan"), 9, MARK).short == "7.00 [?]"
