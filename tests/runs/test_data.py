"""What is said of a run's data, kept and drawn, from counts made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedjax_rai.data.sources import Pair
from fedjax_rai.data.summary import (
    Client,
    Clients,
    Cut,
    DataFile,
    DataSummary,
    Less,
    Part,
    Reading,
    Spread,
    all_clients,
    client,
)
from fedjax_rai.experiment.round import Federation
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import data, files, rows
from tests.tiny_runs import vary

CLIENTS = [
    Client(pairs=8, harmful=2, unlabelled=0, category="race", of_category=5, kept=6, kept_harmful=1, trained=6),
    Client(pairs=4, harmful=4, unlabelled=0, category="etc", of_category=4, kept=0, kept_harmful=0, trained=0),
]
SUMMARY = DataSummary(
    sources={"pairs.json": Reading(rows=300, pairs=298, refused=2, duplicates=5, unlabelled=1, columns="square")},
    parts={
        "clients": Part(12, {"data.recipe": 152, "data.partition": 1}, harmful=6, unlabelled=1),
        "guard": Part(4, {"balance": 58}, harmful=2, unlabelled=0),
        "red prompts": Part(10, {}),
        "probe": Part(0, {}),
        "advbench": Part(100, {"eval.prompts": 420}),
    },
    clients=Clients(
        clients=2, pairs=Spread(4, 6, 8), harmful_share=Spread(0.25, 0.625, 1), kept=6, dropped=6, kept_harmful=1,
        kept_pairs=Spread(0, 3, 6), without_pairs=0, without_kept=1, without_answers=0,
    ),
    max_length=64,
    cut={"examples": Cut(12, 3, 30, 17), "advbench": Cut(100, 0, 0, 0)},
    without_answer=1,
    less=[Less("guard.pairs", 50, 4), Less("eval.prompts", 1000, 100)],
)  # fmt: skip
WHOLE = DataFile(SUMMARY, CLIENTS)


def test_what_is_said_in_lines_of_a_hundred_columns():
    said = list(data.lines(WHOLE))
    assert all(len(line) <= 100 for line in said)
    assert said == [
        "data: pairs.json: 300 rows, 298 pairs by square; 2 refused, 5 duplicate, 1 unlabelled",
        "  clients: 12 pairs, 54.5 % harmful, 1 unlabelled; 152 left out by data.recipe; 1 left out by",
        "    data.partition",
        "  guard: 4 pairs, 50.0 % harmful; 58 left out by balance",
        "  prompts: red prompts 10; advbench 100, 420 left out by eval.prompts",
        "  less than asked for: guard.pairs = 50, but there are 4",
        "  less than asked for: eval.prompts = 1,000, but there are 100",
        "  cut at data.max_length = 64: 3 of 12 examples (by 10 tokens in the mean, at most 17); 1 example",
        "    without an answer token left",
        "  2 clients of 4 to 8 (median 6) pairs, harmful 25.0 to 100.0 % (median 62.5)",
        "  filter: 6 kept, 6 dropped; of a client 0 to 6 (median 3) kept; 16.7 % of the kept are harmful",
        "  NOTHING TO TRAIN ON at 1 of 2 clients: 1 kept none by the filter",
        "  client   pairs   harmful    kept dropped  most of",
        "       0       8    25.0 %       6       2  race (5)",
        "       1       4   100.0 %       0       4  none or etc (4)",
    ]


def test_of_many_clients_the_spread_is_said():
    many = WHOLE._replace(clients=CLIENTS[:1] * 21)
    assert not any("most of" in line for line in data.lines(many))
    assert any("most of" in line for line in data.lines(WHOLE._replace(clients=CLIENTS[:1] * 20)))


def test_without_a_filter_nothing_is_kept_or_dropped():
    clients = SUMMARY.clients._replace(kept=None, dropped=None, kept_harmful=None, kept_pairs=None)
    unfiltered = [client._replace(kept=None, kept_harmful=None) for client in CLIENTS]
    said = list(data.client_lines(DataFile(SUMMARY._replace(clients=clients), unfiltered)))
    assert said[-3:] == [
        "  client   pairs   harmful  most of",
        "       0       8    25.0 %  race (5)",
        "       1       4   100.0 %  none or etc (4)",
    ]
    assert not any("kept," in line for line in said)


@pytest.mark.parametrize(
    ("labels", "ending"),
    [
        ([True] + [None] * 9, "kept; 100.0 % of the kept are harmful, 9 unlabelled"),
        ([True, False, False, False], "kept; 25.0 % of the kept are harmful"),
        ([None] * 3, "kept, 3 unlabelled"),
    ],
)
def test_of_what_the_filter_kept_those_without_a_label_are_in_no_share(labels, ending):
    pairs = [Pair("q", "r", label) for label in labels]
    rows = np.arange(len(pairs))
    table = [client(pairs, rows, rows, np.ones(len(pairs)))]
    said = list(data.client_lines(DataFile(SUMMARY._replace(clients=all_clients(table)), table)))
    (line,) = [line for line in said if "filter:" in line]
    assert line.endswith(ending)


def test_a_synthetic_source_beside_files_is_said_on_the_screen_and_in_the_picture():
    tiny = Reading(rows=30, pairs=30, refused=0, duplicates=0, unlabelled=0, columns="tiny", synthetic=True)
    mixed = SUMMARY._replace(sources={**SUMMARY.sources, "data.sources[1]: tiny": tiny})
    said = list(data.source_lines(mixed))
    assert said[1:] == ["data: data.sources[1]: tiny: 30 pairs made by the synthetic tiny world"]
    added = [data.synthetic_words(one) for one in (SUMMARY, mixed, SUMMARY._replace(sources={}))]
    assert added == ["", ", synthetic tiny world in part", ", synthetic tiny world"]


def test_where_nothing_is_cut_that_is_said():
    assert (
        data.cut_text(SUMMARY._replace(cut={"examples": Cut(12, 0, 0, 0)})) == "nothing is cut at data.max_length = 64"
    )


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of the picture of `WHOLE`."""
    files.write_json(tmp_path / "data.json", WHOLE)
    assert rows.read_data(tmp_path / "data.json") == WHOLE, "what is written is read back"
    made: list[Figure] = []
    new = data.figure
    monkeypatch.setattr(data, "figure", lambda *size: made.append(new(*size)) or made[-1])
    data.draw_data(tmp_path)
    assert (tmp_path / "data.png").read_bytes().startswith(b"\x89PNG")
    return made[0].axes


