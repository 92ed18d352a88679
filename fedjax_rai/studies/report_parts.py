"""The sections of a report: what each shows, and why it is absent where it is."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fedjax_rai.config.load import dump_config
from fedjax_rai.config.views import relevant
from fedjax_rai.evals.intervals import Difference
from fedjax_rai.runs.folder import differences
from fedjax_rai.studies import cells as cell_values
from fedjax_rai.studies import report_pictures as pictures
from fedjax_rai.studies.cells import Cell, Summary
from fedjax_rai.studies.gathered import Arm, Gathered
from fedjax_rai.studies.panels import Panel
from fedjax_rai.studies.results import (
    NOT_MEASURED,
    Cells,
    answer_notes,
    basis,
    cells_of,
    evaluations_of,
    is_synthetic,
    judge_notes,
    main_first,
    prompt_note,
    shown_rates,
    unmeasured_note,
)
from fedjax_rai.terminal import plural

Value = TypeVar("Value")
MOST_NAMED = 8
"""Of the runs that are not begun."""


class Grid(NamedTuple):
    """A table; the first field of a row is its head."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


class Section(NamedTuple):
    """A part of the page."""

    title: str
    about: Sequence[str] = ()
    """Paragraphs."""
    grids: Sequence[Grid] = ()
    panels: Sequence[Panel] = ()
    absent: Sequence[str] = ()
    """What is not shown, and why."""
    texts: Sequence[tuple[str, str]] = ()
    """(name, text) of files that are shown behind a click."""

    @property
    def anchor(self) -> str:
        """What a link names, and a file's name begins with."""
        words = "".join(letter if letter.isalnum() else " " for letter in self.title.lower().replace("'", ""))
        return "-".join(words.split())


class Report(NamedTuple):
    """What sections are made of, computed once."""

    gathered: Gathered
    titles: dict[str, str]
    """Rate -> title, the main ones first."""
    cells: Cells
    margin: float | None
    reference: str
    """The arm that others are compared with."""

    @property
    def arms(self) -> list[Arm]:
        return self.gathered.arms

    @property
    def labels(self) -> list[str]:
        return [arm.label for arm in self.arms]

    @property
    def summaries(self) -> list[Any]:
        return [summary for arm in self.arms for summary in arm.summaries]


def report_of(gathered: Gathered, margin: float | None, reference: str | None) -> Report:
    """The rates of all arms; `reference`: the arm that others are compared with, the first if None."""
    everything = [summary for arm in gathered.arms for summary in arm.summaries]
    titles = main_first(shown_rates(everything))
    by_arm = [arm.summaries for arm in gathered.arms]
    return Report(gathered, titles, cells_of(titles, by_arm), margin, reference or gathered.arms[0].label)


def table(report: Report) -> Section:
    """Arms x rates, with intervals and counts."""
    rows = []
    for i, arm in enumerate(report.arms):
        seconds = np.mean([summary["seconds"]["training"] for summary in arm.summaries])
        fields = [_shown(report.cells[rate][i]) for rate in report.titles]
        rows.append([arm.label, _listed(arm.seeds), *fields, f"{seconds:.0f}"])
    header = ["arm", "seeds", *report.titles.values(), "seconds"]
    notes = [_basis(report), *prompt_note(report.titles, report.cells)]
    by_label = {arm.label: arm.summaries for arm in report.arms}
    notes += [*judge_notes(report.titles, by_label), *answer_notes(by_label), *unmeasured_note(report.summaries)]
    absent = [f"{title}: not measured in any arm" for title in _never(report)]
    absent += [f"{folder}: begun and not finished, so it is not shown" for folder in report.gathered.unfinished]
    absent += not_begun_note(report.gathered)
    return Section("Table", notes, [Grid("", header, rows), _every_rate(report)], absent=absent)


def not_begun_note(gathered: Gathered) -> list[str]:
    """How many runs of the studies are not there yet, and which ones."""
    missing = gathered.not_begun
    if not missing:
        return []
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    return [f"not begun yet: {plural(len(missing), 'run')}, {', '.join(map(str, missing[:MOST_NAMED]))}{more}"]


