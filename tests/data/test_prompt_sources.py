"""Prompts by a mapping: a split and columns of one's own, where a path alone would stand."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import PromptSource
from fedjax_rai.data.prompts import read_choices, read_harmless, read_prompts, read_tasks
from fedjax_rai.data.sources import Choice, Question
from fedjax_rai.errors import InputError

KEY = "eval.advbench"


def source(folder: Path, rows: list[dict], name: str = "a.jsonl", **keys: Any) -> PromptSource:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptSource.model_validate({"path": str(path)} | keys)


def test_a_mapping_of_a_path_alone_reads_what_the_path_does(tmp_path: Path) -> None:
    rows = [{"goal": "a", "category": "x"}, {"goal": "b", "category": None}]
    mapping = source(tmp_path, rows)
    assert read_prompts(mapping) == read_prompts(mapping.path)
    assert [(prompt.query, prompt.category) for prompt in read_prompts(mapping)] == [("a", "x"), ("b", "etc")]


def test_the_split_of_a_folder_is_read(tmp_path: Path) -> None:
    source(tmp_path, [{"prompt": "learnt"}], "set/train.jsonl")
    source(tmp_path, [{"prompt": "asked"}, {"prompt": "too"}], "set/test.jsonl")
    folder = str(tmp_path / "set")
    found = {split: read_prompts(PromptSource(path=folder, split=split)) for split in ("train", "test")}
    assert {split: [prompt.query for prompt in prompts] for split, prompts in found.items()} == {
        "train": ["learnt"],
        "test": ["asked", "too"],
    }
    assert [prompt.query for prompt in read_prompts(folder)] == ["learnt"]


def test_a_column_that_is_named_comes_before_those_that_are_known(tmp_path: Path) -> None:
    rows = [
        {"prompt": "no", "text": "plain", "text_ko": "ㄱ", "category": "no", "topic": "x"},
        {"prompt": "no", "text": [{"role": "user", "content": "turn"}], "category": "no", "topic": ["y", "z"]},
        {"prompt": "no", "text": "\n\nHuman: said\n\nAssistant: a", "category": "no", "topic": None},
    ]
    found = read_prompts(source(tmp_path, rows, columns={"prompt": "text", "category": "topic"}))
    assert [(prompt.query, prompt.category) for prompt in found] == [("plain", "x"), ("turn", "y"), ("said", "etc")]
    assert [prompt.others for prompt in found] == [("ㄱ",), (), ()]


def test_a_column_of_answers_is_named(tmp_path: Path) -> None:
    rows = [{"question": "3?", "answer": "no", "gold": "3"}]
    assert read_tasks(source(tmp_path, rows, columns={"answer": "gold"})) == [Question("3?", "3")]
    columns = {"prompt": "gold", "answer": "question"}
    assert read_tasks(source(tmp_path, rows, columns=columns)) == [Question("3", "3?")]


def test_columns_of_the_better_and_the_worse_answer_are_named(tmp_path: Path) -> None:
    rows = [{"q": "asked", "prompt": "no", "chosen": "no", "best": "good", "worst": "bad", "kind": "x"}]
    columns = {"prompt": "q", "chosen": "best", "rejected": "worst", "category": "kind"}
    assert read_choices(source(tmp_path, rows, columns=columns)) == [Choice("asked", "good", "bad", "x")]
    both = [{**row, "targets": {"choices": ["no", "no"], "labels": [1, 0]}, "input": "no"} for row in rows]
    assert read_choices(source(tmp_path, both, columns=columns)) == [Choice("asked", "good", "bad", "x")]


def test_of_rows_like_hhh_s_the_prompt_s_column_is_named(tmp_path: Path) -> None:
    rows = [{"q": "asked", "input": "no", "targets": {"choices": ["bad", "good"], "labels": [0, 1]}}]
    assert read_choices(source(tmp_path, rows, columns={"prompt": "q"})) == [Choice("asked", "good", "bad", "etc")]


def test_a_column_that_says_which_prompts_are_unsafe_is_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "label": "unsafe", "type": "contrast_x", "kind": "Safe"},
        {"prompt": "b", "label": "safe", "type": "x", "kind": "unsafe "},
    ]
    found = read_harmless(source(tmp_path, rows, columns={"label": "kind"}))
    assert [[prompt.query for prompt in prompts] for prompts in found] == [["a"], ["b"]]
    assert [[prompt.query for prompt in prompts] for prompts in read_harmless(source(tmp_path, rows))] == [["b"], ["a"]]


@pytest.mark.parametrize("value", ["harmful", None, 1])
def test_another_label_in_a_column_that_is_named_is_nobody_s(tmp_path: Path, value: Any) -> None:
    rows = [{"prompt": "a", "kind": "safe"}, {"prompt": "b", "kind": value}]
    with pytest.raises(InputError, match=r"a\.jsonl:2: row 1: column 'kind' is .*; must be safe or unsafe"):
        read_harmless(source(tmp_path, rows, columns={"label": "kind"}))


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    mapping = source(tmp_path, [{"behaviour_txt": "a", "id": 1}], columns={"prompt": "behaviour_text"})
    with pytest.raises(InputError) as caught:
        read_prompts(mapping, key=KEY)
    assert str(caught.value) == (
        f"{mapping.path}:1: row 0: no column 'behaviour_text', which {KEY}.columns names, among behaviour_txt, id; "
        "did you mean behaviour_txt?"
    )
    with pytest.raises(InputError, match="no column 'gold', which eval.utility.columns names, among prompt, answer"):
        read_tasks(source(tmp_path, [{"prompt": "a", "answer": "b"}], columns={"answer": "gold"}), key="eval.utility")


def test_a_prompt_or_a_category_that_is_no_text_is_refused_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl:2: row 1: no column 'q', only p; must have it"):
        read_prompts(source(tmp_path, [{"q": "a"}, {"p": "b"}], columns={"prompt": "q"}))
    with pytest.raises(InputError, match=r"row 0: column 'kind' is 3; must be text, a list of text, or null"):
        read_prompts(source(tmp_path, [{"prompt": "a", "kind": 3}], columns={"category": "kind"}))


def test_a_split_that_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    file = source(tmp_path, [{"prompt": "a"}], "set/train.jsonl", split="test")
    with pytest.raises(InputError, match=r"^eval.advbench.split = 'test': .*train.jsonl is files, which have no split"):
        read_prompts(file, key=KEY)
    with pytest.raises(InputError, match=r"^eval.advbench.split = 'test': .*set: no split 'test', only train; must"):
        read_prompts(file.model_copy(update={"path": str(tmp_path / "set")}), key=KEY)
    with pytest.raises(InputError, match=r"^eval.advbench.name = 'x', eval.advbench.split = 'train': .*name = 'x': mu"):
        read_prompts(source(tmp_path, [{"prompt": "a"}], name="b.jsonl").model_copy(update={"name": "x"}), key=KEY)


@pytest.mark.parametrize("key", ["cai.red_prompts", "cai.replay_data", KEY, "eval.hhh", "eval.utility"])
def test_a_text_stays_a_text_and_a_mapping_a_mapping(key: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    for written in ("a.csv", {"path": "a.csv", "split": "test"}):
        config = load_config({section: {name: written}})
        value = getattr(getattr(config, section), name)
        assert value == (written if isinstance(written, str) else PromptSource(path="a.csv", split="test"))
        assert load_config(config.model_dump()) == config
        plain = config.model_dump(mode="json")[section][name]
        whole = {"path": "a.csv", "name": None, "split": "test", "revision": None, "columns": None}
        assert plain == (written if isinstance(written, str) else whole)
    given = load_config({section: {name: PromptSource(path="~/a.csv")}})
    assert getattr(getattr(given, section), name) == PromptSource(path=str(Path.home() / "a.csv"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["eval.advbench=b.csv"], "b.csv"),
        (["eval.advbench={path: b.csv, split: test}"], PromptSource(path="b.csv", split="test")),
        (["eval.advbench.split=test"], PromptSource(path="a.csv", split="test")),
        (
            ["eval.advbench.split=test", "eval.advbench.columns={prompt: q}", "eval.advbench.path=b.csv"],
            PromptSource(path="b.csv", split="test", columns={"prompt": "q"}),
        ),
        (["eval.advbench.split=test", "eval.advbench=b.csv"], "b.csv"),
    ],
)
def test_overrides_name_the_whole_or_a_key_of_it(tmp_path: Path, overrides: list[str], expected: Any) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("eval:\n  advbench: a.csv\n")
    assert load_config(path, overrides).eval.advbench == expected


@pytest.mark.parametrize(
    ("key", "written", "message"),
    [
        (KEY, "{path: a, splt: b}", "2: eval.advbench.splt: no such key; did you mean split?"),
        (KEY, "{split: b}", "2: eval.advbench.path: must be given"),
        (KEY, "{path: a, split: 3}", "2: eval.advbench.split = 3: must be text, not empty; put it in quotes"),
        (
            KEY,
            "{path: a, revision: b}",
            "2: eval.advbench.revision = 'b': must be null: path = 'a' is not of the form owner/name, so it has no "
            "revisions",
        ),
        (
            KEY,
            "{path: a, columns: {answer: b}}",
            "2: eval.advbench.columns = {'answer': 'b'}: 'answer': no such key; must be one of prompt",
        ),
        (
            "eval.utility",
            "{path: a, columns: {anwser: b}}",
            "2: eval.utility.columns = {'anwser': 'b'}: 'anwser': no such key; must be one of prompt, answer; did you "
            "mean answer?",
        ),
        (
            "eval.hhh",
            "{path: a, columns: {chosen: b, rejected: b}}",
            "2: eval.hhh.columns = {'chosen': 'b', 'rejected': 'b'}: 'b' stands for chosen and rejected; must stand "
            "for one",
        ),
        (
            "eval.over_refusal",
            "{path: a, columns: b}",
            "2: eval.over_refusal.columns = 'b': must be names of columns by what they hold, as {prompt: q}, or null",
        ),
        (
            "cai.red_prompts",
            "[a]",
            "2: cai.red_prompts = ['a']: must be text, not empty or a mapping of path, name, split, revision, columns "
            "or null",
        ),
    ],
)
def test_what_is_wrong_in_a_mapping_is_said_with_line_and_key(
    tmp_path: Path, key: str, written: str, message: str
) -> None:
    section, name = key.split(".")
    path = tmp_path / "a.yaml"
    path.write_text(f"{section}:\n  {name}: {written}\n")
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}:{message}"


@pytest.mark.parametrize(
    ("key", "holds"),
    {
        "cai.red_prompts": {"prompt", "category"},
        "cai.replay_data": {"prompt"},
        "eval.advbench": {"prompt"},
        "eval.hhh": {"prompt", "chosen", "rejected", "category"},
        "eval.utility": {"prompt", "answer"},
        "eval.over_refusal": {"prompt", "label"},
    }.items(),
)
def test_each_key_takes_the_columns_that_it_reads(key: str, holds: set[str]) -> None:
    section, name = key.split(".")
    for column in ("prompt", "answer", "chosen", "rejected", "label", "category"):
        written = {section: {name: {"path": "a.csv", "columns": {column: "c"}}}}
        if column in holds:
            assert getattr(getattr(load_config(written), section), name).columns == {column: "c"}
            continue
        with pytest.raises(InputError, match=f"{key}.columns = .*: '{column}': no such key; must be one of prompt"):
            load_config(written)
