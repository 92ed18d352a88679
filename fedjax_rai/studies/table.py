"""The paper's table: arms x seeds, with intervals, paired differences and a picture."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai import terminal
from fedjax_rai.config.load import dump_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.errors import InputError, did_you_mean
from fedjax_rai.evals.judge import GUARD
from fedjax_rai.experiment.layout import choose_mesh
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import compiled, files
from fedjax_rai.runs.folder import check_folder, pins, run_folder
from fedjax_rai.runs.guards import GUARDS, KeptGuards
from fedjax_rai.runs.inputs import check_inputs
from fedjax_rai.runs.run import run
from fedjax_rai.studies.cells import Summary, paired, read_run, unit_among
from fedjax_rai.studies.judged import agreement_tables, answer_columns, fitting
from fedjax_rai.studies.plots import plot_arms
from fedjax_rai.studies.results import (
    CSV_COLUMNS,
    PLANNED,
    answer_notes,
    basis,
    cells_of,
    check_same,
    guard_over_seeds,
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

NO_FILTER = {"filter": {"enabled": False}}
NO_CAI = {"cai": {"enabled": False}}
FILTER = {"filter": {"enabled": True}}
CAI = {"cai": {"enabled": True, "target": "revision"}}


class Arm(NamedTuple):
    """A row of the table."""

    about: str
    """What it is, in a line."""
    changes: dict[str, dict[str, Any]]
    """The config's keys that make it, by section."""


ARMS: dict[str, Arm] = {
    "base": Arm("the base as it is, untrained", {"federated": {"rounds": 0}, **NO_FILTER, **NO_CAI}),
    "fl": Arm("federated training, and nothing else", {**NO_FILTER, **NO_CAI}),
    "fl+filter": Arm("federated training, the guard's filter on each client", {**FILTER, **NO_CAI}),
    "fl+cai": Arm("federated training, constitutional AI on the server", {**NO_FILTER, **CAI}),
    "fl+filter+cai": Arm("federated training with filter and constitutional AI", {**FILTER, **CAI}),
}
UNREVISED = {"enabled": True, "target": "response", "method": "sft", "data": "online"}
CONTROLS: dict[str, Arm] = {
    "fl+keep_all": Arm(
        "control: the guard scores, and nothing is dropped; must equal fl",
        {"filter": {"enabled": True, "action": "keep"}, **NO_CAI},
    ),
    "fl+cai_0": Arm(
        "control: constitutional AI of 0 iterations; must equal fl",
        {**NO_FILTER, "cai": {"enabled": True, "target": "revision", "iterations": 0}},
    ),
    "fl+unrevised": Arm(
        "control: constitutional AI trains on the answers before revision", {**NO_FILTER, "cai": UNREVISED}
    ),
}
COMPARED = (
    ("harmless", "fl", "base"),
    ("harmless", "fl+filter", "fl"),
    ("harmless", "fl+cai", "fl"),
    ("harmless", "fl+cai", "fl+filter"),
    ("harmless", "fl+filter+cai", "fl+cai"),
    ("harmless", "fl+filter+cai", "fl+filter"),
    ("harmless", "fl+cai", "fl+unrevised"),
    ("harmless", "fl+cai_0", "fl"),
    ("harmless", "fl+keep_all", "fl"),
    ("utility", "fl+filter+cai", "base"),
    ("drift", "fl+filter+cai", "fl"),
    ("perplexity", "fl+filter+cai", "base"),
    ("mt_bench", "fl+filter+cai", "base"),
)
TABLE = "table.yaml"
BY_GUARD = f"harmless_by_{GUARD.name}"


