"""How runs stand in a report: their order and their names."""

from pathlib import Path

import pytest

from fedjax_rai.studies.gathered import Run, _name, _order
from fedjax_rai.studies.table import ARMS, CONTROLS


@pytest.mark.parametrize(
    "names",
    [
        [*ARMS, *CONTROLS, "another"],
        ["x=2", "x=9", "x=9.25", "x=9.5", "x=10", "y=1"],
        ["x=-2", "x=-0.5", "x=2e-4", "x=1e-3", "x=0.05", "x=0.5"],
        ["x=2,y=10", "x=10,y=2", "x=10,y=2.5"],
        ["run-1", "run-2", "run-10"],
    ],
)
def test_arms_stand_as_the_command_lists_them_then_by_name_and_numbers_by_size(names):
    for order in (names, names[::-1], sorted(names)):
        assert [path.name for path in sorted((Path("s") / name for name in order), key=_order)] == names


@pytest.mark.parametrize(
    ("folder", "name"),
    [("seed=3", "all seeds"), ("x=2,seed=3", "x=2"), ("seed=3,x=2,y=1", "x=2,y=1"), ("fl+cai", "fl+cai")],
)
def test_a_point_is_named_without_its_seed(tmp_path, folder, name):
    run = Run.__new__(Run)
    run.folder = tmp_path / folder
    assert _name(run) == name
