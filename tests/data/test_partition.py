"""Partitions: what each deals out, by hand where it can be; and what all of them guarantee."""

from collections import Counter

import numpy as np
import pytest

from fedjax_rai import rng
from fedjax_rai.data.partition import (
    PARTITIONS,
    apportion,
    category,
    checked_partition,
    dirichlet,
    harm,
    iid,
    kinds_of,
    natural,
    quantity,
)
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError

# Numbers with which a partition is tried where it covers everything, by name; a new one with numbers must be added.
NUMBERS = {
    "dirichlet": {"alpha": 0.3, "column": "category"},
    "category": {"column": "category"},
    "quantity": {"exponent": 1.2},
    "harm": {"share": 0.3},
    "natural": {"column": "author"},
}


def pairs_of(sizes: dict[str, int], harmful: int = 0) -> list[Pair]:
    """So many pairs of each category, the first `harmful` of all of them harmful."""
    kinds = [kind for kind, size in sizes.items() for _ in range(size)]
    return [Pair(f"q{i}", f"r{i}", i < harmful, kind) for i, kind in enumerate(kinds)]


def generated(g: np.random.Generator, clients: int) -> list[Pair]:
    """Any number of pairs of any kinds, a tenth of them or more harmful, with at least one author a client."""
    n = clients + int(g.integers(clients, 300))
    kinds = g.integers(0, g.integers(1, 12), n)
    authors = np.concatenate([np.arange(clients), g.integers(0, clients, n - clients)])
    harmful = np.arange(n) < max(1, n // 10)
    found = []
    for i in g.permutation(n):
        found.append(Pair(f"q{i}", f"r{i}", bool(harmful[i]), f"k{kinds[i]}", columns={"author": f"a{authors[i]}"}))
    return found


def held_kinds(parts: list[np.ndarray], kinds: np.ndarray) -> list[Counter]:
    return [Counter(kinds[part].tolist()) for part in parts]


@pytest.mark.parametrize("name", PARTITIONS)
def test_every_partition_covers_all_without_overlap_and_gives_each_client_one(name: str) -> None:
    """A function of its arguments alone, from 1 to 60 clients."""
    g = np.random.default_rng(0)
    for seed in range(30):
        clients = int(g.integers(1, 60))
        pairs = generated(g, clients)
        numbers = NUMBERS.get(name, {})
        parts = PARTITIONS[name](pairs, clients, seed, **numbers)
        assert len(parts) == clients and min(map(len, parts)) >= 1
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(pairs)))
        again = PARTITIONS[name](pairs, clients, seed, **numbers)
        assert [part.tolist() for part in parts] == [part.tolist() for part in again]
        assert [part.tolist() for part in checked_partition(parts, len(pairs), clients, "x")] == [
            part.tolist() for part in parts
        ]


@pytest.mark.parametrize("name", PARTITIONS)
def test_the_order_of_the_pairs_changes_neither_sizes_nor_mixtures(name: str) -> None:
    numbers = NUMBERS.get(name, {})
    pairs = generated(np.random.default_rng(1), 20)
    turned = [pairs[i] for i in np.random.default_rng(2).permutation(len(pairs))]
    column = {"natural": "author", "harm": "label"}.get(name, "category")

    def seen(given: list[Pair]) -> list:
        parts = PARTITIONS[name](given, 20, 0, **numbers)
        by_kind = name in ("dirichlet", "category", "harm", "natural")
        return held_kinds(parts, kinds_of(given, column)) if by_kind else [len(part) for part in parts]

    assert seen(pairs) == seen(turned)


@pytest.mark.parametrize("name", [name for name in PARTITIONS if name != "natural"])
def test_another_seed_deals_otherwise_and_too_few_pairs_are_refused(name: str) -> None:
    numbers = NUMBERS.get(name, {})
    pairs = pairs_of({"a": 30, "b": 20, "c": 10}, harmful=12)
    one, other = (PARTITIONS[name](pairs, 5, seed, **numbers) for seed in (0, 1))
    assert [sorted(part.tolist()) for part in one] != [sorted(part.tolist()) for part in other]
    with pytest.raises(InputError, match=r"federated\.clients = 61: more than the 60 training pairs; must be at most"):
        PARTITIONS[name](pairs, 61, 0, **numbers)


def test_a_thousand_clients_of_a_hundred_thousand_pairs_are_dealt_to() -> None:
    g = np.random.default_rng(0)
    authors = np.concatenate([np.arange(1000), g.integers(0, 1000, 99_000)])
    pairs = [Pair("q", "r", i % 3 == 0, f"k{i % 50}", columns={"author": str(authors[i])}) for i in range(100_000)]
    for name, partition in PARTITIONS.items():
        parts = partition(pairs, 1000, 0, **NUMBERS.get(name, {}))
        assert len(parts) == 1000 and min(map(len, parts)) >= 1 and sum(map(len, parts)) == 100_000, name


