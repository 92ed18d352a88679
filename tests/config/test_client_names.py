"""Which clients a source may name, and how."""

from pathlib import Path

import pytest

from fedjax_rai.config.client_names import checked_clients, numbered, share_of
from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.errors import InputError


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0-6", range(7)), ([0, 3, 9], [0, 3, 9]), ([9, "0 - 2"], [0, 1, 2, 9]), ("4-4", [4]), ((5,), [5])],
)
def test_clients_by_number(value, expected) -> None:
    assert numbered(checked_clients(value)) == list(expected)


@pytest.mark.parametrize(
    ("value", "share"), [("30%", 0.3), ("12.5 %", 0.125), ("100%", 1.0), ("0-6", None), ([1], None)]
)
def test_clients_by_percentage(value, share) -> None:
    assert share_of(checked_clients(value)) == (pytest.approx(share) if share else None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, r"may mean client 7 or 7 clients; must be written \[7\]"),
        ("seven", "must be a range"),
        ("6-0", "the first client is after the last; must be written 0-6"),
        ([0, "0-1"], "names client 0 twice"),
        ([], "must be a range"),
        ([-1], "-1: must be a range"),
        ([True], "True: must be a range"),
        (0.3, "must be a range"),
        ("0%", "must be more than 0%"),
        ("130%", "at most 100%"),
        ({"a": 1}, "must be a range"),
    ],
)
def test_what_names_no_clients_is_refused(value, message) -> None:
    with pytest.raises(ValueError, match=message):
        checked_clients(value)


MIX = """\
data:
  sources:
    - {path: a.json, clients: 0-6}
    - path: b.json
      clients: 30%
      partition: dirichlet
"""


def test_sources_are_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(MIX)
    config = load_config(path)
    first, second = config.data.sources
    assert (first.path, first.clients, first.partition) == ("a.json", "0-6", None)
    assert (second.path, second.clients, second.partition) == ("b.json", "30%", "dirichlet")
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml").data == config.data


def test_overrides_name_an_entry_s_key_or_the_whole_list(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(MIX)
    config = load_config(path, ["data.sources[1].rows=500", "data.sources[1].dirichlet={alpha: 0.1}"])
    _, second = config.data.sources
    assert second.dirichlet is not None
    assert (second.rows, second.dirichlet.alpha, second.clients) == (500, 0.1, "30%")
    whole = load_config(path, ["data.sources=[{path: c.json, clients: 0-3}]", "data.sources[0].share=0.5"])
    assert [(source.path, source.share) for source in whole.data.sources] == [("c.json", 0.5)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources[2].rows=1"], r"data.sources has 2 entries, counted from 0; must be one of them"),
        (["data.sources[0].rosw=1"], r"\[0\].rosw=1': data.sources\[0\].rosw: no such key; did you mean rows\?"),
        (["data.sources[0].rows=0"], r"^override .*: data.sources\[0\].rows = 0: must be a whole number >= 1 or null"),
        (["data.sources=[{path: a}, b]"], r"data.sources\[1\] = 'b': must be a mapping of path, name, "),
        (["data.sources=[{clients: 0-3}]"], r"data.sources\[0\].path: must be given"),
        (["data.train=x.json"], r"mix.yaml:3: data.sources\[0\]|must be left out where data.train = 'x.json' is given"),
        (["data.sources.0.rows=3"], "data.sources.0.rows: no such key"),
        (
            ["data.sources[1].only=harmful", "data.sources[1].label=harmful"],
            r"\[1\].only = 'harmful': must be left out",
        ),
        (["data.sources[1].rows=3", "data.sources[1].share=0.5"], r"\[1\].share = 0.5: must be left out where rows is"),
    ],
)
def test_wrong_overrides_of_sources_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(MIX)
    with pytest.raises(InputError, match=message):
        load_config(path, overrides)


def test_what_is_wrong_in_an_entry_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(MIX + "      dirichlet: {alpha: -1}\n      lines: 3\n    - {path: c.json, clients: 3}\n")
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert str(caught.value).replace(f"{path}:", "").split("\n")[::2] == [
        "7: data.sources[1].dirichlet.alpha = -1: must be a number > 0",
        "9: data.sources[2].clients = 3: may mean client 3 or 3 clients; must be written [3], or as a range",
    ]
    assert str(caught.value).split("\n")[1].startswith(f"{path}:8: data.sources[1].lines: no such key; ")
