"""What a report draws: arms' rates, differences, rounds, judges, clients, costs and the filter's curves, as panels."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedjax_rai.data.summary import Client
from fedjax_rai.evals.intervals import Difference
from fedjax_rai.evals.rate import PERCENT, Unit, wilson
from fedjax_rai.runs.rows import Round
from fedjax_rai.studies.cells import Cell, gap_interval, gap_text
from fedjax_rai.studies.gathered import Arm
from fedjax_rai.studies.panels import (
    LEAST_SPAN,
    Bar,
    Panel,
    Point,
    Series,
    axis_of,
    named_axis,
    number_axis,
    percent_axis,
    row,
)
from fedjax_rai.studies.results import Cells

MOST_CLIENTS = 30
"""Clients of which a picture has a row."""
PHASES = {"local training": "local_seconds", "probe": "probe_seconds", "CAI": "cai_seconds"}
KEPT_HARMFUL, KEPT, DROPPED = 1, 0, 5  # looks


def rates(labels: Sequence[str], titles: Mapping[str, str], cells: Cells) -> list[Panel]:
    """A panel for each rate: a dot with its interval for each arm that was measured."""
    panels = []
    for rate, title in titles.items():
        points = []
        for i, rate_cell in enumerate(cells[rate]):
            if rate_cell:
                points.append(_across(i, labels, rate_cell))
        if points:
            axis = axis_of("", _unit(cells[rate]), _ends(points))
            panels.append(Panel(title, axis, named_axis(labels), [Series(title, points, 0)]))
    return panels


def _across(i: int, labels: Sequence[str], rate_cell: Cell) -> Point:
    note = f"{labels[i]}: {rate_cell}"
    return Point(rate_cell.mean, row(i, labels), rate_cell.ends, note=note)


def _unit(rate_cells: Sequence[Cell | None]) -> Unit:
    """What the cells of a rate are counted in."""
    return next((rate_cell.unit for rate_cell in rate_cells if rate_cell), PERCENT)


def _ends(points: Sequence[Point]) -> list[float]:
    """Where dots and intervals along x end."""
    return [value for point in points for value in (point.x, *(point.x_range or ()))]


def differences(title: str, reference: str, found: Mapping[str, Difference]) -> Panel:
    """Arms minus the reference, or over it, in their unit; a thin line where two are equal."""
    labels = list(found)
    unit = next(iter(found.values())).unit
    against = f"{unit.versus} {reference}"
    points = []
    for i, (label, gap) in enumerate(found.items()):
        note = f"{label} {against}: {gap_text(gap.mean, unit)} {gap_interval(gap)}"
        points.append(Point(gap.mean, row(i, labels), gap.ends, note=note))
    least_span = LEAST_SPAN if unit == PERCENT else 0.0
    axis = number_axis(f"{unit.gap}, {against}", [unit.no_gap, *_ends(points)], least_span=least_span)
    return Panel(title, axis, named_axis(labels), [Series(title, points, 0)], rule=unit.no_gap)


def probes(arms: Sequence[Arm]) -> Panel | None:
    """Safe answers to the probe by round, mean over seeds, with Wilson's interval; None: no probe."""
    series = []
    for i, arm in enumerate(arms):
        asked = arm.first.config.cai.probe
        points = []
        for t, shares in _by_round(arm, lambda done: done.probe and done.probe.harmless).items():
            mean = float(np.mean(shares))
            low, high = wilson(mean, asked) if asked else (mean, mean)
            note = f"{arm.label}, round {t}: {100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            points.append(Point(float(t), 100 * mean, y_range=(100 * low, 100 * high), note=note))
        if points:
            series.append(Series(arm.label, points, i, line=True))
    if not series:
        return None
    ends = [value for drawn in series for point in drawn.points for value in (point.y_range or ())]
    return _over_rounds("Safe answers to the probe", series, percent_axis("percent, by the guard", ends))


