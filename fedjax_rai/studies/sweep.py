"""A sweep: one config at every combination of some keys' values, each a run; their table, numbers and picture."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai import terminal
from fedjax_rai.config.grid import Point
from fedjax_rai.config.load import dump_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.keeping import Store
from fedjax_rai.experiment.layout import choose_mesh
from fedjax_rai.experiment.setting import Setting, views
from fedjax_rai.experiment.together import but_numbers
from fedjax_rai.runs import compiled, files
from fedjax_rai.runs.beside import lanes_of
from fedjax_rai.runs.folder import check_folder, pins, run_folder
from fedjax_rai.runs.guards import KeptGuards
from fedjax_rai.runs.inputs import check_inputs
from fedjax_rai.runs.lockstep import run_beside, run_together
from fedjax_rai.runs.record import METRICS
from fedjax_rai.runs.rows import read_rounds
from fedjax_rai.runs.run import run
from fedjax_rai.studies.cells import Summary, paired, read_run
from fedjax_rai.studies.judged import agreement_tables, answer_columns, fitting
from fedjax_rai.studies.plots import SweptPoints, plot_sweep
from fedjax_rai.studies.results import (
    CSV_COLUMNS,
    Cells,
    answer_notes,
    basis,
    cells_of,
    check_same,
    is_synthetic,
    judge_notes,
    main_first,
    printed,
    prompt_note,
    rate_columns,
    rate_rows,
    shown_rates,
    to_csv,
    unmeasured_note,
    wide,
    with_notes,
    write_planned,
)

SWEEP = "sweep.yaml"


class Row(NamedTuple):
    """A row of the table: the runs that agree in all swept keys but the seed."""

    values: dict[str, str]  # of those keys
    folders: list[Path]
    summaries: list[Summary]

    @property
    def label(self) -> str:
        return ", ".join(self.values.values()) or "all seeds"


def thousands(tokens: float) -> str:
    """A number of tokens as the table shows it."""
    return f"{tokens / 1000:.1f}k"


def percent(value: float) -> str:
    """A percentage as the table shows it."""
    return f"{value:.0f} %"


# header: (where it stands in a summary, what nothing there means, how it is shown)
COSTS: dict[str, tuple[str, float | None, Callable[[float], str]]] = {
    "CAI s": ("cost.cai.seconds", 0.0, "{:.1f}".format),
    "seconds": ("seconds.training", None, "{:.1f}".format),
    "generated": ("cost.cai.generated_tokens", 0.0, thousands),
    "trained": ("cost.cai.trained_tokens", 0.0, thousands),
    "saved": ("cost.cai.share_saved", None, lambda share: percent(100 * share)),
    "made safe": ("critique.made_safe", None, percent),
    "left alone": ("critique.left_alone", None, percent),
}
LEGEND = (
    "CAI s: phases x the median one, rounds of points together shared out evenly; generated, trained: tokens of these "
    "phases; saved: of the FLOPs that revising all the server's prompts and training once on each would take; made "
    "safe: of the unsafe responses, by revision; left alone: of the safe ones."
)


def run_sweep(points: Sequence[Point], together: bool = False, margin: float | None = None) -> Path:
    """Run every point; write and print the table. Finished runs are kept, and unfinished ones gone on with.

    Returns the folder, in which each point has a run folder (`config.grid.load_sweep`). Points share what they can: a
    setting, a base, and up to the end of the first CAI phase all runs that differ in `cai.iterations` alone. Or
    `together`, those that differ in numbers alone are one vmapped axis, as many as memory allows. Raises InputError for
    that with a trigger, and for files that are not as they should be, before the first run. `margin`, in points: say
    of every difference whether two points are equivalent within it.
    """
    check_inputs(point.config for point in points)
    if together:
        check_together(points)
    folder = check_sweep(points)
    finished = [check_folder(output(point), point.config) for point in points]
    todo = [point for point, done in zip(points, finished, strict=True) if not done]
    compiled.keep_compiled()
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / SWEEP, dump_config(base_config(points)))
    write_planned(folder, map(output, points))
    arms = Arms(KeptGuards(folder))
    done = 0
    for group in with_one_mesh(points, todo, arms):
        for family in grouped(group, but_numbers if together else but_iterations):
            names = ", ".join(output(point).name for point in family)
            places = f"{done + 1} to {done + len(family)}" if len(family) > 1 else str(done + 1)
            terminal.say(f"[{places} of {len(points)}] {names}")
            unfinished = [point.config for point in family if point in todo]
            if together and len(family) > 1 and unfinished:
                run_together([arms.setting(point.config) for point in family])
            elif lanes_of(unfinished) > 1:
                run_family([point for point in family if point not in todo], arms)
                run_beside([arms.setting(config) for config in unfinished])
            else:
                run_family(family, arms)
            done += len(family)
    write(folder, points, margin)
    return folder


def with_one_mesh(points: Sequence[Point], todo: Sequence[Point], arms: "Arms") -> Iterator[list[Point]]:
    """Points that share all parts, together, those of one base after another; `arms` is ready for their settings.

    Where the mesh is left to the memory plan, each base has one that all of its points fit on. Finished points count,
    so that a sweep that is gone on with chooses as before.
    """
    for sharing in grouped(points, _base_of):
        groups = grouped(sharing, views)
        begun = [pins([point.config for point in group]) for group in groups]
        ready: list[list[Setting]] = []
        if sharing[0].config.mesh.auto and any(point in todo for point in sharing):
            for group, commits in zip(groups, begun, strict=True):
                arms.begun = commits
                ready.append([arms.setting(point.config) for point in group])
            choose_mesh([setting for settings in ready for setting in settings])
        for group, commits in zip(groups, begun, strict=True):
            arms.begun = commits
            if ready:
                arms.last = ready.pop(0)[-1]
            yield group


def _base_of(config: ExperimentConfig) -> Any:
    """What two points agree in that share a base."""
    return views(config)["Models"]


class Arms:
    """The settings of runs, one after another: each takes over from the one before what it shares with it."""

    def __init__(self, store: Store | None = None):
        """`store` keeps guards and scores for other processes."""
        self.begun: dict[str, str] = {}  # the commits that they began with
        self._store = store
        self.last: Setting | None = None  # from which the next one takes over

    def setting(self, config: ExperimentConfig) -> Setting:
        """The setting of a run's config."""
        self.last = Setting(config, self.last, self.begun, self._store)
        return self.last


