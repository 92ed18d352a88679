"""What XLA is told of a machine with NVIDIA's GPUs; what the user says stands."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fedjax_rai import xla
from fedjax_rai.cli import app
from fedjax_rai.runs import compiled

FLAG = "--xla_gpu_enable_triton_gemm=false"


@pytest.fixture
def plugins(monkeypatch) -> set[str]:
    """The plugins of jax that are installed: one for NVIDIA's GPUs."""
    installed = {"jax_cuda13_plugin"}
    monkeypatch.setattr(xla, "find_spec", lambda name: name if name in installed else None)
    return installed


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, FLAG),
        ("", FLAG),
        ("--xla_gpu_autotune_level=0", f"--xla_gpu_autotune_level=0 {FLAG}"),
        ("--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
        (FLAG, FLAG),
        ("flags.txt", "flags.txt"),  # a file of flags, which takes no further ones
    ],
)
def test_where_there_is_a_gpu_cublas_multiplies_unless_the_user_says_so(monkeypatch, plugins, given, expected) -> None:
    monkeypatch.delenv("XLA_FLAGS") if given is None else monkeypatch.setenv("XLA_FLAGS", given)
    for _ in range(2):
        xla.multiply_by_cublas()
        assert os.environ["XLA_FLAGS"] == expected


def test_elsewhere_nothing_is_said(monkeypatch, plugins) -> None:
    plugins.clear()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    xla.multiply_by_cublas()
    assert "XLA_FLAGS" not in os.environ


def test_every_command_says_it_and_so_does_whatever_computes(monkeypatch, plugins) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    CliRunner().invoke(app, ["bench", "round", "--model", "none such"])
    assert os.environ["XLA_FLAGS"] == FLAG
    monkeypatch.setenv("XLA_FLAGS", "")
    compiled.keep_compiled()
    assert os.environ["XLA_FLAGS"] == FLAG


@pytest.mark.parametrize(("flag", "is_known"), [(FLAG, True), ("--xla_gpu_no_such_flag=1", False)])
def test_jax_reads_the_variable_after_it_was_imported(flag, is_known) -> None:
    """An unknown flag ends the process."""
    program = f"import os, jax; os.environ['XLA_FLAGS'] = '{flag}'; print(jax.jit(lambda x: x + 1)(1))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode == 0 and done.stdout.strip() == "2") == is_known, done.stderr