def losses(arms: Sequence[Arm]) -> Panel | None:
    """The clients' training loss by round, mean over seeds; None without rounds."""
    series = []
    for i, arm in enumerate(arms):
        means = {t: float(np.mean(values)) for t, values in _by_round(arm, lambda done: done.train_loss).items()}
        points = [Point(float(t), mean, note=f"{arm.label}, round {t}: {mean:.3f}") for t, mean in means.items()]
        if points:
            series.append(Series(arm.label, points, i, line=True, dots=len(points) < 30))
    if not series:
        return None
    values = [point.y for drawn in series for point in drawn.points]
    return _over_rounds("Training loss of the clients", series, number_axis("nats a token", values, zero=True))


def _by_round(arm: Arm, read) -> dict[int, list[float]]:
    """Round -> a number of each seed that has one."""
    found: dict[int, list[float]] = {}
    for run in arm.runs:
        for done in run.rounds:
            value = read(done)
            if value is not None and np.isfinite(value):
                found.setdefault(done.round, []).append(value)
    return dict(sorted(found.items()))


def _over_rounds(title: str, series: Sequence[Series], y) -> Panel:
    rounds = [point.x for drawn in series for point in drawn.points]
    legend = [(drawn.name, drawn.look) for drawn in series]
    return Panel(title, number_axis("round", rounds, zero=True, least_span=2.0, whole=True), y, series, legend=legend)


def against(labels: Sequence[str], x: tuple[str, Sequence[Cell | None]], y: tuple[str, Sequence[Cell | None]]) -> Panel:
    """One rate of every arm against another, both with intervals; each is a title and its cells."""
    series = []
    for i, (label, across, up) in enumerate(zip(labels, x[1], y[1], strict=True)):
        if across and up:
            note = f"{label}: {x[0]} {across}, {y[0]} {up}"
            point = Point(across.mean, up.mean, across.ends, up.ends, note)
            series.append(Series(label, [point], i))
    across_ends = [end for drawn in series for point in drawn.points for end in (point.x_range or ())]
    up_ends = [end for drawn in series for point in drawn.points for end in (point.y_range or ())]
    legend = [(drawn.name, drawn.look) for drawn in series]
    axes = axis_of(x[0], _unit(x[1]), across_ends), axis_of(y[0], _unit(y[1]), up_ends)
    return Panel(f"{x[0]} against {y[0]}", *axes, series, legend=legend)


def by_number(title: str, label: str, points: Sequence[tuple[str, int, float, Cell]], rate: str) -> Panel:
    """A rate by what an arm has or costs; `points`: (arm, look, number, cell)."""
    series = []
    for arm, look, number, rate_cell in points:
        note = f"{arm}: {number:g}, {rate_cell}"
        point = Point(number, rate_cell.mean, y_range=(rate_cell.low, rate_cell.high), note=note)
        series.append(Series(arm, [point], look))
    ends = [end for *_, rate_cell in points for end in (rate_cell.low, rate_cell.high)]
    x = number_axis(label, [number for _, _, number, _ in points], zero=True)
    legend = [(drawn.name, drawn.look) for drawn in series]
    return Panel(title, x, axis_of(rate, _unit([points[0][-1]]), ends), series, legend=legend)


def by_judge(title: str, labels: Sequence[str], cells: Mapping[str, Sequence[Cell | None]]) -> Panel:
    """Every arm by every judge; `cells`: judge -> its cell of each arm."""
    series = []
    for look, (judge, judge_cells) in enumerate(cells.items()):
        shift = 0.5 * ((len(cells) - 1) / 2 - look) / max(len(cells), 1)
        points = []
        for i, rate_cell in enumerate(judge_cells):
            if rate_cell:
                point = _across(i, labels, rate_cell)
                points.append(point._replace(y=point.y + shift, note=f"{judge}, {point.note}"))
        series.append(Series(judge, points, look))
    ends = [end for drawn in series for end in _ends(drawn.points)]
    legend = [(drawn.name, drawn.look) for drawn in series]
    return Panel(title, percent_axis("percent", ends), named_axis(labels), series, legend=legend)


