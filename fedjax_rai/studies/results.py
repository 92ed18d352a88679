"""What tables of runs have in common: cells with intervals, paired differences, markdown and CSV."""

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.errors import InputError
from fedjax_rai.evals.agreement import BY
from fedjax_rai.evals.evaluation import LOWER, Column, Evaluation
from fedjax_rai.evals.judge import title_of
from fedjax_rai.evals.means import UNITS
from fedjax_rai.evals.rate import PERCENT
from fedjax_rai.evals.suite import columns, evaluations
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import differences
from fedjax_rai.studies.cells import VERDICTS, Cell, Summary, cell, other_judges, over

MAIN = tuple(column.rate for column in columns() if column.main)
"""The rates that pictures show, and narrow tables first."""
WIDTH = 100
"""Columns of what is printed."""
NUMBERS = ("mean", "low", "high")
CSV_COLUMNS = (*NUMBERS, "prompts")
NOT_MEASURED = "not measured"
PLANNED = "planned.txt"


def evaluations_of(summaries: Iterable[Summary]) -> list[Evaluation]:
    """Those shipped, and those of the sets of the user's own that some run measured."""
    kinds: dict[str, str] = {}
    for summary in summaries:
        kinds |= summary.get("sets", {})  # a run of an older version has none
    return list(evaluations(kinds).values())


def shown_rates(summaries: Sequence[Summary]) -> dict[str, str]:
    """What a table of these runs shows: rate -> title, of the rates that some run measured.

    The primary rate has its judge in brackets, and its column by that judge is left out where it alone judged.
    """
    shown: dict[str, str] = {}
    for evaluation in evaluations_of(summaries):
        repeated = ""  # the column of the judge that alone gave the primary rate
        for column in (*evaluation.columns, *_further_judges(evaluation, summaries)):
            measured = _is_measured(summaries, column.rate)
            if column.main and (measured or column.always):
                judges = judges_of(summaries, column.rate)
                shown[column.rate] = column.heading
                if evaluation.judges_harm and judges:
                    shown[column.rate] += f" ({', '.join(map(title_of, judges))})"
                repeated = f"{column.rate}{BY}{judges[0]}" if len(judges) == 1 else ""
            elif column.rate != repeated and measured:
                shown[column.rate] = column.heading
    return shown


def unmeasured_note(summaries: Sequence[Summary]) -> list[str]:
    """A note that names the evaluations of which no run measured anything; none where there is none."""
    titles = []
    for evaluation in evaluations_of(summaries):
        if not any(_is_measured(summaries, column.rate) or column.always for column in evaluation.columns):
            titles.append(evaluation.columns[0].title)
    return [f"Not measured: {', '.join(titles)}."] if titles else []


def _further_judges(evaluation: Evaluation, summaries: Sequence[Summary]) -> list[Column]:
    """The columns of judges that a config named, behind those that are there unasked."""
    if not evaluation.judges_harm:
        return []
    titles = {column.rate: column.title for column in evaluation.columns}
    found = {}
    for name in (name for summary in summaries for name in summary["rates"]):
        rate, by, judge = name.partition(BY)
        if by and name not in titles and rate in titles:
            found[name] = Column(name, f"{titles[rate]} ({title_of(judge)})", main=False)
    return [*found.values()]


def main_first(rates: Mapping[str, str]) -> dict[str, str]:
    """Rate -> title, the rates of `MAIN` before the others."""
    return {rate: rates[rate] for rate in (*MAIN, *rates) if rate in rates}


def judges_of(summaries: Sequence[Summary], rate: str) -> list[str]:
    """The names of the judges who gave a rate, each once."""
    judges = []
    for summary in summaries:
        measured = summary["rates"].get(rate)
        if measured and measured.get("judge"):
            judges.append(measured["judge"])
    return list(dict.fromkeys(judges))


def _is_measured(summaries: Sequence[Summary], rate: str) -> bool:
    """Whether some run measured a rate."""
    return any(summary["rates"].get(rate) for summary in summaries)


Cells: TypeAlias = Mapping[str, Sequence[Cell | None]]
"""Rate -> its cell in each row."""


