"""Rows to pairs: which columns hold the prompt, the answer and the label, by layout, and how each is read.

To add a layout, add a row to `COLUMNS`, and its name to `config.column_names`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from fedjax_rai.config.column_names import HOLDS, checked_columns, label_text, label_values, opposites, shown_label
from fedjax_rai.config.names import attribute, is_attribute
from fedjax_rai.data.turns import (
    SYSTEM,
    TRANSCRIPT,
    NoPair,
    conversation,
    is_absent,
    is_transcript_of,
    listed,
    show,
    text_of,
    transcript,
    turns_of,
    whole_transcript,
    written,
)
from fedjax_rai.errors import InputError
from fedjax_rai.text.prompts import ASSISTANT, USER, Turn

Language = Literal["en", "ko"]
ETC = "etc"  # the category of what has none


def shown_category(category: str) -> str:
    """A category as a person reads it; SQuARe has one that is called as what is not there."""
    return "none or etc" if category == ETC else category


class Pair(NamedTuple):
    """A question and one answer to it."""

    query: str
    response: str
    harmful: bool | None
    """Whether the answer is harmful, as SQuARe's "not acceptable"; None: nobody said."""
    category: str = ETC
    before: tuple[Turn, ...] = ()
    """The turns before the question, the oldest first."""
    columns: Mapping[str, str] | None = None
    """What else stands in its row, as text, by column: what partitions may go by."""

    @property
    def turns(self) -> list[Turn]:
        """The whole conversation."""
        return [*self.before, Turn(USER, self.query), Turn(ASSISTANT, self.response)]

    @property
    def exchanges(self) -> list[tuple[str, str]]:
        """Every (prompt, answer) of the conversation, the pair's own last."""
        turns = self.turns
        return [
            (asked.text, given.text)
            for asked, given in zip(turns, turns[1:], strict=False)
            if asked.role == USER and given.role == ASSISTANT
        ]


class Answer(NamedTuple):
    """The columns of one answer, and of what it answers. An answer is a text, a list of turns, or a transcript."""

    response: str
    prompt: str | None = None
    """None: the answer's column holds the whole conversation."""
    input: str | None = None
    """Put behind the prompt, where the row has it."""
    system: str | None = None
    """A system prompt, where the row has it."""
    label: str | None = None
    harmful: frozenset[str] = frozenset()
    """Values of the label, as `label_text` has them."""
    acceptable: frozenset[str] = frozenset()
    allowed: str = ""
    """What the label may be, in words."""
    kind: bool | None = None
    """Whether answers of this column are harmful, where no label says it; None: nobody says."""
    category: tuple[str, ...] = ("category",)
    """Columns of a category: the first that is not empty counts."""
    optional_prompt: bool = False
    """The answer's column holds the whole conversation where the row has no prompt."""
    plain: bool = False
    """Its columns hold texts, and no turns."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that must be there."""
        prompt = None if self.optional_prompt else self.prompt
        return tuple(name for name in (prompt, self.response, self.label) if name is not None)


class Layout(NamedTuple):
    """How the columns of a data set are called: an `Answer` for each pair that a row gives."""

    answers: tuple[Answer, ...]
    korean: tuple[Answer, ...] = ()
    """In place of them with `data.language=ko`, where the texts stand in both languages."""
    is_complete: bool = False
    """No text of this set is empty, so that an empty one is a mistake."""
    fits: Callable[[Mapping[str, Any]], bool] = lambda row: True
    """Whether a row that has the columns is in this layout indeed."""
    note: str = ""
    """What a user of its labels should know."""

    def of(self, language: Language) -> tuple[Answer, ...]:
        return self.korean if self.korean and language == "ko" else self.answers

    def needs(self, language: Language) -> list[str]:
        """The columns that must be there."""
        return list(dict.fromkeys(name for answer in self.of(language) for name in answer.needs))


_HARMFUL_BY_0 = {"harmful": frozenset("0"), "acceptable": frozenset("1"), "allowed": "1 or 0, or true or false"}
_PLAIN = {**_HARMFUL_BY_0, "plain": True}


def _square(suffix: str) -> tuple[Answer, ...]:
    category = ("question_category", "category")
    return (Answer(f"response{suffix}", f"question{suffix}", label="acceptable?", category=category, **_PLAIN),)


