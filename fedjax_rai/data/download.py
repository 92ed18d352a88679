"""Files from the net whose contents are known beforehand: whole and right, or not there."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from fedjax_rai.errors import InputError

SECONDS = 60.0  # without a byte, before it is given up
BLOCK = 2**20
_CHECKSUM = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.IGNORECASE)


def is_url(source: str) -> bool:
    """Whether a source is to be fetched, rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def parse_checksum(text: str) -> str:
    """The 64 digits of `sha256:HEX`, in lower case; raises InputError for another form."""
    found = _CHECKSUM.fullmatch(text.strip())
    if found is None:
        raise InputError(f"--checksum {text}: must be sha256: and 64 hexadecimal digits, as sha256sum prints them")
    return found[1].lower()


def check_file(path: Path, sha256: str) -> None:
    """Raise InputError unless a file's contents have this hash."""
    found = file_sha256(path)
    if found != sha256:
        raise InputError(f"{path}: its contents are sha256:{found}; must be sha256:{sha256}, as --checksum says")


def fetch(url: str, sha256: str, folder: Path) -> Path:
    """The file at a URL, in `folder` under its own name; not fetched again where it is there and right.

    Raises InputError where it cannot be fetched, or has other contents; then nothing is left of it.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InputError(f"{url}: cannot be fetched: {error}") from None
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()  # without secrets
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise InputError(f"{shown}: cannot be fetched; must be a path, or a URL that begins with https:// or http://")
    target = folder / sha256[:16] / (Path(unquote(parts.path)).name[-50:] or "file")
    if target.is_file() and file_sha256(target) == sha256:
        return target
    with made(target.parent):
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            digest = hashlib.sha256()
            size = 0
            with part.open("wb") as file:
                for block in _blocks(url, shown):
                    digest.update(block)
                    size += file.write(block)
            found = digest.hexdigest()
            if found != sha256:
                raise InputError(
                    f"{shown}: {size:,} bytes with sha256:{found}; must be sha256:{sha256}, as --checksum says"
                )
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it; where what is done in it fails, those of them that are empty go again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # something is in it
                path.rmdir()
        raise


def _blocks(url: str, shown: str) -> Iterator[bytes]:
    """What is at a URL, bit by bit; raises InputError where it cannot be had."""
    try:
        request = Request(url, headers={"User-Agent": "fedjax-rai"})
        with urlopen(request, timeout=SECONDS) as answer:
            while block := answer.read(BLOCK):
                yield block
    except (HTTPException, OSError, ValueError) as error:  # no such host, refused, not found, too late, no valid URL
        if isinstance(error, HTTPError):
            error.close()
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{shown}: cannot be fetched: {reason}") from None


def file_sha256(path: Path) -> str:
    """The hash of a file's contents, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
