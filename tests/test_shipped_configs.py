"""Every config that is shipped loads, and its first line is a command that runs it."""

import shlex
from pathlib import Path

import pytest

from fedjax_rai.config_file import load_config, load_sweep

ROOT = Path(__file__).parents[1]
CONFIGS = [
    path.relative_to(ROOT) for path in sorted((ROOT / "configs").rglob("*.yaml")) if "constitutions" not in path.parts
]


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_its_first_line_runs_it(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    mark, program, *command = shlex.split(path.read_text(encoding="utf-8").split("\n")[0])
    assert (mark, program) == ("#", "fedjax-rai") and str(path) in command
    overrides = [word for word in command if "=" in word]
    if command[0] == "sweep":
        assert len(load_sweep(path, overrides)) > 1
    else:
        load_config(path, overrides)
