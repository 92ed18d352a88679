"""What tables say beside the rates: answers that tell nothing, in columns of their own, and how far judges agree."""

from collections.abc import Iterable, Sequence

from fedjax_rai.evals.agreement import Agreement, matrix, together
from fedjax_rai.evals.spoilt import AnswerCounts
from fedjax_rai.studies.results import WIDTH, Summary, evaluations_of, markdown
from fedjax_rai.terminal import plural

KINDS = "empty, cut off, not finite"


def answer_columns(by_row: Sequence[Sequence[Summary]]) -> dict[str, list[str]]:
    """Title -> a text for each row, of every evaluation that has an answer of `KINDS` in some run of some row."""
    found = {}
    for evaluation in evaluations_of(summary for summaries in by_row for summary in summaries):
        counts = [_of_row(evaluation.name, summaries) for summaries in by_row]
        if any(of_row and of_row.spoilt for of_row in counts):
            found[f"{evaluation.columns[0].title}: {KINDS}"] = [_shown(of_row) for of_row in counts]
    return found


def _of_row(name: str, summaries: Sequence[Summary]) -> AnswerCounts | None:
    """The counts of an evaluation over a row's runs; None where no run has them."""
    total = None
    for summary in summaries:
        counts = summary.get("answers", {}).get(name)
        if counts is not None:
            of_run = AnswerCounts(**counts)
            total = of_run if total is None else total.plus(of_run)
    return total


def _shown(counts: AnswerCounts | None) -> str:
    if counts is None:
        return ""
    return f"{counts.empty}, {counts.cut_off}, {counts.non_finite} of {counts.answers:,}"


def agreement_tables(summaries: Iterable[Summary]) -> list[str]:
    """A table for each rate that has several judges: Cohen's kappa of every two, over the answers of all runs."""
    runs = [[Agreement(**found) for found in summary.get("agreement", ())] for summary in summaries]
    found = together(runs)
    tables = []
    for rate in dict.fromkeys(agreement.rate for agreement in found):
        rows = matrix(found, rate)
        if rows:
            head = f"Judges of `{rate}`, over all runs: Cohen's kappa, and on what percentage of answers both agree"
            tables.append(f"{head}\n\n{markdown(rows[0], rows[1:])}")
    return tables


def fitting(tables: Sequence[str], file: str) -> list[str]:
    """The tables that the console has room for, and where the others are: in `file`."""
    shown = [table for table in tables if max(map(len, table.splitlines())) <= WIDTH]
    left_out = len(tables) - len(shown)
    return shown if not left_out else [*shown, f"In {file} besides: {plural(left_out, 'table')} of judges' agreement."]
