"""Pictures as values: points with intervals, lines and bars on axes to scale. `svg` and `plots` draw them."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedjax_rai.evals.rate import PERCENT, Unit

LEAST_SPAN = 20.0
"""The least number of percentage points that an axis shows: a difference of one is not to look like an effect."""
TICKS = (1.0, 2.0, 2.5, 5.0, 10.0)


class Point(NamedTuple):
    """A dot, with its interval along either axis where there is one."""

    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    note: str = ""
    """What a pointer over it shows."""


class Series(NamedTuple):
    """Points of one colour and marker."""

    name: str
    points: Sequence[Point]
    look: int
    """Which colour and marker, by its place in the palette: the same arm looks the same everywhere."""
    line: bool = False
    """Points are joined, in their order."""
    dots: bool = True


class Bar(NamedTuple):
    """A part of a horizontal bar."""

    y: float
    start: float
    end: float
    look: int
    note: str = ""


class Axis(NamedTuple):
    """One axis, to scale."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def place(self, value: float) -> float:
        """Where a value lies, from 0 (`low`) to 1 (`high`)."""
        return (value - self.low) / (self.high - self.low)


class Panel(NamedTuple):
    """One picture."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series] = ()
    bars: Sequence[Bar] = ()
    legend: Sequence[tuple[str, int]] = ()
    """(name, look) of what is told apart by colour; none where rows are named on the axis."""
    rule: float | None = None
    """Where a thin line stands along x, as at a difference of 0."""
    diagonal: bool = False
    """A thin line from corner to corner, of chance or of perfect calibration."""

    @property
    def name(self) -> str:
        """For a file."""
        kept = [letter if letter.isalnum() else "-" for letter in self.title.lower()]
        return "-".join(part for part in "".join(kept).split("-") if part)


def step_of(span: float, most: int) -> float:
    """The least round step that makes at most so many ticks."""
    least = span / most
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * tick for tick in TICKS if power * tick >= least * (1 - 1e-9))


def number_axis(
    label: str, values: Iterable[float], most: int = 6, least_span: float = 0.0, zero: bool = False, whole: bool = False
) -> Axis:
    """An axis of round ticks that holds all values (ends of intervals among them), no narrower than `least_span`.

    `zero`: it begins at 0 at the latest; `whole`: its ticks are whole numbers. Without a value it goes from 0 to 1.
    """
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    if zero:
        known.append(0.0)
    low, high = min(known), max(known)
    span = max(high - low, least_span) or abs(high) or 1.0
    missing = (span - (high - low)) / 2
    step = step_of(span, most)
    step = max(step, 1.0) if whole else step
    begin = math.floor((low - missing) / step + 1e-9)
    end = math.ceil((high + missing) / step - 1e-9)
    if zero and low == 0.0:
        end, begin = end - begin, 0
    ticks = [(i * step, f"{i * step:g}") for i in range(begin, max(end, begin + 1) + 1)]
    return Axis(label, ticks[0][0], ticks[-1][0], ticks)


def percent_axis(label: str, values: Iterable[float]) -> Axis:
    """0 to 100, or as much of it as all intervals need: at least 20 points, and the label says what is cut."""
    known = [min(max(value, 0.0), 100.0) for value in values if math.isfinite(value)] or [0.0, 100.0]
    low = 10 * math.floor(min(known) / 10)
    high = 10 * math.ceil(max(known) / 10)
    if high - low < LEAST_SPAN:
        low = min(low, 100 - LEAST_SPAN)
        high = low + LEAST_SPAN
    if high - low > 60:
        low, high = 0, 100
    step = 20 if high - low > 50 else 10 if high - low > 20 else 5
    ticks = [(float(value), str(value)) for value in range(int(low), int(high) + 1, step)]
    cut = "" if (low, high) == (0, 100) else f" (from {low:g} to {high:g})"
    return Axis(label + cut, float(low), float(high), ticks)


def axis_of(label: str, unit: Unit, values: Iterable[float]) -> Axis:
    """The axis of a rate in its unit, which stands behind the label."""
    named = f"{label}, {unit.name}" if label else unit.name
    return percent_axis(named, values) if unit == PERCENT else number_axis(named, values)


def named_axis(names: Sequence[str]) -> Axis:
    """A row for each name, the first on top."""
    last = len(names) - 1
    return Axis("", -0.6, last + 0.6, [(float(last - i), name) for i, name in enumerate(names)])


def row(i: int, names: Sequence[str]) -> float:
    """Where the i-th of these names stands on its axis."""
    return float(len(names) - 1 - i)
