"""A sweep that leaves the mesh to the memory plan: each base has one, on which all of its points fit."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from fedjax_rai.config.grid import load_sweep
from fedjax_rai.config.load import dump_config
from fedjax_rai.config.schema import ExperimentConfig, MeshConfig
from fedjax_rai.experiment import layout
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory.layout import Layout
from fedjax_rai.runs import files
from fedjax_rai.studies import sweep
from tests.tiny_runs import SUMMARY, vary

SWEPT = ("model.dtype=float32,bfloat16", "eval.batch_size=8,64", "federated.batch_size=2,4")


def chosen(arms: Sequence[tuple[ExperimentConfig, Any]], limit: int | None) -> Layout:
    """As if float32 points that evaluate 64 rows at once needed two parts, and all others one."""
    large = [config for config, _ in arms if config.eval.batch_size == 64 and config.model.dtype == "float32"]
    return Layout(MeshConfig(fsdp=2 if large else 1), f"for {len(arms)} points")


def unknown(setting: Setting) -> Any:
    """The sizes of a setting, which the choice above does not read."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """By its name, the parts of the base that each point was given; no point is computed."""
    found: dict[str, int] = {}

    def run(config: ExperimentConfig, setting: Setting | None, siblings: Any) -> None:
        folder = sweep.run_folder(config)
        if setting is not None:
            found[folder.name] = setting.models.layout.fsdp
            folder.mkdir(exist_ok=True)
            files.write_text(folder / "config.yaml", dump_config(config))
            files.write_json(folder / "summary.json", SUMMARY)

    monkeypatch.setattr(layout, "choose", chosen)
    monkeypatch.setattr(sweep, "choose_mesh", partial(layout.choose_mesh, sizes_of=unknown))
    monkeypatch.setattr(sweep, "run", run)
    monkeypatch.setattr(sweep, "write", lambda folder, points, margin: None)
    return found


def test_every_point_of_a_base_has_the_mesh_that_all_of_them_fit_on(config, ran, tmp_path, capsys) -> None:
    """Points of 8 rows come first and would fit whole; those of 64 share no guard scores with them, but the base."""
    (tmp_path / "a.yaml").write_text(dump_config(vary(config, mesh={"auto": True})))
    points = load_sweep(tmp_path / "a.yaml", SWEPT)
    sweep.run_sweep(points)
    assert len(ran) == 8
    assert {name: parts for name, parts in ran.items() if parts != 1} == {
        f"model.dtype=float32,eval.batch_size={rows},federated.batch_size={batch}": 2
        for rows in (8, 64)
        for batch in (2, 4)
    }
    assert capsys.readouterr().err.count("for 4 points") == 2, "once a base"


def test_a_sweep_that_goes_on_has_the_mesh_that_it_had(config, ran, tmp_path) -> None:
    """The large points are finished, and count; of a finished base nothing is chosen."""
    (tmp_path / "a.yaml").write_text(dump_config(vary(config, mesh={"auto": True})))
    points = load_sweep(tmp_path / "a.yaml", SWEPT)
    sweep.run_sweep(points)
    small = next(point for point in points if point.config.eval.batch_size == 8)
    (sweep.output(small) / "summary.json").unlink()
    ran.clear()
    sweep.run_sweep(points)
    assert ran == {sweep.output(small).name: 2}


def test_a_mesh_that_is_named_is_left_alone(config, ran, tmp_path) -> None:
    (tmp_path / "a.yaml").write_text(dump_config(config))
    sweep.run_sweep(load_sweep(tmp_path / "a.yaml", ["eval.batch_size=8,64"]))
    assert set(ran.values()) == {1} and len(ran) == 2


def test_points_of_one_base_come_one_after_another(config, ran, tmp_path) -> None:
    """However their keys are ordered: else a base would be read again for every seed."""
    (tmp_path / "a.yaml").write_text(dump_config(config))
    sweep.run_sweep(load_sweep(tmp_path / "a.yaml", ["seed=0,1", "model.dtype=float32,bfloat16"]))
    assert [name.partition("model.dtype=")[2] for name in ran] == ["float32", "float32", "bfloat16", "bfloat16"]
