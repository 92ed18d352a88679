"""Intervals of means over prompts and seeds: closed forms, pairing, units, what there is no interval of."""

from math import exp, isnan, log, sqrt

import numpy as np
import pytest
from scipy.stats import t

from fedjax_rai.evals import intervals, mean_intervals
from fedjax_rai.evals.intervals import Difference, Interval
from fedjax_rai.evals.mean_intervals import by_mean
from fedjax_rai.evals.means import MARK, NATS, PERPLEXITY, Total, mean_rate
from fedjax_rai.evals.rate import Unit
from tests.evals.coverage_of_means import DRIFT, WORLDS, missed

Run = list[tuple[str, Total]]
NAN = float("nan")


def interval(by_seed: list[Run], unit: Unit = NATS) -> Interval:
    found = mean_intervals.interval(by_seed, unit)
    assert found is not None
    return found


def difference(by_seed: list[Run], others: list[Run], unit: Unit = NATS) -> Difference:
    found = mean_intervals.difference(by_seed, others, unit)
    assert found is not None
    return found


def run(values, weight: float = 1.0, name: str = "prompt") -> Run:
    """A prompt for each mean value, of so much weight."""
    return [(f"{name} {i}", Total(float(value) * weight, weight)) for i, value in enumerate(values)]


def test_it_is_a_ratio_of_sums() -> None:
    """2 nats of 1 token and 1 of 3: 3/4 a token. A prompt that stands twice is one."""
    found = interval([[("a", Total(2.0, 1)), ("b", Total(1.0, 3))]])
    assert (found.mean, found.prompts, found.seeds) == (0.75, 2, 1)
    twice = interval([[("a", Total(1.0, 0.5)), ("b", Total(1.0, 3)), ("a", Total(1.0, 0.5))]])
    assert twice == found


def test_every_replicate_is_a_ratio_of_sums() -> None:
    """2 nats a token in two answers of 1,000 tokens, and 100 in one of a single token: 4100 / 2001 = 2.05. That one
    weighs so little that no draw of prompts is far from 2; the mean of the three means is 35.
    """
    ragged = [("a", Total(2000.0, 1000)), ("b", Total(2000.0, 1000)), ("c", Total(100.0, 1))]
    found = interval([ragged])
    assert found.mean == pytest.approx(4100 / 2001) and 0.5 < found.low < found.mean < found.high < 8.0


def test_of_two_prompts_it_is_by_hand() -> None:
    """At 99 and 101 the weighted mean is 100 + U, uniform, times sqrt(3 / chi-square of 1) = sqrt(3) / |Z|: beyond q
    with probability E max(0, sqrt(3) - q |Z|) / (2 sqrt(3)), which is 2.5 % at about 13.8; Student's is 12.7.
    """
    z = (np.arange(200_000) + 0.5) / 50_000  # half a normal distribution
    density = np.sqrt(2 / np.pi) * np.exp(-z * z / 2) / 50_000

    def beyond(q: float) -> float:
        return float((np.maximum(0, sqrt(3) - q * z) * density).sum() / (2 * sqrt(3)))

    quantile = next(q for q in np.arange(12, 16, 0.01) if beyond(q) < 0.025)
    found = interval([run([99, 101])])
    assert quantile == pytest.approx(13.8, abs=0.1)
    assert found == pytest.approx((100.0, 100 - quantile, 100 + quantile, 2, 1), abs=2.0)


@pytest.mark.parametrize("prompts", [8, 30, 300])
def test_of_values_without_skew_it_is_students(prompts: int) -> None:
    """Values at the quantiles of a normal distribution; 1.96 standard errors would be too few."""
    values = 50 + np.sort(np.random.default_rng(1).standard_normal((20_000, prompts)), axis=1).mean(axis=0)
    margin = t.ppf(0.975, prompts - 1) * values.std(ddof=1) / sqrt(prompts)
    found = interval([run(values, 7.0)])
    assert found.high - found.mean == pytest.approx(margin, rel=0.07)
    assert found.mean - found.low == pytest.approx(margin, rel=0.07)


def test_with_prompts_that_agree_it_is_students_over_seeds() -> None:
    """0.3, 0.4 and 0.5 nats: 0.4 with a margin of 4.3027 x 0.1 / sqrt(3) = 0.2484; nats are not below 0."""
    found = interval([run([value] * 9) for value in (0.3, 0.4, 0.5)])
    assert found == pytest.approx((0.4, 0.1516, 0.6484, 9, 3), abs=0.01)
    assert interval([run([value] * 9) for value in (0.1, 0.2, 0.3)]).low == 0.0


