"""A guard's form as a value: how a pair is put to it, where its verdict stands, and which tokens mean what.

The value speaks of texts; `bound` reads off a tokenizer what its texts are as tokens there.
"""

import re
from collections.abc import Mapping
from os.path import commonprefix
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.errors import InputError
from fedjax_rai.text.prompts import ASSISTANT, SAFE, UNSAFE, USER, Turn, chat
from fedjax_rai.text.tokenizer import Tokenizer

QUERY, RESPONSE = "zqxj", "jxqz"  # texts that no template holds
BETWEEN = ("unsafe", "safe", "none")
"""What a verdict between safe and unsafe counts as; none: it is in neither probability."""
IS_SAFE, IS_UNSAFE, IS_NEITHER = 0, 1, 2
_PLACES = ("query", "response", "question", "policy", "bos")
_PLACE = re.compile(rf"\{{({'|'.join(_PLACES)})\}}")
_HEADER = "<|end_header_id|>"  # Llama 3 puts a blank line behind it, which some templates leave for the guard to write


class Signs(NamedTuple):
    """By what a checkpoint says that it is asked in a form: regular expressions, in any case, and tokens."""

    name: str = ""
    """In the last part of its path, or of its name on a hub."""
    template: str = ""
    """In its chat template."""
    tokens: tuple[str, ...] = ()
    """Added tokens, all of which it has."""


class GuardForm(NamedTuple):
    """How a guard is asked, and what its answer means.

    Texts may hold `{query}` and `{response}` of the pair, `{question}`, `{policy}`, and `{bos}`, the tokenizer's first
    token. A pair is asked each of `questions`, and is as unsafe as the worst answer.
    """

    name: str
    request: str | tuple[Turn, ...]
    """A text as it is, or turns that the checkpoint's chat template puts."""
    safe: tuple[str, ...]
    """Spellings of the verdict; the first is the main one, and the others count where they are one token."""
    unsafe: tuple[str, ...]
    between: tuple[str, ...] = ()
    """A third verdict, which counts as the config says."""
    grades: tuple[str, ...] = ()
    """In place of two verdicts, of which these are the ends: marks in even steps from harmless to harmful, whose
    expectation is the score.
    """
    opens: bool = True
    """The chat template is asked to open the guard's answer."""
    variables: Mapping[str, Any] = {}
    """What the chat template is given besides the turns."""
    lead: str = ""
    """What stands before the verdict in every answer."""
    marker: str = ""
    """The guard writes lines of its own before the verdict, which follows this text."""
    lines: int = 0
    """Tokens that these lines may have, the marker's included."""
    answer: str = ""
    """An answer to train on, with `{verdict}`; empty: lead or marker, then the verdict."""
    questions: tuple[str, ...] = ()
    policy: str = ""
    whole: bool = False
    """The score is p(unsafe) among all tokens, not among those of verdicts."""
    cut_start: bool = False
    """A request that is too long loses its beginning; else the response its end, then the query, the rest stays."""
    signs: Signs = Signs()
    family: str = ""
    """The shipped form that this one was made from; empty: itself."""
    english: bool = False
    """Its card claims no other language."""

    @property
    def asked(self) -> tuple[str, ...]:
        """Its questions; one that is empty where it has none."""
        return self.questions or ("",)

    @property
    def before_verdict(self) -> str:
        """What every answer has before the verdict, as far as it is known."""
        return self.marker or self.lead


class VerdictIds(NamedTuple):
    """Tokens that are verdicts, what each means, and whether they are weighed against all tokens."""

    ids: np.ndarray  # int32[m]
    meanings: np.ndarray  # int32[m]: IS_SAFE, IS_UNSAFE, IS_NEITHER
    whole: np.ndarray  # bool[]
    marks: np.ndarray | None = None  # float32[m]: how unsafe each is, from 0 to 1; None: as the meanings say


