"""Who holds which texts: shares, halves and counts on cases small enough to see."""

import json
from collections import Counter

import pytest

from fedjax_rai.data.sources import Pair
from fedjax_rai.experiment.materials import balanced, gather
from tests.tiny_runs import vary


def of_kinds(unsafe: int, safe: int) -> list[Pair]:
    return [Pair(f"q{i}", f"r{i}", i < unsafe, "x") for i in range(unsafe + safe)]


@pytest.mark.parametrize(
    ("unsafe", "safe", "wanted", "each"),
    [(10, 10, 6, 3), (10, 10, 7, 3), (10, 10, 20, 10), (2, 10, 8, 2), (10, 1, 8, 1), (0, 10, 8, 0)],
)
def test_a_guard_is_fitted_on_as_many_pairs_as_wanted_half_of_them_unsafe(unsafe, safe, wanted, each):
    """As far as they go, no pair twice."""
    drawn = balanced(of_kinds(unsafe, safe), wanted, 0)
    assert Counter(pair.harmful for pair in drawn) == Counter({True: each, False: each})
    assert len({pair.query for pair in drawn}) == len(drawn)


def test_a_guards_pairs_lie_in_a_random_order_of_the_seed():
    drawn = balanced(of_kinds(20, 20), 40, 0)
    assert 5 < sum(pair.harmful is True for pair in drawn[:20]) < 15, "not all of one kind first"
    assert drawn == balanced(of_kinds(20, 20), 40, 0) != balanced(of_kinds(20, 20), 40, 1)


def test_the_tiny_world_gives_as_many_of_each_as_the_config_says(config):
    """The config's 12 unsafe and 28 acceptable pairs, 8 of the guard, 4 replayed prompts."""
    made = gather(config)
    assert Counter(pair.harmful for pair in made.pairs) == {True: 12, False: 28}
    assert Counter(pair.harmful for pair in made.guard_pairs) == {True: 4, False: 4}
    assert len(made.benign_prompts) == 4 and not made.probe_prompts


def test_questions_of_a_file_are_shared_out_to_clients_guard_server_and_evaluation(config, tmp_path):
    """2,000 questions, answered both ways: 55 % are the clients', 20 % the guard's, 10 % the server's, 15 % asked in
    evaluation; nobody holds another's.
    """
    rows = [
        {"question_en": f"q{i}", "response_en": f"{kind} {i}", "acceptable?": kind, "category": ["etc"]}
        for i in range(2000)
        for kind in (0, 1)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    data = {"train": str(tmp_path / "pairs.json"), "red": None, "acceptable": None}
    made = gather(vary(config, data=data, guard={"pairs": 4000}))
    held = [
        {pair.query for pair in made.pairs},
        {pair.query for pair in made.guard_pairs},
        {prompt.query for prompt in made.red_prompts},
    ]
    assert [round(len(queries) / 2000, 2) for queries in held] == pytest.approx([0.55, 0.2, 0.1], abs=0.03)
    asked = set(made.evaluations["hhh"].prompts)
    assert len(held[0] | held[1] | held[2]) == sum(map(len, held)) and asked
    assert not asked & (held[0] | held[1] | held[2])
