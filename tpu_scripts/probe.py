"""What accelerator.sh has to know of a machine, as lines of key=value: its device, versions, and what is missing."""

import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, version

GIB = 2**30
NEEDED = ("jax", "flax", "transformers", "pytest", "xdist", "hypothesis", "beartype")
PEER = ("torch", "transformers", "peft")


def missing(names: tuple[str, ...]) -> list[str]:
    """Those that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def installed(name: str) -> str:
    """The version of a package, or none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def is_peer_there() -> bool:
    """Whether torch, transformers and PEFT are there, and torch sees a GPU."""
    if missing(PEER):
        return False
    import torch  # pyright: ignore[reportMissingImports]

    return torch.cuda.is_available()


absent = missing(NEEDED)
print(f"missing={','.join(absent)}")
if absent:
    sys.exit()

import jax  # noqa: E402

device = jax.devices()[0]
limit = (device.memory_stats() or {}).get("bytes_limit", 0)
print(f"backend={jax.default_backend()}")
print(f"device={device.device_kind}")
print(f"devices={jax.device_count()}")
print(f"memory={limit // GIB}")
print(f"peer={'yes' if is_peer_there() else 'no'}")
print(f"python={sys.version.split()[0]}")
print(f"xla_flags={os.environ.get('XLA_FLAGS', '')}")
for package in ("jax", "jaxlib", "flax", "transformers", "torch", "peft"):
    print(f"{package}={installed(package)}")
