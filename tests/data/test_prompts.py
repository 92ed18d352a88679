"""Rows that ask: prompts, tasks and choices of any source, and what is refused with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.data.prompts import Prompt, read_choices, read_harmless, read_prompts, read_tasks
from fedjax_rai.data.sources import Choice, Question
from fedjax_rai.errors import InputError


def written(folder: Path, rows: Any, name: str = "a.jsonl") -> Path:
    path = folder / name
    text = rows if isinstance(rows, str) else "\n".join(json.dumps(row) for row in rows)
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("row", "query", "category"),
    [
        ({"prompt": " asked ", "category": "x"}, "asked", "x"),
        ({"goal": "asked", "target": "Sure"}, "asked", "etc"),
        ({"question": "물음", "question_en": "asked", "category": ["a", "b"]}, "asked", "a"),
        ({"turns": ["asked", "then"], "question_id": 81}, "asked", "etc"),
        ({"prompt": [{"role": "user", "content": "asked"}]}, "asked", "etc"),
        ({"messages": [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "a"}]}, "asked", "etc"),
        ({"chosen": "\n\nHuman: asked\n\nAssistant: a\n\nHuman: b\n\nAssistant: c",
          "rejected": "\n\nHuman: asked\n\nAssistant: a\n\nHuman: b\n\nAssistant: d"}, "asked", "etc"),
        ({"instruction": "do", "input": "this", "output": "done"}, "do\n\nthis", "etc"),
        ({"instruction": "do"}, "do", "etc"),
        ({"prompt": [{"role": "system", "content": "be"}, {"role": "User", "content": "asked"}]}, "asked", "etc"),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "asked"}]}]}, "asked", "etc"),
        ({"messages": [{"from": "HUMAN", "value": "asked"}, {"from": "gpt", "value": ""}]}, "asked", "etc"),
        ({"prompt": "\n\nHuman: asked\n\nAssistant:"}, "asked", "etc"),
        ({"prompt": "[{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'asked'}]"}, "asked", "etc"),
        ({"conversation": '[{"role": "user", "content": "asked"}]'}, "asked", "etc"),
        ({"turns": "['asked', 'then']"}, "asked", "etc"),
        ({"prompt": "['asked', 'then']"}, "['asked', 'then']", "etc"),
    ],
)  # fmt: skip
def test_a_prompt_is_found_in_any_row(tmp_path: Path, row: dict, query: str, category: str) -> None:
    (found,) = read_prompts(written(tmp_path, [row]))
    assert (found.query, found.category) == (query, category)


def test_of_two_languages_that_of_the_config_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, [{"question": "물음", "question_en": "asked"}])
    assert [read_prompts(path, language)[0].query for language in ("en", "ko")] == ["asked", "물음"]


def test_advbench_goals_are_read(tmp_path: Path) -> None:
    text = 'target, goal\r\n"Sure,\nhere",do "this"\r\n\r\nSure,"do,\nthat"\r\n'
    assert [prompt.query for prompt in read_prompts(written(tmp_path, text, "a.csv"))] == ['do "this"', "do,\nthat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv: the file is empty"),
        ("goal,target\n", r"a\.csv: no rows; must hold at least one prompt"),
        ("a,b\nc,d\n", r"a\.csv:2: row 0: the columns a, b hold no prompt; must have one of prompt, goal"),
        ('goal,target\n"a\nb",c\n ,d\n', r"a\.csv:4: row 1: column 'goal' is .*; must be text, not empty"),
        ('goal,target\n"a\nb",c\nd\n', r"a\.csv:4: 1 values; must be 2"),
        ('goal,target\na,b\n"c\n', r"a\.csv:3: not valid CSV"),
    ],
)
def test_a_bad_csv_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_prompts(written(tmp_path, text, "a.csv"))


def test_a_row_without_the_column_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl:2: row 1: the columns asked hold no prompt; must have one of"):
        read_prompts(written(tmp_path, [{"prompt": "a"}, {"asked": "b"}]))


def queries(kinds: tuple[list[Prompt], list[Prompt]]) -> tuple[list[str], list[str]]:
    harmless, unsafe = kinds
    return [prompt.query for prompt in harmless], [prompt.query for prompt in unsafe]


def test_a_conversation_without_a_user_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 0: column 'prompt' is .*; must have a turn of the user's with text"):
        read_prompts(written(tmp_path, [{"prompt": [{"role": "system", "content": "be"}]}]))
    with pytest.raises(InputError, match=r"row 0: column 'prompt' is .*; must have a turn of the user's with text"):
        read_prompts(written(tmp_path, [{"prompt": [{"role": "user", "content": ""}]}]))


def test_prompts_for_contrast_are_no_harmless_ones(tmp_path: Path) -> None:
    text = "id,prompt,label\n1,kill a process,safe\n2,kill a person,unsafe\n3,kill time,safe\n"
    path = written(tmp_path, text, "a.csv")
    assert queries(read_harmless(path)) == (["kill a process", "kill time"], ["kill a person"])
    typed = "prompt,type\na,homonyms\nb,contrast_homonyms\nc,\n"
    assert queries(read_harmless(written(tmp_path, typed, "c.csv"))) == (["a", "c"], ["b"])
    both = "prompt,type,label\na,contrast_homonyms,safe\nb,contrast_homonyms,\nc,homonyms,Unsafe\n"
    assert queries(read_harmless(written(tmp_path, both, "d.csv"))) == (["a"], ["b", "c"])
    with pytest.raises(InputError, match="every prompt is labelled unsafe"):
        read_harmless(written(tmp_path, "prompt,label\na,unsafe\n", "b.csv"))


def test_tasks_have_an_answer_each(tmp_path: Path) -> None:
    path = written(tmp_path, [{"question": "3 + 4?", "answer": " 7 "}])
    assert read_tasks(path) == [Question("3 + 4?", "7")]
    both = written(tmp_path, [{"question": "셋?", "question_en": "3?", "answer": "3"}], "b.jsonl")
    assert read_tasks(both) == [Question("3?", "3", ("셋?",))]
    with pytest.raises(InputError, match=r"row 0: no column 'answer', only question; must have it"):
        read_tasks(written(tmp_path, [{"question": "a"}]))


def test_choices_are_hhh_s_rows_or_preferences(tmp_path: Path) -> None:
    rows = [
        {"input": "q", "targets": {"choices": ["bad", "good"], "labels": [0, 1]}, "category": "honest"},
        {"prompt": "p", "chosen": "good", "rejected": "bad", "prompt_ko": "물음"},
        {
            "prompt": [{"role": "user", "content": "p"}],
            "chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "good"}],
            "rejected": "[{'role': 'user', 'content': 'p'}, {'role': 'assistant', 'content': 'bad'}]",
        },
    ]
    assert read_choices(written(tmp_path, rows)) == [
        Choice("q", "good", "bad", "honest"),
        Choice("p", "good", "bad", "etc", ("물음",)),
        Choice("p", "good", "bad", "etc"),
    ]


@pytest.mark.parametrize("labels", [[1, 1], [1], None, "10"])
def test_a_choice_that_is_none_is_refused(tmp_path: Path, labels: Any) -> None:
    with pytest.raises(InputError, match=r"row 0: field 'targets' is .*; must have two choices, of labels 1 and 0"):
        read_choices(written(tmp_path, [{"input": "q", "targets": {"choices": ["a", "b"], "labels": labels}}]))


def test_real_sets_are_read(shared_data: Path) -> None:
    goals = [prompt.query for prompt in read_prompts(shared_data / "advbench" / "advbench_dev.csv")]
    assert len(goals) == 133 == len(set(goals)) and not any("Sure, here" in goal for goal in goals)
    xstest = shared_data / "xstest" / "xstest_prompts_dev.csv"
    harmless, unsafe = read_harmless(xstest)
    assert len(harmless) + len(unsafe) == 225 > len(harmless) > 100
    assert len(read_prompts(shared_data / "mtbench" / "question.jsonl")) == 80
    assert len(read_prompts(shared_data / "square" / "question_dev.json", "ko")) > 100
    assert all("Assistant:" not in p.query for p in read_prompts(shared_data / "hh" / "harmless_dev.jsonl.gz"))