def _pku(number: int) -> Answer:
    category = (f"response_{number}_harm_category", "category")
    label = f"is_response_{number}_safe"
    return Answer(f"response_{number}", "prompt", label=label, category=category, **_PLAIN)


def _is_transcript(row: Mapping[str, Any]) -> bool:
    """Whether the answers are conversations, or stand beside a prompt."""
    chosen = listed(row["chosen"])
    return bool(row.get("prompt")) or not isinstance(chosen, str) or TRANSCRIPT.search(chosen) is not None


COLUMNS: dict[str, Layout] = {
    "square": Layout(_square("_en"), _square(""), is_complete=True),
    "alpaca": Layout((Answer("output", "instruction", input="input", system="system", plain=True),)),
    "messages": Layout((Answer("messages"),)),
    "prompt_completion": Layout((Answer("completion", "prompt", system="system"),)),
    "safe_pairs": Layout((Answer("response", "prompt", label="is_safe", **_PLAIN),)),
    "pku_pairs": Layout((_pku(0), _pku(1))),
    "hh": Layout(
        (
            Answer("chosen", "prompt", kind=False, optional_prompt=True),
            Answer("rejected", "prompt", kind=True, optional_prompt=True),
        ),
        fits=_is_transcript,
        note="chosen counts as acceptable and rejected as harmful, though a preference says only which is better",
    ),
}


class RowPairs(NamedTuple):
    """What a row gives."""

    pairs: list[Pair]
    refusals: list[str]
    """Why answers of it make no pair."""


class Reader(NamedTuple):
    """What makes pairs of a row: (row, place) -> what it gives; raises InputError with the place."""

    name: str
    """Of the layout, as it is said."""
    pairs: Callable[[Any, str], RowPairs]
    recognised: bool = False


def language_key(key: str) -> str:
    """What names the language, where `key` names the columns: an option of a command, or a key of the config."""
    return "--language" if key.startswith("--") else "data.language"


def reader(columns: Any, language: Language, row: Any, place: str, key: str = "data.columns") -> Reader:
    """What reads rows like this first one: as `columns` says, or if that is None, as the only layout that fits.

    Raises InputError, which names the columns that are there and what nearly fits.
    """
    if columns is None:
        name = _recognised(_object(row, place), place, language, key)
        return Reader(name, _by_layout(COLUMNS[name], language), recognised=True)
    try:
        columns = checked_columns(columns)
    except ValueError as error:
        raise InputError(f"{key} = {columns!r}: {error}") from None
    if isinstance(columns, str) and is_attribute(columns) and columns not in COLUMNS:
        return Reader(columns, _by_function(attribute(columns, key), f"{key} = {columns}"))
    if isinstance(columns, str):
        _check_columns(COLUMNS[columns], columns, language, _object(row, place), place, key)
        return Reader(columns, _by_layout(COLUMNS[columns], language))
    layout = Layout((_own(columns),))
    _check_columns(layout, key, language, _object(row, place), place, key)
    return Reader(", ".join(f"{holds}: {name}" for holds, name in columns.items()), _by_layout(layout, language))


def _own(names: Mapping[str, Any]) -> Answer:
    """The columns that a user names."""
    named = {key: names[key] for key in ("prompt", "input", "system", "label") if key in names}
    category = (names["category"],) if "category" in names else ("category",)
    answer = Answer(names.get("messages") or names["response"], category=category, **named)
    if "label" not in names:
        return answer
    harmful = label_values(names["harmful"]) if "harmful" in names else set()
    acceptable = label_values(names["acceptable"]) if "acceptable" in names else opposites(harmful) - harmful
    harmful = harmful or opposites(acceptable) - acceptable
    listed = [
        f"{kind}: {', '.join(map(shown_label, sorted(values))) or 'none named'}"
        for kind, values in (("harmful", harmful), ("acceptable", acceptable))
    ]
    return answer._replace(
        harmful=frozenset(harmful),
        acceptable=frozenset(acceptable),
        allowed=f"a value that is named ({'; '.join(listed)})",
    )


# --- which layout -----------------------------------------------------------------------------------------------


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{place}: {show(row)} is no object; must have a field for each column")
    return row


