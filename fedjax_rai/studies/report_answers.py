"""The answers of all arms side by side, with every verdict: what a reader sees of the texts behind the rates."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_rai.evals.evaluation import Evaluation
from fedjax_rai.evals.rate import Verdict
from fedjax_rai.evals.tasks import TASKS
from fedjax_rai.studies.gathered import Arm
from fedjax_rai.studies.report_judges import verdicts_by_set
from fedjax_rai.studies.report_parts import Report
from fedjax_rai.studies.results import evaluations_of

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
    benign = {evaluation.name for evaluation in evaluations_of(report.summaries) if _is_benign(evaluation)}
    rows_of_arms = [_by_set(arm.first.answers) for arm in report.arms]
    names = dict.fromkeys(name for by_set in rows_of_arms for name in by_set)
    found = []
    for name in names:
        by_arm = [by_set.get(name, {}) for by_set in rows_of_arms]
        prompts = list(dict.fromkeys(prompt for rows in by_arm for prompt in rows))
        chosen = [i * len(prompts) // min(most, len(prompts)) for i in range(min(most, len(prompts)))]
        may_harm = name not in benign
        titles = {rate: report.titles.get(rate, rate) for rate in (*report.titles, *distinct.get(name, ()))}
        asked = []
        for i in chosen:
            arms = [
                _by_arm(arm, rows.get(prompts[i]), titles, may_harm)
                for arm, rows in zip(report.arms, by_arm, strict=True)
            ]
            asked.append(Asked(i + 1, prompts[i], arms))
        found.append(AnswerSet(name, may_harm, asked, len(prompts)))
    return found


def _is_benign(evaluation: Evaluation) -> bool:
    """Whether prompts and answers of an evaluation are harmless as such: tasks, and what is wrongly refused."""
    is_answered = evaluation.way.generates and not evaluation.judges_harm
    return is_answered and (evaluation.name == TASKS.name or not evaluation.columns[0].higher_is_better)


def _by_set(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Evaluation -> prompt -> its row."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        prompt = row["prompt"] if "prompt" in row else "\n\n".join(row["prompts"])
        found.setdefault(row["set"], {}).setdefault(prompt, row)
    return found


def _by_arm(arm: Arm, row: Mapping[str, Any] | None, titles: Mapping[str, str], may_harm: bool) -> ByArm:
    """What an arm's first seed answered to a prompt: `row`, None where it was not asked."""
    if row is not None:
        return ByArm(arm.label, _answers(row, titles, may_harm), "")
    absent = "not asked this with its first seed" if arm.first.answers else "its answers are not kept"
    return ByArm(arm.label, [], absent)


def _answers(row: Mapping[str, Any], titles: Mapping[str, str], may_harm: bool) -> list[Answer]:
    if "good" in row:
        return _choices(row, titles)
    if "answers" not in row:
        return [_read(row, may_harm)]
    found = []
    for i, text in enumerate(row["answers"]):
        verdicts = {rate: _at(given, i) for rate, given in row.get("verdicts", {}).items()}
        mark = _at(row.get("marks") or (), i)
        notes = ["" if text.strip() else NO_WORD, "cut off" if _at(row.get("cut_off", ()), i) else ""]
        note = ", ".join(filter(None, [*notes, "" if mark is None else f"mark {mark:g}"]))
        folded = may_harm and bool(text.strip()) and not (verdicts and all(verdicts.values()))
        found.append(Answer(text, note, _marks(verdicts, titles), folded))
    return found


def _read(row: Mapping[str, Any], may_harm: bool) -> Answer:
    """An answer that was read, with what was summed over its tokens."""
    total = "no number" if row.get("total") is None else f"{row['total']:.3f}"
    return Answer(row.get("answer", ""), f"{total} over {row.get('tokens')} tokens", [], may_harm)


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
    """A mark for each of the rates that have a title: those of the table, and of every judge."""
    return [Mark(titles[rate], MARKS[verdict]) for rate, verdict in verdicts.items() if rate in titles]
