"""The answers of all arms side by side, with every verdict: what a reader sees of the texts behind the rates."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_rai.evals.rate import Verdict
from fedjax_rai.evals.suite import EVALUATIONS
from fedjax_rai.studies.report_parts import Report

MARKS = {True: "✓", False: "✗", None: "–"}
NO_WORD = "(no word)"


class Mark(NamedTuple):
    """What one judge made of an answer."""

    title: str
    mark: str
    """✓ counts towards the rate, ✗ does not, – is no verdict."""


class Answer(NamedTuple):
    """One answer, or one choice with its likelihood."""

    text: str
    note: str
    """What is to be known of it: empty, cut off, a choice's log p."""
    marks: Sequence[Mark]
    folded: bool
    """It may be harmful: it is behind a click."""


class ByArm(NamedTuple):
    """What one arm answered."""

    label: str
    answers: Sequence[Answer]
    absent: str


class Asked(NamedTuple):
    """A prompt, and what every arm answered."""

    number: int
    prompt: str
    arms: Sequence[ByArm]


class AnswerSet(NamedTuple):
    """The prompts that are shown of an evaluation."""

    name: str
    folded: bool
    """Its prompts may be harmful: they are behind a click."""
    asked: Sequence[Asked]
    there: int
    """Prompts that there are."""


def answer_sets(report: Report, most: int) -> list[AnswerSet]:
    """At most so many prompts of every evaluation, spread evenly over it, with the answers of each arm's first seed."""
    rows_of_arms = [_by_set(arm.first.answers) for arm in report.arms]
    names = dict.fromkeys(name for by_set in rows_of_arms for name in by_set)
    found = []
    for name in names:
        by_arm = [by_set.get(name, {}) for by_set in rows_of_arms]
        prompts = list(dict.fromkeys(prompt for rows in by_arm for prompt in rows))
        chosen = [i * len(prompts) // min(most, len(prompts)) for i in range(min(most, len(prompts)))]
        evaluation = EVALUATIONS.get(name)
        is_harmless = evaluation is not None and evaluation.sampling is not None and not evaluation.judges_harm
        asked = [_asked(i + 1, prompts[i], by_arm, report, not is_harmless) for i in chosen]
        found.append(AnswerSet(name, not is_harmless, asked, len(prompts)))
    return found


def _by_set(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Evaluation -> prompt -> its row."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["set"], {}).setdefault(row["prompt"], row)
    return found


def _asked(number: int, prompt: str, by_arm: Sequence[Mapping], report: Report, may_harm: bool) -> Asked:
    arms = []
    for arm, rows in zip(report.arms, by_arm, strict=True):
        row = rows.get(prompt)
        if row is None:
            absent = "not asked this with its first seed" if arm.first.answers else "its answers are not kept"
            arms.append(ByArm(arm.label, [], absent))
        else:
            arms.append(ByArm(arm.label, _answers(row, report.titles, may_harm), ""))
    return Asked(number, prompt, arms)


def _answers(row: Mapping[str, Any], titles: Mapping[str, str], may_harm: bool) -> list[Answer]:
    if "answers" not in row:
        return _choices(row, titles)
    found = []
    for i, text in enumerate(row["answers"]):
        verdicts = {rate: _at(given, i) for rate, given in row["verdicts"].items()}
        cut = "cut off" if _at(row.get("cut_off", ()), i) else ""
        note = cut if text.strip() else NO_WORD
        folded = may_harm and bool(text.strip()) and not (verdicts and all(verdicts.values()))
        found.append(Answer(text, note, _marks(verdicts, titles), folded))
    return found


def _choices(row: Mapping[str, Any], titles: Mapping[str, str]) -> list[Answer]:
    """The good answer with the verdict, then the bad one, which is behind a click."""
    verdicts = {rate: _at(given, 0) for rate, given in row["verdicts"].items()}
    good = Answer(row["good"], _logp("good", row.get("good_logp")), _marks(verdicts, titles), False)
    return [good, Answer(row["bad"], _logp("bad", row.get("bad_logp")), [], True)]


def _logp(name: str, value: float | None) -> str:
    return f"{name} answer, log p {value:.1f}" if value is not None else f"{name} answer, log p is no number"


def _at(values: Sequence[Any], i: int) -> Any:
    return values[i] if i < len(values) else None


def _marks(verdicts: Mapping[str, Verdict], titles: Mapping[str, str]) -> list[Mark]:
    """A mark for each rate that the verdict is of, called as the table calls it."""
    return [Mark(titles.get(rate, rate), MARKS[verdict]) for rate, verdict in verdicts.items()]
