"""Compiled programs, kept for the next process: jax's persistent compilation cache, in a folder of the user's."""

import hashlib
import os
import platform
import stat
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jax

from fedjax_rai import terminal, xla

MAX_BYTES = 4 * 2**30
CPUINFO = Path("/proc/cpuinfo")
MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
UNBOUNDED = -1  # jax's own word for it


def keep_compiled() -> None:
    """Have jax keep what it compiles in the user's folder, unless it was told of another, or to keep nothing.

    For whatever computes, before its first compilation; a second call changes nothing. A folder that cannot be written
    is said, and nothing is kept. What was least recently used is deleted first, at the start of a process, so that the
    folder exceeds `MAX_BYTES` (or JAX_COMPILATION_CACHE_MAX_SIZE) by what one process compiles at most. jax's own bound
    looks at every file whenever it writes one, and takes a lock that a kill can leave it without the means to go on.
    """
    xla.multiply_by_cublas()
    config: Any = jax.config
    bound = config.jax_compilation_cache_max_size
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache or bound == 0:
        return
    folder = writable_folder()
    if folder is None:
        return
    prune(folder, MAX_BYTES if bound == UNBOUNDED else bound)
    config.update("jax_compilation_cache_max_size", UNBOUNDED)
    config.update("jax_compilation_cache_dir", str(folder / machine()))
    if MIN_SECONDS not in os.environ:
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def user_folder() -> Path:
    """Where programs are kept: under XDG_CACHE_HOME where it is an absolute path, else under ~/.cache.

    Raises RuntimeError where the user has no home.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    caches = named if named.is_absolute() else Path.home() / ".cache"
    return caches / "fedjax_rai" / "jax"


@cache
def writable_folder() -> Path | None:
    """`user_folder`, made where it was absent, for its user alone; None, which is said once, where nothing can be."""
    try:
        folder = user_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # programs are executed as they are found
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:
        terminal.say(f"compiled programs are not kept: {error}; JAX_COMPILATION_CACHE_DIR can name another folder")
        return None


def machine() -> str:
    """A name for this kind of CPU: a home may be shared by machines, and a program holds what its CPU can do."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    features = [line for line in text.splitlines() if line.startswith(("flags", "Features", "model name"))]
    known = "\n".join(sorted(set(features))) or platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"


def prune(folder: Path, most: int) -> None:
    """Delete the files that were least recently read or written, until the rest are at most so many bytes.

    Another process may do so at the same time.
    """
    found = []
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((max(status.st_atime, status.st_mtime), path, status.st_size))
    over = sum(size for _, _, size in found) - most
    for _, path, size in sorted(found):
        if over <= 0:
            break
        path.unlink(missing_ok=True)
        over -= size
