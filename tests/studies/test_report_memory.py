"""Memory in a report, by hand: what was measured and of whom, what was planned, and where there is neither."""

from pathlib import Path

import pytest

from fedjax_rai.evals import intervals
from fedjax_rai.memory.measured import DevicePeak
from fedjax_rai.runs.rows import Memory, PlannedMemory
from fedjax_rai.studies.gathered import gather
from fedjax_rai.studies.report import Wanted, write_report
from fedjax_rai.studies.report_memory import BOUND, RESUMED, memory, shown
from fedjax_rai.studies.report_parts import Report, Section
from tests.studies.report_folders import some_rows, write_run
from tests.tiny_runs import vary

MIB, GIB = 2**20, 2**30
PLAN = PlannedMemory(
    need=7 * MIB,
    phase="scoring",
    held={"base": 3 * MIB, "data": MIB},
    phases={"local training": {"activations": MIB, "deltas": MIB // 2}, "scoring": {"activations": 3 * MIB}},
)
CPU, GPU = DevicePeak("cpu", None), DevicePeak("NVIDIA X", 3 * GIB)
HELD = Memory(PLAN, process=GIB, devices=[CPU, CPU], other_runs=0, resumed=False)


@pytest.fixture(autouse=True)
def _few_replicates(monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 1000)


@pytest.fixture
def section_of(tmp_path, config):
    """The section of runs with these memories, each list an arm's seeds; None: an older version's run."""

    def made(*arms: list[Memory | None]) -> Section:
        folders = []
        for i, of_arm in enumerate(arms):
            for seed, held in enumerate(of_arm):
                own = vary(config, seed=seed, lora={"rank": 2 + i})
                folders.append(write_run(tmp_path / f"arm{i}-{seed}", own, some_rows(4), memory=held))
        gathered = gather(folders)
        return memory(Report(gathered, {}, {}, None, gathered.arms[0].label))

    return made


def test_a_run_by_itself_has_its_numbers_and_no_picture(section_of):
    section = section_of([HELD._replace(devices=[GPU, GPU._replace(peak=4 * GIB), CPU])])
    table, phases, *_ = section.grids
    assert table.rows == [["arm0-0", "1.00 GiB", "4.00 GiB", "7.00 MiB", "scoring"]], "the fullest device's"
    assert not section.panels
    # 4 MiB in every phase; scoring 3 more, training 1.5
    assert phases.folded and phases.rows == [
        ["arm0-0", "scoring", "7.00 MiB", "4.00 MiB", "activations, 3.00 MiB"],
        ["arm0-0", "local training", "5.50 MiB", "4.00 MiB", "activations, 1.00 MiB"],
    ]


def test_what_no_device_tells_is_not_measured_and_not_0(section_of):
    section = section_of([HELD])
    assert section.grids[0].rows[0][1:3] == ["1.00 GiB", "not measured"]
    assert section.absent == ["Memory of devices: not measured on cpu, as JAX does not tell there."]


def test_a_run_of_an_older_version_was_not_measured(section_of):
    section = section_of([None])
    assert section.grids[0].rows == [["arm0-0", "not measured", "not measured", "not known", "not known"]]
    assert section.absent == ["1 of 1 run: not measured, an older version ran."] and not section.panels
    assert [grid.caption[:10] for grid in section.grids] == ["", "Parameters"], "there is no plan to show"


def test_peaks_that_are_not_the_runs_own_are_marked_and_not_drawn(section_of):
    """Three of four runs: one after another, one resumed, one of an older version; all plans but its are drawn."""
    after = HELD._replace(process=2 * GIB, other_runs=1)
    resumed = HELD._replace(
        process=3 * GIB, other_runs=1, resumed=True
    )  # no bound: an earlier process may have held more
    section = section_of([HELD, after], [resumed, None])
    rows = section.grids[0].rows
    assert rows[0][1] == "1.00 GiB; ≤ 2.00 GiB" and rows[1][1] == "3.00 GiB (resumed); not measured"
    assert rows[0][3] == "7.00 MiB" and rows[1][3:] == ["7.00 MiB; not known", "scoring; not known"]
    assert BOUND in section.about and RESUMED in section.about
    assert "2 runs of 4: measured peaks are in the table alone, as they are not the run's own." in section.absent
    process, device = section.panels
    assert [point.x for series in process.series for point in series.points] == [1.0]
    assert process.x.label == "GiB" and process.x.low == 0
    assert device.x.label == "MiB" and [name for name, _ in device.legend] == ["planned"]
    assert [point.x for series in device.series for point in series.points] == [7.0, 7.0, 7.0]


def test_measured_and_planned_stand_beside_each_other_to_scale(section_of):
    """In GiB, as the largest is: 3 measured, and 7 MiB planned, in every arm's row."""
    section = section_of([HELD._replace(devices=[GPU])], [HELD._replace(devices=[GPU])])
    _, device = section.panels
    measured, planned = device.series
    assert (measured.name, planned.name) == ("measured", "planned") and measured.look != planned.look
    assert [(point.x, round(point.y)) for point in measured.points] == [(3.0, 1), (3.0, 0)]
    assert planned.points[0].x == 7 / 1024 and device.x.label == "GiB"
    assert measured.points[0].note == "arm0-0, seed 0: 3.00 GiB measured"


def test_bytes_are_shown_in_the_unit_that_fits():
    assert shown(GIB // 2) == "0.50 GiB" and shown(34 * GIB) == "34.00 GiB"
    assert shown(99 * MIB) == "99.00 MiB" and shown(0) == "0.00 MiB"


def test_a_page_of_runs_with_and_without_it(tmp_path, config):
    folders: list[Path] = [
        write_run(tmp_path / "old", config, some_rows(4)),
        write_run(tmp_path / "new", vary(config, lora={"rank": 3}), some_rows(4), memory=HELD),
    ]
    (page,) = write_report(folders, Wanted(tmp_path / "page.html"))
    text = page.read_text(encoding="utf-8")
    assert "1 of 2 runs: not measured, an older version ran." in text and "<b>Memory of the process</b>" in text
