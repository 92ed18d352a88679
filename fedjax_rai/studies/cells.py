"""What a cell of a table holds: a rate of some runs with its interval, and the paired difference of two cells."""

from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.evals import intervals, mean_intervals
from fedjax_rai.evals.intervals import Difference
from fedjax_rai.evals.means import MARK, UNITS
from fedjax_rai.evals.rate import PERCENT, Unit
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import ANSWERS, SUMMARY

Summary = Mapping[str, Any]
"""A run's summary.json and, where its answers are kept, what they got: `VERDICTS` by rate, `TOTALS` by mean
(`with_answers`); with a config beside it also `TEMPERATURE`."""
VERDICTS = "verdicts"
TOTALS = "totals"
TEMPERATURE = "mt_bench_temperature"
"""How the answers were sampled that marks are of, as the run's config says."""
SAME = "the same number of verdicts of either kind on every prompt"
SAME_SUMS = "the same on every prompt"


class Cell(NamedTuple):
    """A mean and its 95 % interval over prompts and seeds; of one seed over prompts alone.

    NaN: there is none, as of a mean over one prompt, or of marks that are all alike.
    """

    mean: float
    low: float
    high: float
    prompts: int = 0
    """Distinct prompts that it rests on; 0: not known, as the answers of several seeds are not kept."""
    unit: Unit = PERCENT

    @property
    def ends(self) -> tuple[float, float] | None:
        """Of the interval; None where there is none."""
        return None if isnan(self.low) else (self.low, self.high)

    def __str__(self) -> str:
        counted = f" n={self.prompts}" if self.prompts else ""
        return self._shown(self.unit.digits) + counted

    @property
    def short(self) -> str:
        """Mean, and its interval with a digit less."""
        return self._shown(self.unit.digits - 1)

    def _shown(self, digits: int) -> str:
        if isnan(self.low):
            return f"{self.mean:.{self.unit.digits}f} [?]"
        return f"{self.mean:.{self.unit.digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def read_run(folder: Path) -> Summary:
    """A finished run's summary, and what its answers got where they are kept."""
    return with_answers(files.read_object(folder / SUMMARY), files.read_rows(folder / ANSWERS))


def with_answers(summary: Summary, rows: Sequence[Mapping[str, Any]]) -> Summary:
    """A summary, and what the rows of its `answers.jsonl` add to rates and means."""
    return {**summary, VERDICTS: intervals.by_rate(rows), TOTALS: mean_intervals.by_mean(rows)}


def _kept(summaries: Sequence[Summary], rate: str, unit: Unit) -> list[Any]:
    """What the answers of each run add to a rate or a mean; nothing at all where those of some run are not kept."""
    key = VERDICTS if unit == PERCENT else TOTALS
    found = [summary.get(key, {}).get(rate) for summary in summaries]
    return found if all(found) else []


def cell(summaries: Sequence[Summary], rate: str) -> Cell | None:
    """A rate or a mean over prompts and seeds, or None where it was not measured, or by other judges in other seeds.

    Without the answers it is what the summaries have: of one seed its interval over prompts, of several Student's over
    seeds.
    """
    measured = [summary["rates"].get(rate) for summary in summaries]
    if not all(measured) or len(judges_of(summaries, rate)) > 1:
        return None
    unit = unit_of(measured[0])
    by_seed = _kept(summaries, rate, unit)
    found = _interval(by_seed, unit) if by_seed else None
    if found:
        return Cell(found.mean, found.low, found.high, found.prompts, unit)
    if len(measured) == 1:
        (alone,) = measured
        low, high = (nan if alone[end] is None else alone[end] for end in ("low", "high"))
        return Cell(alone["mean"], low, high, alone.get("prompts", 0), unit)
    mean, low, high = map(unit.shown, students([unit.averaged(seed["mean"]) for seed in measured]))
    return Cell(mean, unit.within(low), unit.within(high), unit=unit)


def _interval(by_seed: Sequence[Any], unit: Unit) -> intervals.Interval | None:
    if unit == PERCENT:
        return intervals.interval(by_seed)
    return mean_intervals.interval(by_seed, unit)


def judges_of(summaries: Sequence[Summary], rate: str) -> list[str]:
    """Who gave a rate in the runs that measured it, each once; "" where a run of an older version does not say."""
    measured = [summary["rates"].get(rate) for summary in summaries]
    return list(dict.fromkeys(found.get("judge", "") for found in measured if found))


def other_judges(rate: str, summaries: Sequence[Summary]) -> str | None:
    """Why these runs' rates make no mean and no difference, in words; None where one judge gave them all."""
    judges = judges_of(summaries, rate)
    if len(judges) < 2:
        return None
    return f"not comparable, as judges differ ({', '.join(judge or 'not named' for judge in judges)})"


def incomparable(rate: str, summaries: Sequence[Summary]) -> str | None:
    """Why these runs' rates make no difference, in words: other judges, or marks of answers sampled otherwise."""
    return other_judges(rate, summaries) or _other_temperatures(rate, summaries)


def _other_temperatures(rate: str, summaries: Sequence[Summary]) -> str | None:
    """None too where runs do not say how they sampled, and for what is no mark."""
    known = list(dict.fromkeys(summary[TEMPERATURE] for summary in summaries if TEMPERATURE in summary))
    if len(known) < 2 or unit_among(summaries, rate) != MARK:
        return None
    return f"not comparable, as eval.{TEMPERATURE} differs ({', '.join(known)})"


