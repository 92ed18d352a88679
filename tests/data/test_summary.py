"""What is counted of data, worked out by hand."""

import numpy as np

from fedjax_rai.data import summary
from fedjax_rai.data.sources import Pair
from fedjax_rai.data.summary import Client, Clients, Cut, Less, Part, Spread

# rows 0 to 9: three harmful, two unlabelled; categories a (4), b (4), c (2)
LABELS = [True, True, True, False, False, False, False, False, None, None]
PAIRS = [Pair(f"q{i}", "r", label, "aaaabbbbcc"[i]) for i, label in enumerate(LABELS)]
ANSWERS = np.array([5, 5, 0, 5, 5, 5, 0, 0, 5, 5])  # rows 2, 6 and 7 are cut before their answer


def rows(*indices: int) -> np.ndarray:
    return np.array(indices, int)


def test_a_part_counts_labels_and_names_only_the_keys_that_leave_something_out():
    found = summary.part(PAIRS, {"data.red": 4, "data.partition": 0})
    assert found == Part(10, {"data.red": 4}, harmful=3, unlabelled=2)
    assert summary.prompts(7, {"eval.prompts": 2, "": 0}) == Part(7, {"eval.prompts": 2}, None, None)


def test_who_left_out_how_many():
    """Of 3 harmful 1 is used, of 5 acceptable 3, of 2 unlabelled none; one key may stand for two kinds."""
    used = [PAIRS[0], *PAIRS[3:6]]
    assert summary.left_out_by_kind(PAIRS, used, "data.red", "data.acceptable", "data.recipe") == {
        "data.red": 2, "data.acceptable": 2, "data.recipe": 2,
    }  # fmt: skip
    assert summary.left_out_by_kind(PAIRS, used, "data.recipe", "data.acceptable", "data.recipe") == {
        "data.recipe": 4, "data.acceptable": 2,
    }  # fmt: skip


def test_a_client_before_and_after_its_filter():
    """Rows 0, 2, 3, 4, 8: a thrice, b once, c once; it keeps 2 and 3, of which 2 has no answer left."""
    held = rows(0, 2, 3, 4, 8)
    unfiltered = Client(5, 2, 1, category="a", of_category=3, kept=None, kept_harmful=None, trained=4)
    assert summary.client(PAIRS, held, None, ANSWERS) == unfiltered
    filtered = unfiltered._replace(kept=2, kept_harmful=1, trained=1, kept_unlabelled=0)
    assert summary.client(PAIRS, held, rows(2, 3), ANSWERS) == filtered
    assert summary.client(PAIRS, held, rows(), ANSWERS) == filtered._replace(kept=0, kept_harmful=0, trained=0)
    assert summary.client(PAIRS, held, rows(8, 0), ANSWERS) == filtered._replace(kept_unlabelled=1, trained=2)
    assert summary.client(PAIRS, rows(4, 0), None, ANSWERS).category == "a", "of as many each the first by name"
    assert summary.client(PAIRS, rows(), None, ANSWERS) == Client(0, 0, 0, None, 0, None, None, 0)


def test_all_clients_and_why_some_have_nothing():
    """Five clients: one with 4 pairs of which 3 are kept; one with none; one that keeps none of 2; one whose one kept
    pair is cut; one of unlabelled pairs alone, whose harmful share nobody knows.
    """
    held = [rows(0, 3, 4, 5), rows(), rows(1, 2), rows(6, 7), rows(8, 9)]
    kept = [rows(0, 3, 4), rows(), rows(), rows(6), rows(8, 9)]
    table = [summary.client(PAIRS, mine, left, ANSWERS) for mine, left in zip(held, kept, strict=True)]
    found = summary.all_clients(table)
    assert found == Clients(
        clients=5, pairs=Spread(0, 2, 4), harmful_share=Spread(0, 0.25, 1), kept=6, dropped=4, kept_harmful=1,
        kept_pairs=Spread(0, 1, 3), without_pairs=1, without_kept=1, without_answers=1, kept_unlabelled=2,
    )  # fmt: skip
    assert found.without_data == 3
    plain = summary.all_clients([summary.client(PAIRS, mine, None, ANSWERS) for mine in held])
    assert (plain.kept, plain.dropped, plain.kept_harmful, plain.kept_pairs) == (None, None, None, None)
    assert (plain.without_pairs, plain.without_kept, plain.without_answers) == (1, 0, 1)
    half = summary.all_clients([summary.client(PAIRS, rows(0, 3, 8, 9), None, ANSWERS)])
    assert half.harmful_share == Spread(0.5, 0.5, 0.5), "of the two that have a label"
    nobody_knows = summary.all_clients([table[4]])
    assert nobody_knows.harmful_share is None


def test_what_a_limit_cuts():
    """Of 10, 12, 20 and 9 tokens at 10: two texts, by 2 and 10 tokens."""
    assert summary.cut([10, 12, 20, 9], 10) == Cut(4, cut=2, tokens=12, most=10)
    assert summary.cut([12], 10, texts=50) == Cut(50, cut=1, tokens=2, most=2), "those not given are not cut"
    assert summary.cut([], 10) == Cut(0, 0, 0, 0)


def test_less_than_was_asked_for():
    asked = {"guard.pairs": (50, 12), "eval.prompts": (100, 100), "cai.replay": (0, 3)}
    assert summary.less(asked) == [Less("guard.pairs", 50, 12)]