def run_family(family: Sequence[Point], arms: Arms) -> None:
    """Run points that differ in their iterations alone, the largest first: it takes the others along where it can."""
    ordered = sorted(family, key=iterations, reverse=True)
    for i, point in enumerate(ordered):
        finished = check_folder(output(point), point.config)
        setting = None if finished else arms.setting(point.config)
        run(point.config, setting, siblings(point, ordered[i + 1 :]))


def check_together(points: Sequence[Point]) -> None:
    """Raises InputError where a point waits for the host's decision, or each would have kernels of its own."""
    if any(point.config.model.answering == "merged" for point in points):
        raise InputError("--together: points share the base's kernels; model.answering = merged: must be apart")
    if any(point.config.cai.trigger is not None for point in points):
        raise InputError("--together: a cai.trigger decides for each point by itself; leave out one of the two")


def check_sweep(points: Sequence[Point]) -> Path:
    """The sweep's folder. Raises InputError if it holds anything but a sweep of this config, be it of other values."""
    folder = output(points[0]).parent
    files.check_writable(folder, f"output = {folder}")
    if (folder / SWEEP).is_file():
        check_same(folder / SWEEP, base_config(points), "a sweep", points[0].values)
        return folder
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"output = {folder}: exists and is not a sweep's folder; name another one")
    return folder


def output(point: Point) -> Path:
    """The point's run folder."""
    return run_folder(point.config)


def base_config(points: Sequence[Point]) -> ExperimentConfig:
    """What the points agree in; the first one's values for what they do not."""
    return points[0].config.model_copy(update={"output": str(output(points[0]).parent)})


