"""What was held at most, measured: by this process, and on each of its devices.

Loads jax only where devices are asked about, so that a process without it may measure itself, too.
"""

import resource
import sys
from pathlib import Path
from typing import NamedTuple

STATUS = Path("/proc/self/status")


class DevicePeak(NamedTuple):
    """What one device held of arrays at most, since the process began."""

    kind: str
    """As JAX names it."""
    peak: int | None
    """Bytes. Null: the device does not tell, as no CPU does; its arrays are the process's memory."""


def process_peak() -> int:
    """Bytes of resident memory that this process held at most. Linux's getrusage would count its parent's, too."""
    status = STATUS.read_text() if STATUS.exists() else ""
    for line in status.splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    # elsewhere, and in sandboxes whose Linux leaves that line out
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_peaks() -> list[DevicePeak]:
    """Those of the devices of this process, in JAX's order."""
    import jax

    found = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        found.append(DevicePeak(device.device_kind, stats.get("peak_bytes_in_use")))
    return found
