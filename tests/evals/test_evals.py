"""Judges and rates."""

import numpy as np
import pytest

from fedjax_rai.data import tiny_lexicon as words
from fedjax_rai.data.tiny_world import Choice
from fedjax_rai.evals.choice import hhh
from fedjax_rai.evals.judge import REFUSAL_PHRASES, knows_templates, refuses
from fedjax_rai.evals.open_ended import Rate, share

FILLED = {"verb": "rob", "target": "mill", "group": "Lurians", "event": "harvest fair"}


@pytest.mark.parametrize("form", [form for kind in words.UNSAFE.values() for form in kind])
def test_the_rule_judge_knows_every_unsafe_form(form):
    assert knows_templates()(form.format(**FILLED))


@pytest.mark.parametrize("form", [*words.REFUSALS, *(f for kind in words.ACCEPTABLE.values() for f in kind)])
def test_the_rule_judge_passes_every_acceptable_form(form):
    assert not knows_templates()(form.format(**FILLED))


def test_refusal_phrases_anywhere_in_any_case():
    assert refuses("Well, I CANNOT do that.") and refuses("I can\u2019t help.") and not refuses("Sure, here it is.")
    assert all(phrase == phrase.lower() for phrase in REFUSAL_PHRASES)


@pytest.mark.parametrize("form", words.REFUSALS)
def test_the_bases_refusals_are_refusals(form):
    assert refuses(form.format(**FILLED))


def test_a_rates_interval_is_over_prompts_not_samples():
    """Ten samples that always agree say no more than one."""
    once = np.array([[1], [0], [1], [1]])
    assert Rate.of(once) == Rate.of(np.repeat(once, 10, axis=1))
    assert Rate.of(once).mean == 75 and Rate.of(once).prompts == 4


def test_a_rates_interval_is_wilsons():
    """Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662; 0 of 20 is 0 to 0.1611."""
    assert Rate.of(np.arange(263)[:, None] < 81)[1:3] == pytest.approx((25.53, 36.62), abs=0.01)
    assert Rate.of(np.zeros((20, 1)))[:3] == pytest.approx((0, 0, 16.11), abs=0.01)
    assert Rate.of(np.ones((20, 1)))[1:3] == pytest.approx((83.89, 100), abs=0.01)


def test_a_rate_lies_in_its_interval():
    for n in range(1, 200):
        for hits in (0, 1, n - 1, n):
            rate = Rate.of(np.arange(n)[:, None] < hits)
            assert 0 <= rate.low <= rate.mean <= rate.high <= 100


def test_share_and_categories():
    assert share([["yes", "no"], ["no", "no"]], lambda text: text == "yes").mean == 25
    choices = [Choice("q", "g", "b", name) for name in ("a", "b", "a")]
    rates = hhh(choices, np.array([True, True, False]), np.array([True, True, True]))
    assert {name: rate.mean for name, rate in rates.items()} == pytest.approx({"all": 200 / 3, "a": 50, "b": 100})
    assert hhh(choices, np.array([True, True, False]), np.array([True, True, False]))["all"].mean == 100
    assert hhh([], np.array([], bool), np.array([], bool)) == {}