def grouped(points: Sequence[Point], key: Callable[[ExperimentConfig], Any]) -> list[list[Point]]:
    """The points whose configs agree in `key`, together; in the order of the first of each."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(repr(key(point.config)), []).append(point)
    return list(groups.values())


def but_iterations(config: ExperimentConfig) -> dict[str, Any]:
    return relevant(config, but=["cai.iterations"])


def iterations(point: Point) -> int:
    return point.config.cai.iterations


def siblings(point: Point, smaller: Sequence[Point]) -> list[ExperimentConfig]:
    """The configs, ascending, of those with fewer iterations that were never begun: this run takes them along."""
    fewer = [other for other in smaller if iterations(other) < iterations(point)]
    never_begun = [other for other in fewer if not output(other).exists()]
    return [other.config for other in sorted(never_begun, key=iterations)]


def collect(points: Sequence[Point]) -> list[Row]:
    """The rows of the table, of finished runs."""
    rows: dict[tuple[str, ...], Row] = {}
    for point in points:
        values = {key: value for key, value in point.values.items() if key != "seed"}
        row = rows.setdefault(tuple(values.values()), Row(values, [], []))
        row.folders.append(output(point))
        row.summaries.append(read_run(output(point)))
    return list(rows.values())


def write(folder: Path, points: Sequence[Point], margin: float | None = None) -> None:
    """sweep.md, sweep.csv, sweep.png and the config beside the run folders; the table on stdout."""
    rows = collect(points)
    keys = list(rows[0].values)
    everything = [summary for row in rows for summary in row.summaries]
    titles = shown_rates(everything)
    cells = cells_of(titles, [row.summaries for row in rows])
    compared = comparisons(rows, titles["harmless"], margin)
    notes = [basis(everything), *prompt_note(titles, cells), LEGEND, *compared]
    by_label = {row.label: row.summaries for row in rows}
    notes += [*judge_notes(titles, by_label), *answer_notes(by_label), *unmeasured_note(everything)]
    counts = answer_columns([row.summaries for row in rows])
    judges = agreement_tables(everything)
    table = wide(table_columns(rows, titles, cells) | counts)
    files.write_text(folder / "sweep.md", with_notes(table, [*notes, *judges]))
    files.write_text(folder / "sweep.csv", to_csv([*keys, "seed", "name", *CSV_COLUMNS], numbers(rows)))
    swept = SweptPoints(
        key=", ".join(keys) or "seed",
        labels=[row.label for row in rows],
        seconds=[mean_cost(row, "CAI s") or 0.0 for row in rows],
        probes=[probed(row) for row in rows],
    )
    plot_sweep(folder / "sweep.png", swept, cells, titles, is_synthetic(everything))
    columns = table_columns(rows, main_first(titles), cells, short=True) | counts
    print("\n" + "\n\n".join([printed(columns, notes, "sweep.md"), *fitting(judges, "sweep.md"), str(folder)]))


def table_columns(
    rows: Sequence[Row], titles: Mapping[str, str], cells: Cells, short: bool = False
) -> dict[str, list[str]]:
    """Title -> what the table shows of each row: swept values, the rates of `titles` (rate -> title), costs."""
    found = {key: [row.values[key] for row in rows] for key in rows[0].values}
    found |= rate_columns(titles, cells, short)
    for name, (_, _, shown) in COSTS.items():
        costs = [mean_cost(row, name) for row in rows]
        found[name] = ["" if cost is None else shown(cost) for cost in costs]
    return found


def mean_cost(row: Row, name: str) -> float | None:
    """One of `COSTS`, over seeds; None where some seed's run has none."""
    path, absent, _ = COSTS[name]
    costs = []
    for summary in row.summaries:
        cost = dict(flat(summary)).get(path, absent)
        if cost is None:
            return None
        costs.append(cost)
    return float(np.mean(costs))


def flat(numbers: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted name, value) of every number in nested mappings."""
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield prefix + name, value


def numbers(rows: Sequence[Row]) -> Iterator[list[Any]]:
    """For every run its rates, and its costs by their names in summary.json."""
    for row in rows:
        for summary in row.summaries:
            run_columns = [*row.values.values(), summary["seed"]]
            for fields in rate_rows(summary):
                yield [*run_columns, *fields]
            sections = {section: summary[section] or {} for section in ("seconds", "cost", "critique")}
            for name, value in flat(sections):
                yield [*run_columns, name, value, "", "", ""]


def comparisons(rows: Sequence[Row], title: str, margin: float | None = None) -> list[str]:
    """The harmless rate, which is called `title`, of each row minus the first one's, seed by seed."""
    first, *others = rows
    lines = []
    for row in others:
        gap = paired("harmless", row.summaries, first.summaries, margin)
        if gap:
            lines.append(f"{title}, {row.label} minus {first.label}: {gap}")
    return lines


def probed(row: Row) -> dict[int, float]:
    """The probe's percentage of safe answers by round, the mean over the seeds that measured it; empty without one."""
    by_round: dict[int, list[float]] = {}
    for folder in row.folders:
        for done in read_rounds(folder / METRICS):
            if done.probe and not math.isnan(done.probe.harmless):
                by_round.setdefault(done.round, []).append(100 * done.probe.harmless)
    return {t: float(np.mean(percentages)) for t, percentages in sorted(by_round.items())}
