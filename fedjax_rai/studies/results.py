"""What tables of runs have in common: cells with intervals, paired differences, markdown and CSV."""

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.errors import InputError
from fedjax_rai.evals.judge import JUDGES
from fedjax_rai.evals.suite import EVALUATIONS, columns
from fedjax_rai.runs.folder import differences

Summary = Mapping[str, Any]  # a run's summary.json
MAIN = tuple(column.rate for column in columns() if column.main)
"""The rates that pictures show, and narrow tables first."""
WIDTH = 100  # of what is printed
CSV_COLUMNS = ("mean", "low", "high", "prompts")
NOT_MEASURED = "not measured"


class Cell(NamedTuple):
    """A mean and its 95 % interval, in percent. One seed: the interval over prompts; more: over seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def short(self) -> str:
        """With an interval in whole percent."""
        return f"{self.mean:.1f} [{self.low:.0f}, {self.high:.0f}]"


def shown_rates(summaries: Sequence[Summary]) -> dict[str, str]:
    """What a table of these runs shows: rate -> title. The primary rate has its judge in brackets.

    Of the rates by other judges, those that some run measured.
    """
    shown: dict[str, str] = {}
    for evaluation in EVALUATIONS.values():
        hidden = set()
        for column in evaluation.columns:
            judges = _judges_of(summaries, column.rate)
            if column.main:
                named = [JUDGES[judge].title if judge in JUDGES else judge for judge in judges]
                behind = f" ({', '.join(named)})" if evaluation.judges_harm and named else ""
                shown[column.rate] = column.title + behind
                hidden = {f"{column.rate}_by_{judge}" for judge in judges} if len(judges) == 1 else set()
            elif column.rate not in hidden and _is_measured(summaries, column.rate):
                shown[column.rate] = column.title
    return shown


def main_first(rates: Mapping[str, str]) -> dict[str, str]:
    """The same, the rates of `MAIN` before the others."""
    return {rate: rates[rate] for rate in (*MAIN, *rates) if rate in rates}


def _judges_of(summaries: Sequence[Summary], rate: str) -> list[str]:
    """The names of those who judged it, each once."""
    rates = [summary["rates"].get(rate) for summary in summaries]
    return list(dict.fromkeys(own["judge"] for own in rates if own and own.get("judge")))


def _is_measured(summaries: Sequence[Summary], rate: str) -> bool:
    return any(summary["rates"].get(rate) for summary in summaries)


def rate_columns(rates: Mapping[str, str], by_row: Sequence[Sequence[Summary]], short: bool = False) -> dict[str, list]:
    """Title -> a text for each row, of the rates in `rates` (rate -> title) over each row's runs."""
    found: dict[str, list[str]] = {}
    for rate, title in rates.items():
        cells = [cell(summaries, rate) for summaries in by_row]
        found[title] = [_shown(own, short) for own in cells]
    return found


def _shown(own: "Cell | None", short: bool) -> str:
    if own is None:
        return NOT_MEASURED
    return own.short if short else str(own)


def cell(summaries: Sequence[Summary], rate: str) -> Cell | None:
    """A rate over seeds, or None where it was not measured."""
    rates = [summary["rates"].get(rate) for summary in summaries]
    if any(own is None for own in rates):
        return None
    if len(rates) == 1:
        return Cell(*(rates[0][key] for key in Cell._fields))
    mean, low, high = interval([own["mean"] for own in rates])
    return Cell(mean, max(low, 0.0), min(high, 100.0))


def interval(values: Sequence[float]) -> Cell:
    """Mean and 95 % interval of a few independent values, by Student's t."""
    from scipy.stats import t

    mean, margin = np.mean(values), t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return Cell(float(mean), float(mean - margin), float(mean + margin))


def paired(rate: str, ones: Sequence[Summary], others: Sequence[Summary]) -> str | None:
    """A rate of some runs minus that of others, paired by seed (same data, same prompts): mean, interval, each.

    None for a single pair, or where one was not measured.
    """
    pairs = [(a["rates"].get(rate), b["rates"].get(rate)) for a, b in zip(ones, others, strict=True)]
    if len(pairs) < 2 or not all(a and b for a, b in pairs):
        return None
    gaps = [a["mean"] - b["mean"] for a, b in pairs]
    mean, low, high = interval(gaps)
    each = ", ".join(f"{gap:+.1f}" for gap in gaps)
    return f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}]; by seed {each}"


def is_synthetic(summaries: Iterable[Summary]) -> bool:
    """Whether any part of any run is the tiny world's."""
    return any(summary["synthetic"] for summary in summaries)


def basis(summaries: Sequence[Summary]) -> str:
    """What the percentages of a table are of, and what its training seconds are."""
    seeds = sorted({summary["seed"] for summary in summaries})
    over = f"{len(seeds)} seeds (Student's t)" if len(seeds) > 1 else f"prompts (one seed, {seeds[0]})"
    return (
        f"{'SYNTHETIC tiny world. ' if is_synthetic(summaries) else ''}Percent, 95 % intervals over {over}."
        " Seconds: rounds x the median of all but the first, which compiles; guard and evaluation are not in it."
    )


def narrow(columns: Mapping[str, Sequence[str]], width: int = WIDTH) -> tuple[str, list[str]]:
    """(a table of the columns that fit into the width, the titles of those that do not).

    `columns`: title -> a text for each row, the most important first; the first one is always there.
    """
    kept: list[str] = []
    for title in columns:
        if not kept or len(_table(columns, [*kept, title]).partition("\n")[0]) <= width:
            kept.append(title)
    return _table(columns, kept), [title for title in columns if title not in kept]


def _table(columns: Mapping[str, Sequence[str]], titles: Sequence[str]) -> str:
    return markdown(titles, list(zip(*(columns[title] for title in titles), strict=True)))


def wide(columns: Mapping[str, Sequence[str]]) -> str:
    """A table of all columns: title -> a text for each row."""
    return _table(columns, list(columns))


def printed(columns: Mapping[str, Sequence[str]], notes: Sequence[str], file: str) -> str:
    """What the console shows of a table and its notes: lines of at most `WIDTH`; `file` has the rest."""
    table, left_out = narrow(columns)
    if left_out:
        notes = [f"In {file} besides: {', '.join(left_out)}; intervals to a tenth.", *notes]
    return table + "\n" + "\n".join(textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in notes)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(fields: Sequence[str]) -> str:
        return "| " + " | ".join(field.ljust(width) for field, width in zip(fields, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)]) + "\n"


def rate_rows(summary: Summary) -> list[list[Any]]:
    """(name, `CSV_COLUMNS`) of every rate that was measured, judges and categories included."""
    measured = [(name, rate) for name, rate in summary["rates"].items() if rate]
    return [
        [name, *(round(float(rate[key]), 4) for key in Cell._fields), rate["prompts"]] for name, rate in measured
    ]  # fmt: skip


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def check_same(written: Path, config: ExperimentConfig, kind: str, free: Iterable[str]) -> None:
    """Raise InputError if the config in a file is another than this one in any dotted key but `free`.

    `kind`: what the folder that `config.output` names is said to hold, like "a table".
    """
    free = [*free]
    if changed := differences(relevant(load_config(written), but=free), relevant(config, but=free)):
        listed = ", ".join(f"{key} ({old!r} there, {new!r} now)" for key, old, new in changed)
        raise InputError(f"output = {config.output}: holds {kind} of another config, which differs in {listed}")
