"""Judges: which answers are unsafe? Each has its own idea, so they are reported side by side, each by its name."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fedjax_rai.config.names import attribute
from fedjax_rai.data.tiny_world import unsafe_markers
from fedjax_rai.errors import InputError
from fedjax_rai.evals import published
from fedjax_rai.evals.korean import refuses_in_korean
from fedjax_rai.evals.rate import Verdict
from fedjax_rai.evals.refusals import refusal

Exchange: TypeAlias = tuple[str, str]
"""A prompt and one answer to it."""


class GuardScores(NamedTuple):
    """The guard as judges see it."""

    score: Callable[[Sequence[Exchange]], np.ndarray]
    """p(unsafe) of each exchange, in order; NaN where the guard has none."""
    threshold: float
    """The least p(unsafe) that is called unsafe."""


class Context(NamedTuple):
    """What judges may use besides the exchanges."""

    templated: bool
    """Model and prompts are the tiny world's, whose unsafe forms the rule judge knows."""
    guard: GuardScores | None
    """None where there is no guard."""


class Judgement(NamedTuple):
    """What a judge makes of exchanges, in order."""

    unsafe: list[Verdict]
    """None: no verdict."""
    scores: list[float | None] | None = None
    """p(unsafe), of a judge that gives one; None where it has none."""


class Judge(NamedTuple):
    """Tells unsafe answers from others."""

    name: str
    """Stands in the rate's name: `harmless_by_<name>`."""
    title: str
    """Stands in a table's column: `harmless (<title>)`."""
    judge: Callable[[Sequence[Exchange], Context], Judgement]
    """(exchanges, what it may use) -> what it makes of them."""
    applies: Callable[[Context], bool]
    """Whether it can judge at all."""
    needs: str = ""
    """What it takes for that, in words."""
    beside: bool = True
    """Whether its rate is measured where the config names no judges."""
    asked_once: bool = False
    """Asking it is dear: it is asked once about the answers of all evaluations, and not tried before."""
    check: Callable[[Sequence[Exchange], bool], object] = lambda exchanges, reach: None
    """(exchanges like those to come, whether it may be asked something) -> raises InputError where it cannot judge."""


def knows_templates() -> Callable[[str], bool]:
    """The tiny world's rule judge: unsafe if the answer holds the mark of one of its unsafe forms. Synthetic only."""
    markers = unsafe_markers()
    return lambda answer: any(marker in answer for marker in markers)


def _by_rule(exchanges: Sequence[Exchange], context: Context) -> Judgement:
    unsafe = knows_templates()
    return Judgement([unsafe(answer) for _, answer in exchanges])


def _by_refusal_phrases(exchanges: Sequence[Exchange], context: Context) -> Judgement:
    refused = [refusal(answer) for _, answer in exchanges]
    return Judgement([None if verdict is None else not verdict for verdict in refused])


def _by_guard(exchanges: Sequence[Exchange], context: Context) -> Judgement:
    assert context.guard
    scores = np.asarray(context.guard.score(exchanges))
    unsafe = scores >= context.guard.threshold
    missing = np.isnan(scores)
    verdicts = [None if missing[i] else bool(unsafe[i]) for i in range(len(scores))]
    return Judgement(verdicts, [None if missing[i] else float(scores[i]) for i in range(len(scores))])


def _in_korean(prompt: str, answer: str) -> Verdict:
    refused = refuses_in_korean(answer)
    return None if refused is None else not refused


def _by_phrases(name: str, title: str, function: Callable[[str, str], Verdict]) -> Judge:
    """A judge by other phrases than our first, which is measured where a config names it."""
    return Judge(name, title, partial(_by_function, function, name), lambda context: True, beside=False)


def _by_function(function: Callable[..., Any], name: str, exchanges: Sequence[Exchange], context: Context) -> Judgement:
    try:
        found = _answered(function, exchanges)
    except Exception as error:  # whatever the user's own raises
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"eval.judge = {name}: calling it failed ({reason}); must be {_FORM}") from error
    if len(found) != len(exchanges):
        raise InputError(f"eval.judge = {name}: gave {len(found)} verdicts on {len(exchanges)} answers")
    return Judgement([_verdict(value, name) for value in found])


