"""What a run writes down, and that it is read back as what it was."""

import json
import math
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.experiment.round import Outcome
from fedjax_rai.runs import files, rows
from fedjax_rai.runs.record import measured, timed
from fedjax_rai.runs.rows import Phase, Probe, Rate, Round, Summary
from tests.tiny_runs import PHASE, ROUND, SUMMARY

LOCAL = {
    "clients": jnp.int32(2), "delta_norm": jnp.float32(1.5), "diverged": jnp.float32(1),
    "train_loss": jnp.float32(0.25), "trained_tokens": jnp.float32(50), "step_tokens": 90,
}  # fmt: skip
PHASE_ON_DEVICE = {f"cai_{name}": jnp.asarray(value) for name, value in PHASE._asdict().items() if value is not None}
SECONDS = {"seconds": 4.0, "local_seconds": 3.0, "cai_seconds": 1.0}


def at(moment: float) -> Future[float]:
    """Something that was there at that moment."""
    done: Future[float] = Future()
    done.set_result(moment)
    return done


def test_a_round_is_built_once_of_what_the_device_reports():
    found = measured(6, Outcome(LOCAL, at(0.0), cai=PHASE_ON_DEVICE), SECONDS | {"together": 3})
    assert found == Round(
        round=7, clients=2, diverged=1.0, delta_norm=1.5, train_loss=0.25, trained_tokens=50.0, step_tokens=90,
        seconds=4.0, local_seconds=3.0, cai_seconds=1.0, cai=PHASE, together=3, more={},
    )  # fmt: skip
    assert measured(0, Outcome(LOCAL, at(0.0)), SECONDS).cai is None


def test_a_probe_is_a_part_of_its_own():
    outcome = Outcome(LOCAL | {"probe_harmless": 0.75}, at(0.0), probe_done=at(1.0))
    assert measured(0, outcome, SECONDS | {"probe_seconds": 0.5}).probe == Probe(0.75, 0.5)


def test_an_algorithms_further_numbers_stand_beside_the_others():
    found = measured(0, Outcome(LOCAL | {"proximal_norm": jnp.float32(0.5)}, at(0.0)), SECONDS)
    assert found.more == {"proximal_norm": 0.5}
    assert rows.flat(found)["proximal_norm"] == 0.5
    assert rows.nested(rows.flat(found))["more"] == {"proximal_norm": 0.5}


def test_a_key_that_is_missing_or_misspelt_is_an_error():
    for wrong in ({"clints": 2}, {}):
        with pytest.raises(InputError, match="round 1: missing: clients"):
            measured(0, Outcome({k: v for k, v in LOCAL.items() if k != "clients"} | wrong, at(0.0)), SECONDS)
    fewer = {name: value for name, value in PHASE_ON_DEVICE.items() if name != "cai_pairs"}
    with pytest.raises(InputError, match="round 1.cai: missing: pairs"):
        measured(0, Outcome(LOCAL, at(0.0), cai=fewer | {"cai_paris": 3}), SECONDS)


def test_seconds_are_from_one_end_to_the_next():
    """Began at 10, adapter there at 12, probe at 13.5, phase at 17."""
    whole = Outcome(LOCAL, at(12.0), probe_done=at(13.5), cai=PHASE_ON_DEVICE, cai_done=at(17.0))
    parts = {"seconds": 7.0, "local_seconds": 2.0, "cai_seconds": 3.5, "probe_seconds": 1.5}
    assert timed([whole], 10.0) == (parts, 17.0)
    assert timed([Outcome(LOCAL, at(12.0))], 10.0) == ({"seconds": 2.0, "local_seconds": 2.0, "cai_seconds": 0.0}, 12.0)


def test_seconds_of_runs_that_go_together_reach_from_the_first_part_to_the_last():
    """Two probes, one after the other, are there at 13 and at 15; one run has a phase, there at 16."""
    first = Outcome(LOCAL, at(12.0), probe_done=at(13.0))
    second = Outcome(LOCAL, at(12.0), probe_done=at(15.0), cai=PHASE_ON_DEVICE, cai_done=at(16.0))
    parts = {"seconds": 6.0, "local_seconds": 2.0, "cai_seconds": 1.0, "probe_seconds": 3.0}
    assert timed([first, second], 10.0) == (parts, 16.0)


