"""Pictures of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.runs.palette import COLOURS, colour, marker
from fedjax_rai.runs.picture import SYNTHETIC
from fedjax_rai.runs.picture import figure as new_figure
from fedjax_rai.studies.cells import Cell
from fedjax_rai.studies.panels import Panel, Series
from fedjax_rai.studies.results import MAIN, Cells


def plot_arms(path: Path, arms: Sequence[str], cells: Cells, names: Mapping[str, str], synthetic: bool) -> None:
    """The main rates of each arm, with their intervals, as a PNG."""
    shown = measured(cells)
    figure = new_figure(max(1.6 * len(arms) + 2.5, 7.0), 4.2)  # a legend has room beside one arm, too
    axes = figure.subplots()
    distance = 0.6 / max(len(shown), 1)
    for i, (rate, rate_cells) in enumerate(shown.items()):
        axes.errorbar(
            _beside_ticks(len(arms), distance, i, len(shown)),
            [cell.mean for cell in rate_cells],
            _margins(rate_cells),
            fmt=marker(i),
            color=colour(i),
            label=names[rate],
            markersize=5,
            capsize=2,
            linewidth=1,
        )
    axes.set_xticks(range(len(arms)), arms)
    axes.set_title(SYNTHETIC if synthetic else "", fontsize=10)
    axes.set_xlim(-0.5, len(arms) - 0.5)
    _percent(axes, low=-3.0)  # a marker at 0 is seen whole
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=4, frameon=False)
    figure.savefig(path)


def _beside_ticks(ticks: int, width: float, i: int, count: int) -> list[float]:
    """Where the i-th of `count` marks of that width lies at every tick, all of them centred on the tick."""
    offset = width * (i - (count - 1) / 2)
    return [tick + offset for tick in range(ticks)]


class SweptPoints(NamedTuple):
    """What a picture shows of a sweep's points besides their rates; sequences go by point."""

    key: str  # that is swept
    labels: Sequence[str]  # its values
    seconds: Sequence[float]  # of CAI in a run
    probes: Sequence[Mapping[int, float]]  # percent of safe answers by round; empty: there is no probe


def plot_sweep(path: Path, points: SweptPoints, cells: Cells, names: Mapping[str, str], synthetic: bool) -> None:
    """Rates by swept value, harmless rate by what CAI costs and, where there is one, the probe by round; as a PNG.

    `cells`: rate -> its cell for each point; `names`: rate -> what the legend calls it.
    """
    has_probes = any(points.probes)
    panels = 3 if has_probes else 2
    figure = new_figure(5.2 * panels, 4.6)
    axes = figure.subplots(1, panels)
    _rates(axes[0], points, measured(cells), names)
    _costs(axes[1], points, cells["harmless"], names["harmless"])
    if has_probes:
        _probes(axes[2], points)
    figure.suptitle(SYNTHETIC if synthetic else "", fontsize=10)
    _spread(figure, axes[1])
    figure.savefig(path)


def measured(cells: Cells) -> dict[str, list[Cell]]:
    """The cells of the rates that pictures show and every point has."""
    found = {}
    for rate in MAIN:
        known = [cell for cell in cells.get(rate, ()) if cell]
        if known and len(known) == len(cells[rate]):
            found[rate] = known
    return found


def _rates(axes: Any, points: SweptPoints, cells: Mapping[str, list[Cell]], names: Mapping[str, str]) -> None:
    """A line for each rate through evenly spaced values that are numbers; else markers alone."""
    line = ""
    distance = 0.15
    if all(_is_number(label) for label in points.labels):
        line = "-"
        distance = 0.06
    for i, (rate, rate_cells) in enumerate(cells.items()):
        means = [cell.mean for cell in rate_cells]
        axes.errorbar(
            _beside_ticks(len(points.labels), distance, i, len(cells)),
            means,
            _margins(rate_cells),
            fmt=marker(i) + line,
            color=colour(i),
            label=names[rate],
            markersize=4,
            capsize=2,
            linewidth=1,
        )
    is_crowded = sum(len(label) for label in points.labels) > 40
    tilted = {"rotation": 30, "ha": "right"} if is_crowded else {}
    axes.set_xticks(range(len(points.labels)), points.labels, fontsize=8, **tilted)
    axes.set_xlim(-0.5, len(points.labels) - 0.5)
    axes.set_xlabel(points.key)
    _percent(axes, low=-3.0)  # a marker at 0 is seen whole
    if cells:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=8, columnspacing=1)


