"""`fedjax-rai data prepare`: builds the prepared corpus from SQuARe's official files."""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

from fedjax_rai import terminal
from fedjax_rai.config.prepared import DATASET, PREFIX, check_corpus, default_data_dir, folder
from fedjax_rai.data import records
from fedjax_rai.data.corpus import corpus
from fedjax_rai.data.download import check_file, fetch, is_url, made, parse_checksum
from fedjax_rai.errors import InputError, did_you_mean_file

HELD_BACK = ("duplicates", "contradictory", "held_out")


class Preparation(NamedTuple):
    """What a user asks to be prepared."""

    name: str
    """One of the corpora, with or without `tfds:` and `square/` before it."""
    source: str
    """A file, a folder of files by their official names, or the URL of a file."""
    data_dir: Path | None = None
    """Where TFDS keeps what it prepared; None: where it does so by default."""
    checksum: str | None = None
    partial: bool = False
    overwrite: bool = False


def prepare(asked: Preparation) -> str:
    """Build a corpus, unless it is there already and was made of the same; the source that names it, `tfds:...`.

    It is built beside its place and moved there whole. Raises InputError, and leaves nothing behind, for a source that
    is not as it should be, and where the same name is taken by other contents.
    """
    name = asked.name.removeprefix(PREFIX).removeprefix(f"{DATASET}/")
    check_corpus(name, asked.name)
    tfds = records.load_tfds()
    data_dir = asked.data_dir or default_data_dir()
    source = _local(asked, data_dir)
    from fedjax_rai.data.square import Square, provenance, source_files

    files = source_files(corpus(name), source)
    version = str(Square.VERSION)
    place = data_dir / DATASET / name / version
    if place.exists():
        hashes = {split: provenance(path)["sha256"] for split, path in files.items()}
        if not asked.overwrite:
            _check_same(place, hashes, asked)
            terminal.say(f"already prepared of the same: {place}")
            return named(name, asked.data_dir)
    with made(data_dir), tempfile.TemporaryDirectory(prefix=f".{name}-", dir=data_dir) as building:
        built = Path(building) / DATASET / name / version
        tfds.disable_progress_bar()
        terminal.say(f"preparing {name} of {', '.join(path.name for path in files.values())}")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells there what it does
            builder = Square(config=name, data_dir=building, source=source, partial=asked.partial)
            builder.download_and_prepare()
        records.write_checksums(built)
        _put(built, place, Path(building) / "before")
    return named(name, asked.data_dir)


def _put(built: Path, place: Path, before: Path) -> None:
    """Move a folder to its place; what is there goes to `before`, and comes back where that fails."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(before)
    try:
        built.rename(place)
    except BaseException:
        if before.exists():
            before.rename(place)
        raise


def named(name: str, data_dir: Path | None) -> str:
    """How a corpus is called where data are asked for."""
    above = "" if data_dir is None or data_dir == default_data_dir() else f"{data_dir}/"
    return f"{PREFIX}{above}{DATASET}/{name}"


def report(source: str) -> str:
    """What a prepared corpus holds, a line a split, and of what it was made."""
    found = records.metadata(source)
    lines = [f"{source} in {folder(source)}"]
    for split, counts in found.get("splits", {}).items():
        rows = len(records.Records(source, split))
        labels = f": {counts['red']:,} red, {counts['acceptable']:,} acceptable" if "red" in counts else ""
        lost = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in HELD_BACK if counts.get(name))
        of = f"{counts['read']:,} of {counts['file']} (sha256 {counts['sha256'][:12]}...)"
        lines.append(f"  {split}  {terminal.plural(rows, 'row')}{labels}; of {of}{f'; {lost}' if lost else ''}")
    if found.get("partial"):
        lines.append("  partial: as many pairs as there were at 3 to 7")
    return "\n".join(lines)


def _local(asked: Preparation, data_dir: Path) -> Path:
    """The source as a file or folder here; fetched, or checked where there is a checksum."""
    sha256 = None if asked.checksum is None else parse_checksum(asked.checksum)
    if is_url(asked.source):
        if sha256 is None:
            raise InputError(
                f"{asked.source}: a URL needs --checksum sha256:HEX, the hash of the file that it must give"
            )
        return fetch(asked.source, sha256, data_dir / "downloads" / DATASET)
    source = Path(asked.source)
    if not source.exists():
        near = did_you_mean_file(source)
        raise InputError(f"{source}: no such file or folder; must be SQuARe's, or a URL with --checksum{near}")
    if sha256 is not None:
        if source.is_dir():
            raise InputError(f"--checksum {asked.checksum}: {source} is a folder; must be of a file")
        check_file(source, sha256)
    return source


def _check_same(place: Path, hashes: dict[str, str], asked: Preparation) -> None:
    """Raise InputError unless what is there was made of files with these hashes, and by the same options."""
    found = records.read_metadata(place)
    before = {split: counts["sha256"] for split, counts in found.get("splits", {}).items()}
    if (before, found.get("partial")) != (hashes, asked.partial):
        raise InputError(f"{place}: already prepared of other files or options; --overwrite puts this in its place")
