"""The paper's table: arms x seeds, with intervals, paired differences and a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.config import ExperimentConfig
from fedjax_rai.config_file import check_files, dump_config, load_config
from fedjax_rai.errors import InputError
from fedjax_rai.run import log
from fedjax_rai.run.experiment import SUMMARY, check_folder, differences, run
from fedjax_rai.run.plots import plot_arms
from fedjax_rai.run.setting import Setting

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
    "fl+unrevised": {**NO_FILTER, "cai": {"enabled": True, "target": "response"}},
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
COLUMNS = {
    "harmless": "harmless",
    "harmless_by_refusal_phrases": "by phrases",
    "harmless_by_guard": "by guard",
    "hhh": "HHH",
    "utility": "utility",
    "over_refusal": "over-refusal",
}


class Cell(NamedTuple):
    """A mean and its 95 % interval, in percent. One seed: the interval over prompts; more: over seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def run_table(config: ExperimentConfig, arms: Sequence[str] | None = None, seeds: int = 1) -> Path:
    """Run every arm with seeds `config.seed`, + 1, ...; write and print the table. Finished runs are kept.

    Returns the folder. Raises InputError for an unknown arm, or a folder that holds another table.
    """
    chosen = choose(arms)
    check_files(config)
    folder = Path(config.output or "runs/table")
    plan = [(seed, arm) for seed in range(config.seed, config.seed + seeds) for arm in chosen]
    check_table(folder, config)
    for seed, arm in plan:
        check_folder(folder / f"seed{seed}" / arm, arm_config(config, arm, seed, folder))
    summaries: dict[tuple[str, int], dict[str, Any]] = {}
    setting: Setting | None = None
    for i, (seed, arm) in enumerate(plan):
        own = arm_config(config, arm, seed, folder)
        log.say(f"[{i + 1}/{len(plan)}] {arm}, seed {seed}")
        if setting is None or setting.config.seed != seed:
            setting = Setting(config.model_copy(update={"seed": seed}))
        path = run(own, setting)
        summaries[arm, seed] = log.read_json(path / SUMMARY)
    write(folder, config, chosen, summaries)
    return folder


def check_table(folder: Path, config: ExperimentConfig) -> None:
    """Raise InputError if the folder holds anything but a table of this config; arms and seeds may be others."""
    written = folder / TABLE
    if written.is_file():
        there = load_config(written).model_dump() | {"output": None, "seed": 0}
        if changed := differences(there, config.model_dump() | {"output": None, "seed": 0}):
            listed = ", ".join(f"{key} ({old!r} there, {new!r} now)" for key, old, new in changed)
            raise InputError(f"output = {folder}: holds a table of another config, which differs in {listed}")
    elif folder.exists() and any(path.name[:4] != "seed" for path in folder.iterdir()):
        raise InputError(f"output = {folder}: exists and is not a table's folder; name another one")


def choose(arms: Sequence[str] | None) -> list[str]:
    known = ARMS | CONTROLS
    if unknown := [arm for arm in arms or () if arm not in known]:
        raise InputError(f"--arms {','.join(unknown)}: no such arm; must be among {', '.join(known)}")
    return list(dict.fromkeys(arms)) if arms else list(ARMS)


def arm_config(config: ExperimentConfig, arm: str, seed: int, folder: Path) -> ExperimentConfig:
    """The config of one cell of the table, which differs from the table's in the arm's own keys, seed and folder."""
    fields = config.model_dump()
    for section, values in (ARMS | CONTROLS)[arm].items():
        fields[section] |= values
    return ExperimentConfig.model_validate(fields | {"seed": seed, "output": str(folder / f"seed{seed}" / arm)})


def cell(summaries: Sequence[Mapping[str, Any]], rate: str) -> Cell | None:
    """A rate over seeds, or None where it was not measured."""
    rates = [summary["rates"].get(rate) for summary in summaries]
    if any(own is None for own in rates):
        return None
    if len(rates) == 1:
        return Cell(*(rates[0][key] for key in Cell._fields))
    mean, low, high = interval([own["mean"] for own in rates])
    return Cell(mean, max(low, 0.0), min(high, 100.0))