def _basis(report: Report) -> str:
    """What intervals hold; arms may have other numbers of seeds."""
    counts = {len(arm.runs) for arm in report.arms}
    if len(counts) == 1:
        return basis(report.summaries)
    several = f"prompts and seeds (bootstrap); arms have {min(counts)} to {max(counts)} seeds, one seed prompts alone"
    return f"Percent, 95 % intervals over {several}."


def _shown(rate_cell: Cell | None) -> str:
    return NOT_MEASURED if rate_cell is None else str(rate_cell)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _never(report: Report) -> list[str]:
    return [title for rate, title in report.titles.items() if not any(report.cells[rate])]


def _every_rate(report: Report) -> Grid:
    """Every rate that some run measured, by its name in eval.json: categories and further judges, too."""
    names: dict[str, None] = {}
    for summary in report.summaries:
        names.update(dict.fromkeys(rate for rate, measured in summary["rates"].items() if measured))
    rows = []
    for name in names:
        rows.append([name, *(_shown(cell_values.cell(arm.summaries, name)) for arm in report.arms)])
    return Grid("Every rate by its name in eval.json", ["rate", *report.labels], rows, folded=True)


def rates(report: Report) -> Section:
    """A picture for each rate."""
    about = ["Dots are means, lines 95 % intervals. An axis that does not begin at 0 or end at 100 says so."]
    return Section("Rates", about, panels=pictures.rates(report.labels, report.titles, report.cells))


def compared(report: Report) -> Section:
    """Every arm minus the reference, paired."""
    title = "Differences"
    others = [arm for arm in report.arms if arm.label != report.reference]
    (reference,) = [arm for arm in report.arms if arm.label == report.reference]
    if not others:
        return Section(title, absent=["There is one arm: nothing to compare it with."])
    grids, panels, absent = [], [], []
    for rate, rate_title in report.titles.items():
        found = _gaps(rate, others, reference)
        absent += [f"{rate_title}, {reason}" for reason in _incomparable(rate, others, reference)]
        if found:
            panels.append(pictures.differences(rate_title, report.reference, found))
            rows = [[label, *_gap_fields(gap, report.margin)] for label, gap in found.items()]
            unit = cell_values.unit_among(reference.summaries, rate)
            header = ["arm", f"{unit.gap} [95 %]", "by seed", *([] if report.margin is None else ["equivalence"])]
            grids.append(Grid(f"{rate_title}, {unit.versus} {report.reference}", header, rows, folded=True))
    if not panels:
        absent.append("No arm has a seed in common with the reference, or no rate that both measured alike.")
    about = [
        f"Each arm minus {report.reference}, paired: the same seeds, and the same prompts where their answers "
        "are kept. Percentages differ in points, other means in their unit, and of perplexities there is the ratio. An "
        "interval that holds 0, or a ratio of 1, does not show that there is no difference."
    ]
    if report.margin is None:
        about.append("Nothing is called equivalent: that takes a margin (--margin).")
    return Section(title, about, grids, panels, absent)


def _gaps(rate: str, others: Sequence[Arm], reference: Arm) -> dict[str, Difference]:
    """The paired difference of each arm that has one, over the seeds that both have."""
    found = {}
    for arm in others:
        runs, against = _of_shared_seeds(arm, reference)
        gap = cell_values.difference(rate, runs, against) if runs else None
        if gap:
            found[arm.label] = gap
    return found


def _of_shared_seeds(arm: Arm, reference: Arm) -> tuple[list[Summary], list[Summary]]:
    """The summaries of either, of the seeds that both have; and how each sampled the answers that marks are of."""
    shared = {*arm.seeds} & {*reference.seeds}
    return _of_seeds(arm, shared), _of_seeds(reference, shared)


def _of_seeds(arm: Arm, seeds: Collection[int]) -> list[Summary]:
    runs = [run for run in arm.runs if run.seed in seeds]
    return [{**run.summary, cell_values.TEMPERATURE: run.config.eval.mt_bench_temperature} for run in runs]


def _incomparable(rate: str, others: Sequence[Arm], reference: Arm) -> Iterator[str]:
    """Of each arm that is not compared with the reference, as it was judged or answered otherwise, that and why."""
    for arm in others:
        runs, against = _of_shared_seeds(arm, reference)
        why = cell_values.incomparable(rate, [*runs, *against])
        if why:
            yield f"{arm.label} minus {reference.label}: {why}"


