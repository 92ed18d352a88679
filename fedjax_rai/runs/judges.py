"""What judges behind endpoints replied, in the folder of a study: asked once, found again.

    judges/<name>.jsonl          a row for each reply: the digest of what was asked, and the reply

The digest is that of address, model, conversation and settings (`experiment.endpoint`), so what is found is what the
same request was answered. A file may be deleted: then all of it is asked again.
"""

import json
from pathlib import Path

from fedjax_rai import terminal

JUDGES = "judges"


class KeptReplies:
    """The replies of one endpoint, kept as they come; another process's are found when a run begins."""

    def __init__(self, path: Path):
        self._path = path
        text = _text(path)
        self._known = _replies(text)
        self._cut_off = bool(text) and not text.endswith("\n")  # by a kill, in the middle of a row
        self._refused = False

    def get(self, digest: str) -> str | None:
        """A reply that was kept."""
        return self._known.get(digest)

    def keep(self, digest: str, reply: str) -> None:
        """Keep a reply. Where the file system refuses, that is said once, and the run goes on."""
        self._known[digest] = reply
        if self._refused:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                begin = "\n" if self._cut_off else ""
                file.write(begin + json.dumps({"digest": digest, "reply": reply}) + "\n")
            self._cut_off = False
        except OSError as error:
            self._refused = True
            terminal.say(f"{self._path}: could not be written ({error.strerror or error}); replies will be asked again")


def _text(path: Path) -> str:
    """What the file holds; nothing where it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _replies(text: str) -> dict[str, str]:
    """The replies by digest; a row that is none, as a kill may leave one, is left out."""
    found = {}
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("digest"), str) and isinstance(row.get("reply"), str):
            found[row["digest"]] = row["reply"]
    return found
