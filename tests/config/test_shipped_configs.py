"""Every config that is shipped loads, and its first line is a command that runs it."""

import shlex
from pathlib import Path

import pytest
import yaml

from fedjax_rai.config.grid import load_sweep
from fedjax_rai.config.load import load_config
from fedjax_rai.config.views import all_keys

ROOT = Path(__file__).parents[2]
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


def test_the_paper_s_set_is_for_the_paper_s_adapters():
    own, table = (load_config(ROOT / f"configs/paper/{name}.yaml") for name in ("s_cai20k", "llama31_8b_square20k"))
    assert own.lora == table.lora and own.model.path == table.model.path and own.data.train == table.data.train
    assert own.data.max_length == table.data.max_length and (ROOT / own.cai.constitution).is_file()


def written(path: Path) -> set[str]:
    """The dotted keys that a config names."""
    contents = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    found = {key for key, value in contents.items() if not isinstance(value, dict)}
    for section, keys in contents.items():
        if isinstance(keys, dict):
            found |= {f"{section}.{key}" for key in keys}
    return found


def test_every_key_stands_in_a_shipped_config():
    """What nobody shows, nobody uses: a key without a config is an option without a reason."""
    shown = set().union(*(written(path) for path in CONFIGS))
    assert [key for key in all_keys() if key not in shown] == []
