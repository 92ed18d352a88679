"""Those that do the same work beside us: which they are, what each measures, and what it needs."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.bench.requests import check_name
from fedjax_rai.errors import InputError

ROOT = Path(__file__).parents[2]
IS_CHECKOUT = (ROOT / "pyproject.toml").is_file()
SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
# A peer's process has memory of the device, too, so ours must not take it all at its start.
BESIDE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Peer(NamedTuple):
    """A way to do the same work, in a process of its own."""

    module: str
    needs: tuple[str, ...]  # packages, by the names they are imported by
    install: str
    works: tuple[str, ...]
    needs_gpu: bool = False


PEERS: dict[str, Peer] = {
    "torch": Peer(
        "fedjax_rai.bench.torch_peer",
        ("torch", "transformers", "peft"),
        "pip install torch peft",
        ("round", "generate", "score"),
    ),
    "trl": Peer(
        "fedjax_rai.bench.trl_peer",
        ("torch", "transformers", "peft", "trl"),
        "pip install torch peft trl",
        ("round",),
    ),
    "flower": Peer(
        "fedjax_rai.bench.flower_peer",
        ("torch", "transformers", "peft", "flwr", "ray", "fedjax_rai"),
        "pip install torch transformers peft 'flwr[simulation]' in an environment of its own, name its Python by "
        "--flower-python, and run this from a checkout or install fedjax_rai there without its dependencies",
        ("round",),
    ),
    "vllm": Peer(
        "fedjax_rai.bench.vllm_peer",
        ("torch", "vllm", "fedjax_rai"),
        "pip install vllm in an environment of its own, name its Python by --vllm-python, and run this from a checkout "
        "or install fedjax_rai there without its dependencies",
        ("generate",),
        needs_gpu=True,
    ),
}
"""By name. Those that train do so as the same careful loop, or as their own trainer does it."""


class Side(NamedTuple):
    """One of those that are measured: its name, and how its process is started."""

    name: str
    command: list[str]
    environment: dict[str, str]


def chosen(names: Sequence[str], work: str, pythons: Mapping[str, str | None] | None = None) -> list[Side]:
    """The peers of these names, in order; `pythons`: by name, the Python of a peer that has an environment of its own.

    Raises InputError for a work that a peer does not measure, and for packages, or a GPU, that are not there.
    """
    sides = []
    for name in names:
        peer = PEERS[name]
        if work not in peer.works:
            raise InputError(f"--peer {name}: measures {', '.join(peer.works)}, not {work}{_able(work)}")
        python = (pythons or {}).get(name)
        _check_installed(name, peer, python)
        if peer.needs_gpu and not _sees_gpu(python or sys.executable):
            raise InputError(f"--peer {name}: torch sees no GPU here; must be a machine with one, and torch for it")
        sides.append(Side(name, [python or sys.executable, "-m", peer.module], environment()))
    return sides


def environment() -> dict[str, str]:
    """Variables of a peer's process: where it finds this package, and that it reports to nobody."""
    if not IS_CHECKOUT:
        return SILENT
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return SILENT | {"PYTHONPATH": os.pathsep.join(paths)}


def split(texts: Sequence[str]) -> list[str]:
    """Names of peers, which may have commas between them, each once; raises InputError for a name of none."""
    names = list(dict.fromkeys(part.strip() for text in texts for part in text.split(",")))
    for name in names:
        check_name("--peer", name, [*PEERS])
    return names


def _able(work: str) -> str:
    able = [name for name, peer in PEERS.items() if work in peer.works]
    return f"; must be {' or '.join(able)}" if able else "; no peer does"


def check_same(request: Mapping[str, Any], sides: Sequence[Side]) -> None:
    """Raises InputError for a request that peers would compute otherwise."""
    if not sides:
        return
    name = sides[0].name
    if request["computed"]["quantize"] != "none":
        raise InputError(f"--peer {name}: computes no quantised base; must be --quantize none")
    if request["computed"]["kv_cache"] != "model":
        raise InputError(f"--peer {name}: caches keys and values as they are; must be --kv-cache model")
    if (request["devices"] or 1) > 1:
        raise InputError(f"--peer {name}: has one device; must be --devices 1")
    if request["shape"].get("answers") is not None:
        raise InputError(f"--peer {name}: has no answers of these lengths; --answers must be left out")
    algorithm = request["federated"].get("algorithm", "fedavg")
    if request["work"] == "round" and algorithm != "fedavg":
        raise InputError(
            f"--peer {name}: aggregates by fedavg, not {algorithm}; must be --set federated.algorithm=fedavg"
        )


def _check_installed(name: str, peer: Peer, python: str | None) -> None:
    absent = _absent_here(peer.needs) if python is None else _absent_there(name, peer.needs, python)
    if absent:
        raise InputError(f"--peer {name}: needs {', '.join(absent)}; {peer.install}")


def _absent_here(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if importlib.util.find_spec(package) is None]


def _absent_there(name: str, packages: Sequence[str], python: str) -> list[str]:
    code = "import sys; from importlib.util import find_spec; print(*(n for n in sys.argv[1:] if find_spec(n) is None))"
    try:
        done = _run(python, code, *packages)
        done.check_returncode()
    except (OSError, subprocess.CalledProcessError):
        raise InputError(f"--{name}-python {python}: does not run; must be the Python of an environment") from None
    return done.stdout.split()


def _sees_gpu(python: str) -> bool:
    return _run(python, "import sys, torch; sys.exit(not torch.cuda.is_available())").returncode == 0


def _run(python: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a line of code prints, run by a peer's Python."""
    command = [python, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment())