def _gap_fields(gap: Difference, margin: float | None) -> list[str]:
    counted = f" n={gap.prompts}" if gap.prompts else ""
    shown = f"{cell_values.gap_text(gap.mean, gap.unit)} {cell_values.gap_interval(gap)}{counted}"
    if gap.same:
        shown += f", {cell_values.same_text(gap)}"
    equivalent = [] if margin is None else [cell_values.equivalence(gap, margin)]
    return [shown, cell_values.gaps_by_seed(gap), *equivalent]


def rounds(report: Report) -> Section:
    """The probe and the training loss by round."""
    found = {"the probe": pictures.probes(report.arms), "training loss": pictures.losses(report.arms)}
    why = {"the probe": "cai.probe is 0 in every run", "training loss": "no run has rounds"}
    absent = [f"{name}: {why[name]}" for name, panel in found.items() if panel is None]
    about = [
        "Means over seeds. The probe is answered after aggregation and before any CAI phase of the round; its lines "
        "are Wilson's 95 % intervals over its prompts."
    ]
    return Section("Over rounds", about, panels=[panel for panel in found.values() if panel], absent=absent)


def tradeoff(report: Report) -> Section:
    """Safety against everything else that is measured."""
    safety, others = _sides(report)
    panels = []
    for rate in safety:
        for other, shown in others.items():
            x, y = (report.titles[rate], report.cells[rate]), (shown, report.cells[other])
            if any(a and b for a, b in zip(x[1], y[1], strict=True)):
                panels.append(pictures.against(report.labels, x, y))
    absent = [] if panels else ["No run measured a harmless rate and another main rate beside it."]
    return Section("Safety against helpfulness", ["Both with their 95 % intervals."], panels=panels, absent=absent)


def _sides(report: Report) -> tuple[list[str], dict[str, str]]:
    """(main rates of safety, other main rates by what an axis calls them), those that the table shows."""
    safety = []
    others = {}
    for evaluation in evaluations_of(report.summaries):
        for column in evaluation.columns:
            if not column.main or column.rate not in report.titles:
                continue
            if evaluation.judges_harm:
                safety.append(column.rate)
            else:
                others[column.rate] = report.titles[column.rate]
    return safety, others


def time(report: Report) -> Section:
    """Seconds by phase."""
    by_arm = [pictures.seconds(arm) for arm in report.arms]
    header = ["arm", *by_arm[0], "start"]
    rows = []
    for arm, spent in zip(report.arms, by_arm, strict=True):
        starts = [summary["seconds"].get("start") for summary in arm.summaries]
        known = [start for start in starts if start is not None]
        start = f"{np.mean(known):.1f}" if known else ""
        rows.append([arm.label, *(f"{value:.1f}" for value in spent.values()), start])
    about = [
        "Seconds over all rounds, compiling included; mean over seeds. Start: from the start of the process to the "
        "first local step, where that is known."
    ]
    return Section("Time by phase", about, [Grid("", header, rows)], [pictures.times(report.labels, by_arm)])


def cai(report: Report) -> Section:
    """Iterations of constitutional AI against safety and cost."""
    title = "Constitutional AI"
    having = [i for i, arm in enumerate(report.arms) if arm.first.summary["cost"].get("cai")]
    if not having:
        return Section(title, absent=["No arm has a CAI phase."])
    rows, iterations, costs = [], [], []
    safety, _ = _sides(report)
    for i in having:
        arm = report.arms[i]
        rows.append([arm.label, *_cai_fields(arm)])
        harmless = report.cells[safety[0]][i] if safety else None
        if harmless:
            iterations.append((arm.label, i, float(arm.first.config.cai.iterations), harmless))
            seconds = float(np.mean([summary["cost"]["cai"]["seconds"] for summary in arm.summaries]))
            costs.append((arm.label, i, seconds, harmless))
    panels = []
    if iterations:
        rate = report.titles[safety[0]]
        panels = [
            pictures.by_number("Safety by iterations", "iterations a phase", iterations, rate),
            pictures.by_number("Safety by what CAI costs", "CAI seconds a run", costs, rate),
        ]
    header = ["arm", "iterations", "phases", "seconds", "generated", "trained", "saved", "made safe", "left alone"]
    about = [
        "Seconds: phases x the median of all but the first, which compiles. Generated, trained: tokens. Saved: of the "
        "FLOPs of a full epoch. Made safe: of the unsafe responses; left alone: of the safe ones."
    ]
    absent = [] if panels else ["Pictures: no arm with a CAI phase has a harmless rate."]
    return Section(title, about, [Grid("", header, rows)], panels, absent)


