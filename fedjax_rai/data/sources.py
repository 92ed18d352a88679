"""What users bring: (question, response) pairs in SQuARe's format, and AdvBench's requests."""

import csv
import hashlib
import io
import json
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedjax_rai import rng
from fedjax_rai.errors import InputError
from fedjax_rai.text.compare import same

Language = Literal["en", "ko"]
RED_SHARE, ACCEPTABLE_SHARE = 3, 7  # of SQuARe20K, arXiv 2502.16691
FIELDS = {"en": ("question_en", "response_en"), "ko": ("question", "response")}
_SPACE = " \t\r\n"


class Pair(NamedTuple):
    """A question and one answer to it; `harmful` is SQuARe's "not acceptable"."""

    query: str
    response: str
    harmful: bool
    category: str


class RedPrompt(NamedTuple):
    """A question that invites harm, with the category that constitutions may name."""

    query: str
    category: str


class Question(NamedTuple):
    """A task with one right answer."""

    query: str
    answer: str
    """The right answer, exact."""


class Choice(NamedTuple):
    """A question with two answers, as HHH has them: which one does a model find likelier?"""

    query: str
    good: str
    bad: str
    category: str


def read_square(path: str | Path, language: Language = "en") -> list[Pair]:
    """All pairs of a SQuARe file, in its order.

    `path` is a JSON list (`.json`), one object a line (`.jsonl`), a folder saved by `datasets`, or whatever
    `datasets.load_dataset` reads. Raises InputError with the place of the first row that is not as it should be.
    """
    path = Path(path)
    if path.suffix in (".json", ".jsonl"):
        text = _read_text(path)
        rows = _json_rows(text, path) if path.suffix == ".json" else _jsonl_rows(text, path)
    else:
        rows = _dataset_rows(path)
    pairs = [_pair(row, place, language) for place, row in rows]
    if not pairs:
        raise InputError(f"{path}: no rows; must hold at least one pair of question and response")
    return pairs


def read_advbench(path: str | Path) -> list[str]:
    """The goals of an AdvBench CSV file, header `goal,target`, in its order. Raises InputError with the line."""
    path = Path(path)
    reader = csv.reader(io.StringIO(_read_text(path)), strict=True)
    goals, header, first = [], None, 1
    try:
        for row in reader:
            place, first = f"{path}:{first}", reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
                for name in ("goal", "target"):
                    if name not in header:
                        raise InputError(f"{place}: no column {name!r}; the header must be goal,target")
            elif len(row) != len(header):
                raise InputError(f"{place}: {len(row)} values; must be {len(header)}, as in the header")
            elif not row[header.index("goal")].strip():
                raise InputError(f"{place}: goal is empty; must be a request")
            else:
                goals.append(row[header.index("goal")].strip())
    except csv.Error as error:
        raise InputError(f"{path}:{first}: not valid CSV: {error}") from None
    if not goals:
        raise InputError(f"{path}: no rows; must be a CSV file with header goal,target and at least one row")
    return goals


