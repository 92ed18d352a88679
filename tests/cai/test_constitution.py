"""Constitutions: weights are frequencies, categories restrict, no draw moves another; every mistake is named."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedjax_rai import rng
from fedjax_rai.cai.constitution import Constitution, Principle, draw, load_constitution
from fedjax_rai.config.load import load_config
from fedjax_rai.data import tiny_world
from fedjax_rai.errors import InputError
from fedjax_rai.text.prompts import ASSISTANT, USER, Turn

ROOT = Path(__file__).parents[2]
DEFAULT = ROOT / "fedjax_rai" / "assets" / "constitution.yaml"
SHIPPED = [DEFAULT, *sorted((ROOT / "configs" / "constitutions").glob("*.yaml"))]
MANY = 20_000
ENTRY = "{name: a, critique: c, revision: r}"


def principle(name: str, weight: float = 1.0, *categories: str) -> Principle:
    return Principle(name, f"criticise {name}", f"revise {name}", weight, categories)


MIXED = Constitution((
    principle("x", 1.0, "x"), principle("all", 2.0), principle("xy", 5.0, "x", "y"), principle("none", 3.0),
))  # fmt: skip
ONLY_X = Constitution((principle("x", 3.0, "x"), principle("x too", 1.0, "x")))


def drawn(constitution: Constitution, categories: Sequence[str], times: int = 1, seed: int = 0) -> np.ndarray:
    return draw(constitution, categories, times, rng.host(seed, "principles"))


def frequencies(constitution: Constitution, category: str) -> np.ndarray:
    counts = np.bincount(drawn(constitution, [category] * MANY, 2).ravel(), minlength=len(constitution.principles))
    return counts / counts.sum()


@pytest.mark.parametrize(
    ("constitution", "category", "weights"),
    [
        (MIXED, "x", [1, 2, 5, 3]),
        (MIXED, "y", [0, 2, 5, 3]),
        (MIXED, "z", [0, 2, 0, 3]),
        (MIXED, "", [0, 2, 0, 3]),
        (ONLY_X, "x", [3, 1]),
        (ONLY_X, "z", [3, 1]),
        (ONLY_X, "", [3, 1]),
    ],
)
def test_principles_that_apply_are_drawn_as_often_as_they_weigh(constitution, category, weights):
    """The error of a frequency of MANY * 2 draws is below 0.0025, so 0.015 is six of them."""
    expected = np.array(weights) / sum(weights)
    found = frequencies(constitution, category)
    np.testing.assert_allclose(found, expected, atol=0.015)
    assert (found[expected == 0] == 0).all()


def test_the_draws_of_a_prompt_are_independent():
    first, second = drawn(MIXED, ["x"] * MANY, 2).T
    joint = np.zeros((4, 4))
    np.add.at(joint, (first, second), 1 / MANY)
    np.testing.assert_allclose(joint, np.outer(joint.sum(axis=1), joint.sum(axis=0)), atol=0.02)


def test_a_prompts_draws_do_not_depend_on_the_others():
    alone = drawn(MIXED, ["x"] * 50, 3)
    mixed = drawn(MIXED, [("x", "y", "z", "")[i % 4] for i in range(80)], 3)
    np.testing.assert_array_equal(mixed[:50:4], alone[::4])


def test_what_is_drawn_later_does_not_depend_on_the_categories():
    generators = [rng.host(0, "principles") for _ in range(2)]
    for categories, g in zip((["x"] * 7, ["z"] * 7), generators, strict=True):
        draw(MIXED, categories, 2, g)
    assert generators[0].random() == generators[1].random()


def test_draws_are_those_of_the_seed():
    categories = ["x", "y", ""] * 20
    np.testing.assert_array_equal(drawn(MIXED, categories, 4), drawn(MIXED, categories, 4))
    assert (drawn(MIXED, categories, 4) != drawn(MIXED, categories, 4, seed=1)).any()


def test_only_the_ratio_of_weights_counts():
    """Powers of two scale exactly; the largest are such that their sum is no float."""
    categories = ["x", "y", ""] * 50
    for factor in (2.0**-1000, 2.0**1021):
        scaled = Constitution(tuple(p._replace(weight=p.weight * factor) for p in MIXED.principles))
        np.testing.assert_array_equal(drawn(scaled, categories, 2), drawn(MIXED, categories, 2))


def test_shapes():
    for prompts, times in ((0, 2), (3, 0), (3, 2)):
        found = drawn(ONLY_X, ["x"] * prompts, times)
        assert found.shape == (prompts, times) and found.dtype == np.int32


class Always(np.random.Generator):
    """A generator of one number."""

    def __init__(self, number: float):
        super().__init__(np.random.PCG64())
        self.number = number

    def random(self, size):  # pyright: ignore
        return np.full(size, self.number)


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 1.0, 7.7])
@pytest.mark.parametrize(("number", "expected"), [(0.0, 1), (np.nextafter(1.0, 0.0), 10)])
def test_the_extreme_numbers_draw_the_first_and_the_last_principle_that_apply(weight, number, expected):
    others = (principle(str(i), weight * (i + 1)) for i in range(10))
    constitution = Constitution((principle("x", 1.0, "x"), *others, principle("x too", 1.0, "x")))
    assert draw(constitution, ["z"], 1, Always(number)).item() == expected


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_reads_back_as_it_was_written(tmp_path):
    content = {
        "few_shot": [{"user": "q"}, {"assistant": "a"}, {"user": "나쁜가요?"}, {"assistant": "on"}],
        "principles": [
            {"name": "1", "critique": "is it?\nis it\n\nreally?", "revision": "do"},
            {"name": "b", "critique": "c", "revision": "r", "weight": 2, "categories": ["x", "y"]},
        ],
    }
    found = load_constitution(write(tmp_path, yaml.safe_dump(content, allow_unicode=True)))
    turns = (Turn(USER, "q"), Turn(ASSISTANT, "a"), Turn(USER, "나쁜가요?"), Turn(ASSISTANT, "on"))
    first = Principle("1", "is it?\nis it\n\nreally?", "do", 1.0, ())
    assert found == Constitution((first, Principle("b", "c", "r", 2.0, ("x", "y"))), turns)


def test_space_around_texts_goes(tmp_path):
    text = "principles:\n- name: ' a '\n  critique: |\n    c\n\n  revision: >\n    r\n    s\n"
    assert load_constitution(write(tmp_path, text)).principles == (Principle("a", "c", "r s"),)


def faults(path: Path) -> list[str]:
    with pytest.raises(InputError) as error:
        load_constitution(path)
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:") for line in lines]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "got nothing"),
        ("# a remark\n", 1, "got nothing"),
        ("\n- " + ENTRY, 2, "got a list; put it under `principles:`"),
        ("\n5", 2, "must be a mapping with the key principles; got 5"),
        ("principles:\n- 'a\n", 3, "not valid YAML: found unexpected end"),
        ("principles: &x\n- *x\n", 1, "not valid YAML: found unconstructable recursive"),
        ("# 한국어\n# 한국어\nprinciples: \x07", 3, "not valid YAML"),
        ("principles: !of_mine x", 1, "not valid YAML: could not determine a constructor"),
        ("few_shot: []\n", 1, "principles is missing: must be a list of principles"),
        ("\nprinciples: []\n", 2, "principles = []: must be a list of principles, at least one"),
        ("principles: " + ENTRY, 1, "must be a list of principles"),
        (f"principles: [{ENTRY}]\nprinciples: []", 2, "principles: stands twice, first in line 1"),
    ],
)
def test_a_file_that_is_no_constitution_is_named_with_the_line(tmp_path, text, line, says):
    (fault,) = faults(write(tmp_path, text))
    assert fault.startswith(f"{line}:") and says in fault


def test_a_file_that_is_no_text_is_named_with_the_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes("# 한국어\nprinciples: \xff".encode("latin-1", "replace"))
    assert faults(path) == [f"2: byte {path.read_bytes().index(255)} is not UTF-8; must be a text file in UTF-8"]
    assert "no such file; must be a YAML file of principles" in faults(tmp_path / "none.yaml")[0]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("critque: x", ".critque: no such key; did you mean critique?"),
        ("other: x", ".other: no such key; must be one of name, critique, revision, weight, categories"),
        ("1: x", ".1: no such key"),
        ("? [1]\n  : x", "no such key"),
        ("name: b", ".name: stands twice, first in line 3; must stand once"),
        ("weight: 0", ".weight = 0: must be a number > 0"),
        ("weight: -1.5", ".weight = -1.5: must be a number > 0"),
        ("weight: .nan", ".weight = NaN: must be a number > 0"),
        ("weight: .inf", ".weight = Infinity: must be a number > 0"),
        ("weight: '2'", '.weight = "2": must be a number > 0'),
        ("weight: true", ".weight = true: must be a number > 0"),
        ("weight:", ".weight = null: must be a number > 0"),
        ("categories: x", '.categories = "x": must be a list of at least one text'),
        ("categories: {x: 1}", '.categories = {"x": 1}: must be a list of at least one text'),
        ("categories: []", ".categories = []: must be a list of at least one text"),
        ("categories: [2]", ".categories[0] = 2: must be text, not empty; put it in quotes"),
        ("categories: [{2020-01-01: x}]", '.categories[0] = {"2020-01-01": "x"}: must be text'),
        ("categories: [x, y, x]", '.categories[2] = "x": stands in line 5 too; must stand once'),
    ],
)
def test_a_wrong_key_of_a_principle_is_named_with_the_line(tmp_path, fault, says):
    path = write(tmp_path, f"principles:\n- {ENTRY}\n- name: b\n  critique: c\n  {fault}\n  revision: r\n")
    assert [found.startswith("5: principles[1]") and says in found for found in faults(path)] == [True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("''", '= "": must be text, not empty'),
        ("' '", '= " ": must be text, not empty'),
        ("", "= null: must be text, not empty"),
        ("3", "= 3: must be text, not empty; put it in quotes"),
        ("2020-01-01", '= "2020-01-01": must be text, not empty; put it in quotes'),
        ("yes", "= true: must be text, not empty; put it in quotes"),
        ("[r]", '= ["r"]: must be text, not empty; put it in quotes'),
        ("is it: harmful", "not valid YAML"),
    ],
)
@pytest.mark.parametrize("key", ["name", "critique", "revision"])
def test_what_is_no_text_is_named_with_the_line(tmp_path, key, text, says):
    others = "".join(f"  {other}: t\n" for other in ("name", "critique", "revision") if other != key)
    (fault,) = faults(write(tmp_path, f"principles:\n- weight: 1\n{others}  {key}: {text}\n"))
    assert fault.startswith("5:") and says in fault


@pytest.mark.parametrize(
    ("turns", "line", "says"),
    [
        ("- assistant: a", 2, "[0]: assistant may not be here; turns must alternate"),
        ("- user: a", 2, "[0]: user may not be the last turn; turns must alternate"),
        ("- user: a\n- assistant: b\n- user: c", 4, "[2]: user may not be the last turn"),
        ("- user: a\n- user: b\n- assistant: c", 3, "[1]: user may not be here"),
        ("- user: a\n- assistant: b\n- assistant: c", 4, "[2]: assistant may not be here"),
        ("- user: a\n  assistant: b", 2, "must be one turn, 'user: text' or 'assistant: text'"),
        ("- {}", 2, "= {}: must be one turn"),
        ("- a", 2, "[0] = \"a\": must be 'user: text' or 'assistant: text'"),
        ("- user: a\n- asistant: b", 3, "[1].asistant: no such key; did you mean assistant?"),
        ("- system: a", 2, "[0].system: no such key; must be one of user, assistant"),
        ("- user: ''\n- assistant: b", 2, '[0].user = "": must be text, not empty'),
        ("  user: a", 1, '= {"user": "a"}: must be a list of turns'),
    ],
)
def test_a_wrong_turn_is_named_with_the_line(tmp_path, turns, line, says):
    (fault,) = faults(write(tmp_path, f"few_shot:\n{turns}\nprinciples: [{ENTRY}]\n"))
    assert fault.startswith(f"{line}: few_shot") and says in fault


def test_every_problem_is_listed_in_the_order_of_the_file(tmp_path):
    text = f"""few_shot:
