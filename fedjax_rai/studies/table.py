"""The paper's table: arms x seeds, with intervals, paired differences and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rai import terminal
from fedjax_rai.config.load import dump_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError, did_you_mean
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import SUMMARY, check_folder, pins, run_folder
from fedjax_rai.runs.inputs import check_inputs
from fedjax_rai.runs.run import run
from fedjax_rai.studies.plots import plot_arms
from fedjax_rai.studies.results import (
    COLUMNS,
    CSV_COLUMNS,
    NOT_MEASURED,
    Summary,
    basis,
    cell,
    check_same,
    is_synthetic,
    markdown,
    paired,
    rate_rows,
    to_csv,
)

NO_FILTER, NO_CAI = {"filter": {"enabled": False}}, {"cai": {"enabled": False}}
FILTER, CAI = {"filter": {"enabled": True, "keep_all": False}}, {"cai": {"enabled": True, "target": "revision"}}
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "base": {"federated": {"rounds": 0}, **NO_FILTER, **NO_CAI},
    "fl": {**NO_FILTER, **NO_CAI},
    "fl+filter": {**FILTER, **NO_CAI},
    "fl+cai": {**NO_FILTER, **CAI},
    "fl+filter+cai": {**FILTER, **CAI},
}
CONTROLS: dict[str, dict[str, dict[str, Any]]] = {
    "fl+keep_all": {"filter": {"enabled": True, "keep_all": True}, **NO_CAI},
    "fl+cai_0": {**NO_FILTER, "cai": {"enabled": True, "target": "revision", "iterations": 0}},
    "fl+unrevised": {**NO_FILTER, "cai": {"enabled": True, "target": "response", "method": "sft", "data": "online"}},
}
ARM_HELP = {
    "base": "the base as it is, untrained",
    "fl": "federated training alone",
    "fl+filter": "federated training with the guard's filter on each client",
    "fl+cai": "federated training with constitutional AI on the server",
    "fl+filter+cai": "federated training with both",
    "fl+keep_all": "control: the guard scores, and nothing is dropped; must equal fl",
    "fl+cai_0": "control: constitutional AI of 0 iterations; must equal fl",
    "fl+unrevised": "control: constitutional AI trains on the answers before revision",
}
COMPARED = (
    ("harmless", "fl", "base"),
    ("harmless", "fl+filter", "fl"),
    ("harmless", "fl+cai", "fl+filter"),
    ("harmless", "fl+filter+cai", "fl+cai"),
    ("harmless", "fl+filter+cai", "fl+filter"),
    ("harmless", "fl+cai", "fl+unrevised"),
    ("harmless", "fl+cai_0", "fl"),
    ("harmless", "fl+keep_all", "fl"),
    ("utility", "fl+filter+cai", "base"),
)
TABLE = "table.yaml"


def run_table(config: ExperimentConfig, arms: Sequence[str] | None = None, seeds: int = 1) -> Path:
    """Run every arm with seeds `config.seed`, + 1, ...; write and print the table. Finished runs are kept.

    Returns the folder. Raises InputError for an unknown arm, or a folder that holds another table.
    """
    chosen = choose(arms)
    folder = Path(config.output or "runs/table")
    check_table(folder, config)
    by_seed = {
        seed: {arm: arm_config(config, arm, seed, folder) for arm in chosen}
        for seed in range(config.seed, config.seed + seeds)
    }
    check_inputs(own for arms_of_seed in by_seed.values() for own in arms_of_seed.values())
    for arms_of_seed in by_seed.values():
        for own in arms_of_seed.values():
            check_folder(run_folder(own), own)
    summaries: dict[tuple[str, int], Summary] = {}
    setting: Setting | None = None
    for seed, arms_of_seed in by_seed.items():
        begun = pins([*arms_of_seed.values()])
        for arm, own in arms_of_seed.items():
            setting = Setting(own, setting, begun)
            terminal.say(f"[{len(summaries) + 1}/{seeds * len(chosen)}] {arm}, seed {seed}")
            summaries[arm, seed] = files.read_json(run(own, setting) / SUMMARY)
    write(folder, config, chosen, summaries)
    return folder


def check_table(folder: Path, config: ExperimentConfig) -> None:
    """Raise InputError if the folder holds anything but a table of this config; arms and seeds may be others."""
    if (folder / TABLE).is_file():
        check_same(folder / TABLE, config, "a table", ["seed"])
    elif folder.exists() and any(path.name[:4] != "seed" for path in folder.iterdir()):
        raise InputError(f"output = {folder}: exists and is not a table's folder; name another one")


def choose(arms: Sequence[str] | None) -> list[str]:
    known = ARMS | CONTROLS
    if unknown := [arm for arm in arms or () if arm not in known]:
        near = did_you_mean(unknown[0], known)
        listed = "\n".join(arm_lines())
        raise InputError(f"--arms {','.join(unknown)}: no such arm{near or ';'} must be among these:\n{listed}")
    return list(dict.fromkeys(arms)) if arms else list(ARMS)


def arm_lines() -> list[str]:
    """What `--arms` knows, a line each: name and description."""
    width = max(map(len, ARM_HELP))
    return [f"{name:<{width}}  {about}" for name, about in ARM_HELP.items()]


def arm_config(config: ExperimentConfig, arm: str, seed: int, folder: Path) -> ExperimentConfig:
    """The config of one cell of the table, which differs from the table's in the arm's own keys, seed and folder."""
    fields = config.model_dump()
    for section, values in (ARMS | CONTROLS)[arm].items():
        fields[section] |= values
    return ExperimentConfig.model_validate(fields | {"seed": seed, "output": str(folder / f"seed{seed}" / arm)})


def comparisons(chosen: Sequence[str], by_arm: Mapping[str, Sequence[Summary]]) -> list[str]:
    """One arm's rate minus another's, seed by seed."""
    wanted = [(rate, one, other) for rate, one, other in COMPARED if one in chosen and other in chosen]
    found = {(rate, one, other): paired(rate, by_arm[one], by_arm[other]) for rate, one, other in wanted}
    return [f"{rate}, {one} - {other}: {gap}" for (rate, one, other), gap in found.items() if gap]


def write(
    folder: Path, config: ExperimentConfig, chosen: Sequence[str], summaries: Mapping[tuple[str, int], Summary]
) -> None:
    """table.md, table.csv, table.png and the config beside the run folders; the table on stdout."""
    seeds = sorted({seed for _, seed in summaries})
    by_arm = {arm: [summaries[arm, seed] for seed in seeds] for arm in chosen}
    rows = []
    for arm, own in by_arm.items():
        seconds = float(np.mean([summary["seconds"]["training"] for summary in own]))
        rows.append([arm, *(str(cell(own, rate) or NOT_MEASURED) for rate in COLUMNS), f"{seconds:.0f}"])
    everything = list(summaries.values())
    quality = next((s["guard"]["fitted"] or s["guard"]["released"] for s in everything if s["guard"]), None)
    notes = [basis(everything), *comparisons(chosen, by_arm)]
    if quality:
        notes.append(f"guard, seed {seeds[0]}: " + ", ".join(f"{name} {value:.1f}" for name, value in quality.items()))
    table = markdown(["arm", *COLUMNS.values(), "seconds"], rows)
    files.write_text(folder / "table.md", table + "\n" + "".join(f"{note}\n\n" for note in notes))
    # a row for each arm, seed and rate
    numbers = [[arm, own["seed"], *row] for arm in chosen for own in by_arm[arm] for row in rate_rows(own)]
    files.write_text(folder / "table.csv", to_csv(["arm", "seed", "rate", *CSV_COLUMNS], numbers))
    files.write_text(folder / TABLE, dump_config(config))
    cells = {rate: [cell(by_arm[arm], rate) for arm in chosen] for rate in COLUMNS}
    plot_arms(folder / "table.png", chosen, cells, COLUMNS, is_synthetic(everything))
    print(f"\n{table}\n" + "\n".join(notes) + f"\n\n{folder}")
