"""Which part a question belongs to: whole questions, in proportion, tied over sources and languages, and for good."""

import numpy as np

from fedjax_rai.data.roles import SHARES, part_of, share_out
from fedjax_rai.data.sources import Pair
from tests.mixes import source


def where(parts: dict, i: int = 0) -> dict[str, str]:
    """The part of each question of a source."""
    return {pair.query: part for part, by_source in parts.items() for pair in by_source[i]}


def test_questions_are_shared_out_whole_and_in_proportion() -> None:
    questions = [f"Is question {i} like its neighbour?" for i in range(3000)]
    pairs = [Pair(question, answer, False, "etc") for question in questions for answer in ("yes", "no")]
    parts = share_out([source(pairs)], 0)
    assert sorted(pair for (part,) in parts.values() for pair in part) == sorted(pairs)
    asked = {name: {pair.query for pair in part} for name, (part,) in parts.items()}
    assert sum(map(len, asked.values())) == 3000, "a question is in one part"
    for name, share in {"clients": 0.55, "guard": 0.2, "server": 0.1, "evaluation": 0.15}.items():
        assert abs(len(asked[name]) / 3000 - share) < 0.03


def test_a_part_depends_on_question_and_seed_alone() -> None:
    pairs = [Pair(f"question {i}", "yes", False, "etc") for i in range(300)]
    parts = where(share_out([source(pairs)], 0))
    fewer = where(share_out([source([Pair("another", "a", False)]), source(pairs[::-3])], 0), 1)
    assert fewer.items() <= parts.items()
    assert where(share_out([source(pairs)], 1)) != parts


def test_a_part_never_moves() -> None:
    """Reported numbers stand on it: these parts must be the same on every machine and in every version."""
    shares = {"clients": 0.6, "guard": 0.3, "eval": 0.1}
    found = [part_of(f"question {i}", shares, 0) for i in range(8)]
    assert found == ["eval", "clients", "clients", "clients", "eval", "guard", "clients", "guard"]


def in_both(i: int, language: str) -> Pair:
    """A row in two languages, read in one."""
    texts = {"question_en": f"question {i}", "question": f"질문 {i}"}
    own, other = ("question_en", "question") if language == "en" else ("question", "question_en")
    return Pair(texts[own], "a", False, "etc", columns={other: texts[other]})


def test_one_question_in_two_languages_is_in_one_part() -> None:
    english = source([in_both(i, "en") for i in range(200)], ("question", "question_ko"))
    korean = source([in_both(i, "ko") for i in range(200)], ("question_en", "question_ko"))
    parts = share_out([english, korean], 0)
    first, second = where(parts, 0), where(parts, 1)
    assert [first[f"question {i}"] for i in range(200)] == [second[f"질문 {i}"] for i in range(200)]
    assert first == where(share_out([english], 0)), "a source in one language is shared out as ever"


def test_questions_are_tied_by_others_and_their_order_does_not_matter() -> None:
    """A and B are one by a row that holds both, and B and C by another source's; D stays where it was."""
    one = [Pair("A", "r", False, columns={"question": "B"}), Pair("D", "r", False)]
    other = [Pair("C", "r", False, columns={"question_en": "B"})]
    twins = ("question", "question_en")
    for seed in range(20):
        parts = share_out([source(one, twins), source(other, twins)], seed)
        assert where(parts)["A"] == where(parts, 1)["C"] == part_of("A", SHARES, seed)
        assert where(parts)["D"] == part_of("D", SHARES, seed)
        turned = share_out([source(one[::-1], twins), source(other, twins)], seed)
        assert where(turned) == where(parts)


def test_long_chains_of_ties_are_one() -> None:
    g = np.random.default_rng(0)
    pairs = [Pair(f"q{i:04}", "r", False, columns={"question": f"q{i + 1:04}"}) for i in range(999)]
    mixed = source([pairs[i] for i in g.permutation(999)], ("question",))
    assert set(where(share_out([mixed], 3)).values()) == {part_of("q0000", SHARES, 3)}


def test_what_has_no_label_is_the_clients_but_for_questions_that_have_one_elsewhere() -> None:
    """Of 400 questions without a label 100 have a labelled answer in another source, and go where that goes."""
    unlabelled = source([Pair(f"question {i}", "a", None) for i in range(400)])
    labelled = source([Pair(f"question {i}", "b", True) for i in range(0, 400, 4)])
    parts = share_out([unlabelled, labelled], 0)
    first, second = where(parts, 0), where(parts, 1)
    assert len(first) == 400 and {first[f"question {i}"] for i in range(400) if i % 4} == {"clients"}
    assert {question: first[question] for question in second} == second
    assert set(second.values()) == set(SHARES)
