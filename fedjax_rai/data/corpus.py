"""The prepared corpus: which of SQuARe's rows make SQuARe20K, S-LG20K (arXiv 2502.16691) and the questions.

What is chosen depends on the rows' texts alone: not on their order, on a seed, or on the language, so that `en` and
`ko` hold the same pairs.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fedjax_rai.config.prepared import CORPORA
from fedjax_rai.data.columns import Language, show
from fedjax_rai.errors import InputError
from fedjax_rai.reading import checked_text
from fedjax_rai.text.compare import same
from fedjax_rai.text.prompts import ASSISTANT, SAFE, UNSAFE, USER

TRAIN = "train"
SPLITS = {TRAIN: "train", "validation": "valid", "test": "test", "test_ood": "test_ood"}  # by the official files' names
RED, ACCEPTABLE = 6_000, 14_000
TEXTS = {"en": ("question_en", "response_en"), "ko": ("question", "response")}
HALVES = {"square20k": 0, "slg20k": 1}  # clients and guard hold no question together

Row = dict[str, Any]
Placed = tuple[str, Any]
"""(place, row): where a row stands, and what stands there."""


class Corpus(NamedTuple):
    """One of the sets that are prepared."""

    name: str
    kind: Literal["square20k", "slg20k", "questions"]
    language: Language

    @property
    def files(self) -> dict[str, str]:
        """The official file of each split."""
        kind = "question" if self.kind == "questions" else "response"
        return {split: f"{kind}_{ending}.json" for split, ending in SPLITS.items()}


def corpus(name: str) -> Corpus:
    """A set by its name, one of `config.prepared.CORPORA`."""
    kind, _, language = name.rpartition("_")
    assert name in CORPORA
    return Corpus(name, kind, language)  # pyright: ignore[reportArgumentType]


class Split(NamedTuple):
    """The rows of a split, and what became of those that were read."""

    rows: list[Row]
    counts: dict[str, int]
    """read, duplicates, contradictory, held_out, red, acceptable."""


def prepare_splits(prepared: Corpus, files: Mapping[str, Iterable[Placed]], partial: bool = False) -> dict[str, Split]:
    """The splits of a corpus, made of the rows of its official files, by split.

    The same pair (or question) twice is taken once. A pair with both labels is left out. So is a row of `train` whose
    question another split asks. Of SQuARe20K and S-LG20K `train` is 6,000 red and 14,000 acceptable pairs, each of its
    half of the questions, and the other splits are all there is. `partial`: where there are fewer, as many as there
    are at 3 to 7. Raises InputError for a row that is not as it should be, with its place, and for too few of them.
    """
    check = _checked_question if prepared.kind == "questions" else _checked_pair
    unique = {split: _unique(rows, check, prepared.language) for split, rows in files.items()}
    for split, found in unique.items():
        if not found.rows:
            raise InputError(f"{prepared.files[split]}: no rows; must hold one at least")
    held_out = {_question(row) for split, made in unique.items() if split != TRAIN for row in made.rows}
    made = {}
    for split, (rows, counts) in unique.items():
        if split == TRAIN:
            left = [row for row in rows if _question(row) not in held_out]
            counts["held_out"] = len(rows) - len(left)
            rows = left
        if split == TRAIN and prepared.kind != "questions":
            rows = _recipe(rows, prepared, partial)
        labels = Counter(row.get("acceptable?") for row in rows)
        if prepared.kind != "questions":
            counts |= {"red": labels[0], "acceptable": labels[1]}
        made[split] = Split([_written(row, prepared) for row in rows], counts)
    return made


def _unique(rows: Iterable[Placed], check: Callable[[Any, str, Language], Row], language: Language) -> Split:
    """The checked rows of a file in its order, each text once; none that is there with both labels."""
    first: dict[tuple[str, str], Row] = {}
    labels: dict[tuple[str, str], Counter] = {}
    read = 0
    for place, given in rows:
        row = check(given, place, language)
        key = row["key"] = _key(row)
        first.setdefault(key, row)
        labels.setdefault(key, Counter())[row["label"]] += 1
        read += 1
    contradictory = {key for key, found in labels.items() if len(found) > 1}
    kept = [row for key, row in first.items() if key not in contradictory]
    lost = sum(labels[key].total() for key in contradictory)
    counts = {"read": read, "duplicates": read - lost - len(kept), "contradictory": lost}
    return Split(kept, counts)


def _recipe(rows: Sequence[Row], prepared: Corpus, partial: bool) -> list[Row]:
    """Red and acceptable pairs at 3 to 7 of this corpus' half of the questions, those with the least digests."""
    here = [row for row in rows if _digest(_question(row))[0] % 2 == HALVES[prepared.kind]]
    ranked = sorted(here, key=lambda row: _digest("\n".join(row["key"])))
    sides = {label: [row for row in ranked if row["acceptable?"] == label] for label in (0, 1)}
    red, acceptable = len(sides[0]), len(sides[1])
    share = min(red // 3, acceptable // 7, RED // 3)  # how many times 3 and 7
    if share < RED // 3 and not (partial and share):
        total = Counter(row["acceptable?"] for row in rows)
        least = f", or say --partial for {3 * share:,} + {7 * share:,}" if share else ""
        raise InputError(
            f"{prepared.name}: {RED:,} red + {ACCEPTABLE:,} acceptable pairs are wanted, and {red:,} + {acceptable:,} "
            f"are there: those of its half of the questions (the other half is for the other set), of {total[0]:,} + "
            f"{total[1]:,} in all; must be SQuARe's response_train.json{least}"
        )
    chosen = {id(row) for row in (*sides[0][: 3 * share], *sides[1][: 7 * share])}
    return [row for row in ranked if id(row) in chosen]


def _digest(text: str) -> bytes:
    return hashlib.sha256(f"square:{text}".encode()).digest()


def _key(row: Row) -> tuple[str, str]:
    """(question, response) by which rows are told apart: the originals, else translations, as they are to a reader."""
    question = row.get("question") or row["question_en"]
    response = row.get("response") or row.get("response_en") or ""
    return same(question), same(response)


def _question(row: Row) -> str:
    return row["key"][0]


def _written(row: Row, prepared: Corpus) -> Row:
    """A row as it is stored: SQuARe's columns in one language, or a conversation and its verdict for a guard."""
    question, response = TEXTS[prepared.language]
    if prepared.kind == "questions":
        return {question: row[question], "sensitive?": row["label"], "category": row["category"]}
    categories = {"category": row["category"], "question_category": row["question_category"]}
    if prepared.kind == "square20k":
        return {question: row[question], response: row[response], "acceptable?": row["label"], **categories}
    turns = [{"role": USER, "content": row[question]}, {"role": ASSISTANT, "content": row[response]}]
    return {"messages": turns, "verdict": SAFE if row["label"] else UNSAFE, **categories}


def _checked_pair(row: Any, place: str, language: Language) -> Row:
    row = _checked_texts(row, place, TEXTS[language])
    row["label"] = row["acceptable?"] = _label(row, place, "acceptable?")
    given = row.get("category") or []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{place}: field 'category' is {show(given)}; must be a list of text")
    row["category"] = given
    row["question_category"] = _optional_text(row, place, "question_category")
    return row


def _checked_question(row: Any, place: str, language: Language) -> Row:
    row = _checked_texts(row, place, TEXTS[language][:1])
    row["label"] = _label(row, place, "sensitive?")
    row["category"] = _optional_text(row, place, "category")
    row.pop("response", None)
    row.pop("response_en", None)
    return row


def _checked_texts(row: Any, place: str, needed: Sequence[str]) -> Row:
    """A copy of a row whose texts are text, stripped: those that are needed, and those of the other language."""
    if not isinstance(row, dict):
        raise InputError(f"{place}: {show(row)} is no object; must have the fields of SQuARe")
    checked = dict(row)
    for field in needed:
        if field not in row:
            raise InputError(f"{place}: no field {field!r}, only {', '.join(row)}; must be text, not empty")
    for field in {name for names in TEXTS.values() for name in names} & row.keys():
        value = row[field]
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{place}: field {field!r} is {show(value)}; must be text, not empty")
        checked[field] = checked_text(value.strip(), place, field)
    return checked


def _label(row: Row, place: str, field: str) -> int:
    value = row.get(field)
    if value not in (0, 1) or isinstance(value, float):
        raise InputError(f"{place}: field {field!r} is {show(value)}; must be 1 or 0")
    return int(value)


def _optional_text(row: Row, place: str, field: str) -> str:
    """A text, or an empty one for null."""
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: field {field!r} is {show(value)}; must be text or null")
    return checked_text(value or "", place, field)