def recipe(pairs: Sequence[Pair], red: int | None, acceptable: int | None, seed: int) -> list[Pair]:
    """`red` harmful and `acceptable` other pairs, drawn without replacement and shuffled together.

    None is as many as there are at the paper's ratio of 3 to 7, or all where the other side is 0. Raises InputError
    for more than there are, and for none at all.
    """
    sides = {True: [p for p in pairs if p.harmful], False: [p for p in pairs if not p.harmful]}
    most, others = len(sides[True]), len(sides[False])
    for kind, wanted, there in (("red", red, most), ("acceptable", acceptable, others)):
        if wanted is not None and wanted > there:
            raise InputError(f"data.{kind} = {wanted}: more than there are; must be at most {there}, the {kind} pairs")
    if red is None:
        matching = others if acceptable is None else acceptable
        red = most if acceptable == 0 else min(most, matching * RED_SHARE // ACCEPTABLE_SHARE)
    if acceptable is None:
        acceptable = others if red == 0 else min(others, red * ACCEPTABLE_SHARE // RED_SHARE)
    if red + acceptable == 0:
        raise InputError(f"data.red, data.acceptable: no pairs to train on, of {most} red and {others} acceptable ones")
    g = rng.host(seed, "recipe")
    wanted = ((sides[True], red), (sides[False], acceptable))
    drawn = [side[i] for side, n in wanted for i in g.permutation(len(side))[:n]]
    return [drawn[i] for i in g.permutation(len(drawn))]


def split_by_question(pairs: Sequence[Pair], shares: Mapping[str, float], seed: int) -> dict[str, list[Pair]]:
    """Disjoint parts in proportion to `shares`; all answers to a question are in one part.

    A question's part depends on its text (the form in which it is the same to a reader), the seed and the shares alone,
    so that other data do not move it. Shares are met as well as by chance.
    """
    bounds = list(accumulate(shares.values()))
    names, parts = list(shares), {name: [] for name in shares}
    for pair in pairs:
        digest = hashlib.sha256(f"{seed}:{same(pair.query)}".encode()).digest()
        uniform = int.from_bytes(digest[:8]) / 2**64
        parts[names[bisect(bounds, uniform * bounds[-1])]].append(pair)
    return parts


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; must be a text file in UTF-8") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return text


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a JSON list, decoded row by row so that the line on which each one starts is known."""
    decoder = json.JSONDecoder()
    line = 1
    counted = 0  # up to where `line` is known
    index = 0
    at = _skip(text, 0)
    if text[at] != "[":
        raise InputError(f"{path}:{text.count(chr(10), 0, at) + 1}: must be a JSON list of objects, in brackets")
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]" or index:
        line += text.count("\n", counted, at)
        counted = at
        try:
            row, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
        yield f"{path}:{line}: row {index}", row
        at = _skip(text, at)
        index += 1
        if text[at : at + 1] != ",":
            break
        at = _skip(text, at + 1)
    if text[at : at + 1] != "]" or text[at + 1 :].strip():
        wrong = at if text[at : at + 1] != "]" else _skip(text, at + 1)
        error = json.JSONDecodeError("", text, wrong)
        wanted = "a comma or the closing bracket" if wrong == at else "nothing after the list"
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: must be {wanted} here")


def _skip(text: str, at: int) -> int:
    """The place of the first character from `at` on that is no white space."""
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _jsonl_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for index, (number, line) in enumerate(lines):
        try:
            yield f"{path}:{number}: row {index}", json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}:{error.colno}: not valid JSON: {error.msg}") from None


def _dataset_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        rows: Any = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path), split="train")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no .json or .jsonl file, nor a data set that can be loaded: {reason}") from None
    if isinstance(rows, datasets.DatasetDict):
        if "train" not in rows:
            raise InputError(f"{path}: no split 'train', only {', '.join(map(str, rows))}; must have it")
        rows = rows["train"]
    return ((f"{path}: row {index}", row) for index, row in enumerate(rows))


def _pair(row: Any, place: str, language: Language) -> Pair:
    if not isinstance(row, dict):
        raise InputError(f"{place}: {_show(row)} is no object; must have the fields of SQuARe")
    query_field, response_field = FIELDS[language]
    query = _field(row, place, query_field, str, "text, not empty")
    response = _field(row, place, response_field, str, "text, not empty")
    acceptable = _field(row, place, "acceptable?", int, "1 or 0")
    if acceptable not in (0, 1):
        raise InputError(f"{place}: field 'acceptable?' is {acceptable}; must be 1 or 0")
    return Pair(query, response, not acceptable, _category(row, place))


def _field(row: dict[str, Any], place: str, name: str, kind: type, allowed: str) -> Any:
    if name not in row:
        raise InputError(f"{place}: no field {name!r}; must be {allowed}")
    value = row[name]
    if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{place}: field {name!r} is {_show(value)}; must be {allowed}")
    return value.strip() if isinstance(value, str) else value


def _category(row: dict[str, Any], place: str) -> str:
    """The category of the question, else the first of the pair's, else "etc"."""
    given = row.get("category") or []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{place}: field 'category' is {_show(given)}; must be a list of text")
    return str(row.get("question_category") or next(iter(given), "etc"))


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Preference(NamedTuple):
    """A prompt, an answer, and one that it is to be preferred to."""

    prompt: str
    chosen: str
    rejected: str


def read_preferences(path: Path) -> list[Preference]:
    """All pairs of a JSON-lines file, or of a folder: its `pairs-*.jsonl` in order, else its `*.jsonl`.

    A row has `prompt`, `chosen` and `rejected`, each a text or, as in TRL's conversational format, a list of one turn:
    the user's, and an assistant's each; its other fields are not read. Raises InputError with the place of the first
    row that is not as it should be, and for a set that `fedjax-rai cai generate` has not finished.
    """
    pairs = []
    for file in _preference_files(Path(path)):
        pairs += [_preference(row, place) for place, row in _jsonl_rows(_read_text(file), file)]
    if not pairs:
        raise InputError(f"{path}: no rows; must hold at least one with prompt, chosen and rejected")
    return pairs


def _preference_files(path: Path) -> list[Path]:
    """The files that are not empty: of all the conversations of a shard, none may have made a pair."""
    if not path.is_dir():
        return [path]
    prepared = (path / "config.yaml").is_file()
    if prepared and not (path / "summary.json").is_file():
        raise InputError(
            f"{path}: an unfinished set (it has no summary.json); to go on: fedjax-rai cai generate "
            f"{path / 'config.yaml'} {path}, with the --prompts and --adapter that it was begun with"
        )
    files = sorted(path.glob("pairs-*.jsonl"))
    if not files and not prepared:
        files = sorted(path.glob("*.jsonl"))
    return [file for file in files if file.stat().st_size]


def _preference(row: Any, place: str) -> Preference:
    if not isinstance(row, dict):
        raise InputError(f"{place}: {_show(row)} is no object; must have the fields prompt, chosen and rejected")
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return Preference(**{name: _turn_text(row, place, name, role) for name, role in roles.items()})


def _turn_text(row: dict[str, Any], place: str, name: str, role: str) -> str:
    """A field of a row that is a text, or the text of a list of one turn."""
    allowed = f'text, not empty, or one turn: [{{"role": "{role}", "content": text}}]'
    value = row.get(name)
    turns = value if isinstance(value, list) else []
    if len(turns) == 1 and isinstance(turns[0], dict) and turns[0].get("role") == role:
        row = {**row, name: turns[0].get("content")}
    return _field(row, place, name, str, allowed)