def _cai_fields(arm: Arm) -> list[str]:
    costs = [summary["cost"]["cai"] for summary in arm.summaries]
    critiques = [summary["critique"] or {} for summary in arm.summaries]

    def mean(rows: Sequence[Mapping[str, Any]], key: str, form: Callable[[float], str]) -> str:
        known = [row[key] for row in rows if row.get(key) is not None]
        return form(float(np.mean(known))) if known else "none"

    return [
        str(arm.first.config.cai.iterations),
        mean(costs, "phases", "{:.0f}".format),
        mean(costs, "seconds", "{:.1f}".format),
        mean(costs, "generated_tokens", "{:,.0f}".format),
        mean(costs, "trained_tokens", "{:,.0f}".format),
        mean(costs, "share_saved", lambda share: f"{100 * share:.0f} %"),
        mean(critiques, "made_safe", "{:.0f} %".format),
        mean(critiques, "left_alone", "{:.0f} %".format),
    ]


def data(report: Report) -> Section:
    """Clients and parts of the data, of each arm's first seed; arms with the same stand together."""
    held = {arm.label: arm.first.data for arm in report.arms}
    absent = [f"{label}: data.json is not there; an older version ran" for label, file in held.items() if file is None]
    known = {label: file for label, file in held.items() if file is not None}
    panels, rows = [], []
    for names, clients in alike({label: file.clients for label, file in known.items()}):
        panels.append(pictures.clients(f"Clients: {names}", clients))
        if len(clients) > pictures.MOST_CLIENTS:
            absent.append(
                f"{names}: clients from number {pictures.MOST_CLIENTS} on, of {len(clients)}; data.json has all"
            )
    for names, parts in alike({label: file.summary.parts for label, file in known.items()}):
        for part, of_part in parts.items():
            left_out = "; ".join(f"{count:,} by {why}" for why, count in of_part.left_out.items())
            harmful = "" if of_part.harmful is None else f"{of_part.harmful:,}"
            rows.append([names, part, f"{of_part.used:,}", harmful, left_out])
    grid = Grid("Parts of the data", ["arms", "part", "used", "harmful", "left out"], rows, folded=True)
    return Section("Data and clients", ["Of each arm's first seed."], [grid] if rows else [], panels, absent)


def alike(by_label: Mapping[str, Value]) -> list[tuple[str, Value]]:
    """(labels, value) of arms with the same value."""
    grouped: dict[str, list[str]] = {}
    for label, value in by_label.items():
        grouped.setdefault(repr(value), []).append(label)
    return [(", ".join(labels), by_label[labels[0]]) for labels in grouped.values()]


def config(report: Report) -> Section:
    """How arms' configs differ, each in full, and what ran."""
    first = report.arms[0]
    rows = []
    for arm in report.arms[1:]:
        changed = differences(relevant(first.first.config), relevant(arm.first.config))
        rows += [[arm.label, key, str(old), str(new)] for key, old, new in changed if key != "seed"]
    grids = []
    if rows:
        grids.append(Grid(f"Keys in which arms differ from {first.label}", ["arm", "key", first.label, "there"], rows))
    grids.append(Grid("Versions", ["arm", "what ran"], [[arm.label, _versions(arm)] for arm in report.arms]))
    texts = [(f"config of {arm.label}, seed {arm.first.seed}", dump_config(arm.first.config)) for arm in report.arms]
    return Section("Config and versions", grids=grids, texts=texts)


def _versions(arm: Arm) -> str:
    """Every set of versions that an arm's runs went by, each once."""
    shown = []
    for run in arm.runs:
        for entry in run.versions:
            packages = ", ".join(f"{name} {version}" for name, version in entry.get("packages", {}).items())
            devices = ", ".join(entry.get("devices", []))
            shown.append(f"{packages}; Python {entry.get('python')}; {entry.get('platform')}, {devices}")
    return " | ".join(dict.fromkeys(shown)) or "versions.json is not there"


def synthetic(report: Report) -> bool:
    """Whether any part of any run is the tiny world's."""
    return is_synthetic(report.summaries)