def test_a_row_holds_no_key_for_what_was_not_there():
    flat = rows.flat(ROUND._replace(probe=Probe(0.5, 0.25), cai=PHASE))
    assert {"probe_harmless", "probe_seconds", "cai_pairs", "cai_revised", "cai_seconds"} <= flat.keys()
    assert not {"cai_held_out", "together", "more", "probe", "cai"} & flat.keys()
    assert rows.flat(ROUND).keys() == {
        "round", "clients", "diverged", "delta_norm", "train_loss", "trained_tokens", "step_tokens", "seconds",
        "local_seconds", "cai_seconds",
    }  # fmt: skip


@pytest.mark.parametrize("row", [ROUND, ROUND._replace(cai=PHASE, together=2), ROUND._replace(probe=Probe(0.5, 0.1))])
def test_a_written_row_is_read_back(tmp_path, row):
    path = tmp_path / "metrics.jsonl"
    files.append_row(path, rows.flat(row))
    assert rows.read_rounds(path) == [row]


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_null(tmp_path, nothing):
    """JSON has no word for it; it is read back as NaN, never as 0 and never as absent."""
    row = ROUND._replace(train_loss=nothing, cai=PHASE._replace(loss=nothing))
    for write in (files.append_rows, files.write_rows):
        path = tmp_path / write.__name__
        write(path, [rows.flat(row)])
        written = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert written["train_loss"] is None and written["cai_loss"] is None
        (found,) = rows.read_rounds(path)
        assert math.isnan(found.train_loss) and found.cai and math.isnan(found.cai.loss)


def test_a_file_holds_no_nan_however_deep(tmp_path):
    files.write_json(tmp_path / "a", SUMMARY._replace(rates={"x": Rate(math.nan, 0.0, 1.0, 3)}))
    written = json.loads((tmp_path / "a").read_text(), parse_constant=pytest.fail)
    assert written["rates"]["x"]["mean"] is None and written["guard"] is None
    assert list(written) == list(Summary._fields), "named tuples are objects, not lists"


def test_a_summary_is_read_back(tmp_path):
    rates = {"harmless": Rate(50.0, 40.0, 60.0, 4), "hhh": None}
    files.write_json(tmp_path / "a", SUMMARY._replace(rates=rates))
    assert rows.read_summary(tmp_path / "a") == SUMMARY._replace(rates=rates)


def edited(tmp_path: Path, edit: Any) -> Path:
    fields = files.plain(SUMMARY)
    edit(fields)
    files.write_json(tmp_path / "summary.json", fields)
    return tmp_path / "summary.json"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda fields: fields.pop("seed"), "summary.json: missing: seed"),
        (lambda fields: fields.update(sede=1), "summary.json: unknown: sede"),
        (lambda fields: fields["seconds"].pop("training"), "summary.json.seconds: missing: training"),
        (lambda fields: fields.update(seed="one"), "seed: is 'one'; must be a whole number"),
        (lambda fields: fields.update(seed=True), "seed: is True; must be a whole number"),
        (lambda fields: fields.update(cost=None), "cost: is None; must be an object"),
        (lambda fields: fields.update(synthetic="model"), "synthetic: is 'model'; must be a list"),
        (lambda fields: fields.update(rates={"x": 3}), "rates.x: is 3; must be an object"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path, edit, message):
    with pytest.raises(InputError) as raised:
        rows.read_summary(edited(tmp_path, edit))
    assert message in str(raised.value)


def test_whether_a_phase_learnt_anything():
    assert PHASE.learnt
    for nothing in ({"usable": 0}, {"trained_tokens": 0.0}, {"diverged": True}):
        assert not PHASE._replace(**nothing).learnt, nothing
    spent = ROUND._replace(cai=PHASE._replace(usable=0), cai_seconds=2.5).cai_spent
    assert spent == (2.5, 30, 70, 40.0, 80.0, False)
    assert ROUND.local_spent == (3.0, 0, 0, 50.0, 90, True)
    with pytest.raises(ValueError, match="round 1 had no CAI phase"):
        _ = ROUND.cai_spent


def test_rows_before_a_torn_one_are_read(tmp_path):
    """Cut at every byte, within characters, too."""
    whole = "".join(json.dumps({"a": text}, ensure_ascii=False) + "\n" for text in ("가나", "다")).encode()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole) + 1):
        (tmp_path / "rows").write_bytes(whole[:size])
        assert len(files.read_rows(tmp_path / "rows")) == sum(end <= size for end in ends)


def test_phases_parts_have_names_of_their_own():
    """A key of a row belongs to one field: `cai_seconds` is the round's, `probe_seconds` the probe's."""
    keys = [f"{part}_{name}" for part, kind in rows.PARTS.items() for name in kind._fields]
    assert not set(keys) & set(Round._fields) and len(set(keys)) == len(Probe._fields) + len(Phase._fields)
