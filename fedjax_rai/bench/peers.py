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
SILENT = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
# A peer's process has memory of the device, too, so ours must not take it all at its start.
BESIDE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Peer(NamedTuple):
    """A way to do the same work, in a process of its own."""

    module: str
    needs: tuple[str, ...]  # packages, by the names they are imported by
    install: str
    works: tuple[str, ...]


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
}
"""By name. Every one of them trains as the same careful loop, or as its own trainer does it."""


class Side(NamedTuple):
    """One of those that are measured: its name, and how its process is started."""

    name: str
    command: list[str]
    environment: dict[str, str]


def chosen(names: Sequence[str], work: str, flower_python: str | None = None) -> list[Side]:
    """The peers of these names, in order.

    Raises InputError for a work that a peer does not measure, and for packages that are not there.
    """
    sides = []
    for name in names:
        peer = PEERS[name]
        if work not in peer.works:
            raise InputError(f"--peer {name}: measures {', '.join(peer.works)}, not {work}{_able(work)}")
        python = flower_python if name == "flower" else None
        _check_installed(name, peer, python)
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
    algorithm = request["federated"].get("algorithm", "fedavg")
    if request["work"] == "round" and algorithm != "fedavg":
        raise InputError(
            f"--peer {name}: aggregates by fedavg, not {algorithm}; must be --set federated.algorithm=fedavg"
        )


def _check_installed(name: str, peer: Peer, python: str | None) -> None:
    absent = _absent_here(peer.needs) if python is None else _absent_there(peer.needs, python)
    if absent:
        raise InputError(f"--peer {name}: needs {', '.join(absent)}; {peer.install}")


def _absent_here(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if importlib.util.find_spec(package) is None]


def _absent_there(packages: Sequence[str], python: str) -> list[str]:
    code = "import sys; from importlib.util import find_spec; print(*(n for n in sys.argv[1:] if find_spec(n) is None))"
    try:
        command = [python, "-c", code, *packages]
        variables = os.environ | environment()
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    except (OSError, subprocess.CalledProcessError):
        raise InputError(f"--flower-python {python}: does not run; must be the Python of an environment") from None
    return done.stdout.split()