def clients(title: str, held: Sequence[Client]) -> Panel:
    """What each client holds: kept and harmful, kept and other, dropped by its filter."""
    shown = held[:MOST_CLIENTS]
    names = [str(i) for i in range(len(shown))]
    bars = []
    for i, client in enumerate(shown):
        kept = client.pairs if client.kept is None else client.kept
        harmful = client.harmful if client.kept_harmful is None else client.kept_harmful
        note = f"client {i}: {client.pairs} pairs, {client.harmful} harmful; kept {kept}, of them {harmful} harmful"
        start = 0
        for count, look in ((harmful, KEPT_HARMFUL), (kept - harmful, KEPT), (client.pairs - kept, DROPPED)):
            if count:
                bars.append(Bar(row(i, names), float(start), float(start + count), look, note))
            start += count
    x = number_axis("pairs", [float(client.pairs) for client in shown], zero=True)
    legend = [("kept, harmful", KEPT_HARMFUL), ("kept, other", KEPT)]
    if any(client.kept is not None for client in shown):
        legend.append(("dropped by the filter", DROPPED))
    return Panel(title, x, named_axis(names), bars=bars, legend=legend)


def seconds(arm: Arm) -> dict[str, float]:
    """Seconds of each phase over all rounds, and of the evaluation, compiling included; mean over seeds."""
    totals: dict[str, list[float]] = {}
    for run in arm.runs:
        for phase in PHASES:
            totals.setdefault(phase, []).append(sum(_seconds(done, phase) for done in run.rounds))
        totals.setdefault("evaluation", []).append(run.summary["seconds"]["evaluation"])
    return {phase: float(np.mean(values)) for phase, values in totals.items()}


def _seconds(done: Round, phase: str) -> float:
    if phase == "probe":
        return done.probe.seconds if done.probe else 0.0
    return getattr(done, PHASES[phase])


def times(labels: Sequence[str], by_arm: Sequence[Mapping[str, float]]) -> Panel:
    """A bar for each arm, of its phases."""
    phases = list(by_arm[0])
    bars = []
    for i, spent in enumerate(by_arm):
        start = 0.0
        for look, phase in enumerate(phases):
            if spent[phase]:
                note = f"{labels[i]}, {phase}: {spent[phase]:.1f} s"
                bars.append(Bar(row(i, labels), start, start + spent[phase], look, note))
            start += spent[phase]
    shown = [look for look, phase in enumerate(phases) if any(spent[phase] for spent in by_arm)]
    x = number_axis("seconds", [sum(spent.values()) for spent in by_arm], zero=True)
    return Panel("Seconds by phase", x, named_axis(labels), bars=bars, legend=[(phases[i], i) for i in shown])


def byte_unit(size: int) -> tuple[int, str]:
    """(bytes, name) of the unit in which so many bytes are shown: MiB below a tenth of a GiB."""
    return (2**30, "GiB") if size >= 2**30 / 10 else (2**20, "MiB")


def memory(title: str, labels: Sequence[str], dots: Mapping[str, Sequence[Sequence[tuple[int, int]]]]) -> Panel | None:
    """A dot for each run; `dots`: what was held -> of each arm (seed, bytes). None without any."""
    every = [size for by_arm in dots.values() for of_arm in by_arm for _, size in of_arm]
    if not every:
        return None
    unit, name = byte_unit(max(every))
    series = []
    for look, (what, by_arm) in enumerate(dots.items()):
        shift = 0.4 * ((len(dots) - 1) / 2 - look)
        points = []
        for i, of_arm in enumerate(by_arm):
            for seed, size in of_arm:
                note = f"{labels[i]}, seed {seed}: {size / unit:.2f} {name} {what}"
                points.append(Point(size / unit, row(i, labels) + shift, note=note))
        if points:
            series.append(Series(what, points, look))
    x = number_axis(name, [max(every) / unit], zero=True)
    return Panel(title, x, named_axis(labels), series, legend=[(drawn.name, drawn.look) for drawn in series])
