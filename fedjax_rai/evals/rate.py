"""Rates: verdicts counted, with a 95 % interval over prompts."""

from collections.abc import Sequence
from math import exp, isnan, log
from typing import NamedTuple, TypeAlias

Verdict: TypeAlias = bool | None
"""True counts towards a rate, False does not; None is no verdict, and is kept out of it."""

Z = 1.96  # of the normal distribution, for 95 %


class Unit(NamedTuple):
    """What a column counts in, and how it is shown."""

    name: str
    least: float = 0.0
    most: float = float("inf")
    digits: int = 1
    """Behind the point."""
    gap: str = ""
    """What a difference of two is counted in."""
    is_ratio: bool = False
    """It is averaged in its logarithm, and two are compared by their ratio."""
    in_steps: bool = False
    """It takes few values: that some prompts are all alike does not show that others would be."""

    @property
    def versus(self) -> str:
        """The word between two that are compared."""
        return "over" if self.is_ratio else "minus"

    @property
    def no_gap(self) -> float:
        """What two that are equal differ by."""
        return 1.0 if self.is_ratio else 0.0

    def averaged(self, shown: float) -> float:
        """A value as means and differences are taken of it."""
        return log(shown) if self.is_ratio else shown

    def shown(self, averaged: float) -> float:
        """The other way round, and of a difference the ratio; NaN stays NaN."""
        return exp(min(averaged, MOST_LOG)) if self.is_ratio and not isnan(averaged) else averaged

    def within(self, value: float) -> float:
        """The value, held within what the unit can be; NaN stays NaN."""
        return value if isnan(value) else min(max(value, self.least), self.most)


MOST_LOG = 700.0  # whose exponential is still a number
PERCENT = Unit("percent", most=100.0, gap="points")


class Rate(NamedTuple):
    """The share of answers that a judge counts, as it stands in `eval.json`."""

    mean: float
    """Percent of the verdicts, or a mean in another `unit`."""
    low: float
    """In the same unit; lower end of the 95 % interval over prompts. NaN, null in files: there is none."""
    high: float
    """In the same unit; its upper end, NaN in the same way."""
    prompts: int
    """Prompts with at least one verdict."""
    without_verdict: int = 0
    """Answers that the judge could tell nothing about, and prompts without an answer: in no other of these numbers."""
    judge: str = ""
    """Who gave the verdicts: a name of `JUDGES`, the user's own, `exact_match`, or `likelihood`."""
    answers: int = 0
    """Answers that were given, samples included; of `likelihood`, choices."""
    empty: int = 0
    """Answers without a word, whatever made them so: no verdict by a judge of texts, wrong by `exact_match`."""
    cut_off: int = 0
    """Answers without an end within `eval.max_new_tokens`: no verdict, unless `eval.cut_off` has them judged, and wrong
    by `exact_match`; of `likelihood`, choices with an answer longer than `data.max_length`, which have no verdict.
    """
    non_finite: int = 0
    """Of the empty ones, those that are none because the logits were no numbers (NaN, infinity), or all one."""
    unit: str = PERCENT.name
    """Of mean, low and high: `percent`, `nats a token`, `perplexity`, `mark of 10`."""

    def interval(self, digits: int) -> str:
        """The interval as a person reads it: `[70.1, 80.2]`; `[?]` where there is none."""
        if isnan(self.low):
            return "[?]"
        return f"[{self.low:.{digits}f}, {self.high:.{digits}f}]"

    @classmethod
    def of(cls, verdicts: Sequence[Sequence[Verdict]], judge: str = "") -> "Rate | None":
        """The rate of verdicts on the answers to each prompt; None where there is no verdict at all.

        Wilson's interval (1927) with as many trials as there are prompts, which holds near 0 and 100. A prompt counts
        once however often it was sampled: for several samples the interval is conservative.
        """
        known = [verdict for samples in verdicts for verdict in samples if verdict is not None]
        if not known:
            return None
        n = sum(any(verdict is not None for verdict in samples) for samples in verdicts)
        share = sum(known) / len(known)
        low, high = wilson(share, n)
        return cls(100 * share, 100 * low, 100 * high, n, without_verdict(verdicts), judge)


def without_verdict(verdicts: Sequence[Sequence[Verdict]]) -> int:
    """How many answers have no verdict, plus how many prompts have no answer."""
    return sum(samples.count(None) if len(samples) else 1 for samples in map(list, verdicts))


def wilson(share: float, n: int) -> tuple[float, float]:
    """(low, high) of the 95 % interval of a share of n trials (Wilson 1927)."""
    scale = 1 + Z * Z / n
    middle = (share + Z * Z / (2 * n)) / scale
    margin = Z * (share * (1 - share) / n + Z * Z / (4 * n * n)) ** 0.5 / scale
    # at 0 and 1 rounding may put a limit on the wrong side of the share
    low = min(max(middle - margin, 0.0), share)
    high = max(min(middle + margin, 1.0), share)
    return low, high