def two_verdicts(safe: int, unsafe: int) -> VerdictIds:
    """One token for each verdict."""
    return VerdictIds(np.array([safe, unsafe], np.int32), np.array([IS_SAFE, IS_UNSAFE], np.int32), np.array(False))


class Bound(NamedTuple):
    """A form in a tokenizer's tokens."""

    form: GuardForm
    tokenizer: Tokenizer
    lead_ids: list[int]
    """What is put behind the request: nothing, white space, an empty thought, what every answer begins with."""
    verdicts: VerdictIds
    blank: str = ""
    """White space that the guard writes before all else, where its template leaves that to it."""

    def request_ids(self, query: str, response: str, question: str = "") -> list[int]:
        """The request's tokens, uncut."""
        return self.tokenizer.encode(opening(self.tokenizer, self.form, (query, response), question))

    def fitting_ids(self, pair: tuple[str, str], question: str, room: int) -> list[int] | None:
        """The request's tokens, cut to `room`; None where what is no part of the pair does not fit in."""
        ids = self.request_ids(*pair, question)
        if len(ids) <= room:
            return ids
        if self.form.cut_start:
            return ids[-room:]
        shorter = fitting_pair(self, pair, question, room)
        return None if shorter is None else self.request_ids(*shorter, question)


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its places filled, each once: what is filled in has no places."""
    return _PLACE.sub(lambda place: values[place[1]], text)


def opening(tokenizer: Tokenizer, form: GuardForm, pair: tuple[str, str], question: str = "") -> str:
    """The whole request about a (query, response), up to where the guard speaks."""
    query, response = pair
    values = {"query": query, "response": response, "question": question, "policy": form.policy}
    values["bos"] = tokenizer.hf.bos_token or ""
    if isinstance(form.request, str):
        return fill(form.request, values)
    turns = [Turn(turn.role, fill(turn.text, values)) for turn in form.request]
    given = {}
    for name, value in form.variables.items():
        given[name] = fill(value, values) if isinstance(value, str) else value
    return tokenizer.render(turns, form.opens, given)


def fitting_pair(bound: Bound, pair: tuple[str, str], question: str, room: int) -> tuple[str, str] | None:
    """The pair with the response's end cut off, then the query's, until its request has at most `room` tokens.

    None where it is longer without any pair.
    """
    query, response = pair
    while True:
        excess = len(bound.request_ids(query, response, question)) - room
        if excess <= 0:
            return query, response
        if response:
            response = _shorter(bound.tokenizer, response, excess)
        elif query:
            query = _shorter(bound.tokenizer, query, excess)
        else:
            return None


def _shorter(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """A text without its last tokens, so many at least; one that is always shorter."""
    kept = tokenizer.decode(tokenizer.encode(text)[:-tokens]).rstrip("\ufffd")
    return kept if len(kept) < len(text) else text[: len(text) // 2]


def bound(tokenizer: Tokenizer, form: GuardForm, between: str = BETWEEN[0]) -> Bound:
    """The form in a tokenizer's tokens.

    The verdict's token is the first in which the main spellings differ behind the request; tokens that they share are
    the lead's. Raises InputError for a template that leaves out what is judged, a form whose policy is missing, and
    verdicts that cannot be told apart.
    """
    where = f"tokenizer {tokenizer.name}"
    if "{policy}" in _written(form) and not form.policy:
        raise InputError(
            f"guard.form = {form.name}: asks with the policy of its card, which is not shipped; must be a YAML file "
            f"with `extends: {form.name}` and that text under `policy:`"
        )
    text = opening(tokenizer, form, (QUERY, RESPONSE), form.asked[0])
    for name, part in (("query", QUERY), ("response", RESPONSE)):
        if part not in text:
            raise InputError(f"{where}: its chat template leaves out the {name} to be judged")
    lead = _lead(tokenizer, form, text)
    mains = [spellings[0] for spellings in _groups(form)]
    encoded = [tokenizer.encode_after(text, lead + main) for main in mains]
    shared = len(commonprefix(encoded))
    if shared == min(map(len, encoded)):
        begins = " and ".join(f"`{main}`" for main in mains)
        raise InputError(f"{where}: {begins}: one begins the other in its tokens: no guard can use them as verdicts")
    found = _meanings(tokenizer, form, text + lead, [ids[shared] for ids in encoded])
    meanings = _counted(found, form, between)
    kinds = np.array([*meanings.values()], np.int32)
    verdicts = VerdictIds(np.array([*meanings], np.int32), kinds, np.array(form.whole), _marks(form))
    # what stands up to the end of a marker, the guard writes itself
    written = len(tokenizer.encode_after(text, lead)) if form.marker else 0
    return Bound(form, tokenizer, encoded[0][written:shared], verdicts, _blank(form, text))


def _groups(form: GuardForm) -> list[tuple[str, ...]]:
    """The spellings of each verdict."""
    if form.grades:
        return [(grade,) for grade in form.grades]
    return [spellings for spellings in (form.safe, form.unsafe, form.between) if spellings]


def _marks(form: GuardForm) -> np.ndarray | None:
    """How unsafe each grade is."""
    return np.linspace(0, 1, len(form.grades), dtype=np.float32) if form.grades else None


def _written(form: GuardForm) -> str:
    """All texts of a request."""
    return form.request if isinstance(form.request, str) else "".join(turn.text for turn in form.request)


def _lead(tokenizer: Tokenizer, form: GuardForm, text: str) -> str:
    """What stands between a request and its verdict.

    Where a user's turn is answered, what the template writes before any answer comes first (Qwen 3's empty thought).
    """
    if isinstance(form.request, str) or not form.opens or form.request[-1].role != USER:
        return _blank(form, text) + form.before_verdict
    turns = [Turn(turn.role, fill(turn.text, dict.fromkeys(_PLACES, QUERY))) for turn in form.request]
    answers = [chat(tokenizer, [*turns, Turn(ASSISTANT, verdict)])[-1].text for verdict in (SAFE, UNSAFE)]
    return commonprefix(answers) + form.before_verdict


def _blank(form: GuardForm, text: str) -> str:
    """A blank line, where a chat template's request ends without the one that Llama 3 has there."""
    return "" if isinstance(form.request, str) or not text.endswith(_HEADER) else "\n\n"


