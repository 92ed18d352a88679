"""Intervals over prompts and seeds: closed forms, pairing, what an interval misses, and equivalence."""

import numpy as np
import pytest
from scipy.stats import beta

from fedjax_rai.evals import intervals
from fedjax_rai.evals.intervals import Difference, Interval, Judged, by_rate
from fedjax_rai.evals.rate import Verdict


def interval(judged: list[Judged]) -> Interval:
    """The interval of verdicts that there are."""
    found = intervals.interval(judged)
    assert found is not None
    return found


def difference(judged: list[Judged], others: list[Judged]) -> Difference:
    """The difference of verdicts that there are."""
    found = intervals.difference(judged, others)
    assert found is not None
    return found


def alone(verdicts: list[Verdict], name: str = "prompt") -> Judged:
    """A verdict a prompt."""
    return [(f"{name} {i}", [verdict]) for i, verdict in enumerate(verdicts)]


def first(positive: int, of: int, name: str = "prompt") -> Judged:
    """The first so many of the prompts count."""
    return alone([i < positive for i in range(of)], name)


@pytest.mark.parametrize(("positive", "of"), [(15, 20), (3, 40), (1, 2), (60, 60), (0, 25)])
def test_of_one_seed_and_an_answer_a_prompt_it_is_jeffreys(positive: int, of: int) -> None:
    """Beta(k + 1/2, n - k + 1/2), cut to the share at 0 and 1: never of no width, be all answers the same."""
    low, high = 100 * beta.ppf([0.025, 0.975], positive + 0.5, of - positive + 0.5)
    low = 0.0 if positive == 0 else low
    high = 100.0 if positive == of else high
    found = interval([first(positive, of)])
    assert found == pytest.approx((100 * positive / of, low, high, of, 1), abs=0.8)
    assert found.low < found.high


def test_what_a_prompt_is_asked_again_is_no_other_prompt() -> None:
    """Four equal answers to a prompt tell what one does; four prompts would tell more."""
    once = interval([first(6, 12)])
    samples = interval([[(prompt, [*verdicts] * 4) for prompt, verdicts in first(6, 12)]])
    twice_in_the_set = interval([[*first(6, 12), *first(6, 12)]])
    assert samples == pytest.approx(once) and twice_in_the_set == pytest.approx(once)
    more = interval([first(24, 48)])
    assert more.high - more.low < 0.6 * (once.high - once.low)


def test_what_has_no_verdict_is_in_no_number() -> None:
    with_none: list[Verdict] = [True, True, False, False, True, False]
    judged = [*alone(with_none), ("silent", [None, None]), ("not answered", [])]
    assert interval([judged]) == pytest.approx(interval([alone(with_none)]), abs=1.0)
    assert interval([judged]).prompts == 6
    assert intervals.interval([[("silent", [None])]]) is None and intervals.interval([[]]) is None
    assert intervals.interval([first(1, 2), [("silent", [None])]]) is None, "a seed without a verdict is no seed"


def test_a_mean_is_of_answers_within_a_seed_and_of_seeds() -> None:
    """3 of 4 answers, and 1 of 2: (75 + 50) / 2."""
    ragged = [[("a", [True, True, True]), ("b", [False])], [("a", [True, None]), ("b", [False])]]
    assert interval(ragged).mean == pytest.approx(62.5)


def test_with_prompts_without_end_it_is_students_over_seeds() -> None:
    """45, 50 and 55 %: 50 with a margin of 4.3027 x 5 / sqrt(3) = 12.42."""
    seeds = [first(round(share * 600), 600, f"seed {share}") for share in (0.45, 0.5, 0.55)]
    assert interval(seeds) == pytest.approx((50.0, 37.58, 62.42, 1_800, 3), abs=0.6)


def test_seeds_that_are_all_equal_leave_the_prompts_interval() -> None:
    """Greedy answers of one model, three times: as one seed, and not of no width."""
    one = interval([first(20, 30)])
    three = interval([first(20, 30)] * 3)
    assert three[:4] == pytest.approx(one[:4]) and three.seeds == 3 and three.high - three.low > 25


def test_seeds_that_ask_other_prompts_are_more_prompts() -> None:
    """Thirty prompts in each of three seeds, all of them right: 90 prompts of one seed, and a little for the seeds."""
    low = 100 * beta.ppf(0.025, 90.5, 0.5)
    found = interval([first(30, 30, f"seed {seed}") for seed in range(3)])
    assert (found.prompts, found.high) == (90, 100.0) and found.low == pytest.approx(low, abs=1.0)


