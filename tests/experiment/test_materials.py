"""Who holds which texts: shares, halves and counts on cases small enough to see."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.materials import balanced, gather
from fedjax_rai.experiment.setting import Setting
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
    asked = set(made.evaluations["square_choice"].prompts)
    assert len(held[0] | held[1] | held[2]) == sum(map(len, held)) and asked
    assert not asked & (held[0] | held[1] | held[2])


# --- evaluation data is never trained on ------------------------------------------------------------------------

SPELLINGS = [
    lambda text: text,
    lambda text: unicodedata.normalize("NFD", text),
    lambda text: f" {text}\u200b",
    lambda text: text.replace(" ", "\u00a0 "),
    lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),  # full-width
]


class Generated:
    """Questions, each with a number, in two languages and any spelling; what is written of them is known by that."""

    def __init__(self, seed: int):
        self.g = np.random.default_rng(seed)
        self.numbers: dict[str, tuple[int, str]] = {}
        self.tied: set[int] = set()

    def text(self, i: int, language: str) -> str:
        plain = f"How does thing {i} work?" if language == "en" else f"물건 {i} 은 어떻게 되나?"
        spelt = SPELLINGS[self.g.integers(len(SPELLINGS))](plain)
        self.numbers[spelt.strip()] = (i, language)
        return spelt

    def some(self, n: int) -> list[int]:
        return self.g.integers(0, 150, n).tolist()

    def square(self, n: int, is_read: bool = True) -> list[dict]:
        found = []
        for i in self.some(n):
            self.tied |= {i} if is_read else set()
            texts = {"question_en": self.text(i, "en"), "question": self.text(i, "ko")}
            answers = {"response_en": f"answer {self.g.integers(9)}", "response": "대답"}
            found.append(texts | answers | {"acceptable?": int(self.g.integers(2))})
        return found

    def alpaca(self, n: int) -> list[dict]:
        return [{"instruction": self.text(i, "en"), "input": "", "output": "done"} for i in self.some(n)]

    def messages(self, n: int) -> list[dict]:
        found = []
        for i, j in zip(self.some(n), self.some(n), strict=True):
            turns = [("user", self.text(i, "ko")), ("assistant", "a"), ("user", self.text(j, "en")), ("assistant", "b")]
            found.append({"messages": [{"role": role, "content": text} for role, text in turns]})
        return found

    def prompts(self, n: int, language: str) -> list[dict]:
        return [{"prompt": self.text(i, language), "answer": "x"} for i in self.some(n)]

    def of(self, texts: Iterable[str]) -> set:
        """What texts ask: in whatever language, of a question that a row has in both."""
        asked = {self.numbers[text] for text in texts}
        return {i if i in self.tied else (i, language) for i, language in asked}


@pytest.mark.parametrize("seed", range(8))
def test_evaluation_data_are_never_trained_on_in_any_mix(config, tmp_path, seed):
    """By spelling, by language, by source: whoever trains on a question, nobody is asked it in evaluation."""
    made = Generated(seed)
    languages = [("en", "ko"), ("ko", "en")][seed % 2]
    several = seed % 4 > 0
    rows = {
        "first": made.square(250),
        "second": made.square(150, several),
        "third": made.alpaca(40),
        "fourth": made.messages(40),
        "harm": made.prompts(10, "en"),
        "tasks": made.prompts(10, "ko"),
        "red": made.prompts(60, "en"),
        "benign": made.prompts(60, "ko"),
    }
    paths = {name: str(tmp_path / f"{name}.json") for name in rows}
    for name, path in paths.items():
        Path(path).write_text(json.dumps(rows[name]), encoding="utf-8")
    sources = [
        {"path": paths["first"], "language": languages[0]},
        {"path": paths["second"], "language": languages[1]},
        {"path": paths["third"]},
        {"path": paths["fourth"]},
    ]
    own_prompts = {"red_prompts": paths["red"], "replay_data": paths["benign"]} if seed % 3 else {}
    config = vary(
        config,
        seed=seed,
        data={"sources": sources[: 1 + seed % 4], "red": None, "acceptable": None},
        eval={"advbench": paths["harm"], "utility": paths["tasks"], "prompts": 100},
        cai={"probe": 2, "replay": 100} | own_prompts,
        guard={"pairs": 100},
    )
    materials = gather(config)
    asked = [prompt for given in materials.evaluations.values() for prompt in given.prompts]
    evaluated = made.of([*asked, *materials.probe_prompts])
    earlier = [turn.text for pair in materials.pairs for turn in pair.before if turn.role == "user"]
    trained = {
        "pairs": made.of([pair.query for pair in materials.pairs] + earlier),
        "guard": made.of(pair.query for pair in materials.guard_pairs),
        "red": made.of(prompt.query for prompt in materials.red_prompts),
        "replay": made.of(materials.benign_prompts),
    }
    assert {name: numbers & evaluated for name, numbers in trained.items()} == dict.fromkeys(trained, set())
    assert made.tied and all(trained.values())
    choices = [*materials.evaluations["square_choice"].items, *materials.evaluations["held_out_choice"].items]
    assert len(choices) > 1 and len(materials.probe_prompts) == 2
    assert materials.held_out["training pairs"] > 0, "the case has something to take out"


def test_what_the_evaluation_asks_is_taken_out_and_counted(config, tmp_path):
    rows = [{"prompt": f"q{i}", "completion": "r"} for i in range(200)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = {"train": str(tmp_path / "rows.json"), "red": None, "acceptable": None}
    free = gather(vary(config, data=data))
    asked = [pair.query for pair in free.pairs[:6]]  # of which `eval.prompts`, 4, are asked
    (tmp_path / "asked.csv").write_text("goal\n" + "\n".join(f" {query}\u200b" for query in asked))
    made = gather(vary(config, data=data, eval={"advbench": str(tmp_path / "asked.csv")}))
    assert made.held_out == {"red prompts": 0, "pairs for the guard": 0, "training pairs": 6, "benign prompts": 0}
    assert [pair.query for pair in made.pairs] == [pair.query for pair in free.pairs[6:]]
    assert "6 training pairs are left out: the evaluation asks the same" in made.notes


def test_prompts_by_a_mapping_are_those_by_a_path(config, tmp_path):
    """The same materials, where columns and split say what a path alone would find; and others by another column."""
    files = {"red_prompts": range(9), "replay_data": range(9), "advbench": range(3)}
    for name, numbers in files.items():
        text = name if name == "replay_data" else "red"
        rows = [{"prompt": f"{text} {i}", "other": f"other {i}", "category": f"c{i % 2}"} for i in numbers]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    paths = {name: str(tmp_path / f"{name}.json") for name in files}
    mappings = {name: {"path": path, "split": "train", "columns": {"prompt": "prompt"}} for name, path in paths.items()}

    def made(given):
        prompts = {name: given[name] for name in ("red_prompts", "replay_data")}
        return gather(vary(config, cai=prompts | {"probe": 0}, eval={"advbench": given["advbench"]}))

    by_path, by_mapping = made(paths), made(mappings)
    assert by_path.red_prompts == [(f"red {i}", f"c{i % 2}") for i in range(3, 9)], "red 0 to 2 are asked"
    assert np.array_equal(by_mapping.origins, by_path.origins)
    assert by_mapping._replace(origins=by_path.origins, evaded=by_path.evaded) == by_path
    mappings["red_prompts"]["columns"] = {"prompt": "other", "category": "category"}
    assert made(mappings).red_prompts == [(f"other {i}", f"c{i % 2}") for i in range(9)]


def test_a_source_that_cannot_be_tied_to_another_language_is_named(config, tmp_path):
    both = {"question_en": "a", "question": "b", "response_en": "c", "response": "d", "acceptable?": 1}
    one = {name: value for name, value in both.items() if "_en" not in name}
    for name, row in (("both", both), ("one", one)):
        rows = [{key: f"{text} {i}" if isinstance(text, str) else text for key, text in row.items()} for i in range(9)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    english, korean = ({"path": str(tmp_path / "both.json"), "language": language} for language in ("en", "ko"))
    other = {"path": str(tmp_path / "one.json"), "language": "ko"}

    def named(*sources):
        made = gather(vary(config, data={"sources": sources, "red": None, "acceptable": None}, cai={"probe": 0}))
        return [note.partition(" = ")[0] for note in made.notes if "in another language" in note]

    assert named(english, korean) == named(korean, other) == []
    assert named(english, other) == ["data.sources[1]"]


def test_without_labels_clients_train_and_what_needs_labels_is_empty(config, tmp_path):
    """All 100 rows are the clients'; no pairs for the guard, no red prompts, nothing to replay, no choices."""
    rows = [{"prompt": f"q{i}", "completion": "r"} for i in range(100)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = {"train": str(tmp_path / "rows.json"), "red": None, "acceptable": None}
    made = gather(vary(config, data=data))
    assert len(made.pairs) == 100 and {pair.harmful for pair in made.pairs} == {None}
    assert not (made.guard_pairs or made.red_prompts or made.benign_prompts)
    assert not any(given.items for name, given in made.evaluations.items() if "choice" in name)
    setting = Setting(vary(config, data=data, filter={"enabled": True}, cai={"enabled": False}))
    with pytest.raises(InputError, match=r"^data.train = .*rows.json: the filter's guard needs harmful and acceptable"):
        setting.check()
    with pytest.raises(InputError, match="rows.json: no red questions left for cai.prompts; .*cai.red_prompts must na"):
        Setting(vary(config, data=data)).check()


def test_seven_clients_on_ordinary_instructions_and_three_on_harmful_ones(config):
    """Of the tiny world: ten pairs a client, all harmful at the last three; CAI and evaluation as ever."""
    sources = [
        {"path": "tiny", "only": "acceptable", "rows": 70, "clients": "0-6"},
        {"path": "tiny", "only": "harmful", "rows": 30, "clients": "7-9"},
    ]
    data = {"sources": sources, "red": None, "acceptable": None}
    mixed = vary(config, data=data, federated={"clients": 10, "cohort": 3})
    setting = Setting(mixed)
    pairs = setting.texts.materials.pairs
    held = [Counter(pairs[row].harmful for row in rows) for rows in setting.client_rows]
    assert held == [{False: 10}] * 7 + [{True: 10}] * 3
    one = gather(config)
    assert setting.texts.materials.evaluations == one.evaluations
    assert setting.texts.materials.red_prompts == one.red_prompts
