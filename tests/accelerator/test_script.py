"""tpu_scripts/accelerator.sh: its commands are the page's, it keeps what it has, and says what is not done."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from fedjax_rai.bench import shapes
from tests.processes import ROOT

SCRIPT = ROOT / "tpu_scripts" / "accelerator.sh"
MINUTES = 10
# In place of Python: what the machine has stands in MACHINE, and an argument that stands in FAILS or SLEEPS does so.
STUB = """#!/usr/bin/env bash
case $1 in tpu_scripts/probe.py) printf '%b' "$MACHINE"; exit ;; esac
echo "{\\"ran\\": \\"$*\\"}"
for word in "$@"; do
  [ "$word" != "${FAILS:-}" ] || { echo broken >&2; exit 3; }
  [ "$word" != "${SLEEPS:-}" ] || exec sleep 60
done
"""
VARIABLES = ("DRY", "TOTAL", "PYTHON", "PARTS", "SMALL", "VLLM_PYTHON")
GPU = "missing=\nbackend=gpu\nmemory=59\npeer=yes\n"


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(STUB)
    path.chmod(0o755)
    return path


def environment(stub: Path | str, **variables: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return others | {"PYTHON": str(stub), "MACHINE": GPU} | variables


def run(*arguments: object, stub: Path | str = "absent", **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(stub, **variables), check=False)


def planned(**variables: str) -> dict[str, tuple[int, list[str]]]:
    """Part -> (seconds at most, words of its command), as the dry run prints them."""
    parts = {}
    for line in run("--dry-run", **variables).stdout.splitlines():
        name, seconds, unit, *_ = line.split()
        assert unit == "s"
        parts[name] = (int(seconds), shlex.split(line.partition(" s  ")[2]))
    return parts


def ended(out: Path) -> dict[str, str]:
    """Part -> how it ended."""
    rows = [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]
    return {row["part"]: row["state"] for row in rows}


def test_a_dry_run_prints_commands_and_runs_nothing(tmp_path) -> None:
    for done in (run("--dry-run", tmp_path / "out"), run(tmp_path / "out", DRY="1")):
        assert done.returncode == 0 and not done.stderr and not (tmp_path / "out").exists()
    parts = planned()
    limit, tests = parts["tests"]
    assert next(iter(parts)) == "tests" and limit > 150 and tests[:3] == ["python", "-m", "pytest"]
    files = [word for _, words in parts.values() for word in words if word.startswith("tests/")]
    assert files and all((ROOT / name).is_file() for name in files)


def test_its_benchmarks_are_the_commands_of_the_page() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").partition("## On one GPU")[2]
    shown = [shlex.split(line) for line in page.splitlines() if line.startswith("python -m fedjax_rai.bench ")]
    every = planned(PARTS="*")
    assert shown == [words for _, words in every.values() if "fedjax_rai.bench" in words]
    assert len(shown) >= 8
    assert set(every) - set(planned()) == {
        "round_1b", "round_1b_small", "generate_1b_batches", "cai_1b_merged", "generate_8b_merged", "round_8b_paper",
        "generate_1b_vllm", "generate_8b_vllm",
    }  # fmt: skip


def test_the_papers_round_is_the_papers() -> None:
    """Five clients, 25 steps of 16 examples of 512 tokens, rank 16: what `bench round` takes if it is given nothing."""
    _, words = planned(PARTS="round_8b_paper")["round_8b_paper"]
    assert not {"--clients", "--steps", "--batch", "--length", "--rank"} & set(words)
    assert shapes.RoundShape() == (5, 25, 16, 512, 1) and shapes.RANK == 16


def test_jobs_of_the_paper_are_there() -> None:
    """A phase of 64 prompts, 520 answers of up to 256 tokens, 20,000 scores."""
    parts = {name: " ".join(words) for name, (_, words) in planned().items()}
    assert "cai --model 1B --prompts 64 " in parts["cai_1b"]
    assert "--new 256 --answers 520 " in parts["generate_1b_advbench"]
    assert "--pairs 20000 " in parts["score_1b"]


def test_small_parts_run_anywhere(stub, tmp_path) -> None:
    """Every part that measures, with options behind its own that make it small."""
    out = tmp_path / "out"
    done = run(
        out,
        stub=stub,
        MACHINE="missing=\
backend=cpu\
memory=0\
peer=no\
",
        SMALL="1",
        PARTS="*_1b* *_8b*",
    )
    assert done.returncode == 0, done.stderr
    ran = {path.stem: json.loads(path.read_text())["ran"] for path in out.glob("*_*.jsonl")}
    assert set(ran) == {name for name in planned(PARTS="*") if "_1b" in name or "_8b" in name}
    every = "--model tiny --dtype float32 --attention xla --unroll none --warmup 0 --repeats 1"
    assert all(every in words.partition("--json ")[2] for words in ran.values()), ran


@pytest.mark.slow
def test_a_small_part_is_measured_here(tmp_path) -> None:
    out = tmp_path / "out"
    names = ("generate_1b_advbench", "generate_1b_batches")
    done = run(out, stub=sys.executable, SMALL="1", PARTS=" ".join(names), JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    rows = [json.loads((out / f"{name}.jsonl").read_text()) for name in names]
    assert [row["order"] for row in rows] == ["queue", "batches"]
    queue, batches = rows
    assert queue["steps"] == queue["steps_in_queue"] <= batches["steps"] == queue["steps_in_batches"]
    assert queue["tokens_per_second"] * queue["median_seconds"] == pytest.approx(
        batches["tokens_per_second"] * batches["median_seconds"]
    )


def test_parts_can_be_chosen(stub, tmp_path) -> None:
    done = run(tmp_path / "out", stub=stub, PARTS="generate_* cai_1b")
    assert done.returncode == 0, done.stderr
    usual = ["generate_1b_peer", "generate_8b", "cai_1b", "generate_1b_advbench", "generate_1b"]
    states = ended(tmp_path / "out")
    further = ["generate_1b_batches", "generate_8b_merged", "generate_1b_vllm", "generate_8b_vllm"]
    assert list(states) == [*usual, *further] and states["generate_8b_vllm"] == "left out"


def test_every_part_that_ends_keeps_what_it_wrote(stub, tmp_path) -> None:
    out = tmp_path / "out"
    done = run(out, stub=stub)
    parts = planned()
    assert done.returncode == 0, done.stderr
    assert ended(out) == dict.fromkeys(parts, "done")
    for name, (_, words) in parts.items():
        ending = "jsonl" if "fedjax_rai.bench" in words else "txt"
        assert json.loads((out / f"{name}.{ending}").read_text()) == {"ran": " ".join(words[1:])}


def test_a_part_that_fails_or_sleeps_is_named_and_the_others_run(stub, tmp_path) -> None:
    out = tmp_path / "out"
    done = run(out, stub=stub, FAILS="-rP")
    states = ended(out)
    assert done.returncode == 1 and done.stderr == f"not done: tests (failed); see {out}\n"
    assert states.pop("tests") == "failed" and set(states.values()) == {"done"}
    assert (out / "tests.log").read_text() == "broken\n"


@pytest.mark.slow
def test_all_of_it_ends_in_time(stub, tmp_path) -> None:
    """The last part that begins has the time that is left, and what has none is named."""
    out = tmp_path / "out"
    began = time.monotonic()
    done = run(out, stub=stub, TOTAL="4", SLEEPS="8B")
    assert done.returncode == 1 and time.monotonic() - began < 20
    states = ended(out)
    assert [states[name] for name in ("tests", "round_1b_peer")] == ["done", "done"]
    assert states["round_8b_cudnn"] == "timed out" and states["generate_8b"] == "not started"
    assert "round_8b_cudnn (timed out), generate_8b (not started)" in done.stderr
    usual = next(line for line in SCRIPT.read_text().splitlines() if "total=${TOTAL:-" in line)
    assert int(usual.partition("${TOTAL:-")[2].partition("}")[0]) <= MINUTES * 60 - 10


def test_an_interrupt_ends_what_runs_and_leaves_what_is_done(stub, tmp_path) -> None:
    out = tmp_path / "out"
    variables = environment(stub, SLEEPS="generate")
    with subprocess.Popen([SCRIPT, out], env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as started:
        written = out / "generate_1b_peer.jsonl"
        while not (written.exists() and written.read_text()):
            assert started.poll() is None
            time.sleep(0.05)
        began = time.monotonic()
        started.send_signal(signal.SIGTERM)
        _, error = started.communicate(timeout=30)
    assert started.returncode == 130 and time.monotonic() - began < 20
    assert error.decode() == f"interrupted; what is done is in {out}\n"
    assert ended(out) == dict.fromkeys(("tests", "round_1b_peer", "round_1b_small_peer"), "done")


def test_parts_are_fitted_to_the_machine(stub, tmp_path) -> None:
    out = tmp_path / "out"
    tpu = "missing=\nbackend=tpu\nmemory=30\npeer=no\n"
    done = run(out, stub=stub, MACHINE=tpu)
    assert done.returncode == 0 and "the peer is not measured: " in done.stdout
    assert ended(out)["round_8b_cudnn"] == "left out"
    ran = "".join(path.read_text() for path in out.glob("*.jsonl"))
    assert "--peer" not in ran and "torch" not in ran and "--attention cudnn" not in ran
    assert "--attention splash --warmup 0" in ran and "--batch 1 --chunk 5 --repeats 2" in ran


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (
            "missing=\nbackend=cpu\n",
            "jax sees a CPU only: this is for a machine with a GPU or TPU",
        ),
        ("missing=pytest,beartype\n", "python has no pytest, beartype: pip install -e "),
    ],
)
def test_a_machine_that_is_none_is_refused_in_a_line(stub, tmp_path, machine, message) -> None:
    out = tmp_path / "out"
    done = run(out, stub=stub, MACHINE=machine)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and message in line and not (out / "parts.jsonl").exists()


def test_here_where_jax_sees_a_cpu_it_refuses(tmp_path) -> None:
    done = run(
        tmp_path / "out", stub=sys.executable, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_gpu_enable_triton_gemm=false"
    )
    assert done.returncode == 2 and done.stderr.startswith("jax sees a CPU only: "), done.stderr
    known = dict(line.split("=", 1) for line in (tmp_path / "out" / "machine.txt").read_text().splitlines())
    assert known["backend"] == "cpu" and known["missing"] == "" and known["jax"] == version("jax")
    assert known["xla_flags"] == "--xla_gpu_enable_triton_gemm=false", "with which all was measured"
