"""Sources, the clients that hold them, and the pairs that these hold: worked out by hand."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedjax_rai.config.schema import DataConfig, ExperimentConfig
from fedjax_rai.data.mix import client_part, deal, entries, holders, read_sources, recipe
from fedjax_rai.data.partition import iid
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from tests.mixes import data_of, source


def pool(red: int, acceptable: int) -> list[Pair]:
    return [Pair(f"q{i}", f"a{i}", i < red, "etc") for i in range(red + acceptable)]


def drawn(pairs: list[Pair], *asked: int | None, seed: int = 0, name: str = "three_to_seven") -> list[Pair]:
    return [pairs[i] for i in recipe(pairs, name, *asked, seed=seed)]


# --- the recipe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "asked", "name", "expected"),
    [
        ((30, 90), (None, None), "three_to_seven", (30, 70)),
        ((60, 70), (None, None), "three_to_seven", (30, 70)),
        ((60, 90), (6, 14), "three_to_seven", (6, 14)),
        ((60, 90), (6, None), "three_to_seven", (6, 14)),
        ((60, 90), (None, 14), "three_to_seven", (6, 14)),
        ((60, 90), (0, None), "three_to_seven", (0, 90)),
        ((60, 90), (None, 0), "three_to_seven", (60, 0)),
        ((60, 90), (60, 90), "three_to_seven", (60, 90)),
        ((0, 5), (None, None), "three_to_seven", (0, 5)),
        ((60, 90), (None, None), "all", (60, 90)),
        ((60, 90), (6, 14), "all", (6, 14)),
        ((60, 90), (6, None), "all", (6, 90)),
        ((60, 90), (None, 14), "all", (60, 14)),
        ((0, 5), (0, None), "all", (0, 5)),
    ],
)
def test_the_recipe_takes_what_is_asked(there: tuple, asked: tuple, name: str, expected: tuple) -> None:
    pairs = pool(*there)
    made = drawn(pairs, *asked, name=name)
    assert (sum(p.harmful is True for p in made), sum(p.harmful is False for p in made)) == expected
    assert len(set(made)) == len(made) and set(made) <= set(pairs)


def test_the_recipe_is_shuffled_by_the_seed() -> None:
    pairs = pool(30, 70)
    first = drawn(pairs, 20, 40)
    assert first == drawn(pairs, 20, 40) != drawn(pairs, 20, 40, seed=1)
    harmful = [p.harmful for p in first]
    assert any(harmful[20:]) and not all(harmful[:20]), "red and acceptable pairs are mixed"
    assert set(first) != set(drawn(pairs, 20, 40, seed=1)), "the seed draws, too"


@pytest.mark.parametrize(
    ("there", "asked", "message"),
    [
        (
            (3, 7),
            (4, None),
            r"data\.red = 4: more than there are; must be at most 3, the red pairs; to take all pairs: "
            "data.recipe=all data.red=null data.acceptable=null$",
        ),
        ((3, 7), (None, 8), r"data\.acceptable = 8: more than there are; must be at most 7, the acceptable pairs"),
        ((3, 7), (0, 0), "no pairs to train on, of 3 red and 7 acceptable"),
        ((0, 0), (None, None), "no pairs to train on"),
    ],
)
def test_more_than_there_are_is_refused(there: tuple, asked: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        drawn(pool(*there), *asked)


def test_pairs_without_labels_are_all_held_and_a_recipe_that_counts_labels_says_that_it_needs_them() -> None:
    pairs = [*pool(1, 2), Pair("q", "r", None), Pair("p", "r", None)]
    assert drawn(pairs, None, None, name="all") == pairs
    with pytest.raises(InputError, match="^data.recipe = three_to_seven: needs labels, and 2 of the 5 pairs have none"):
        drawn(pairs, None, None)
    with pytest.raises(InputError, match="^data.red, data.acceptable: needs labels, and 2 of the 5 pairs have none"):
        drawn(pairs, 1, None, name="all")


# --- of a source ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (30, 70)),
        ({"only": "harmful"}, (30, 0)),
        ({"only": "acceptable", "rows": 9}, (0, 9)),
        ({"only": "harmful", "share": 0.25}, (8, 0)),  # 7.5, rounded up
        ({"only": "harmful", "share": 0.001}, (1, 0)),  # at least one
    ],
)
def test_clients_hold_what_a_source_is_asked_for(config: dict, expected: tuple) -> None:
    found = client_part(source(pool(30, 70), **config), pool(30, 70))
    assert (sum(p.harmful is True for p in found), sum(p.harmful is False for p in found)) == expected
    assert len(set(found)) == len(found)


def test_rows_are_drawn_at_random_and_no_more_than_there_are() -> None:
    pairs = pool(0, 100)
    found = client_part(source(pairs, rows=20), pairs)
    assert len(found) == 20 and found != pairs[:20] and found == client_part(source(pairs, rows=20), pairs)
    with pytest.raises(InputError, match=r"^data.sources\[0\].rows = 101: more than there are; must be at most 100"):
        client_part(source(pairs, rows=101), pairs)
    with pytest.raises(InputError, match=r"^data.sources\[0\] = pairs.json: no harmful pair for clients"):
        client_part(source(pairs, only="harmful"), pairs)


def test_a_label_is_of_rows_that_have_none(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": "r"} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labelled = [{"prompt": f"q{i}", "response": "r", "is_safe": i > 2} for i in range(4)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    data = data_of({"path": str(tmp_path / "a.jsonl"), "label": "harmful"}, {"path": str(tmp_path / "a.jsonl")})
    first, second = read_sources(data, 0)
    assert [pair.harmful for pair in first.read.pairs] == [True] * 4
    assert [pair.harmful for pair in second.read.pairs] == [None] * 4
    with pytest.raises(InputError, match=r"sources\[0\].label = harmful: 1 of 4 pairs are labelled as acceptable by"):
        read_sources(data_of({"path": str(tmp_path / "b.jsonl"), "label": "harmful"}), 0)


def test_the_same_question_in_another_language_is_found_by_the_prompt_s_column(tmp_path: Path) -> None:
    row = {"question": "질문", "question_en": "asked", "response": "대답", "response_en": "given", "acceptable?": 1}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    own = {"prompt": "question_en", "response": "response_en"}
    path = str(tmp_path / "a.json")
    for given in ({}, {"language": "ko"}, {"columns": own}):
        (mixed,) = read_sources(data_of({"path": path} | given), 0)
        assert {*mixed.questions(mixed.read.pairs[0])} == {"asked", "질문"}, given


def test_the_tiny_world_makes_as_many_of_each_as_a_source_asks_for() -> None:
    data = data_of(
        {"path": "tiny", "only": "acceptable", "rows": 20},
        {"path": "tiny", "only": "harmful", "share": 0.1},
        {"path": "tiny", "rows": 10},
    )
    made = read_sources(data, 0)
    assert [Counter(pair.harmful for pair in mixed.read.pairs) for mixed in made] == [
        {False: 20}, {True: 180}, {True: 3, False: 7}
    ]  # fmt: skip
    assert made[0].read.pairs != read_sources(data, 1)[0].read.pairs


# --- who holds it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clients", "given", "expected"),
    [
        (10, ["0-6", "7-9"], [range(7), range(7, 10)]),
        (10, ["0-6", "30%"], [range(7), range(7, 10)]),
        (10, ["70%", "30%"], [range(7), range(7, 10)]),
        (10, [None, "30%"], [range(10), range(3)]),
        (10, [None, [0, 3, 9]], [range(10), [0, 3, 9]]),
        (10, ["30%", [0, 3, 9], None], [[1, 2, 4], [0, 3, 9], range(10)]),
        (15, ["70%", "30%"], [range(11), range(11, 15)]),  # 10.5, rounded up
        (3, ["33.3%", "33.3%", "33.4%"], [[0], [1], [2]]),
        (6, [["0-2", 5], [3, "4-4"]], [[0, 1, 2, 5], [3, 4]]),
        (1, ["100%"], [[0]]),
    ],
)
def test_who_holds_a_source(clients: int, given: list, expected: list) -> None:
    data = data_of(*({"clients": value} for value in given))
    assert holders(data, clients) == [list(found) for found in expected]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["0-9"], r"^data.sources\[0\].clients = 0-9: there is no client 9; must be from 0 to 4"),
        ([None, [7]], r"^data.sources\[1\].clients = \[7\]: there is no client 7"),
        (["0-2"], "^data.sources: no source gives client 3, 4 anything, of federated.clients = 5"),
        (["80%", "5%"], r"sources\[1\].clients = 5%: of federated.clients = 5 is nobody"),
        (["80%", "40%"], r"sources\[1\].clients = 40%: is 2 of 5 clients, but only 1 are left"),
    ],
)
def test_clients_that_there_are_not_and_clients_with_nothing_are_refused(given: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        holders(data_of(*({"clients": value} for value in given)), 5)


SECTIONS = dict(ExperimentConfig())


def test_one_source_is_dealt_as_the_partition_deals_it() -> None:
    pairs = pool(30, 70)
    found = deal(pairs, np.zeros(100, int), DataConfig(), 20, 3, SECTIONS)
    assert [part.tolist() for part in found] == [part.tolist() for part in iid(pairs, 20, 3)]


def test_every_source_is_dealt_to_its_clients_by_its_partition() -> None:
    """Seven clients share 70 acceptable pairs, three share 12 harmful ones by 7 : 3 : 2, and all ten 20 others."""
    pairs = [*pool(0, 70), *pool(12, 0), *(Pair(f"x{i}", "r", None) for i in range(20))]
    origins = np.repeat([0, 1, 2], [70, 12, 20])
    shuffled = np.random.default_rng(0).permutation(102)
    pairs, origins = [pairs[i] for i in shuffled], origins[shuffled]
    data = data_of(
        {"clients": "0-6"},
        {"clients": "7-9", "partition": "quantity", "quantity": {"exponent": 1.0}},
        {"partition": "iid"},
        partition="dirichlet",
    )
    found = deal(pairs, origins, data, 10, 0, SECTIONS)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(102))
    held = [Counter(origins[part].tolist()) for part in found]
    assert held[:7] == [{0: 10, 2: 2}] * 7 and held[7:] == [{1: 7, 2: 2}, {1: 3, 2: 2}, {1: 2, 2: 2}]


def test_fewer_pairs_than_clients_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"^data.partition = iid: federated.clients = 5: more than the 3 training pairs"
    ):
        deal(pool(0, 3), np.zeros(3, int), DataConfig(), 5, 0, SECTIONS)


def test_seeds_of_sources_differ_and_the_first_one_s_is_the_config_s() -> None:
    seeds = [entry.seed for entry in entries(data_of({}, {}, {}), 5)]
    assert seeds[0] == 5 and len(set(seeds)) == 3


def test_what_a_partition_cannot_do_is_said_with_the_source() -> None:
    data = data_of({}, {"clients": [4], "partition": "natural"}, {"clients": "0-3"})
    with pytest.raises(InputError, match=r"^data.sources\[1\].partition = natural: column 'client': 3 of 3 pairs have"):
        deal(pool(0, 12), np.repeat([0, 1, 2], [5, 3, 4]), data, 5, 0, SECTIONS)
    with pytest.raises(InputError, match=r"^data.sources\[0\].clients: 5 clients hold it, more than its 3 pairs"):
        deal(pool(0, 12), np.repeat([0, 1, 2], [3, 5, 4]), data, 5, 0, SECTIONS)


def of_the_number(pairs: int, clients: int, seed: int) -> list[np.ndarray]:
    return [np.arange(client, pairs, clients) for client in range(clients)]


def test_a_partition_of_another_signature_is_refused() -> None:
    data = DataConfig(partition=f"{__name__}:of_the_number")
    with pytest.raises(
        InputError, match=r"of_the_number: calling it failed \(ValueError: .*must be a function of the p"
    ):
        deal(pool(0, 12), np.zeros(12, int), data, 5, 0, SECTIONS)