def cells_of(rates: Iterable[str], by_row: Sequence[Sequence[Summary]]) -> dict[str, list[Cell | None]]:
    """The cells of these rates over each row's runs."""
    return {rate: [cell(summaries, rate) for summaries in by_row] for rate in rates}


def rate_columns(rates: Mapping[str, str], cells: Cells, short: bool = False) -> dict[str, list[str]]:
    """Title -> a text for each row, of the rates in `rates` (rate -> title)."""
    return {title: [_shown(rate_cell, short) for rate_cell in cells[rate]] for rate, title in rates.items()}


def prompt_note(rates: Mapping[str, str], cells: Cells) -> list[str]:
    """A note of how many distinct prompts each of `rates` (rate -> title) rests on; none where nobody knows."""
    found = []
    for rate, title in rates.items():
        known = sorted({rate_cell.prompts for rate_cell in cells[rate] if rate_cell and rate_cell.prompts})
        if known:
            found.append(f"{title} {known[0]:,}" + (f" to {known[-1]:,}" if len(known) > 1 else ""))
    return [f"Distinct prompts: {'; '.join(found)}."] if found else []


def _shown(rate_cell: Cell | None, short: bool) -> str:
    """A cell as tables show it."""
    if rate_cell is None:
        return NOT_MEASURED
    return rate_cell.short if short else str(rate_cell)


def judge_notes(titles: Mapping[str, str], rows: Mapping[str, Sequence[Summary]]) -> list[str]:
    """A note for each cell that is left out as its seeds have other judges; `rows`: label -> its runs."""
    notes = []
    for rate, title in titles.items():
        for label, summaries in rows.items():
            why = other_judges(rate, summaries)
            if why:
                notes.append(f"{title}, seeds of {label}: {why}; left out.")
    return notes


def answer_notes(rows: Mapping[str, Sequence[Summary]]) -> list[str]:
    """A note for each evaluation of which some run's answers were cut off or are empty; `rows`: label -> its runs."""
    notes = []
    everything = [summary for summaries in rows.values() for summary in summaries]
    for evaluation in evaluations_of(everything):
        if not evaluation.generates:
            continue
        found = []
        for label, summaries in rows.items():
            cut_off, empty, answers = _spoilt(evaluation.columns, summaries)
            if cut_off or empty:
                found.append(f"{label} {cut_off} and {empty} of {answers:,}")
        if found:
            title = evaluation.columns[0].title
            notes.append(f"{title}, answers cut off at eval.max_new_tokens, and empty ones: {'; '.join(found)}")
    return notes


def _spoilt(evaluation_columns: Sequence[Column], summaries: Sequence[Summary]) -> tuple[int, int, int]:
    """(answers cut off, empty ones, answers in all) of an evaluation, over runs."""
    totals = [0, 0, 0]
    for summary in summaries:
        measured = [summary["rates"].get(column.rate) for column in evaluation_columns]
        rate = next((rate for rate in measured if rate), {})
        for place, key in enumerate(("cut_off", "empty", "answers")):
            totals[place] += rate.get(key, 0)  # a run of an older version counted none
    return totals[0], totals[1], totals[2]


class GuardOverSeeds(NamedTuple):
    """The quality of the guard that runs used, on the clients' pairs."""

    seeds: tuple[int, ...]
    """Those of which some run used one; of several such runs of a seed the first counts."""
    measures: dict[str, str]
    """Percent by name: the mean over these seeds, of several with the least and the most behind it."""


def guard_over_seeds(summaries: Iterable[Summary]) -> GuardOverSeeds | None:
    """Of the guards of runs; None where no run used one whose quality is known."""
    by_seed: dict[int, Mapping[str, float]] = {}
    for summary in summaries:
        if summary["guard"]:
            by_seed.setdefault(summary["seed"], summary["guard"]["fitted"] or summary["guard"]["released"])
    if not by_seed:
        return None
    qualities = [by_seed[seed] for seed in sorted(by_seed)]
    found = {name: _mean_and_range([quality[name] for quality in qualities]) for name in qualities[0]}
    return GuardOverSeeds(tuple(sorted(by_seed)), found)


