"""Judges against each other, by the verdicts that they gave on the same answers."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from fedjax_rai.evals.agreement import BY, kappa_of
from fedjax_rai.evals.rate import Verdict
from fedjax_rai.studies import report_pictures as pictures
from fedjax_rai.studies.cells import Summary, cell
from fedjax_rai.studies.gathered import Arm
from fedjax_rai.studies.panels import Panel
from fedjax_rai.studies.report_parts import Grid, Report, Section
from fedjax_rai.studies.results import judges_of


class Agreement(NamedTuple):
    """Two judges on the answers on which both have a verdict."""

    answers: int
    agree: float
    """Share, 0 to 1."""
    kappa: float | None
    """Cohen's (1960): agreement beyond that of chance. None: both always say the same one thing, so chance agrees."""
    first_alone: int
    """Answers that only the first one counts."""
    second_alone: int
    """Answers that only the second one counts."""


def agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> Agreement | None:
    """Of verdicts on the same answers, in the same order; None where there is no answer that both judged."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return None
    count = len(both)
    agree = sum(a == b for a, b in both) / count
    first_alone = sum(a and not b for a, b in both)
    second_alone = sum(b and not a for a, b in both)
    agreed = sum(a and b for a, b in both)
    kappa = kappa_of(agreed, first_alone, second_alone, count - agreed - first_alone - second_alone)
    return Agreement(count, agree, kappa, first_alone, second_alone)


def judges(report: Report) -> Section:
    """Every pair of judges of one evaluation, over all arms and seeds, and every arm by every judge."""
    grids, panels = [], []
    for name, verdicts in verdicts_by_set(report.arms).items():
        rows = []
        for first, second in combinations(verdicts, 2):
            found = agreement(verdicts[first], verdicts[second])
            if found:
                rows.append([f"{_title(report, first)} and {_title(report, second)}", *_fields(found)])
        if rows:
            header = ["judges", "answers", "agree", "Cohen's kappa", "first alone", "second alone"]
            grids.append(Grid(f"{name}: answers of all arms", header, rows))
            panels += _by_judge(report, name, list(verdicts))
    absent = [] if grids else ["No answers that two judges judged are kept."]
    about = [
        "First, second alone: answers that only that judge counts towards the rate. What has no verdict is in no "
        "number."
    ]
    return Section("Judges against each other", about, grids, panels, absent)


def _fields(found: Agreement) -> list[str]:
    kappa = "none" if found.kappa is None else f"{found.kappa:z.2f}"
    return [
        f"{found.answers:,}",
        f"{100 * found.agree:.1f} %",
        kappa,
        f"{found.first_alone:,}",
        f"{found.second_alone:,}",
    ]


def _title(report: Report, rate: str) -> str:
    return report.titles.get(rate, rate)


def _by_judge(report: Report, name: str, judged: Sequence[str]) -> list[Panel]:
    cells = {}
    for rate in judged:
        cells[_title(report, rate)] = [cell(arm.summaries, rate) for arm in report.arms]
    return [pictures.by_judge(f"{name}, by judge", report.labels, cells)]


def verdicts_by_set(arms: Sequence[Arm]) -> dict[str, dict[str, list[Verdict]]]:
    """Evaluation -> rate -> its verdicts on all answers of all runs; None where a run has no such rate.

    The primary rate stands for the judge that alone gave it; other judges are there, however alike their verdicts.
    """
    found: dict[str, dict[str, list[Verdict]]] = {}
    counts: dict[str, int] = {}
    for arm in arms:
        for run in arm.runs:
            for row in run.answers:
                if "answers" in row and "verdicts" in row:  # choices have no judges, and marks are no verdicts
                    _add(row, found.setdefault(row["set"], {}), counts)
    for name, by_rate in found.items():
        for verdicts in by_rate.values():
            verdicts += [None] * (counts[name] - len(verdicts))
    summaries = [summary for arm in arms for summary in arm.summaries]
    return {name: _each_judge_once(by_rate, summaries) for name, by_rate in found.items()}


def _add(row: Mapping, by_rate: dict[str, list[Verdict]], counts: dict[str, int]) -> None:
    """The verdicts of a row behind those of the rows before."""
    before = counts.get(row["set"], 0)
    for rate, verdicts in row["verdicts"].items():
        there = by_rate.setdefault(rate, [])
        there += [None] * (before - len(there))
        there += verdicts
    counts[row["set"]] = before + len(row["answers"])


def _each_judge_once(by_rate: Mapping[str, list[Verdict]], summaries: Sequence[Summary]) -> dict[str, list[Verdict]]:
    """Without the column of the judge that alone gave the primary rate, which has these verdicts already."""
    repeated = set()
    for rate in by_rate:
        judges_of_rate = judges_of(summaries, rate)
        if len(judges_of_rate) == 1:
            repeated.add(f"{rate}{BY}{judges_of_rate[0]}")
    return {rate: verdicts for rate, verdicts in by_rate.items() if rate not in repeated}