def test_seeds_of_the_same_prompts_are_no_more_prompts() -> None:
    one = run([1.0, 2.0, 4.0, 3.0, 2.5])
    assert interval([one] * 3)[:4] == pytest.approx(interval([one])[:4])
    assert interval([one, run([1.0, 2.0, 4.0, 3.0, 2.5], name="other")]).prompts == 10


def test_what_has_no_number_or_no_token_is_in_no_mean() -> None:
    with_none = [*run([1.0, 3.0]), ("silent", Total(NAN, 4)), ("endless", Total(float("inf"), 1)), ("cut", Total(0, 0))]
    assert interval([with_none]) == interval([run([1.0, 3.0])])
    assert mean_intervals.interval([with_none[2:]], NATS) is None and mean_intervals.interval([[]], NATS) is None
    assert mean_intervals.interval([run([1.0]), with_none[2:]], NATS) is None, "a seed without a number is no seed"
    assert mean_intervals.difference([run([1.0])], [with_none[2:]], NATS) is None


def test_perplexity_is_averaged_and_compared_in_its_logarithm() -> None:
    """ln 4 and ln 9 over two seeds: their geometric mean 6, and not 6.5. Twice as perplexed on every prompt: 2."""
    values = np.array([0.5, 1.0, 1.5])
    seeds = [run(values - 1 + log(4)), run(values - 1 + log(9))]
    found = interval(seeds, PERPLEXITY)
    assert found.mean == pytest.approx(6.0) and found.low >= 1.0
    twice = [[(prompt, Total(total + log(2) * weight, weight)) for prompt, (total, weight) in seed] for seed in seeds]
    ratio = difference(twice, seeds, PERPLEXITY)
    assert (ratio.mean, ratio.by_seed, ratio.prompts) == (pytest.approx(2.0), pytest.approx((2.0, 2.0)), 3)
    assert (ratio.low, ratio.high, *ratio.inner) == pytest.approx((2.0,) * 4), "paired: prompts do not vary in it"
    assert ratio.unit == PERPLEXITY and not ratio.same
    (halved,) = difference(seeds[:1], twice[:1], PERPLEXITY).by_seed
    assert halved == pytest.approx(0.5)


def test_arms_are_paired_by_prompt_and_by_seed() -> None:
    """A tenth of a nat apart on every prompt of seeds far apart; and the same numbers on other prompts."""
    values = np.array([0.5, 1.0, 2.0, 4.0, 1.5, 3.0])
    seeds = [run(values * level) for level in (1, 2, 3)]
    others = [run(values * level - 0.1) for level in (1, 2, 3)]
    found = difference(seeds, others)
    assert found.mean == pytest.approx(0.1) and found.by_seed == pytest.approx((0.1, 0.1, 0.1))
    assert found.high - found.low < 1e-9
    mixed = difference(seeds, [run(values[::-1] * level - 0.1) for level in (1, 2, 3)])
    assert mixed.mean == pytest.approx(0.1) and mixed.high - mixed.low > 2
    assert mixed.low < mixed.inner[0] < 0.1 < mixed.inner[1] < mixed.high
    with pytest.raises(ValueError, match="3 seeds cannot be paired with 1"):
        mean_intervals.difference(seeds, others[:1], NATS)


def test_a_difference_of_two_prompts_by_hand() -> None:
    """Differences of -1 and +1 around prompts far apart are the two prompts of the other law: about 13.8."""
    found = difference([run([9.0, 501.0])], [run([10.0, 500.0])])
    assert (found.mean, found.high, found.low) == pytest.approx((0.0, 13.8, -13.8), abs=2.0)