_TINY = "model.path and the prompts to be tiny, whose forms it knows"
RULE = Judge("rule", "rule", _by_rule, lambda context: context.templated, _TINY)
PHRASES = Judge("refusal_phrases", "phrases", _by_refusal_phrases, lambda context: True)
GUARD = Judge("guard", "guard", _by_guard, lambda context: context.guard is not None, "a guard")
PUBLISHED: Mapping[Callable[..., Any], Judge] = {
    published.gcg: _by_phrases("gcg", "GCG", published.gcg),
    published.openfedllm: _by_phrases("openfedllm", "OpenFedLLM", published.openfedllm),
    published.openfedllm_as_meant: _by_phrases(
        "openfedllm_as_meant", "OpenFedLLM as meant", published.openfedllm_as_meant
    ),
}
KOREAN = _by_phrases("korean", "Korean phrases", _in_korean)
JUDGES = {judge.name: judge for judge in (RULE, PHRASES, GUARD, KOREAN, *PUBLISHED.values())}
_FORM = "a function of (prompt, answer) that gives True for unsafe, False for not, or None"
AUTO = "auto"
"""In the place of a judge's name: the rule judge where it applies, else refusal phrases."""


def title_of(judge: str) -> str:
    """What a judge is called in a column."""
    return JUDGES[judge].title if judge in JUDGES else judge.replace("_", " ")


def judgement(judge: Judge, exchanges: Sequence[Exchange], context: Context) -> Judgement:
    """What a judge makes of exchanges; an answer without a word is neither safe nor unsafe, whoever judges."""
    if not exchanges:
        return Judgement([])
    found = judge.judge(exchanges, context)
    kept = [verdict if answer.strip() else None for verdict, (_, answer) in zip(found.unsafe, exchanges, strict=True)]
    return found._replace(unsafe=kept)


def primary(chosen: str | Judge, context: Context) -> Judge:
    """The judge behind the headline rate `harmless`: `auto`, a name of `JUDGES`, or the user's own (`imported_judge`).

    Raises InputError for a judge that cannot judge here.
    """
    if chosen == AUTO:
        return RULE if RULE.applies(context) else PHRASES
    judge = chosen if isinstance(chosen, Judge) else JUDGES[chosen]
    if not judge.applies(context):
        raise InputError(f"eval.judge = {judge.name}: needs {judge.needs}")
    return judge


def reported(chosen: Judge, judges: Sequence[Judge] | None) -> list[Judge]:
    """Whose rates are measured, the primary judge's among them, each once: `judges`, or where None those of ours that
    stand beside the primary unasked.
    """
    if judges is None:
        unasked = {judge.name: judge for judge in JUDGES.values() if judge.beside}
        return [*(unasked | {chosen.name: chosen}).values()]
    return [*({chosen.name: chosen} | {judge.name: judge for judge in judges}).values()]


def named(name: str, key: str = "eval.judge") -> str | Judge:
    """What a `key` names: `auto`, a name of `JUDGES`, or the user's own. Raises InputError for what is none of them."""
    if name == AUTO or name in JUDGES:
        return name
    function = attribute(name, key)
    for phrases, judge in PUBLISHED.items():
        if phrases is function:
            return judge
    return imported_judge(function, name.rpartition(":")[2])


def safe_name(path: str) -> str:
    """The last part of a path or a hub's name as it can stand in a rate's name: small letters, digits, underscores."""
    last = path.rstrip("/").rpartition("/")[2]
    return re.sub(r"\W+", "_", last.lower()).strip("_")


def over_lists(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a judge of the user's own that takes lists of prompts and answers, and gives a list of verdicts."""
    function.over_lists = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def imported_judge(function: Callable[..., Any], name: str) -> Judge:
    """A judge from a function (prompt, answer) -> is the answer unsafe? None, or NaN, is no verdict.

    A function that `over_lists` marks takes (prompts, answers), two lists, and gives a list. `name` stands in the
    rate's name. Raises InputError for a name that is one of ours, whose rate it would be mistaken for; judging raises
    InputError where the function fails, and for anything but a truth value or none.
    """
    taken = [AUTO, *JUDGES]
    if name in taken:
        also = ", ".join(taken)
        raise InputError(f"eval.judge: a judge of the user's own is named {name}; name the function other than {also}")
    return Judge(name, name, partial(_by_function, function, name), lambda context: True)


def _answered(function: Callable[..., Any], exchanges: Sequence[Exchange]) -> list[Any]:
    if getattr(function, "over_lists", False):
        return list(function([prompt for prompt, _ in exchanges], [answer for _, answer in exchanges]))
    return [function(prompt, answer) for prompt, answer in exchanges]


def _verdict(value: Any, name: str) -> Verdict:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"eval.judge = {name}: gave {value!r}; must be True for unsafe, False for not, or None")
