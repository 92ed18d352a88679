"""Programs that tests run in processes of their own: the files under `tests/programs`."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(__file__).parent / "programs"


def run_program(
    name: str, *arguments: object, devices: int = 1, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run `tests/programs/<name>.py` in a folder, on so many CPU devices; what it wrote, and its exit code."""
    threads = 4 * devices  # see tests/conftest.py
    shape = {"JAX_NUM_CPU_DEVICES": str(devices), "NPROC": str(threads)}
    environment = {**os.environ, **shape, "PYTHONPATH": str(ROOT)}
    # -P: the program's folder is no place to import from, as it would be by default.
    command = [sys.executable, "-P", str(PROGRAMS / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)


def succeed(name: str, *arguments: object, devices: int = 1, folder: Path = ROOT) -> None:
    """Run a program, which checks something itself, and fail with the end of what it says where it fails."""
    done = run_program(name, *arguments, devices=devices, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
