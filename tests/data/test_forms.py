"""The same rows in every form that people keep them in give the same pairs, in every layout."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.data.columns import Language
from fedjax_rai.data.sources import Pair, Read, Source, read_pairs
from tests.data.test_files import COMPRESSIONS, FORMS

WORDS = (
    "물음",
    "what",
    'the "mill"',
    "a, b",
    "line\nbreak",
    "tab\t",
    "naïve",
    "🙂",
    "; and",
    "'quoted'",
    "{x}",
    "0",
    "None",
)


def some(g: random.Random) -> str:
    """A text that begins and ends with letters, so that it stays as it is."""
    return "w " + " ".join(g.choices(WORDS, k=4)) + f" {g.random()}"


def square(g: random.Random) -> dict[str, Any]:
    texts = {name: some(g) for name in ("question", "question_en", "response", "response_en")}
    categories = g.sample(["ethical", "contentious", "etc"], 2)
    kind = g.choice([None, "predictive"])
    return {**texts, "acceptable?": g.randrange(2), "category": categories, "question_category": kind}


def messages(g: random.Random) -> dict[str, Any]:
    roles = ("user", "assistant") * g.randint(1, 3)
    return {"messages": [{"role": role, "content": some(g)} for role in roles], "user": g.randrange(9)}


def transcripts(g: random.Random) -> dict[str, str]:
    begun = f"\n\nHuman: {some(g)}\n\nAssistant: {some(g)}\n\nHuman: {some(g)}\n\nAssistant: "
    return {"chosen": begun + some(g), "rejected": begun + some(g)}


def unsafe_pairs(g: random.Random) -> dict[str, Any]:
    return {"prompt": some(g), "response": some(g), "is_safe": g.random() < 0.5, "category": {"a": False, "b": True}}


MAKERS = {
    "square": square,
    "messages": messages,
    "hh": transcripts,
    "safe_pairs": unsafe_pairs,
    "alpaca": lambda g: {"instruction": some(g), "input": g.choice(["", some(g)]), "output": some(g)},
    "prompt_completion": lambda g: {"prompt": some(g), "completion": some(g), "score": g.choice([1.5, 2.0, None])},
    "pku_pairs": lambda g: {
        **{name: some(g) for name in ("prompt", "response_0", "response_1")},
        "is_response_0_safe": True,
        "is_response_1_safe": g.random() < 0.5,
    },
}


def made(layout: str) -> list[dict[str, Any]]:
    g = random.Random(layout)
    return [MAKERS[layout](g) for _ in range(8)]


def as_read(path: Path, language: Language = "en") -> Read:
    return read_pairs(Source(str(path), language=language))


def saved(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """The folders that `datasets` makes of rows: of one set, and of one with splits."""
    import datasets

    datasets.disable_progress_bars()
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(folder / "saved")
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(folder / "splits")
    return [folder / "saved", folder / "splits"]


@pytest.mark.parametrize("layout", MAKERS)
def test_the_same_rows_in_every_form_give_the_same_pairs(tmp_path: Path, layout: str) -> None:
    rows = made(layout)
    (tmp_path / "first.json").write_text(json.dumps(rows))
    first = as_read(tmp_path / "first.json")
    answers = 2 if layout in ("hh", "pku_pairs") else 1
    assert (first.columns, first.rows, len(first.pairs), first.refused) == (layout, 8, 8 * answers, 0)
    compressions = list(COMPRESSIONS.values())
    paths = saved(tmp_path, rows)
    for i, (name, write) in enumerate(FORMS.items()):
        folder = tmp_path / f"folder {i}" / "deeper"
        folder.mkdir(parents=True)
        path = folder / ("train_" + name if "." in name else "train.csv")
        path.write_bytes(compressions[i % len(compressions)](write(rows)))
        paths += [path, folder.parent]
        (folder / "test_more.csv").write_text("not,read\n")
    for path in paths:
        found = as_read(path)
        assert found.pairs == first.pairs, path
        assert found[1:] == first[1:], path


def test_both_languages_of_square_in_every_form(tmp_path: Path) -> None:
    rows = made("square")
    for name, write in FORMS.items():
        (tmp_path / name).write_bytes(write(rows))
        languages: list[tuple[Language, str]] = [("en", "_en"), ("ko", "")]
        for language, suffix in languages:
            pairs = as_read(tmp_path / name, language).pairs
            assert [(p.query, p.response) for p in pairs] == [
                (row[f"question{suffix}"], row[f"response{suffix}"]) for row in rows
            ]


def test_pairs_by_hand_from_a_glob_of_two_forms(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(COMPRESSIONS[".gz"](b'{"prompt": "q", "completion": "a", "user": "u1"}'))
    (tmp_path / "b.csv").write_text("prompt,completion,user\nr,b,u2\n")
    (tmp_path / "c.txt").write_text("not read")
    assert as_read(tmp_path / "[ab].*").pairs == [
        Pair("q", "a", None, columns={"user": "u1"}),
        Pair("r", "b", None, columns={"user": "u2"}),
    ]