def _mean_and_range(values: Sequence[float]) -> str:
    mean = f"{sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.1f}, {max(values):.1f}]"


def is_synthetic(summaries: Iterable[Summary]) -> bool:
    """Whether any part of any run is the tiny world's."""
    return any(summary["synthetic"] for summary in summaries)


def basis(summaries: Sequence[Summary]) -> str:
    """What the percentages of a table are of, and what its training seconds are."""
    seeds = sorted({summary["seed"] for summary in summaries})
    world = "SYNTHETIC tiny world. " if is_synthetic(summaries) else ""
    with_answers = all(summary.get(VERDICTS) for summary in summaries)
    return (
        f"{world}Percent, 95 % intervals over {over(seeds, with_answers)}."
        f" {LOWER}: lower is better."
        " Seconds: rounds x the median of all but the first, which compiles; guard and evaluation are not in it."
    )


def narrow(columns: Mapping[str, Sequence[str]], width: int = WIDTH) -> tuple[str, list[str]]:
    """(a table of the columns that fit into the width, the titles of those that do not).

    `columns`: title -> a text for each row, the most important first; the first one is always there.
    """
    kept: list[str] = []
    for title in columns:
        header, _, _ = _table(columns, [*kept, title]).partition("\n")
        if not kept or len(header) <= width:
            kept.append(title)
    return _table(columns, kept), [title for title in columns if title not in kept]


def _table(columns: Mapping[str, Sequence[str]], titles: Sequence[str]) -> str:
    """A table of the columns with these titles."""
    return markdown(titles, list(zip(*(columns[title] for title in titles), strict=True)))


def wide(columns: Mapping[str, Sequence[str]]) -> str:
    """A table of all columns: title -> a text for each row."""
    return _table(columns, list(columns))


def printed(columns: Mapping[str, Sequence[str]], notes: Sequence[str], file: str) -> str:
    """What the console shows of a table and its notes: lines of at most `WIDTH`; `file` has the rest."""
    table, left_out = narrow(columns)
    if left_out:
        notes = [f"In {file} besides: {', '.join(left_out)}; intervals to a tenth.", *notes]
    filled = [textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in notes]
    return table + "\n" + "\n".join(filled)


def with_notes(table: str, notes: Sequence[str]) -> str:
    """A table in markdown, and a paragraph for each note behind it."""
    return table + "\n" + "".join(f"{note}\n\n" for note in notes)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are as wide as their widest field."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(fields: Sequence[str]) -> str:
        return "| " + " | ".join(field.ljust(width) for field, width in zip(fields, widths, strict=True)) + " |"

    rule = line(["-" * width for width in widths])
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"


def rate_rows(summary: Summary) -> list[list[Any]]:
    """(name, `CSV_COLUMNS`) of every rate that was measured, judges and categories included."""
    rows = []
    for name, rate in summary["rates"].items():
        if rate:
            digits = UNITS[rate.get("unit", PERCENT.name)].digits + 3
            mean_and_interval = ["" if rate[key] is None else round(float(rate[key]), digits) for key in NUMBERS]
            rows.append([name, *mean_and_interval, rate["prompts"]])
    return rows


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def write_planned(folder: Path, runs: Iterable[Path]) -> None:
    """Write down, before the first run, which run folders the study in this folder is to have."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / PLANNED, "".join(f"{run.relative_to(folder).as_posix()}\n" for run in runs))


def read_planned(folder: Path) -> list[Path]:
    """The run folders that a study is to have; none where an older version began it."""
    path = folder / PLANNED
    names = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [folder / name for name in names]


def check_same(written: Path, config: ExperimentConfig, kind: str, free: Iterable[str]) -> None:
    """Raise InputError if the config in a file is another than this one in any dotted key but `free`.

    `kind`: what the folder that `config.output` names is said to hold, like "a table".
    """
    free = [*free]
    there = relevant(load_config(written), but=free)
    now = relevant(config, but=free)
    changed = differences(there, now)
    if changed:
        listed = ", ".join(f"{key} ({old!r} there, {new!r} now)" for key, old, new in changed)
        raise InputError(f"output = {config.output}: holds {kind} of another config, which differs in {listed}")
