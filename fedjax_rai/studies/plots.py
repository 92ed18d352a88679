"""Pictures of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_rai.runs.picture import COLOURS, SYNTHETIC
from fedjax_rai.runs.picture import figure as new_figure
from fedjax_rai.studies.results import MAIN, Cell

MARKERS = "osD^vPX"
Cells = Mapping[str, Sequence[Cell | None]]


def plot_arms(path: Path, arms: Sequence[str], cells: Cells, names: Mapping[str, str], synthetic: bool) -> None:
    """Harmless rate, HHH, utility and over-refusal of each arm, with their intervals, as a PNG."""
    shown = measured(cells)
    figure = new_figure(1.6 * len(arms) + 2.5, 4.2)
    axes = figure.subplots()
    width = 0.8 / max(len(shown), 1)
    for i, (rate, own) in enumerate(shown.items()):
        at = [x + (i - (len(shown) - 1) / 2) * width for x in range(len(arms))]
        means = [c.mean for c in own]
        axes.bar(at, means, width, yerr=_margins(own), capsize=2, label=names[rate], error_kw={"linewidth": 1})
    axes.set_xticks(range(len(arms)), arms)
    axes.set_title(SYNTHETIC if synthetic else "", fontsize=10)
    _percent(axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=4, frameon=False)
    figure.savefig(path)


def plot_sweep(
    path: Path, key: str, labels: Sequence[str], cells: Cells, names: Mapping[str, str], seconds: Sequence[float],
    probes: Sequence[Mapping[int, float]], synthetic: bool,
) -> None:  # fmt: skip
    """Rates by swept value, harmless rate by what CAI costs and, where there is one, the probe by round; as a PNG.

    `labels`, `seconds` and `probes` (percent safe by round; empty: none) go by point, like the cells.
    """
    panels = 3 if any(probes) else 2
    figure = new_figure(5.2 * panels, 4.6)
    axes = figure.subplots(1, panels)
    _rates(axes[0], key, labels, measured(cells), names)
    _costs(axes[1], key, labels, cells["harmless"], seconds)
    if any(probes):
        _probes(axes[2], key, labels, probes)
    figure.suptitle(SYNTHETIC if synthetic else "", fontsize=10)
    _spread(figure, axes[1])
    figure.savefig(path)


def measured(cells: Cells) -> dict[str, list[Cell]]:
    """The rates to show that every point has."""
    found = {}
    for rate in MAIN:
        known = [cell for cell in cells.get(rate, ()) if cell]
        if known and len(known) == len(cells[rate]):
            found[rate] = known
    return found


def _rates(axes: Any, key: str, labels: Sequence[str], cells: Mapping[str, list[Cell]], names: Mapping) -> None:
    """A line for each rate through evenly spaced values that are numbers; else markers alone."""
    line, apart = ("-", 0.06) if all(map(_is_number, labels)) else ("", 0.15)
    for i, (rate, own) in enumerate(cells.items()):
        at = [x + apart * (i - (len(cells) - 1) / 2) for x in range(len(labels))]
        means = [c.mean for c in own]
        marker, colour = MARKERS[i % len(MARKERS)], COLOURS[i % len(COLOURS)]
        axes.errorbar(
            at, means, _margins(own), fmt=marker + line, color=colour, label=names[rate],
            markersize=4, capsize=2, linewidth=1,
        )  # fmt: skip
    tilted = {"rotation": 30, "ha": "right"} if sum(map(len, labels)) > 40 else {}
    axes.set_xticks(range(len(labels)), labels, fontsize=8, **tilted)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xlabel(key)
    _percent(axes, low=-3.0)  # a marker at 0 is seen whole
    if cells:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=8, columnspacing=1)


def _costs(
    axes: Any, key: str, labels: Sequence[str], harmless: Sequence[Cell | None], seconds: Sequence[float]
) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white")]  # a label is legible across another point's interval
    for label, own, at in zip(labels, harmless, seconds, strict=True):
        if own:
            axes.errorbar(
                [at], [own.mean], _margins([own]), fmt="o", color=COLOURS[0], markersize=4, capsize=2, elinewidth=1
            )
            axes.annotate(label, (at, own.mean), (5, 4), textcoords="offset points", fontsize=8, path_effects=halo)
    axes.set_xlabel("CAI, seconds a run")
    axes.set_ylabel("harmless, percent")
    axes.set_title(f"points: {key}", fontsize=8)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def _probes(axes: Any, key: str, labels: Sequence[str], probes: Sequence[Mapping[int, float]]) -> None:
    """A line for each point, from dark to light in the order of the points."""
    from matplotlib import colormaps

    for i, (label, own) in enumerate(zip(labels, probes, strict=True)):
        colour = colormaps["viridis"](0.85 * i / max(len(labels) - 1, 1))
        axes.plot(list(own), list(own.values()), "o-", color=colour, label=label, markersize=3, linewidth=1)
    axes.set_xlabel("round, before its CAI phase")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _percent(axes, "safe answers to the probe, percent", -3.0)
    axes.legend(title=key, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, title_fontsize=8)


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
    """Below and above, as matplotlib's error bars want them."""
    return [[c.mean - c.low for c in cells], [c.high - c.mean for c in cells]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