- assistant: ''
principle: []
principles:
- {ENTRY}
- name: a
  critque: c
  revision: r
- nothing
- {{name: '', critique: c, revision: '', weight: 0}}
- {{name: '', critique: c, revision: r}}
"""
    found = faults(write(tmp_path, text))
    assert [int(fault.partition(":")[0]) for fault in found] == [2, 2, 3, 6, 6, 7, 9, 10, 10, 10, 11]
    assert "principles[1].critique is missing: must be text, not empty" in found[3]
    assert 'principles[1].name = "a": stands in line 5 too' in found[4]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_load_and_say_how_they_are_run(path):
    found = load_constitution(path)
    assert found.principles and len(found.few_shot) % 2 == 0
    command, run, config, *overrides = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").split()
    assert (command, run) == ("fedjax-rai", "run")
    named = load_config(ROOT / config, overrides).cai.constitution
    assert named == ("default" if path == DEFAULT else str(path.relative_to(ROOT)))


def test_the_default_asks_what_the_tiny_base_was_trained_on():
    principles = load_constitution(DEFAULT).principles
    assert tuple(p.critique for p in principles) == tiny_world.CRITIQUE_REQUESTS
    assert {p.revision for p in principles} == {tiny_world.REVISION_REQUEST}


def test_the_shipped_square_knows_the_kinds_of_square_and_others():
    principles = load_constitution(ROOT / "configs" / "constitutions" / "square.yaml").principles
    named = {category for p in principles for category in p.categories}
    assert named == {"contentious", "ethical", "predictive"}
    assert any(not p.categories for p in principles)


def test_the_shipped_bilingual_asks_in_both_languages():
    for p in load_constitution(ROOT / "configs" / "constitutions" / "bilingual.yaml").principles:
        for english, korean in (p.critique.split("\n"), p.revision.split("\n")):
            assert english.isascii() and "language of the question" in english
            assert "질문에 쓰인 언어" in korean and not any(letter.isascii() and letter.isalpha() for letter in korean)