def run_table(
    config: ExperimentConfig, arms: Sequence[str] | None = None, seeds: int = 1, margin: float | None = None
) -> Path:
    """Run every arm with seeds `config.seed`, + 1, ...; write and print the table. Finished runs are kept.

    `margin`, in points: say of every difference whether two arms are equivalent within it. Returns the folder. Raises
    InputError for an unknown arm, or a folder that holds another table.
    """
    chosen = choose(arms)
    folder = Path(config.output or "runs/table")
    check_table(folder, config)
    by_seed = {}
    for seed in range(config.seed, config.seed + seeds):
        by_seed[seed] = {arm: arm_config(config, arm, seed, folder) for arm in chosen}
    configs = [run_config for by_arm in by_seed.values() for run_config in by_arm.values()]
    check_inputs(configs)
    for run_config in configs:
        check_folder(run_folder(run_config), run_config)
    write_planned(folder, map(run_folder, configs))
    compiled.keep_compiled()
    summaries: dict[tuple[str, int], Summary] = {}
    setting: Setting | None = None
    store = KeptGuards(folder)
    if config.mesh.auto:
        setting = _on_one_mesh([*by_seed[config.seed].values()], store)
    for seed, by_arm in by_seed.items():
        begun = pins([*by_arm.values()])
        for arm, run_config in by_arm.items():
            setting = Setting(run_config, setting, begun, store)
            terminal.say(f"[{len(summaries) + 1}/{len(configs)}] {arm}, seed {seed}")
            summaries[arm, seed] = read_run(run(run_config, setting))
    write(folder, config, chosen, summaries, margin)
    return folder


def _on_one_mesh(configs: Sequence[ExperimentConfig], store: KeptGuards) -> Setting | None:
    """The last arm, on a mesh that all those fit on with which it shares the base; finished ones count, so that a table
    that is gone on with chooses as before. None: all are finished.
    """
    if all([check_folder(run_folder(config), config) for config in configs]):
        return None
    begun = pins(configs)
    settings: list[Setting] = []
    for config in configs:
        settings.append(Setting(config, settings[-1] if settings else None, begun, store))
    choose_mesh(settings)
    return settings[-1]


def check_table(folder: Path, config: ExperimentConfig) -> None:
    """Raise InputError if the folder holds anything but a table of this config; arms and seeds may be others."""
    files.check_writable(folder, f"output = {folder}")
    if (folder / TABLE).is_file():
        check_same(folder / TABLE, config, "a table", ["seed"])
    elif folder.is_file() or (folder.is_dir() and any(not _of_a_table(path) for path in folder.iterdir())):
        raise InputError(f"output = {folder}: exists and is not a table's folder; name another one")


def _of_a_table(path: Path) -> bool:
    """Whether a table's folder, begun and cut off, may hold this."""
    return path.name.startswith("seed") or path.name in (GUARDS, PLANNED)


def choose(arms: Sequence[str] | None) -> list[str]:
    """These arms; the paper's for None. Raises InputError for one that there is not, or that stands there twice."""
    known = ARMS | CONTROLS
    unknown = [arm for arm in arms or () if arm not in known]
    if unknown:
        wrong = f"--arms {','.join(unknown)}: no such arm{did_you_mean(unknown[0], known)}"
        raise InputError("\n".join([f"{wrong}; must be among", *arm_lines()]))
    repeated = [arm for arm, times in Counter(arms).items() if times > 1]
    if repeated:
        raise InputError(f"--arms {','.join(repeated)}: stands twice; must stand once")
    return list(arms or ARMS)


def arm_lines() -> list[str]:
    """What `--arms` knows, a line each: name and description."""
    known = ARMS | CONTROLS
    width = max(map(len, known))
    return [f"{name:<{width}}  {arm.about}" for name, arm in known.items()]


def arm_config(config: ExperimentConfig, arm: str, seed: int, folder: Path) -> ExperimentConfig:
    """The config of one run of the table, which differs from the table's in the arm's keys, in seed and folder."""
    fields = config.model_dump()
    for section, values in (ARMS | CONTROLS)[arm].changes.items():
        fields[section] |= values
    output = folder / f"seed{seed}" / arm
    return ExperimentConfig.model_validate(fields | {"seed": seed, "output": str(output)})