def _meanings(tokenizer: Tokenizer, form: GuardForm, before: str, mains: list[int]) -> dict[int, int]:
    """Token -> which of (safe, unsafe, between) it means: the main spellings', and others that are one token there."""
    groups = _groups(form)
    if len(set(mains)) < len(mains):
        raise InputError(f"tokenizer {tokenizer.name}: two verdicts of guard.form = {form.name} begin with one token")
    found = dict(zip(mains, range(len(mains)), strict=True))
    for meaning, spellings in enumerate(groups):
        for spelling in spellings[1:]:
            token = _single(tokenizer, before, spelling)
            if token is not None:
                found.setdefault(token, meaning)
    return found


def _single(tokenizer: Tokenizer, before: str, spelling: str) -> int | None:
    """The token of a spelling, if it is one there and leaves what is before it as it is."""
    try:
        ids = tokenizer.encode_after(before, spelling)
    except InputError:
        return None
    return ids[0] if len(ids) == 1 else None


def _counted(found: Mapping[int, int], form: GuardForm, between: str) -> dict[int, int]:
    """The meanings with a verdict between counted as the config says; of grades the upper half is unsafe."""
    if form.grades:
        return {token: IS_UNSAFE if 2 * grade >= len(form.grades) - 1 else IS_SAFE for token, grade in found.items()}
    counted = {"unsafe": IS_UNSAFE, "safe": IS_SAFE, "none": IS_NEITHER}[between]
    return {token: counted if meaning == 2 else meaning for token, meaning in found.items()}