def test_iid_is_the_seed_s_permutation_cut_into_even_parts() -> None:
    parts = iid(pairs_of({"a": 11}), 3, 7)
    assert np.concatenate(parts).tolist() == rng.host(7, "partition").permutation(11).tolist()
    assert [len(part) for part in parts] == [4, 4, 3]


def test_dirichlet_with_a_large_alpha_is_even_and_with_a_small_one_gives_one_kind_to_a_client() -> None:
    """300 and 700 of two kinds over 10 clients of 100: 30 and 70 each, or all of one kind."""
    pairs = pairs_of({"few": 300, "many": 700})
    even = held_kinds(dirichlet(pairs, 10, 0, 1e8, "category"), kinds_of(pairs, "category"))
    assert all(10 < counts["few"] < 50 and counts.total() == 100 for counts in even)
    for seed in range(20):
        skewed = held_kinds(dirichlet(pairs, 10, seed, 1e-9, "category"), kinds_of(pairs, "category"))
        assert Counter(max(counts, key=lambda kind: counts[kind]) for counts in skewed) == {"few": 3, "many": 7}
        assert all(len(counts) == 1 for counts in skewed)


@pytest.mark.parametrize("alpha", [1e-320, 1e-3])
def test_of_many_kinds_all_but_one_client_a_kind_hold_one(alpha: float) -> None:
    pairs = pairs_of({f"k{i}": 37 + 11 * i for i in range(8)})
    for seed in range(10):
        found = held_kinds(dirichlet(pairs, 30, seed, alpha, "category"), kinds_of(pairs, "category"))
        assert sum(len(counts) > 1 for counts in found) <= 7 + (alpha > 1e-9) * 3


def test_the_share_of_a_kind_has_dirichlet_s_mean_and_variance() -> None:
    """p = 0.3, alpha = 4, 50 of 5,000 pairs: mean 0.3; variance 0.3 x 0.7 / 5 of the mixture, and of the 50 draws from
    it E[q (1 - q)] / 50 = 0.3 x 0.7 x 4 / 5 / 50; 0.04536 together. The last to draw get what is left, so the first 40
    of the random order are looked at.
    """
    pairs = pairs_of({"few": 1500, "many": 3500})
    few = kinds_of(pairs, "category") == "few"
    shares, first = [], []
    for seed in range(200):
        of_clients = np.array([few[part].mean() for part in dirichlet(pairs, 100, seed, 4.0, "category")])
        shares.append(of_clients)
        first.append(of_clients[rng.host(seed, "partition").permutation(100)[:40]])
    assert np.mean(shares) == pytest.approx(0.3)  # all are dealt out
    np.testing.assert_allclose(np.mean(shares, axis=0), 0.3, atol=4 * np.sqrt(0.05 / 200))  # whichever client it is
    assert np.var(first) == pytest.approx(0.04536, rel=0.06)


def test_whole_categories_go_to_clients_the_largest_to_whoever_holds_least() -> None:
    """8, 5, 4, 3, 1 over two clients: 8 | 5, then 4 to the second (9), 3 to the first (11), 1 to the second (10)."""
    pairs = pairs_of({"a": 8, "b": 5, "c": 4, "d": 3, "e": 1})
    found = held_kinds(category(pairs, 2, 0, "category"), kinds_of(pairs, "category"))
    assert {frozenset(counts.items()) for counts in found} == {
        frozenset({("a", 8), ("d", 3)}), frozenset({("b", 5), ("c", 4), ("e", 1)})
    }  # fmt: skip


def test_with_fewer_categories_than_clients_each_client_has_one_and_clients_go_by_size() -> None:
    """60, 30, 10 pairs over 10 clients: six, three and one client, ten pairs each."""
    pairs = pairs_of({"a": 60, "b": 30, "c": 10})
    found = held_kinds(category(pairs, 10, 0, "category"), kinds_of(pairs, "category"))
    assert Counter(tuple(counts.items()) for counts in found) == {(("a", 10),): 6, (("b", 10),): 3, (("c", 10),): 1}


@pytest.mark.parametrize(
    ("exponent", "n", "clients", "sizes"),
    [
        (1.0, 11, 3, [6, 3, 2]),  # 1 : 1/2 : 1/3
        (0.0, 11, 3, [4, 4, 3]),
        (2.0, 49, 3, [36, 9, 4]),  # 1 : 1/4 : 1/9
        (9.0, 6, 4, [3, 1, 1, 1]),  # whoever has none gets one of the largest
    ],
)
def test_quantities_follow_a_power_law(exponent: float, n: int, clients: int, sizes: list[int]) -> None:
    assert [len(part) for part in quantity(pairs_of({"a": n}), clients, 0, exponent)] == sizes


