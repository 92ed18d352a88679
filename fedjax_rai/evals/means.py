"""Means of what is no verdict (nats, perplexities, marks), as (sum, weight) over prompts, with a 95 % interval."""

from collections.abc import Sequence
from math import isfinite, nan, sqrt
from typing import NamedTuple

from fedjax_rai.evals.rate import PERCENT, Rate, Unit, Z

ROUNDING = 1e-12
"""What residuals of numbers that are all alike may differ from 0 by."""


class Total(NamedTuple):
    """What one prompt adds to a mean."""

    total: float
    """Not finite: nothing could be measured."""
    weight: float
    """Tokens, or answers; 0: there was nothing to measure."""

    @property
    def is_known(self) -> bool:
        """Whether it is in any mean."""
        return isfinite(self.total) and self.weight > 0


def mean_rate(totals: Sequence[Total | None], unit: Unit, judge: str) -> Rate | None:
    """sum(total) / sum(weight) over the prompts that have both, in the unit; None where none has.

    The interval is that of a ratio of sums over prompts (its linearisation), 1.96 standard errors to both sides;
    of one prompt alone there is none (NaN), nor of marks that are all alike. What has no finite total or no weight is
    counted as without a verdict.
    """
    known = [total for total in totals if total is not None and total.is_known]
    if not known:
        return None
    weight = float(sum(total.weight for total in known))
    mean = sum(total.total for total in known) / weight
    margin = Z * _standard_error(known, mean, weight)
    if unit.in_steps and margin < ROUNDING:
        margin = nan
    low, high = (unit.within(unit.shown(mean + side)) for side in (-margin, margin))
    return Rate(
        mean=unit.shown(mean),
        low=low,
        high=high,
        prompts=len(known),
        without_verdict=len(totals) - len(known),
        judge=judge,
        unit=unit.name,
    )


def _standard_error(known: Sequence[Total], mean: float, weight: float) -> float:
    """Of a ratio of sums over prompts: of the residuals total - mean x weight, over the sum of weights; NaN of one."""
    n = len(known)
    if n < 2:
        return nan
    squares = sum((total.total - mean * total.weight) ** 2 for total in known)
    return sqrt(squares * n / (n - 1)) / weight


NATS = Unit("nats a token", digits=4, gap="nats a token")
PERPLEXITY = Unit("perplexity", least=1.0, digits=2, gap="times", is_ratio=True)
MARK = Unit("mark of 10", least=1.0, most=10.0, digits=2, gap="marks", in_steps=True)
UNITS = {unit.name: unit for unit in (PERCENT, NATS, PERPLEXITY, MARK)}