def test_where_no_spread_is_seen_there_is_no_interval() -> None:
    """One prompt in any unit; marks that are all alike, or that two arms share. Equal nats are of one model."""
    for unit in (NATS, PERPLEXITY, MARK):
        alone = interval([run([2.0])], unit)
        assert alone.mean == unit.shown(2.0) and isnan(alone.low) and isnan(alone.high)
        assert difference([run([2.0])], [run([1.0])], unit).ends is None
    tens = interval([run([10.0] * 40, 2.0)], MARK)
    assert (tens.mean, tens.prompts) == (10.0, 40) and isnan(tens.low) and isnan(tens.high)
    of_one_run = mean_rate([Total(7.3, 1)] * 3, MARK, "mine")
    assert of_one_run and of_one_run.mean == pytest.approx(7.3) and isnan(of_one_run.low), "nor in summary.json"
    marks = [run([7.0, 9.0, 4.0], 2.0)]
    assert interval(marks, MARK).low < interval(marks, MARK).high == 10.0, "no mark is above 10"
    shared = difference(marks, marks, MARK)
    assert shared.same and shared.mean == 0.0 and shared.ends is None and all(map(isnan, shared.inner))
    nothing = interval([run([0.0] * 9)])
    assert (nothing.mean, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    equal = difference(marks, marks, PERPLEXITY)
    assert equal.same and (equal.mean, equal.low, equal.high) == (1.0, 1.0, 1.0)


def test_seeds_that_cancel_are_not_alike() -> None:
    """8 on either prompt over both seeds, and neither alike: no spread is seen, and it is not 0. Where the seeds' means
    are 8 and 9 they show theirs: 8.5 with Student's margin of 12.7062 / 2, in marks held within 1 and 10.
    """
    for unit in (NATS, MARK):
        crossed = interval([run([7.0, 9.0]), run([9.0, 7.0])], unit)
        assert crossed.mean == 8.0 and isnan(crossed.low) and isnan(crossed.high)
        apart = interval([run([7.0, 9.0]), run([10.0, 8.0])], unit)
        assert apart[:2] == pytest.approx((8.5, 8.5 - 12.7062 / 2), abs=0.5)
    gaps = difference([run([1.0, 2.0]), run([2.0, 1.0])], [run([2.0, 1.0]), run([1.0, 2.0])])
    assert gaps.mean == 0.0 and gaps.ends is None and not gaps.same
    moved = difference([run([7.0, 9.0])] * 2, [run([6.0, 8.0])] * 2)
    assert (moved.low, moved.high) == pytest.approx((1.0, 1.0)), "arms that cancel within a seed are paired"


def test_a_margin_in_points_is_none_in_nats() -> None:
    found = difference([run([1.0, 2.0])], [run([1.0, 2.5])])
    with pytest.raises(ValueError, match="a margin in points is none in nats a token"):
        found.within(5.0)


def test_kept_rows_are_taken_by_mean() -> None:
    """A row of marks is in four means, under all of its questions; one without marks is in none."""
    asked = {"set": "mt_bench", "prompts": ["a", "b"], "answers": ["x", "y"], "category": "writing"}
    rows = [
        {"set": "drift", "prompt": "p", "answer": "x", "total": 0.25, "tokens": 5},
        {"set": "drift", "prompt": "q", "answer": "", "total": None, "tokens": 3},
        {"set": "advbench", "prompt": "r", "verdicts": {"harmless": [True]}},
        asked | {"marks": [7.0, 4.0]},
        asked | {"prompts": ["c", "d"], "marks": [None, 3.0]},
        asked | {"marks": None},
    ]
    found = by_mean(rows)
    first, second = "a\n\nb", "c\n\nd"
    assert found.pop("drift")[0] == ("p", Total(0.25, 5))
    both = [(first, Total(11.0, 2)), (second, Total(3.0, 1))]
    assert found["mt_bench"] == both and found["mt_bench_writing"] == both
    assert found["mt_bench_turn_2"] == [(first, Total(4.0, 1)), (second, Total(3.0, 1))]
    assert found["mt_bench_turn_1"][0] == (first, Total(7.0, 1)) and not found["mt_bench_turn_1"][1][1].is_known
    assert len(found) == 4 and not by_mean(rows)["drift"][1][1].is_known


@pytest.mark.slow
def test_what_intervals_of_means_miss(monkeypatch) -> None:
    """At 32 prompts hardly more than one truth in ten, save where few prompts make the mean; and of five prompts less
    than the linearised interval, which is not Student's.
    """
    monkeypatch.setattr(intervals, "REPLICATES", 1000)
    assert pytest.approx(exp(log(DRIFT))) == WORLDS[0].truth
    for world in WORLDS:
        assert missed(world, 32, 200)[0] <= (18 if world is WORLDS[-1] else 12), world.name
    for world in (WORLDS[0], WORLDS[2]):
        ours, linearised = missed(world, 5, 200)
        assert linearised is not None and ours + 4 < linearised, world.name