def test_harm_lies_with_the_first_clients_and_sizes_stay_even() -> None:
    """12 of 40 harmful, 10 clients of 4: by 3 of them 4 each, by 4 of them 3 each beside one acceptable."""
    pairs = pairs_of({"a": 40}, harmful=12)
    label = kinds_of(pairs, "label")
    found = held_kinds(harm(pairs, 10, 0, 0.3), label)
    assert found == [{"harmful": 4}] * 3 + [{"acceptable": 4}] * 7
    assert held_kinds(harm(pairs, 10, 0, 0.4), label)[:5] == [{"harmful": 3, "acceptable": 1}] * 4 + [{"acceptable": 4}]
    assert held_kinds(harm(pairs, 10, 0, 1.0), label)[:3] == [{"harmful": 2, "acceptable": 2}] * 2 + [
        {"harmful": 1, "acceptable": 3}
    ]


def test_more_harm_than_an_even_share_stays_with_the_few() -> None:
    """30 of 40 on one of 10 clients; the other ten pairs are shared out to nine."""
    found = harm(pairs_of({"a": 40}, harmful=30), 10, 0, 0.04)
    assert [len(part) for part in found] == [30, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    with pytest.raises(InputError, match="2 of 10 clients get no pair: there are only 7 beside the harmful ones"):
        harm(pairs_of({"a": 37}, harmful=30), 10, 0, 0.1)
    with pytest.raises(InputError, match="no pair is labelled as harmful"):
        harm([Pair(f"q{i}", "r", None) for i in range(9)], 3, 0, 0.3)


def test_a_column_names_the_clients_the_largest_are_taken() -> None:
    authors = ["b", "a", "c", "c", "d", "b"]
    pairs = [Pair("q", "r", None, columns={"author": author}) for author in authors]
    assert [part.tolist() for part in natural(pairs, 3, 0, "author")] == [[0, 5], [2, 3], [1]]
    with pytest.raises(InputError, match="column 'author' names 4 clients, and 5 are asked for; must be at most"):
        natural(pairs, 5, 0, "author")
    with pytest.raises(
        InputError, match="'auther': 6 of 6 pairs have no such value; must be one of category, label, aut"
    ):
        natural(pairs, 3, 0, "auther")


def test_a_kind_is_the_category_the_label_or_a_column() -> None:
    pairs = [Pair("q", "r", None, "etc", columns={"topic": "x"}), Pair("q", "r", True, "law", columns={"topic": "y"})]
    found = {column: kinds_of(pairs, column).tolist() for column in ("category", "label", "topic")}
    assert found == {"category": ["etc", "law"], "label": ["unlabelled", "harmful"], "topic": ["x", "y"]}


def test_numbers_are_apportioned_by_largest_remainders() -> None:
    """10 by 5 : 3 : 1 is 5.56, 3.33, 1.11; by 1 : 1 : 1 the first has one more."""
    assert apportion(10, np.array([5, 3, 1])).tolist() == [6, 3, 1]
    assert apportion(10, np.array([1, 1, 1])).tolist() == [4, 3, 3]
    assert apportion(5, np.array([98.0, 1.0, 1.0]), least=1).tolist() == [3, 1, 1]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0, 1], [2]], "gives 2 arrays; must give one for each of the 3 clients"),
        (None, "gives a NoneType, not a list of arrays; must give one for each of the 3 clients"),
        ([[0], [1.5], [2]], r"client 1 gets float64\[1\]; must get an integer array \[n\] of indices"),
        ([[0], [[1], [2]], [3]], r"client 1 gets int64\[2, 1\]; must get"),
        ([[0], [1], [2, 5]], "client 2 gets the index 5; must be from 0 to 4"),
        ([[-1], [1], [2]], "client 0 gets the index -1; must be from 0 to 4"),
        ([[0, 3], [1], [2, 3]], r"pair 3 stands twice, at clients \[0, 2\]; no index may"),
        ([[0], [1, 1], [2]], r"pair 1 stands twice, at clients \[1\]; no index may"),
    ],
)
def test_a_partition_of_the_users_own_that_is_none_is_refused(parts, message) -> None:
    with pytest.raises(InputError, match=f"^data.partition = mine:deal: {message}"):
        checked_partition(parts and [np.array(part) for part in parts], 5, 3, "data.partition = mine:deal")


def test_a_partition_may_leave_out_pairs_and_clients() -> None:
    found = checked_partition([np.array([3]), np.array([]), np.array([4, 0])], 5, 3, "data.partition = mine:deal")
    assert [part.tolist() for part in found] == [[3], [], [4, 0]]
    assert [part.dtype.kind for part in found] == ["i"] * 3