def test_two_equal_arms_differ_by_exactly_nothing() -> None:
    """And twenty prompts do not prove that they are equal everywhere."""
    arm = [first(12, 20), first(14, 20)]
    found = difference(arm, arm)
    assert found.mean == 0.0 and found.same and found.by_seed == (0.0, 0.0)
    assert found.low < 0 < found.high and found.low == pytest.approx(-found.high, abs=0.7)
    assert not found.within(1.0) and found.within(20.0)


def test_a_difference_of_one_answer_in_each_direction_by_hand() -> None:
    """Three prompts for one arm and one for the other, of ten: Dirichlet(3.5, 1.5, 6), whose mean is 2 / 11."""
    arm: list[Verdict] = [True, True, True, False, *[True] * 6]
    other: list[Verdict] = [False, False, False, True, *[True] * 6]
    found = difference([alone(arm)], [alone(other)])
    drawn = np.random.default_rng(0).dirichlet([3.5, 1.5, 6.0], 200_000)
    low, high = 100 * np.percentile(drawn[:, 0] - drawn[:, 1], [2.5, 97.5])
    assert (found.mean, found.prompts) == (pytest.approx(20.0), 10) and not found.same
    assert (found.low, found.high) == pytest.approx((low, high), abs=1.5)


def test_arms_are_paired_by_seed_and_by_prompt() -> None:
    """Seeds at 20, 50 and 80 %, the other arm always one prompt of 20 better: +5 points, however far apart."""
    arm = [first(k + 1, 20) for k in (4, 10, 16)]
    other = [first(k, 20) for k in (4, 10, 16)]
    found = difference(arm, other)
    assert found.mean == pytest.approx(5.0) and found.by_seed == pytest.approx((5.0, 5.0, 5.0))
    assert found.high - found.low < 25 < interval(arm).high - interval(arm).low
    mixed = difference(arm, [alone(list(reversed([v[0] for _, v in judged]))) for judged in other])
    assert mixed.mean == pytest.approx(5.0) and mixed.high - mixed.low > 30, "the same rates of other prompts"


def test_arms_of_other_seeds_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="2 seeds cannot be paired with 1"):
        difference([first(1, 2)] * 2, [first(1, 2)])


def test_equivalence_is_by_the_90_percent_interval() -> None:
    """Equal arms of 400 prompts are within 2 points, and not within a tenth of one."""
    found = difference([first(200, 400)], [first(200, 400)])
    assert found.low < found.inner[0] < 0 < found.inner[1] < found.high
    assert found.within(2.0) and not found.within(0.1)
    apart = difference([first(240, 400)], [first(200, 400)])
    assert not apart.within(10.0), "ten points, measured, are not within ten"


def test_it_is_the_same_each_time() -> None:
    assert interval([first(7, 9)]) == interval([first(7, 9)])


def resampled(rates: np.ndarray) -> tuple[float, float]:
    """The plain bootstrap: seeds drawn as they are."""
    drawn = np.random.default_rng(0).choice(rates, (1000, len(rates))).mean(axis=1)
    return float(np.percentile(drawn, 2.5)), float(np.percentile(drawn, 97.5))


def test_what_an_interval_of_95_percent_misses(monkeypatch) -> None:
    """Three seeds of their own level, and forty prompts: at most one truth in ten, where seeds drawn as they are miss
    two in ten and more. Near 100 %, where all answers are often right, too.
    """
    monkeypatch.setattr(intervals, "REPLICATES", 1000)
    random = np.random.default_rng(1)
    missed = {"seeds": 0, "plain": 0, "near 100": 0}
    times = 60
    for _ in range(times):
        levels = random.normal(0.6, 0.1, 3)
        seeds = [alone((random.random(40) < level).tolist(), f"{level}") for level in levels]
        found = interval(seeds)
        missed["seeds"] += not found.low <= 60 <= found.high
        low, high = resampled(np.array([np.mean([verdict is True for _, (verdict,) in judged]) for judged in seeds]))
        missed["plain"] += not low <= 0.6 <= high
        found = interval([alone((random.random(40) < 0.97).tolist())])
        missed["near 100"] += not found.low <= 97 <= found.high
    assert missed["seeds"] <= 6 and missed["near 100"] <= 6 and missed["plain"] >= 12, missed


def test_rows_of_answers_are_taken_by_rate() -> None:
    rows = [
        {"set": "a", "prompt": "p", "verdicts": {"harmless": [True, None], "by_x": [False]}},
        {"set": "a", "prompt": "q", "verdicts": {"harmless": [False]}},
    ]
    assert by_rate(rows) == {"harmless": [("p", [True, None]), ("q", [False])], "by_x": [("p", [False])]}