def _recognised(row: dict[str, Any], place: str, language: Language, key: str) -> str:
    """The only layout whose columns are all there."""
    fitting = []
    for name, layout in COLUMNS.items():
        if set(layout.needs(language)) <= row.keys() and layout.fits(row):
            fitting.append(name)
    if len(fitting) == 1:
        return fitting[0]
    there = f"{place}: the columns {', '.join(map(str, row)) or '(none)'}"
    if fitting:
        raise InputError(f"{there} fit {' and '.join(fitting)}; {key} must say which, as {key}={fitting[0]}")
    raise InputError(
        f"{there} fit no layout{_nearly(row, language, key)}; {key} must say what they hold{_proposal(row, key)}"
    )


def _check_columns(layout: Layout, name: str, language: Language, row: dict[str, Any], place: str, key: str) -> None:
    """Raises InputError where none of the columns that a layout needs is there: the layout is a wrong one."""
    needs = layout.needs(language)
    missing = [column for column in needs if column not in row]
    if missing and (len(missing) == len(needs) or name == key):
        wanted = f"{name} needs" if name != key else f"{key} names"
        raise InputError(
            f"{place}: no column {', '.join(map(repr, missing))}, which {wanted}, among {', '.join(map(str, row))}"
            f"{_nearly(row, language, key, name)}{_proposal(row, key)}"
        )


def _nearly(row: Mapping[str, Any], language: Language, key: str, but: str = "") -> str:
    """`; alpaca nearly does, but for 'output'`, of the layout that the fewest columns are missing from."""
    other: Language = "ko" if language == "en" else "en"
    nearest: tuple[float, str] | None = None
    for name, layout in COLUMNS.items():
        needs = layout.needs(language)
        missing = [column for column in needs if column not in row]
        if name == but or len(missing) == len(needs):
            continue
        if not missing:
            near = f"; {name} fits"
        elif set(layout.needs(other)) <= row.keys():
            near = f"; {name} does with {language_key(key)}={other}"
        else:
            near = f"; {name} nearly does, but for {', '.join(map(repr, missing))}"
        if nearest is None or len(missing) / len(needs) < nearest[0]:
            nearest = len(missing) / len(needs), near
    return nearest[1] if nearest else ""


_PROMPTS = ("prompt", "instruction", "question", "query", "input", "user", "q")
_RESPONSES = ("response", "output", "answer", "completion", "chosen", "assistant", "a")
_CONVERSATIONS = ("messages", "conversation", "conversations", "dialog", "dialogue")


def _proposal(row: Mapping[str, Any], key: str) -> str:
    """How the key may be written for what is there, and what it takes."""
    prompt = next((name for name in _PROMPTS if name in row), None)
    response = next((name for name in _RESPONSES if name in row and name != prompt), None)
    conversation = next((name for name in _CONVERSATIONS if isinstance(row.get(name), list)), None)
    like = "{prompt: A, response: B}"
    if conversation:
        like = f"{{messages: {conversation}}}"
    elif prompt and response:
        like = f"{{prompt: {prompt}, response: {response}}}"
    return f", as {key}='{like}' (with {', '.join(HOLDS)}), or one of {', '.join(COLUMNS)}"


# --- a row ------------------------------------------------------------------------------------------------------


def _by_function(function: Callable[[Any], Any], stated: str) -> Callable[[Any, str], RowPairs]:
    """Rows read by a function of the user's own: a row to a pair, a list of pairs, or None for no pair."""

    def pairs(row: Any, place: str) -> RowPairs:
        try:
            found = function(row)
        except Exception as error:  # whatever it meets in the row
            raise InputError(f"{place}: {stated} failed: {type(error).__name__}: {error}") from error
        found = [found] if isinstance(found, Pair) else found
        if not found:
            return RowPairs([], [f"{stated} made no pair"])
        if not isinstance(found, list) or not all(isinstance(pair, Pair) for pair in found):
            raise InputError(f"{place}: {stated} gave {show(found)}; must be a Pair, a list of them, or None")
        return RowPairs(found, [])

    return pairs