def interval(values: Sequence[float]) -> Cell:
    """Mean and 95 % interval of a few independent values, by Student's t."""
    from scipy.stats import t

    mean, margin = np.mean(values), t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return Cell(float(mean), float(mean - margin), float(mean + margin))


def comparisons(chosen: Sequence[str], summaries: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[str]:
    """One arm's rate minus another's, paired by seed (same data, same prompts)."""
    seeds = sorted({seed for _, seed in summaries})
    lines = []
    for rate, one, other in COMPARED:
        if one in chosen and other in chosen and len(seeds) > 1:
            pairs = [(summaries[one, s]["rates"].get(rate), summaries[other, s]["rates"].get(rate)) for s in seeds]
            if all(a and b for a, b in pairs):
                gaps = [a["mean"] - b["mean"] for a, b in pairs]
                each = ", ".join(f"{gap:+.1f}" for gap in gaps)
                lines.append(f"{rate}, {one} - {other}: {interval(gaps)} (seeds: {each})")
    return lines


def write(
    folder: Path, config: ExperimentConfig, chosen: Sequence[str], summaries: Mapping[tuple[str, int], Any]
) -> None:
    """table.md, table.csv, table.png and the config beside the run folders; the table on stdout."""
    seeds = sorted({seed for _, seed in summaries})
    by_arm = {arm: [summaries[arm, seed] for seed in seeds] for arm in chosen}
    synthetic = any(summary["synthetic"] for summary in summaries.values())
    header = ["arm", *COLUMNS.values(), "seconds"]
    rows = []
    for arm, own in by_arm.items():
        seconds = float(np.mean([summary["seconds"]["training"] for summary in own]))
        cells = [cell(own, rate) for rate in COLUMNS]
        rows.append([arm, *(str(c) if c else "not measured" for c in cells), f"{seconds:.0f}"])
    quality = next((s["guard"]["fitted"] or s["guard"]["released"] for s in summaries.values() if s["guard"]), None)
    notes = [
        f"{'SYNTHETIC tiny world. ' if synthetic else ''}Percent, 95 % intervals over "
        + (f"{len(seeds)} seeds (Student's t)." if len(seeds) > 1 else f"prompts (one seed, {seeds[0]}).")
        + " Seconds: rounds x median round; compilation, guard and evaluation are not in it.",
        *comparisons(chosen, summaries),
    ]
    if quality:
        notes.append(f"guard, seed {seeds[0]}: " + ", ".join(f"{name} {value:.1f}" for name, value in quality.items()))
    table = markdown(header, rows)
    log.write_text(folder / "table.md", table + "\n" + "".join(f"{note}\n\n" for note in notes))
    log.write_text(folder / "table.csv", to_csv(chosen, by_arm))
    log.write_text(folder / TABLE, dump_config(config))
    plot_arms(
        folder / "table.png", chosen, {r: [cell(by_arm[a], r) for a in chosen] for r in COLUMNS}, COLUMNS, synthetic
    )
    print(f"\n{table}\n" + "\n".join(notes) + f"\n\n{folder}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(fields: Sequence[str]) -> str:
        return "| " + " | ".join(field.ljust(width) for field, width in zip(fields, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)]) + "\n"


def to_csv(chosen: Sequence[str], by_arm: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One row for each arm, seed and rate, judges and categories included."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["arm", "seed", "rate", "mean", "low", "high", "prompts"])
    for arm in chosen:
        for summary in by_arm[arm]:
            for name, rate in summary["rates"].items():
                if rate:
                    out.writerow(
                        [
                            arm,
                            summary["seed"],
                            name,
                            *(round(float(rate[key]), 4) for key in ("mean", "low", "high")),
                            rate["prompts"],
                        ]
                    )
    return text.getvalue()
