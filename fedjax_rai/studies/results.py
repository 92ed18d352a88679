"""What tables of runs have in common: cells with intervals, paired differences, markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.errors import InputError
from fedjax_rai.runs.folder import differences

Summary = Mapping[str, Any]  # a run's summary.json
COLUMNS = {
    "harmless": "harmless",
    "harmless_by_refusal_phrases": "by phrases",
    "harmless_by_guard": "by guard",
    "hhh": "HHH",
    "utility": "utility",
    "over_refusal": "over-refusal",
}
CSV_COLUMNS = ("mean", "low", "high", "prompts")
NOT_MEASURED = "not measured"


class Cell(NamedTuple):
    """A mean and its 95 % interval, in percent. One seed: the interval over prompts; more: over seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


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
    return f"{interval(gaps)} (seeds: {', '.join(f'{gap:+.1f}' for gap in gaps)})"


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