def _by_layout(layout: Layout, language: Language) -> Callable[[Any, str], RowPairs]:
    answers = layout.of(language)
    texts = {name for answer in answers for name in (answer.prompt, answer.response, answer.input, answer.system)}

    def pairs(row: Any, place: str) -> RowPairs:
        row = _object(row, place)
        others = _others(row, texts)
        found = RowPairs([], [])
        for answer in answers:
            try:
                found.pairs.append(_pair(answer, row, place, others))
            except NoPair as refusal:
                if layout.is_complete:
                    raise InputError(f"{place}: {refusal}; must be text, not empty") from None
                found.refusals.append(str(refusal))
        return found

    return pairs


def _pair(answer: Answer, row: dict[str, Any], place: str, others: Mapping[str, str]) -> Pair:
    *before, asked, given = conversation(_row_turns(answer, row, place), place, answer.response)
    harmful = answer.kind if answer.label is None else _label(answer, row, place)
    return Pair(asked.text, given.text, harmful, _category(answer, row, place), tuple(before), others)


def _row_turns(answer: Answer, row: dict[str, Any], place: str) -> list[Turn]:
    """All turns of a row: the system prompt, the prompt, and the answer, which may repeat the prompt."""
    if answer.prompt is None or (answer.optional_prompt and is_absent(row.get(answer.prompt))):
        return turns_of(row, answer.response, place, None)
    if answer.optional_prompt and is_transcript_of(row, answer.prompt):
        return _after_transcript(row[answer.prompt], turns_of(row, answer.response, place, ASSISTANT), answer.response)
    asked = turns_of(row, answer.prompt, place, USER, answer.plain)
    given = turns_of(row, answer.response, place, ASSISTANT, answer.plain)
    if given[0].role != ASSISTANT:
        return given
    system = text_of(row.get(answer.system), place, answer.system) if answer.system else ""
    behind = text_of(row.get(answer.input), place, answer.input) if answer.input else ""
    if behind:
        asked[-1] = Turn(USER, f"{asked[-1].text}\n\n{behind}")
    return [*([Turn(SYSTEM, system)] if system else []), *asked, *given]


def _after_transcript(prompt: str, given: list[Turn], field: str) -> list[Turn]:
    """All turns where the prompt is a transcript: a list of turns or a transcript as the answer may repeat it."""
    first, *others = given
    if first.role != ASSISTANT:
        return given
    return [*transcript(whole_transcript(prompt, first.text), field), *others]


def _label(answer: Answer, row: dict[str, Any], place: str) -> bool:
    field = str(answer.label)
    if field not in row:
        raise InputError(f"{place}: no field {field!r}; must be {answer.allowed}")
    label = label_text(row[field])
    if label in answer.harmful:
        return True
    if label not in answer.acceptable:
        raise InputError(f"{place}: field {field!r} is {show(row[field])}; must be {answer.allowed}")
    return False


def _category(answer: Answer, row: dict[str, Any], place: str) -> str:
    """The first that is there: a text, the first of a list, or the first that a mapping calls true; else "etc"."""
    for field in answer.category:
        value = row.get(field)
        if isinstance(value, str):
            value = written(value)
        if isinstance(value, dict) and all(isinstance(flag, bool | None) for flag in value.values()):
            value = [name for name, flag in value.items() if flag]
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            value = next(iter(value), None)
        if is_absent(value) or (isinstance(value, str) and value.strip().casefold() in ("", "nan")):
            continue
        if not isinstance(value, str):
            raise InputError(f"{place}: field {field!r} is {show(row[field])}; must be text, a list of text, or null")
        return value.strip()
    return ETC


def _others(row: Mapping[str, Any], but: set[str | None]) -> dict[str, str]:
    """The plain values of a row as text, by column; null, NaN, empty text and lists are left out."""
    return {str(name): text for name, text in _plain(row) if name not in but and text}


def _plain(row: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """As the same value reads in every form of file: 2.0 is 2, as tables write whole numbers where some are missing."""
    for name, value in row.items():
        if isinstance(value, bool) or value in ("True", "False"):
            yield name, str(value).lower()
        elif isinstance(value, str | int | float) and not is_absent(value) and isinstance(written(str(value)), str):
            text = str(value)
            yield name, text[:-2] if _WHOLE.fullmatch(text) else text


_WHOLE = re.compile(r"-?[0-9]+\.0")