def comparisons(
    config: ExperimentConfig,
    chosen: Sequence[str],
    by_arm: Mapping[str, Sequence[Summary]],
    titles: Mapping[str, str],
    margin: float | None = None,
) -> list[str]:
    """One arm's rate minus another's, or over it, paired, a line each; `titles`: rate -> what it is called.

    `margin`, in points: also whether the two are equivalent within it.
    """
    lines = []
    for rate, arm, other in COMPARED:
        if arm not in chosen or other not in chosen:
            continue
        gap = paired(rate, by_arm[arm], by_arm[other], margin)
        mixed = differs_from_unrevised(config) if other == "fl+unrevised" else None
        if gap and mixed:
            lines.append(f"{arm} minus {other} is left out: cai.{mixed} differs too, and is {UNREVISED[mixed]} there")
        elif gap:
            versus = unit_among(by_arm[arm], rate).versus
            lines.append(f"{titles[rate]}, {arm} {versus} {other}: {gap}")
    return lines


def differs_from_unrevised(config: ExperimentConfig) -> str | None:
    """The first key of `cai` besides the target in which the arm `fl+unrevised` is not as the table's; None: none."""
    for key in ("method", "data"):
        if getattr(config.cai, key) != UNREVISED[key]:
            return key
    return None


def write(
    folder: Path,
    config: ExperimentConfig,
    chosen: Sequence[str],
    summaries: Mapping[tuple[str, int], Summary],
    margin: float | None = None,
) -> None:
    """table.md, table.csv, table.png and the config beside the run folders; the table on stdout."""
    seeds = sorted({seed for _, seed in summaries})
    by_arm = {arm: [summaries[arm, seed] for seed in seeds] for arm in chosen}
    everything = list(summaries.values())
    titles = shown_rates(everything)
    by_row = list(by_arm.values())
    cells = cells_of(titles, by_row)
    compared = comparisons(config, chosen, by_arm, titles, margin)
    notes = [basis(everything), *prompt_note(titles, cells), *compared, *_guard_notes(everything)]
    notes += [*judge_notes(titles, by_arm), *answer_notes(by_arm), *unmeasured_note(everything)]
    first = {"arm": list(chosen)}
    counts = answer_columns(by_row)
    judges = agreement_tables(everything)
    seconds = {"seconds": [_training_seconds(row_summaries) for row_summaries in by_row]}
    table = wide(first | rate_columns(titles, cells) | counts | seconds)
    files.write_text(folder / "table.md", with_notes(table, [*notes, *judges]))
    numbers = []  # a row for each arm, seed and rate
    for arm in chosen:
        for summary in by_arm[arm]:
            numbers += [[arm, summary["seed"], *fields] for fields in rate_rows(summary)]
    files.write_text(folder / "table.csv", to_csv(["arm", "seed", "rate", *CSV_COLUMNS], numbers))
    files.write_text(folder / TABLE, dump_config(config))
    plot_arms(folder / "table.png", chosen, cells, titles, is_synthetic(everything))
    columns = first | rate_columns(main_first(titles), cells, short=True) | seconds | counts
    print("\n" + "\n\n".join([printed(columns, notes, "table.md"), *fitting(judges, "table.md"), str(folder)]))


def _training_seconds(summaries: Sequence[Summary]) -> str:
    """The mean of an arm's training seconds over seeds, as the table shows it."""
    seconds = [summary["seconds"]["training"] for summary in summaries]
    return f"{np.mean(seconds):.0f}"


def _guard_notes(summaries: Sequence[Summary]) -> list[str]:
    """The guard's quality, in a line, over the seeds; and why some runs lack its rate."""
    return [*_guard_quality(summaries), *_without_rate_by_guard(summaries)]


def _without_rate_by_guard(summaries: Sequence[Summary]) -> list[str]:
    measured = [summary["rates"].get(BY_GUARD) is not None for summary in summaries]
    if not any(measured) or all(measured):
        return []
    return [
        "harmless (guard): not measured where nothing else needs the guard; eval.by_guard=true measures it everywhere"
    ]


def _guard_quality(summaries: Sequence[Summary]) -> list[str]:
    found = guard_over_seeds(summaries)
    if found is None:
        return []
    listed = ", ".join(f"{name} {value}" for name, value in found.measures.items())
    seeds = ", ".join(map(str, found.seeds))
    which = f"seed {seeds}" if len(found.seeds) == 1 else f"mean [least, most] of the seeds {seeds}"
    return [f"guard, {which}: {listed}"]
