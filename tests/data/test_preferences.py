"""Pairs of preference: what is read, in which form and order, and that whatever is wrong is refused with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.data.sources import Preference, read_preferences
from fedjax_rai.errors import InputError
from tests.texts import write_lines

PLAIN = {"prompt": "asked", "chosen": "good", "rejected": "bad"}


def turns(**texts: Any) -> dict[str, Any]:
    """The same in TRL's conversational format."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": roles[name], "content": text}] for name, text in (PLAIN | texts).items()}


def test_texts_and_turns_read_the_same_and_other_fields_are_ignored(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl", [PLAIN, turns(), PLAIN | {"prompt": turns()["prompt"], "id": 3, "turns": None}]
    )
    assert read_preferences(path) == [Preference("asked", "good", "bad")] * 3


def test_space_around_and_other_scripts_do_no_harm(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [turns(prompt=" 물음\u2028?\n", chosen="둘\n\n셋")])
    path.write_bytes(b"\xef\xbb\xbf\n" + path.read_bytes())
    assert read_preferences(path) == [Preference("물음\u2028?", "둘\n\n셋", "bad")]


def test_a_folder_s_shards_are_read_in_order_and_nothing_else(tmp_path: Path) -> None:
    for shard in (1, 0, 2):
        write_lines(tmp_path / f"pairs-{shard:05}.jsonl", [PLAIN | {"prompt": f"{shard}.{i}"} for i in range(2)])
    write_lines(tmp_path / "dropped-00000.jsonl", [{"cause": "equal"}])
    write_lines(tmp_path / "pairs-00003.jsonl", [])
    assert [own.prompt for own in read_preferences(tmp_path)] == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]


def test_a_folder_of_other_names_is_read_whole(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", [PLAIN | {"prompt": "second"}])
    write_lines(tmp_path / "a.jsonl", [PLAIN | {"prompt": "first"}])
    (tmp_path / "README.md").write_text("mine")
    assert [own.prompt for own in read_preferences(tmp_path)] == ["first", "second"]


def test_an_unfinished_set_is_refused_and_a_finished_one_without_pairs_too(tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs-00000.jsonl", [PLAIN])
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(InputError, match=r"unfinished set .* to go on: fedjax-rai cai generate .*config\.yaml"):
        read_preferences(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    assert len(read_preferences(tmp_path)) == 1
    write_lines(tmp_path / "pairs-00000.jsonl", [])
    write_lines(tmp_path / "dropped-00000.jsonl", [{"cause": "equal"}])
    with pytest.raises(InputError, match="no rows; must hold at least one"):
        read_preferences(tmp_path)
    (tmp_path / "pairs-00000.jsonl").unlink()
    with pytest.raises(InputError, match="no rows; must hold at least one"):
        read_preferences(tmp_path)


TEXT = r"must be text, not empty, or one turn: \[\{\"role\": \"%s\", \"content\": text\}\]"
ASSISTANT, USER = TEXT % "assistant", TEXT % "user"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (7, "7 is no object; must have the fields prompt, chosen and rejected"),
        ([PLAIN], r"\[\{.*\}\] is no object"),
        ({"prompt": "q", "rejected": "b"}, f"no field 'chosen'; {ASSISTANT}"),
        ({"chosen": "a", "rejected": "b"}, f"no field 'prompt'; {USER}"),
        (PLAIN | {"chosen": " "}, f"field 'chosen' is \" \"; {ASSISTANT}"),
        (PLAIN | {"prompt": None}, f"field 'prompt' is null; {USER}"),
        (PLAIN | {"rejected": []}, r"field 'rejected' is \[\]; "),
        (PLAIN | {"rejected": ["bad"]}, r"field 'rejected' is \[\"bad\"\]; "),
        (turns(chosen=""), f"field 'chosen' is \"\"; {ASSISTANT}"),
        (turns(chosen=["good"]), r"field 'chosen' is \[\"good\"\]; "),
        (PLAIN | {"chosen": [{"role": "assistant"}]}, f"field 'chosen' is null; {ASSISTANT}"),
        (PLAIN | {"chosen": turns()["prompt"]}, rf"field 'chosen' is \[.*\]; {ASSISTANT}"),
        (PLAIN | {"prompt": turns()["prompt"] * 2}, rf"field 'prompt' is \[.*; {USER}"),
        (PLAIN | {"prompt": [{"role": "system", "content": "x"}]}, rf"field 'prompt' is \[.*; {USER}"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(tmp_path: Path, bad: Any, message: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [PLAIN, bad])
    for read in (path, tmp_path):
        with pytest.raises(InputError, match=rf"a\.jsonl:2: row 1: {message}"):
            read_preferences(read)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jsonl: cannot be read: No such file"):
        read_preferences(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match=r"a\.jsonl: the file is empty"):
        read_preferences(write_lines(tmp_path / "a.jsonl", []))
    (tmp_path / "a.jsonl").write_text(json.dumps(PLAIN) + "\n{'prompt'")
    with pytest.raises(InputError, match=r"a\.jsonl:2:2: not valid JSON"):
        read_preferences(tmp_path / "a.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: no rows"):
        read_preferences(tmp_path / "folder")
