"""Memory in a report: what runs were planned to hold, and what their processes and devices held at most."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from fedjax_rai.runs import files
from fedjax_rai.runs.folder import SUMMARY
from fedjax_rai.runs.rows import Memory, PlannedMemory
from fedjax_rai.studies import report_pictures as pictures
from fedjax_rai.studies.gathered import Arm, Run
from fedjax_rai.studies.panels import Panel
from fedjax_rai.studies.report_parts import Grid, Report, Section, alike
from fedjax_rai.studies.results import NOT_MEASURED

NOT_KNOWN = "not known"
ABOUT = (
    "The most that was held at any one time. Process: resident memory of the whole process that finished the run, "
    "loading and evaluation included, but not the fit of a guard that it found fitted; on a CPU its arrays are among "
    "it. Device: the fullest one's arrays, where JAX tells. Planned: what the memory plan estimates before a run "
    "starts. Seeds in their order where they differ."
)
BOUND = "≤: the process had done other runs before or beside this one, which count too, so that this one held no more."
RESUMED = "Resumed: the last process alone was measured; an earlier one had done rounds, and may have held more."


class Held(NamedTuple):
    """A run and its memory; None where an older version ran."""

    run: Run
    memory: Memory | None

    @property
    def device(self) -> int | None:
        """Bytes that the fullest device held at most, of those that tell."""
        peaks = [device.peak for device in self.memory.devices if device.peak is not None] if self.memory else []
        return max(peaks, default=None)

    @property
    def process(self) -> int | None:
        """Bytes that the process held at most."""
        return self.memory.process if self.memory else None

    @property
    def is_whole(self) -> bool:
        """Whether its peaks are of this run, whole and alone."""
        return self.memory is not None and not self.memory.other_runs and not self.memory.resumed


def memory(report: Report) -> Section:
    """What was held, measured and planned; what a client sends; the mesh that was chosen."""
    held = [[_held(run) for run in arm.runs] for arm in report.arms]
    every = [of_run for of_arm in held for of_run in of_arm]
    header = ["arm", "process", "device", "planned a device", "most of it in"]
    rows = [[arm.label, *_fields(of_arm)] for arm, of_arm in zip(report.arms, held, strict=True)]
    grids = [Grid("", header, rows), *_phases(report.arms, held), *_parameters(report)]
    panels = _panels(report.labels, held) if len(every) > 1 else []
    return Section("Memory", [ABOUT, *_marks(every)], grids, panels, list(_absent(every)))


def _held(run: Run) -> Held:
    where = f"{run.folder / SUMMARY}.memory"
    return Held(run, files.typed(Memory | None, run.summary.get("memory"), where))


def _fields(of_arm: Sequence[Held]) -> list[str]:
    plans = [held.memory.plan if held.memory else None for held in of_arm]
    return [
        _listed([_measured(held, held.process) for held in of_arm]),
        _listed([_measured(held, held.device) for held in of_arm]),
        _listed([NOT_KNOWN if plan is None else shown(plan.need) for plan in plans]),
        _listed([NOT_KNOWN if plan is None else plan.phase for plan in plans]),
    ]


def _listed(texts: Sequence[str]) -> str:
    """What the seeds have, once where it is the same."""
    return texts[0] if len(set(texts)) == 1 else "; ".join(texts)


def _measured(held: Held, peak: int | None) -> str:
    if held.memory is None or peak is None:
        return NOT_MEASURED
    if held.memory.resumed:
        return f"{shown(peak)} (resumed)"
    return f"{'≤ ' if held.memory.other_runs else ''}{shown(peak)}"


def shown(size: int) -> str:
    """Bytes as a person reads them: in MiB below a tenth of a GiB."""
    unit, name = pictures.byte_unit(size)
    return f"{size / unit:.2f} {name}"


def _marks(every: Sequence[Held]) -> Iterator[str]:
    """What the marks mean that stand in the table."""
    known = [held.memory for held in every if held.memory]
    if any(memory.other_runs and not memory.resumed for memory in known):
        yield BOUND
    if any(memory.resumed for memory in known):
        yield RESUMED


def _absent(every: Sequence[Held]) -> Iterator[str]:
    """What was not measured, or is not drawn, and why."""
    without = sum(held.memory is None for held in every)
    if without:
        yield f"{without} of {_runs(len(every))}: not measured, an older version ran."
    untold = {device.kind for held in every if held.memory for device in held.memory.devices if device.peak is None}
    if untold:
        yield f"Memory of devices: not measured on {', '.join(sorted(untold))}, as JAX does not tell there."
    parts = sum(held.memory is not None and not held.is_whole for held in every)
    if parts and len(every) > 1:
        yield f"{_runs(parts)} of {len(every)}: measured peaks are in the table alone, as they are not the run's own."


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _phases(arms: Sequence[Arm], held: Sequence[Sequence[Held]]) -> Iterator[Grid]:
    """The plan of each arm's first seed by phase, behind a click."""
    plans = {}
    for arm, (first, *_) in zip(arms, held, strict=True):
        if first.memory is not None:
            plans[arm.label] = first.memory.plan
    rows = [[labels, *fields] for labels, plan in alike(plans) for fields in _by_phase(plan)]
    if rows:
        header = ["arms", "phase", "a device", "in every phase", "largest part that the phase adds"]
        yield Grid("The plan by phase, of each arm's first seed", header, rows, folded=True)


def _by_phase(plan: PlannedMemory) -> Iterator[list[str]]:
    """A row for each phase, that of the greatest need first."""
    everywhere = sum(plan.held.values())

    def need(phase: str) -> int:
        return everywhere + sum(plan.phases[phase].values())

    for phase in sorted(plan.phases, key=need, reverse=True):
        parts = plan.phases[phase]
        largest = max(parts, key=parts.__getitem__)
        yield [phase, shown(need(phase)), shown(everywhere), f"{largest}, {shown(parts[largest])}"]


def _parameters(report: Report) -> Iterator[Grid]:
    sizes = [[arm.label, f"{arm.first.summary['adapter_parameters']:,}"] for arm in report.arms]
    yield Grid("Parameters of the adapter, which is what a client sends a round", ["arm", "parameters"], sizes)
    layouts = [[arm.label, arm.first.summary["layout"]] for arm in report.arms if arm.first.summary.get("layout")]
    if layouts:
        yield Grid("The mesh that was chosen", ["arm", "mesh"], layouts)


def _panels(labels: Sequence[str], held: Sequence[Sequence[Held]]) -> list[Panel]:
    """Dots of every run's own peaks, of the process and of its fullest device beside the plan."""
    process = {"measured": _dots(held, lambda of_run: of_run.process if of_run.is_whole else None)}
    device = {
        "measured": _dots(held, lambda of_run: of_run.device if of_run.is_whole else None),
        "planned": _dots(held, lambda of_run: of_run.memory.plan.need if of_run.memory else None),
    }
    made = [pictures.memory("Memory of the process", labels, process)]
    made.append(pictures.memory("Memory of a device", labels, device))
    return [panel for panel in made if panel is not None]


def _dots(held: Sequence[Sequence[Held]], read: Callable[[Held], int | None]) -> list[list[tuple[int, int]]]:
    """Of each arm (seed, bytes) of the runs that have the number."""
    found = []
    for of_arm in held:
        known = [(of_run.run.seed, read(of_run)) for of_run in of_arm]
        found.append([(seed, size) for seed, size in known if size is not None])
    return found
