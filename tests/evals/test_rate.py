"""Rates: a share, its interval, and what has no verdict."""

import pytest

from fedjax_rai.evals.rate import Rate, wilson


def column(hits: int, n: int) -> list[list[bool]]:
    """So many prompts of one sample each, the first `hits` of them True."""
    return [[i < hits] for i in range(n)]


def rate_of(verdicts) -> Rate:
    rate = Rate.of(verdicts)
    assert rate
    return rate


def test_an_interval_is_over_prompts_not_samples():
    """Ten samples that always agree say no more than one."""
    once = [[True], [False], [True], [True]]
    assert Rate.of(once) == Rate.of([10 * samples for samples in once])
    assert rate_of(once).mean == 75 and rate_of(once).prompts == 4


def test_an_interval_is_wilsons():
    """Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662; 0 of 20 is 0 to 0.1611."""
    assert rate_of(column(81, 263))[1:3] == pytest.approx((25.53, 36.62), abs=0.01)
    assert rate_of(column(0, 20))[:3] == pytest.approx((0, 0, 16.11), abs=0.01)
    assert rate_of(column(20, 20))[1:3] == pytest.approx((83.89, 100), abs=0.01)


def test_an_interval_by_hand():
    """1 of 2: (0.5 + 3.8416 / 4 -+ 1.96 sqrt(0.25 / 2 + 3.8416 / 16)) / (1 + 3.8416 / 2)."""
    assert wilson(0.5, 2) == pytest.approx((0.0945, 0.9055), abs=1e-4)


def test_a_rate_lies_in_its_interval():
    for n in range(1, 200):
        for hits in (0, 1, n - 1, n):
            rate = rate_of(column(hits, n))
            assert 0 <= rate.low <= rate.mean <= rate.high <= 100


def test_what_has_no_verdict_is_counted_and_in_no_other_number():
    """Two of three verdicts; two answers without one, and a prompt without an answer."""
    rate = rate_of([[True, None], [False, True], [None], []])
    assert rate.mean == pytest.approx(200 / 3) and (rate.prompts, rate.without_verdict) == (2, 3)
    half = rate_of([[True, None], [None, False], [None]])
    assert (half.mean, half.prompts, half.without_verdict) == (50, 2, 3), "one verdict makes a prompt count"
    assert half[1:3] == pytest.approx((9.45, 90.55), abs=0.01), "as of one of two"


@pytest.mark.parametrize("nothing", [[], [[]], [[None]], [[None, None], []]])
def test_a_rate_of_nothing_is_none(nothing):
    assert Rate.of(nothing) is None


def test_an_interval_is_shown_unless_there_is_none():
    rate = Rate(75.5, 70.14, 80.25, prompts=9)
    assert (rate.interval(1), rate.interval(0)) == ("[70.1, 80.2]", "[70, 80]")
    assert rate._replace(low=float("nan"), high=float("nan")).interval(1) == "[?]"