def _costs(axes: Any, points: SweptPoints, harmless: Sequence[Cell | None], name: str) -> None:
    """The harmless rate of each point, by its name with the judge, by the seconds that CAI takes in a run."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white")]  # a label is legible across another point's interval
    style = {"fmt": "o", "color": COLOURS[0], "markersize": 4, "capsize": 2, "elinewidth": 1}
    for label, cell, seconds in zip(points.labels, harmless, points.seconds, strict=True):
        if cell:
            axes.errorbar([seconds], [cell.mean], _margins([cell]), **style)
            place = (seconds, cell.mean)
            axes.annotate(label, place, (5, 4), textcoords="offset points", fontsize=8, path_effects=halo)
    axes.set_xlabel("CAI, seconds a run")
    axes.set_ylabel(f"{name}, percent")
    axes.set_title(f"points: {points.key}", fontsize=8)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def _probes(axes: Any, points: SweptPoints) -> None:
    """A line for each point, from dark to light in the order of the points."""
    from matplotlib import colormaps

    last = max(len(points.labels) - 1, 1)
    for i, (label, safe) in enumerate(zip(points.labels, points.probes, strict=True)):
        colour = colormaps["viridis"](0.85 * i / last)  # the lightest would be too light on white
        axes.plot(list(safe), list(safe.values()), "o-", color=colour, label=label, markersize=3, linewidth=1)
    axes.set_xlabel("round, before its CAI phase")
    axes.set_xlim(0, max(t for safe in points.probes for t in safe) + 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _percent(axes, "safe answers to the probe, percent", -3.0)
    axes.legend(
        title=points.key, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, title_fontsize=8
    )


def _spread(figure: Any, axes: Any) -> None:
    """Move labels up until none lies on another."""
    figure.canvas.draw()
    figure.set_layout_engine("none")  # else moving a label would move everything
    boxes: list[Any] = []
    for text in axes.texts:
        while any(text.get_window_extent().padded(1).overlaps(other) for other in boxes):
            x, y = text.get_position()
            text.set_position((x, y + 2))
        boxes.append(text.get_window_extent())


def _percent(axes: Any, label: str = "percent, 95 % intervals", low: float = 0.0) -> None:
    axes.set_ylim(low, 105)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _margins(cells: Sequence[Cell]) -> list[list[float]]:
    """How far the intervals reach below and above the means, as matplotlib's error bars want it."""
    below = [cell.mean - cell.low for cell in cells]
    above = [cell.high - cell.mean for cell in cells]
    return [below, above]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def draw_panel(path: Path, panel: Panel, synthetic: bool) -> None:
    """A panel of the report, as a PNG, which bears the page's word on synthetic numbers itself."""
    is_rows = not panel.y.label
    figure = new_figure(5.4, 1.0 + 0.3 * max(len(panel.y.ticks), 2) if is_rows else 4.0)
    axes = figure.subplots()
    for series in panel.series:
        _draw_series(axes, series)
    for bar in panel.bars:
        axes.barh(bar.y, bar.end - bar.start, left=bar.start, height=0.55, color=colour(bar.look))
    if panel.rule is not None:
        axes.axvline(panel.rule, color="#888888", linestyle=":", linewidth=1)
    if panel.diagonal:
        axes.plot([panel.x.low, panel.x.high], [panel.y.low, panel.y.high], color="#888888", linestyle=":", linewidth=1)
    axes.set(xlim=(panel.x.low, panel.x.high), ylim=(panel.y.low, panel.y.high), xlabel=panel.x.label)
    axes.set_ylabel(panel.y.label)
    axes.set_xticks(*zip(*panel.x.ticks, strict=True), fontsize=8)
    axes.set_yticks(*zip(*panel.y.ticks, strict=True), fontsize=8)
    axes.set_title(f"{panel.title}\n{SYNTHETIC}" if synthetic else panel.title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.legend:
        axes.legend(handles=[_handle(panel, *entry) for entry in panel.legend], frameon=False, fontsize=8, loc="best")
    figure.savefig(path)


def _draw_series(axes: Any, series: Series) -> None:
    if series.line:
        x, y = zip(*((point.x, point.y) for point in series.points), strict=True)
        axes.plot(x, y, "-", color=colour(series.look), linewidth=1)
    for point in series.points if series.dots else ():
        across = None if point.x_range is None else [[point.x - point.x_range[0]], [point.x_range[1] - point.x]]
        up = None if point.y_range is None else [[point.y - point.y_range[0]], [point.y_range[1] - point.y]]
        style = {"fmt": marker(series.look), "color": colour(series.look), "markersize": 5, "elinewidth": 1}
        axes.errorbar(point.x, point.y, up, across, clip_on=False, **style)


def _handle(panel: Panel, name: str, look: int) -> Any:
    """A legend's entry."""
    from matplotlib.lines import Line2D

    shape = "s" if panel.bars else marker(look)
    return Line2D([], [], color=colour(look), marker=shape, linestyle="", label=name, markersize=5)
