"""The picture of one run: its loss, how safe it is, and where its seconds went."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_rai.evals.judge import title_of
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import SUMMARY
from fedjax_rai.runs.palette import COLOURS
from fedjax_rai.runs.record import METRICS

PICTURE = "run.png"
SYNTHETIC = "synthetic tiny world"
NAN = float("nan")
# what a row's seconds of each phase are called; the evaluation's stand in the summary
PHASES = {"local training": "local_seconds", "probe": "probe_seconds", "CAI": "cai_seconds"}

Rows = Sequence[Mapping[str, Any]]


def draw_run(folder: Path) -> None:
    """Write run.png into the folder of a finished run: loss and safety by round, seconds by phase.

    Drawn from metrics.jsonl and summary.json alone. A run without rounds has no loss.
    """
    rows = files.read_rows(folder / METRICS)
    summary = files.read_object(folder / SUMMARY)
    panels: list[Callable[[Any], None]] = [
        lambda axes: draw_safety(axes, rows, summary),
        lambda axes: draw_seconds(axes, seconds_by_phase(rows, summary)),
    ]
    if rows:
        panels.insert(0, lambda axes: draw_loss(axes, rows))
    made = figure(4.0 * len(panels), 3.2)
    for axes, panel in zip(made.subplots(1, len(panels)), panels, strict=True):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
    made.suptitle(f"{folder.name}, {SYNTHETIC}" if summary["synthetic"] else folder.name, fontsize=10)
    made.savefig(folder / PICTURE)


def draw_loss(axes: Any, rows: Rows) -> None:
    """The clients' training loss by round; a gap where it was no number."""
    rounds = [row["round"] for row in rows]
    losses = [NAN if row["train_loss"] is None else row["train_loss"] for row in rows]
    axes.plot(rounds, losses, "o-", color=COLOURS[0], markersize=3, linewidth=1)
    axes.set_ylabel("training loss of the clients")
    by_round(axes, rounds[-1])


def draw_safety(axes: Any, rows: Rows, summary: Mapping[str, Any]) -> None:
    """Safe answers to the probe by round, where there is one, and the harmless rate of the finished run.

    Both in percent; the rate with its 95 % interval over prompts.
    """
    probed = [row for row in rows if row.get("probe_harmless") is not None]
    if probed:
        rounds = [row["round"] for row in probed]
        percent = [100 * row["probe_harmless"] for row in probed]
        label = "probe, by guard, before CAI"
        axes.plot(rounds, percent, "o-", color=COLOURS[2], markersize=3, linewidth=1, label=label)
    harmless = summary["rates"].get("harmless")
    if harmless:
        by = f", by {title_of(harmless['judge'])}" if harmless.get("judge") else ""  # an older version ran
        margins = [[harmless["mean"] - harmless["low"]], [harmless["high"] - harmless["mean"]]]
        style = {"fmt": "s", "color": COLOURS[1], "capsize": 2, "label": f"evaluation{by}"}
        axes.errorbar([summary["rounds"]], [harmless["mean"]], margins, **style)
    axes.set_ylim(-3, 105)  # a marker at 0 is seen whole
    axes.set_ylabel("harmless, percent")
    by_round(axes, summary["rounds"])
    if probed or harmless:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=8)


def seconds_by_phase(rows: Rows, summary: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each phase over all rounds, compiling included, and of the evaluation; only phases that took any."""
    totals = {phase: sum(row.get(key) or 0.0 for row in rows) for phase, key in PHASES.items()}
    spent = {phase: seconds for phase, seconds in totals.items() if seconds > 0}
    return spent | {"evaluation": summary["seconds"]["evaluation"]}


def draw_seconds(axes: Any, seconds: Mapping[str, float]) -> None:
    """A bar for each phase, the first on top."""
    bars = axes.barh(list(seconds), list(seconds.values()), color=COLOURS[0], height=0.6)
    axes.bar_label(bars, [f"{value:.1f}" for value in seconds.values()], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("seconds in all, compiling included")


def by_round(axes: Any, last: int) -> None:
    """Whole rounds along the axis, up to the last one."""
    axes.set_xlabel("round")
    axes.set_xlim(0, last + 1)
    axes.xaxis.get_major_locator().set_params(integer=True)


def figure(width: float, height: float) -> Any:
    """A figure of that many inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(made)
    return made
