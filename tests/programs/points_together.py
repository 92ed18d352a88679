"""Runs that go together on a mesh of four by two devices: `points_together.py CONFIG CONFIG...`."""

import sys
from pathlib import Path

from fedjax_rai.config.load import load_config
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import conclude
from fedjax_rai.runs.lockstep import run_together
from tests.conftest import nothing_measured

conclude.evaluate = nothing_measured
conclude.critique_of = lambda *_: None
arms: list[Setting] = []
for path in sys.argv[1:]:
    arms.append(Setting(load_config(Path(path)), arms[-1] if arms else None))
assert dict(arms[0].models.mesh.shape) == {"clients": 4, "fsdp": 2, "tensor": 1}
run_together(arms)