def unit_of(measured: Mapping[str, Any]) -> Unit:
    """What a rate of a summary is counted in; a run of an older version has percent alone."""
    return UNITS[measured.get("unit", PERCENT.name)]


def unit_among(summaries: Sequence[Summary], rate: str) -> Unit:
    """What a rate is counted in, by the first run that measured it."""
    return next((unit_of(summary["rates"][rate]) for summary in summaries if summary["rates"].get(rate)), PERCENT)


def students(values: Sequence[float], level: float = 95.0) -> tuple[float, float, float]:
    """(mean, low, high): Student's interval of a few independent values."""
    from scipy.stats import t

    count = len(values)
    mean = np.mean(values)
    standard_error = np.std(values, ddof=1) / count**0.5
    margin = t.ppf(0.5 + level / 200, count - 1) * standard_error
    return float(mean), float(mean - margin), float(mean + margin)


def difference(rate: str, runs: Sequence[Summary], others: Sequence[Summary]) -> Difference | None:
    """A rate of some runs minus that of others, paired by seed and, where answers are kept, by prompt, in points; of a
    mean in its unit, of perplexity the ratio.

    None where some run did not measure it, where they are `incomparable`, and of one seed whose answers are not kept.
    """
    if incomparable(rate, [*runs, *others]):
        return None
    pairs = []
    for run, other in zip(runs, others, strict=True):
        pairs.append((run["rates"].get(rate), other["rates"].get(rate)))
    if not all(measured and other for measured, other in pairs):
        return None
    unit = unit_among(runs, rate)
    by_seed = _kept(runs, rate, unit)
    other_by_seed = _kept(others, rate, unit)
    if by_seed and other_by_seed:
        return _difference(by_seed, other_by_seed, unit)
    gaps = [unit.averaged(measured["mean"]) - unit.averaged(other["mean"]) for measured, other in pairs]
    if len(gaps) < 2:
        return None
    mean, low, high = map(unit.shown, students(gaps))
    _, *inner = map(unit.shown, students(gaps, 90.0))
    return Difference(
        mean=mean,
        low=low,
        high=high,
        prompts=0,
        by_seed=tuple(map(unit.shown, gaps)),
        inner=(inner[0], inner[1]),
        same=False,
        unit=unit,
    )


def _difference(by_seed: Sequence[Any], others: Sequence[Any], unit: Unit) -> Difference | None:
    if unit == PERCENT:
        return intervals.difference(by_seed, others)
    return mean_intervals.difference(by_seed, others, unit)


def paired(rate: str, runs: Sequence[Summary], others: Sequence[Summary], margin: float | None = None) -> str | None:
    """The difference of two arms in words: mean, interval, each seed's, or why there may be none; None: there is none.

    With a margin, in points, also whether the two are equivalent within it.
    """
    why = incomparable(rate, [*runs, *others])
    if why:
        return why
    found = difference(rate, runs, others)
    if found is None:
        return None
    line = f"{gap_text(found.mean, found.unit)} {found.unit.gap} {gap_interval(found)}"
    if len(found.by_seed) > 1:
        line += f"; by seed {gaps_by_seed(found)}"
    if found.same:
        line += f"; {same_text(found)}"
    return line if margin is None else f"{line}; {equivalence(found, margin)}"


def gap_text(value: float, unit: Unit) -> str:
    """A difference of two, or a ratio, to as many digits as its unit has."""
    return f"{value:.{unit.digits + 1}f}" if unit.is_ratio else f"{value:+.{unit.digits}f}"


def gap_interval(found: Difference) -> str:
    """Its 95 % interval; `[?]` where there is none."""
    return _bracketed(found.ends, found.unit)


def _bracketed(ends: tuple[float, float] | None, unit: Unit) -> str:
    return "[?]" if ends is None else f"[{gap_text(ends[0], unit)}, {gap_text(ends[1], unit)}]"


def gaps_by_seed(found: Difference) -> str:
    """Each seed's difference."""
    return ", ".join(gap_text(gap, found.unit) for gap in found.by_seed)


def same_text(found: Difference) -> str:
    """What is the same in two arms that agree on every prompt."""
    return SAME if found.unit == PERCENT else SAME_SUMS


def equivalence(found: Difference, margin: float) -> str:
    """Whether a difference is within so many points of 0, and the interval that tells; only points have a margin."""
    if found.unit != PERCENT:
        kind = "a ratio" if found.unit.is_ratio else f"in {found.unit.gap}"
        return f"equivalence not tested: the margin is in points, not {kind}"
    shown = f"90 % interval {_bracketed(found.inner, found.unit)}"
    if found.within(margin):
        return f"equivalent within {margin:g} points (two one-sided tests at 5 %: {shown})"
    return f"not shown to be equivalent within {margin:g} points ({shown})"


def over(seeds: Sequence[int], with_answers: bool) -> str:
    """What intervals of runs of these seeds hold, in words."""
    if len(seeds) == 1:
        return f"prompts alone (one seed, {seeds[0]}: what another seed would change is not in them)"
    if with_answers:
        return f"prompts and {len(seeds)} seeds (bootstrap)"
    return f"{len(seeds)} seeds alone (Student's t; answers are not kept)"
