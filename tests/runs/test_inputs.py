"""Files that a config names: mistakes in them are said first, and a run does not go on with others."""

import shutil
from pathlib import Path

import pytest

from fedjax_rai.config.files import CONSTITUTION, digests
from fedjax_rai.config.grid import Point
from fedjax_rai.config.load import dump_config
from fedjax_rai.errors import InputError
from fedjax_rai.runs import files
from fedjax_rai.runs.conclude import synthetic_parts
from fedjax_rai.runs.folder import VERSIONS, check_folder, note_versions
from fedjax_rai.runs.inputs import check_inputs
from fedjax_rai.studies.sweep import run_sweep
from tests.processes import run_program
from tests.tiny_runs import vary


@pytest.fixture
def own(config, tmp_path):
    """A config that names a file of every kind, which are there."""
    shutil.copy(CONSTITUTION, tmp_path / "own.yaml")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "pairs-00000.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    for name in ("square.json", "bench.csv"):
        (tmp_path / name).write_text("text")
    return vary(
        config,
        data={"train": str(tmp_path / "square.json")},
        eval={"advbench": str(tmp_path / "bench.csv")},
        cai={"constitution": str(tmp_path / "own.yaml"), "data": str(tmp_path / "set")},
    )


def begin(config) -> Path:
    folder = Path(config.output)
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    note_versions(folder / VERSIONS, {"files": digests(config)})
    return folder


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("data.train", "square.json"),
        ("eval.advbench", "bench.csv"),
        ("cai.constitution", "own.yaml"),
        ("cai.data", "set/pairs-00000.jsonl"),
    ],
)
def test_a_run_does_not_go_on_with_another_file_of_the_same_name(own, tmp_path, key, file):
    begin(own)
    assert check_folder(tmp_path / "run", own) is False
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(text + "\n# more\n")
    with pytest.raises(InputError, match=f"run: began with other contents of\n  {key} = .*\nname another folder"):
        check_folder(tmp_path / "run", own)
    (tmp_path / file).write_text(text)
    assert check_folder(tmp_path / "run", own) is False


@pytest.mark.parametrize("named", ["set", "set/*/*.csv", "set/**/*.csv"])
def test_a_run_does_not_go_on_with_other_rows_in_a_folder_or_a_glob(config, tmp_path, named):
    """At any depth: another content, another name, one more file."""
    folder = tmp_path / "set" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("prompt,completion\nq,a\n")
    rows = vary(config, data={"train": str(tmp_path / named)})
    check_inputs([rows])
    begin(rows)
    for change in (
        lambda: (folder / "a.csv").write_text("prompt,completion\nq,b\n"),
        lambda: (folder / "a.csv").rename(folder / "b.csv"),
        lambda: (folder / "c.csv").write_text("prompt,completion\nq,a\n"),
    ):
        saved = {path: path.read_bytes() for path in folder.iterdir()}
        assert check_folder(tmp_path / "run", rows) is False
        change()
        with pytest.raises(InputError, match="run: began with other contents of\n  data.train = "):
            check_folder(tmp_path / "run", rows)
        for path in folder.iterdir():
            path.unlink()
        for path, content in saved.items():
            path.write_bytes(content)


@pytest.mark.parametrize("key", ["cai.red_prompts", "cai.replay_data", "eval.advbench", "eval.hhh"])
def test_a_run_does_not_go_on_with_other_rows_of_a_mapping(config, tmp_path, key):
    """Its digest is that of the path alone, and it is the path that is named."""
    section, name = key.split(".")

    def named(value):
        return vary(config, "", **{section: {name: value}})

    file = tmp_path / "rows" / "test.csv"
    file.parent.mkdir()
    file.write_text("prompt\nq\n")
    by_path = named(str(file.parent))
    mapping = named({"path": str(file.parent), "split": "test"})
    assert digests(mapping) == {f"{key}.path": digests(by_path)[key]}
    check_inputs([mapping])
    begin(mapping)
    assert check_folder(tmp_path / "run", mapping) is False
    with pytest.raises(InputError, match=f"\n  {key}.split: 'test' there, 'train' now$"):
        check_folder(tmp_path / "run", named({"path": str(file.parent)}))
    file.write_text("prompt\nother\n")
    with pytest.raises(InputError, match=f"run: began with other contents of\n  {key}.path = .*rows\nname another"):
        check_folder(tmp_path / "run", mapping)
    absent = named({"path": str(tmp_path / "row")})
    with pytest.raises(
        InputError, match=rf"{key}\.path = '.*row': no file or folder of rows, .* did you mean .*rows\?"
    ):
        check_inputs([absent])


def test_a_file_that_is_there_is_never_said_to_be_missing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    for name in ("owner/rows", "rows.CSV.GZ", "[1].csv", "owner/a.b"):
        Path(name).write_text("x")
        check_inputs([vary(config, data={"train": name})])
    check_inputs([vary(config, data={"train": "someone/else"})])  # may be on a hub
    for name in ("owner/row", "none.csv", "*.parquet", "one/two/three"):
        with pytest.raises(InputError, match="no file or folder of rows, or data set there"):
            check_inputs([vary(config, data={"train": name})])


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    def other() -> str:
        return run_program("enter_folder", tmp_path).stderr

    with files.alone(tmp_path):
        assert "another process is at work there; wait for it, or name another folder" in other()
    assert other() == "" and not any(tmp_path.iterdir())


def test_what_is_shipped_has_no_digest(config, own):
    assert digests(config) == {}
    assert digests(own).keys() == {"data.train", "eval.advbench", "cai.constitution", "cai.data"}


def test_mistakes_in_any_points_files_are_said_before_the_first_run(config, tmp_path):
    (tmp_path / "bad.yaml").write_text("principles:\n  - name: a\n    critque: b\n    revision: c\n")
    good, bad = config, vary(config, cai={"constitution": str(tmp_path / "bad.yaml")})
    points = [Point({"x": str(i)}, vary(one, f"/{i}")) for i, one in enumerate((good, bad))]
    with pytest.raises(InputError, match=r"bad.yaml:3: .*critque"):
        run_sweep(points)
    assert not Path(config.output).exists()
    check_inputs([vary(bad, cai={"enabled": False})])


def test_a_run_on_a_synthetic_set_is_synthetic(own, tmp_path):
    assert synthetic_parts(own) == ["model"]
    files.write_json(tmp_path / "set" / "summary.json", {"synthetic": ["model"]})
    assert synthetic_parts(own) == ["model", "revisions"]
    assert synthetic_parts(vary(own, cai={"enabled": False})) == ["model"]
