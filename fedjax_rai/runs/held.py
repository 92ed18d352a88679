"""What a run held: its memory plan, and the peaks of the process that finished it."""

from pathlib import Path

from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.sizes import sizes
from fedjax_rai.memory.measured import device_peaks, process_peak
from fedjax_rai.memory.plan import Plan, plan
from fedjax_rai.runs import files
from fedjax_rai.runs.record import METRICS
from fedjax_rai.runs.rows import Memory, PlannedMemory

_taken_up: set[Path] = set()  # the folders of all runs that this process was at work on


def take_up(folder: Path) -> bool:
    """Note that this process is at work on a run from now on; returns whether rounds of it are there already."""
    _taken_up.add(folder.resolve())
    return bool(files.read_rows(folder / METRICS))


def memory_of(setting: Setting, resumed: bool) -> Memory:
    """What a run was planned to hold, and what this process held until now; `resumed`: as `take_up` said."""
    return Memory(
        plan=planned(plan(setting.planned, sizes(setting))),
        process=process_peak(),
        devices=device_peaks(),
        other_runs=len(_taken_up) - 1,
        resumed=resumed,
    )


def planned(made: Plan) -> PlannedMemory:
    """A plan as the summary has it."""
    return PlannedMemory(made.need(made.peak), made.peak, made.held, made.phases)