def test_the_picture_shows_parts_clients_and_cuts(drawn: list[Any]) -> None:
    parts, clients, cut = drawn
    widths = [[float(bar.get_width()) for bar in bars] for bars in parts.containers]
    assert widths == [[6, 2], [6, 2], [153, 58]], "harmful, others, left out: of the clients', of the guard's"
    begins = [[float(bar.get_x()) for bar in bars] for bars in parts.containers]
    assert begins == [[0, 0], [6, 2], [12, 4]], "one behind the other"
    heights = [[float(bar.get_height()) for bar in bars] for bars in clients.containers]
    assert heights == [[2, 4], [6, 0]]
    assert clients.lines[0].get_ydata().tolist() == [6, 0]
    assert [float(bar.get_width()) for bar in cut.containers[0]] == [25, 0]


def test_what_was_said_of_the_same_texts_is_not_said_again(config, capsys):
    """An arm of the same texts and clients says nothing, one of other clients says these; then the filter's numbers."""
    setting = Setting(vary(config, cai={"enabled": False}))
    _ = setting.models.tokenizer  # what libraries say when they are first imported is not ours
    capsys.readouterr()
    data.announce(setting)
    first = capsys.readouterr().err.splitlines()
    assert first[0] == "data: made by the synthetic tiny world" and first[-1].startswith("       3      10 ")
    data.announce(Setting(vary(config, cai={"enabled": False}, federated={"rounds": 5}), setting))
    assert capsys.readouterr().err == ""
    data.announce(Setting(vary(config, cai={"enabled": False}, federated={"clients": 5}), setting))
    others = capsys.readouterr().err.splitlines()
    assert others[0].startswith("  5 clients of 8 pairs") and others[-1].startswith("       4       8 ")
    filtered = vary(config, cai={"enabled": False}, filter={"enabled": True})
    arm = Setting(filtered, setting)
    vars(arm.guarding)["exchange_scores"] = np.where(np.arange(40) < 10, 0.9, 0.1).astype(np.float32)
    data.announce(arm)
    assert "client" not in capsys.readouterr().err
    Path(str(config.output)).mkdir()
    data.keep(Federation(arm))
    said = capsys.readouterr().err
    assert "  filter: 30 kept, 10 dropped; of a client " in said and "dropped  most of" in said
    assert rows.read_data(Path(str(config.output)) / "data.json").summary.clients.dropped == 10
