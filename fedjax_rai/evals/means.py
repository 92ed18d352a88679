"""Means of what is no verdict (nats, perplexities, marks), as (sum, weight) over prompts, with a 95 % interval."""

from collections.abc import Callable, Sequence
from math import exp, isfinite, isnan, nan, sqrt
from typing import NamedTuple

from fedjax_rai.evals.rate import PERCENT, Rate, Unit, Z


class Total(NamedTuple):
    """What one prompt adds to a mean."""

    total: float
    """Not finite: nothing could be measured."""
    weight: float
    """Tokens, or answers; 0: there was nothing to measure."""


def mean_rate(totals: Sequence[Total | None], unit: Unit, judge: str) -> Rate | None:
    """sum(total) / sum(weight) over the prompts that have both, in the unit; None where none has.

    The interval is that of a ratio of sums over prompts (its linearisation), 1.96 standard errors to both sides;
    of one prompt alone there is none (NaN). What has no finite total or no weight is counted as without a verdict.
    """
    known = [total for total in totals if total is not None and isfinite(total.total) and total.weight > 0]
    if not known:
        return None
    weight = float(sum(total.weight for total in known))
    mean = sum(total.total for total in known) / weight
    margin = Z * _standard_error(known, mean, weight)
    shown = _SHOWN.get(unit, float)
    low, high = (_within(unit, shown(mean + side)) for side in (-margin, margin))
    return Rate(
        mean=shown(mean),
        low=low,
        high=high,
        prompts=len(known),
        without_verdict=len(totals) - len(known),
        judge=judge,
        unit=unit.name,
    )


def _within(unit: Unit, value: float) -> float:
    """The value, held within what its unit can be; NaN stays NaN."""
    return value if isnan(value) else min(max(value, unit.least), unit.most)


def _standard_error(known: Sequence[Total], mean: float, weight: float) -> float:
    """Of a ratio of sums over prompts: of the residuals total - mean x weight, over the sum of weights; NaN of one."""
    n = len(known)
    if n < 2:
        return nan
    squares = sum((total.total - mean * total.weight) ** 2 for total in known)
    return sqrt(squares * n / (n - 1)) / weight


NATS = Unit("nats a token", least=0.0, digits=4)
PERPLEXITY = Unit("perplexity", least=1.0, digits=2)
MARK = Unit("mark of 10", least=1.0, most=10.0, digits=2)
_SHOWN: dict[Unit, Callable[[float], float]] = {PERPLEXITY: exp}
UNITS = {unit.name: unit for unit in (PERCENT, NATS, PERPLEXITY, MARK)}
