"""The answers of all arms side by side, with every verdict: what a reader sees of the texts behind the rates."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_rai.evals.rate import Verdict
from fedjax_rai.evals.suite import EVALUATIONS
from fedjax_rai.studies.gathered import Arm
from fedjax_rai.studies.report_judges import verdicts_by_set
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
    distinct = verdicts_by_set(report.arms)
    rows_of_arms = [_by_set(arm.first.answers) for arm in report.arms]
    names = dict.fromkeys(name for by_set in rows_of_arms for name in by_set)
    found = []
    for name in names:
        by_arm = [by_set.get(name, {}) for by_set in rows_of_arms]
        prompts = list(dict.fromkeys(prompt for rows in by_arm for prompt in rows))
        chosen = [i * len(prompts) // min(most, len(prompts)) for i in range(min(most, len(prompts)))]
        evaluation = EVALUATIONS.get(name)
        is_harmless = evaluation is not None and evaluation.sampling is not None and not evaluation.judges_harm
        titles = {rate: report.titles.get(rate, rate) for rate in (*report.titles, *distinct.get(name, ()))}
        asked = []
        for i in chosen:
            arms = [
                _by_arm(arm, rows.get(prompts[i]), titles, not is_harmless)
                for arm, rows in zip(report.arms, by_arm, strict=True)
            ]
            asked.append(Asked(i + 1, prompts[i], arms))
        found.append(AnswerSet(name, not is_harmless, asked, len(prompts)))
    return found


def _by_set(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Evaluation -> prompt -> its row."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["set"], {}).setdefault(row["prompt"], row)
    return found


def _by_arm(arm: Arm, row: Mapping[str, Any] | None, titles: Mapping[str, str], may_harm: bool) -> ByArm:
    """What an arm's first seed answered to a prompt: `row`, None where it was not asked."""
    if row is not None:
        return ByArm(arm.label, _answers(row, titles, may_harm), "")
    absent = "not asked this with its first seed" if arm.first.answers else "its answers are not kept"
    return ByArm(arm.label, [], absent)


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
    """A mark for each of the rates that have a title: those of the table, and of judges that no other agrees with."""
    return [Mark(titles[rate], MARKS[verdict]) for rate, verdict in verdicts.items() if rate in titles]
