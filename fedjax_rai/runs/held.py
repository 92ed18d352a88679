"""What a run held: its memory plan, and the peaks of the process that finished it."""

from pathlib import Path

from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.sizes import sizes
from fedjax_rai.memory.measured import device_peaks, process_peak
from fedjax_rai.memory.plan import Plan, plan
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import SUMMARY
from fedjax_rai.runs.record import METRICS
from fedjax_rai.runs.rows import Memory, PlannedMemory

_had_rounds: dict[Path, bool] = {}  # of the folders of all runs that this process was at work on


def take_up(folder: Path) -> bool:
    """Note that this process is at work on a run from now on; returns whether an earlier process did rounds of it."""
    return _had_rounds.setdefault(folder.resolve(), bool(files.read_rows(folder / METRICS)))


def memory_before(folder: Path) -> Memory | None:
    """What a run held by its summary; None where it has none, or an older version wrote it."""
    path = folder / SUMMARY
    kept = files.read_object(path).get("memory") if path.is_file() else None
    return files.typed(Memory | None, kept, f"{path}.memory")


def memory_of(setting: Setting, resumed: bool) -> Memory:
    """What a run was planned to hold, and what this process held until now; `resumed`: as `take_up` said."""
    process, devices = process_peak(), device_peaks()  # before the plan is made once more
    return Memory(
        plan=planned(plan(setting.planned, sizes(setting))),
        process=process,
        devices=devices,
        other_runs=len(_had_rounds) - 1,
        resumed=resumed,
    )


def planned(made: Plan) -> PlannedMemory:
    """A plan as the summary has it."""
    return PlannedMemory(made.need(made.peak), made.peak, made.held, made.phases)
