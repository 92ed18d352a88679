"""Turns that a CSV file can hold only as text: what is a list of turns in JSON lines is one there as well."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.data.sources import Pair, Source, read_pairs
from fedjax_rai.data.turns import listed


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(folder: Path, row: dict[str, str]) -> tuple[str, list[Pair]]:
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    found = read_pairs(Source(str(folder / "a.csv")))
    return found.columns, found.pairs


@pytest.mark.parametrize("write", [json.dumps, str, lambda turns: json.dumps(turns, indent=1)])
@pytest.mark.parametrize(
    ("row", "columns", "answers"),
    [
        ({"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, "hh", "ab"),
        ({"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]}, "hh", "ab"),
        ({"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}, "hh", "ab"),
        ({"prompt": [user("q")], "chosen": "a", "rejected": "b"}, "hh", "ab"),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, "hh", "ab"),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": [assistant("a")], "rejected": "b"}, "hh", "ab"),
        ({"prompt": [user("q")], "completion": [assistant("a")]}, "prompt_completion", "a"),
        ({"prompt": "q", "completion": [{"from": "gpt", "value": "a"}]}, "prompt_completion", "a"),
    ],
)  # fmt: skip
def test_turns_are_read_beside_a_prompt(
    tmp_path: Path, row: dict[str, Any], columns: str, answers: str, write: Callable[[Any], str]
) -> None:
    texts = {name: value if isinstance(value, str) else write(value) for name, value in row.items()}
    layout, pairs = read(tmp_path, texts)
    assert layout == columns
    assert [pair.turns for pair in pairs] == [[("user", "q"), ("assistant", answer)] for answer in answers]


@pytest.mark.parametrize(
    "text",
    ["[1, 2]", "[sic] so", '[{"a": 1}]', '[{"role": "user"', '["user"]', '{"role": "user", "content": "q"}', "[{{1}}]",
     '[{"role": "user", "content": "q"}, 3]', '[{"role": 3}]', "[]"],
)  # fmt: skip
def test_a_text_that_merely_begins_with_a_bracket_stays_text(tmp_path: Path, text: str) -> None:
    assert listed(text) == text
    _, (pair,) = read(tmp_path, {"prompt": text, "completion": text})
    assert (pair.query, pair.response) == (text, text)
