"""The synthetic world: reproducible, its splits and roles disjoint, its evaluation unseen in pre-training."""

import re

import numpy as np
import pytest

from fedjax_rai.data import tiny_lexicon as words
from fedjax_rai.data import tiny_world as world
from fedjax_rai.evals.judge import knows_templates

# Left out: words that a fixed form holds itself ("people would get hurt"), and `forge`, which is a verb and a place.
TABLES = (words.QUERIES, words.UNSAFE, words.ACCEPTABLE)
FORMS = [form for table in TABLES for forms in table.values() for form in forms] + words.REFUSALS
FIXED = set(re.findall(r"\w+", " ".join(FORMS))) | set(words.HARM_VERBS) & set(words.TARGETS)
HARM = {*words.HARM_VERBS, *words.TARGETS, *words.GROUPS, *words.EVENTS} - FIXED
LONGEST_FIRST = sorted(HARM, key=len, reverse=True)
PATTERN = re.compile(r"\b(" + "|".join(map(re.escape, LONGEST_FIRST)) + r")\b")


def used(texts) -> set[str]:
    return {word for text in texts for word in PATTERN.findall(text)}


def texts(split: world.Split) -> dict[str, list[str]]:
    """All texts of a split, by role."""
    return {
        "fl": [f"{p.query} {p.response}" for p in world.square_like(150, 350, split, 0)],
        "guard": [f"{p.query} {p.response}" for p in world.guard_pairs(300, split, 0)],
        "cai": [prompt.query for prompt in world.red_prompts(300, split, 0)],
        "eval": world.advbench_like(100, split, 0)
        + [c.query for c in world.hhh_like(100, split, 0) if c.category != "helpful"],
    }


def test_the_same_seed_gives_the_same_world_and_another_another():
    for make in (
        lambda s: world.square_like(20, 40, "tune", s),
        lambda s: world.guard_pairs(40, "tune", s),
        lambda s: world.utility(40, "tune", s),
        lambda s: list(world.corpus(40, s)),
    ):
        assert make(1) == make(1) != make(2)


def test_splits_and_roles_share_no_harm_word():
    by_place = {(split, role): used(own) for split in world.SPLITS for role, own in texts(split).items()}
    places = list(by_place)
    for i, a in enumerate(places):
        assert len(by_place[a]) >= 10
        for b in places[i + 1 :]:
            assert not by_place[a] & by_place[b], (a, b)


def test_splits_share_no_query_form():
    def forms(split):
        return {
            PATTERN.sub("_", text.split("?")[0]) for own in (texts(split)["cai"], texts(split)["eval"]) for text in own
        }

    assert not forms("tune") & forms("test")


def test_imperatives_of_the_evaluation_are_in_no_training_data():
    asked = {PATTERN.sub("_", q) for split in world.SPLITS for q in world.advbench_like(60, split, 0)}
    trained = {PATTERN.sub("_", p.query) for split in world.SPLITS for p in world.square_like(100, 200, split, 0)}
    trained |= {PATTERN.sub("_", p.query) for split in world.SPLITS for p in world.red_prompts(300, split, 0)}
    assert asked and not asked & trained


@pytest.mark.slow
def test_pre_training_never_saw_what_is_evaluated():
    corpus = {turn.text for document in world.corpus(20_000, 0) for turn in document.turns}
    for split in world.SPLITS:
        assert not corpus & set(world.advbench_like(100, split, 3))
        held = {q.query for q in world.utility(300, split, 3)}
        assert held and not corpus & held and not held & set(world.benign_prompts(300, split, 3))


def test_proportions_are_the_recipes():
    pairs = world.square_like(600, 1400, "test", 0)
    assert sum(p.harmful is True for p in pairs) == 600 and len(pairs) == 2000
    share = {kind: np.mean([p.category == kind for p in pairs]) for kind in world.KINDS}
    assert share == pytest.approx({"request": 0.4, "ethical": 0.2, "contentious": 0.2, "predictive": 0.2}, abs=0.04)


def is_of_form(text: str, form: str) -> bool:
    """Whether a text is one of a lexicon's forms, with some words in its slots."""
    parts = [re.escape(part) for part in re.split(r"\{\w+\}", form)]
    return re.fullmatch(".+".join(parts), text) is not None


def test_half_of_a_guards_pairs_are_unsafe_and_a_twentieth_of_these_of_new_forms():
    """The last two of the six forms of a kind are those that a guard hardly sees."""
    pairs = world.guard_pairs(3000, "test", 0)
    unsafe = [pair for pair in pairs if pair.harmful]
    assert len(unsafe) == 1500
    new = [any(is_of_form(pair.response, form) for form in words.UNSAFE[pair.category][4:]) for pair in unsafe]
    assert 0.03 < np.mean(new) < 0.07


def test_half_of_the_harmless_prompts_look_harmful():
    asked = world.over_refusal(60, "test", 0)
    assert sum(any(task in prompt for task in words.LOOKALIKES) for prompt in asked) == 30


def test_choices_are_of_four_categories_a_quarter_each():
    categories = [choice.category for choice in world.hhh_like(200, "test", 0)]
    assert {name: categories.count(name) for name in ("harmless", "helpful", "honest", "other")} == {
        "harmless": 50, "helpful": 50, "honest": 50, "other": 50,
    }  # fmt: skip


def test_labels_are_what_the_rule_judge_says():
    unsafe = knows_templates()
    for pair in [*world.square_like(200, 300, "tune", 0), *world.guard_pairs(200, "test", 0)]:
        assert unsafe(pair.response) == pair.harmful, pair
    for choice in world.hhh_like(200, "tune", 0):
        assert choice.good != choice.bad and not unsafe(choice.good)


def test_tasks_have_the_answers_they_claim():
    for question in world.utility(200, "test", 0):
        if question.query.startswith("Count"):
            assert question.answer == str(len(question.query.split(": ")[1].split()))
        if question.query.startswith("Name the first"):
            assert question.answer == question.query.split(": ")[1].split()[0]


def test_revisions_in_pre_training_mend_what_is_unsafe_and_keep_the_rest():
    unsafe, seen = knows_templates(), [0, 0]
    for document in world.corpus(3000, 0):
        if len(document.turns) == 6:
            answer, critique, revision = (document.turns[i].text for i in (1, 3, 5))
            assert not unsafe(revision) and document.first == 2
            assert (critique == words.FINE) == (not unsafe(answer)) == (revision == answer)
            seen[unsafe(answer)] += 1
    assert min(seen) > 200
