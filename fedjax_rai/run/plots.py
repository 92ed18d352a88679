"""Pictures of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_arms(
    path: Path, arms: Sequence[str], cells: Mapping[str, Sequence[Any]], names: Mapping[str, str], synthetic: bool
) -> None:
    """Harmless rate, HHH, utility and over-refusal of each arm, with their intervals, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [rate for rate in ("harmless", "hhh", "utility", "over_refusal") if all(cells[rate])]
    figure = Figure(figsize=(1.6 * len(arms) + 2.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / max(len(shown), 1)
    for i, rate in enumerate(shown):
        at = [x + (i - (len(shown) - 1) / 2) * width for x in range(len(arms))]
        means = [c.mean for c in cells[rate]]
        margins = [[c.mean - c.low for c in cells[rate]], [c.high - c.mean for c in cells[rate]]]
        axes.bar(at, means, width, yerr=margins, capsize=2, label=names[rate], error_kw={"linewidth": 1})
    axes.set_xticks(range(len(arms)), arms)
    axes.set_ylim(0, 105)
    axes.set_ylabel("percent, 95 % intervals")
    axes.set_title("synthetic tiny world" if synthetic else "", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
