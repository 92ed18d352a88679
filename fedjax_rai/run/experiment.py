"""One run, in one folder: train its rounds, evaluate the final adapter, and be able to go on after any interruption."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rai.aliases import Adapter
from fedjax_rai.config import ExperimentConfig
from fedjax_rai.config_file import dump_config, load_config
from fedjax_rai.errors import InputError
from fedjax_rai.fed.algorithm import ServerState
from fedjax_rai.model.lora import size
from fedjax_rai.model.peft import load_adapter, save_adapter
from fedjax_rai.run import cost, log, memory
from fedjax_rai.run.evaluation import critique, evaluate
from fedjax_rai.run.inputs import ONLINE, check_inputs, check_unchanged, digests
from fedjax_rai.run.record import METRICS, REVISIONS, Record, timed
from fedjax_rai.run.round import Federation, Outcome
from fedjax_rai.run.setting import Setting
from fedjax_rai.text.hub import TINY

CONFIG, VERSIONS, ADAPTER = "config.yaml", "versions.json", "adapter"
EVALUATION, ANSWERS, SUMMARY = "eval.json", "answers.jsonl", "summary.json"


def run(config: ExperimentConfig, setting: Setting | None = None, siblings: Sequence[ExperimentConfig] = ()) -> Path:
    """The run folder of a config, finished: started, resumed, or found done.

    Nothing is written before config, data and model have been read. `setting`: one that the config's arm may use.
    `siblings` have fewer `cai.iterations`, ascending, and differ in nothing else: on the way their folders are filled
    up to the end of the first CAI phase, which is all that they share, so that their own runs go on from there.
    """
    check_inputs([config])
    folder = run_folder(config)
    if check_folder(folder, config):
        log.say(f"{folder}: already finished")
        return folder
    setting = setting or make_setting([config])
    memory.announce(config, memory.sizes(setting, config))
    setting.check(config)
    open_folder(folder, config, setting)
    state = train(Federation(setting, config), folder, siblings)
    finish(setting, config, state.adapter)
    return folder


def finish(setting: Setting, config: ExperimentConfig, adapter: Adapter) -> None:
    """What comes after the last round: the adapter is written and evaluated."""
    folder, commit = run_folder(config), setting.commits.get("model_commit")
    save_adapter(folder / ADAPTER, *setting.shapes, adapter, config.model.path, commit)
    conclude(setting, config, folder, adapter)


def run_folder(config: ExperimentConfig) -> Path:
    return Path(config.output or "runs/run")


def open_folder(folder: Path, config: ExperimentConfig, setting: Setting) -> None:
    """Create it, with what tells whose it is."""
    folder.mkdir(parents=True, exist_ok=True)
    log.write_text(folder / CONFIG, dump_config(config))
    note_versions(folder / VERSIONS, setting.commits | {"files": digests(config)})


def check_folder(folder: Path, config: ExperimentConfig) -> bool:
    """Whether the run is finished. Raises InputError if the folder holds anything but this very run."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / CONFIG).is_file():
        raise InputError(f"output = {folder}: exists and is not a run folder; name another one")
    there = load_config(folder / CONFIG).model_dump()
    changed = differences(there | {"output": None}, config.model_dump() | {"output": None})
    if changed:
        listed = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed)
        raise InputError(f"output = {folder}: holds a run of another config; name another folder, or undo\n{listed}")
    check_unchanged(config, folder, began_with(folder).get("files", {}))
    return (folder / SUMMARY).is_file()


def note_versions(path: Path, others: dict[str, Any]) -> None:
    """A list of the versions that took part: one entry, and another for each time a run was resumed under others.

    `others`: commits of the models that came from the hub, digests of files.
    """
    past, now = (log.read_json(path) if path.exists() else []), log.versions() | others
    if now not in past:
        log.write_json(path, [*past, now])


def began_with(folder: Path) -> dict[str, Any]:
    """The versions that the run in a folder began with; nothing where none has."""
    return log.read_json(folder / VERSIONS)[0] if (folder / VERSIONS).is_file() else {}


def pinned(folder: Path, config: ExperimentConfig) -> ExperimentConfig:
    """The config with the commits that the run in `folder` began with, if any: a branch on the hub may move on."""
    began = began_with(folder)
    for name in ("model", "guard"):
        if commit := began.get(f"{name}_commit"):
            config = config.model_copy(update={name: getattr(config, name).model_copy(update={"revision": commit})})
    return config


def make_setting(configs: Sequence[ExperimentConfig], previous: Setting | None = None) -> Setting:
    """One for runs that agree in what it depends on, with the commits that the first one to begin began with."""
    begun = next((own for own in configs if began_with(run_folder(own))), configs[0])
    return Setting(pinned(run_folder(begun), begun), previous)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two resolved configs differ."""
    found = []
    for key in old:
        if isinstance(old[key], dict) and old[key].keys() == new[key].keys():
            found += differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            found.append((prefix + key, old[key], new[key]))
    return found


def train(federation: Federation, folder: Path, siblings: Sequence[ExperimentConfig] = ()) -> ServerState:
    """All rounds that are still to do, a record of each.

    The metrics of a round are read after the next one was dispatched, so the device never waits for the host.
    """
    rounds, iterations = federation.config.federated.rounds, federation.config.cai.iterations
    with Record(folder, federation.setting) as record:
        done, state = record.restore(federation.init())
        if done:
            log.say(f"{folder}: going on after round {done} of {rounds}")
        if any("cai_iterations" in row for row in record.rows):
            siblings = ()  # where their ways part lies behind
        with log.progress(folder.name, rounds, done) as advance:
            pending, began = None, time.perf_counter()

            def settle(t: int, ends: list[tuple[ServerState, Outcome]], parting: Sequence[ExperimentConfig]) -> None:
                nonlocal began
                for config, (other, outcome) in zip(parting, ends, strict=False):
                    part(record, config, t, other, outcome, timed(outcome, began)[0])
                seconds, began = timed(ends[-1][1], began)
                row = record.add(t, *ends[-1], seconds)
                advance(f"loss {row['train_loss']:.3f}")

            for t in range(done, rounds):
                ends = federation.fork(state, t, [*(own.cai.iterations for own in siblings), iterations])
                if pending:
                    settle(*pending)
                state, outcome = ends[-1]
                parting = siblings if outcome.cai is not None or t + 1 == rounds else ()
                siblings = () if parting else siblings
                pending = (t, ends, parting)
            if pending:
                settle(*pending)
    return state


def part(
    record: Record, config: ExperimentConfig, t: int, state: ServerState, outcome: Outcome, seconds: dict[str, float]
) -> None:
    """Fill a sibling's folder as if it had run by itself to the end of round t."""
    folder = run_folder(config)
    open_folder(folder, config, record.setting)
    with Record(folder, record.setting) as theirs:
        theirs.begin_as(record)
        theirs.add(t, state, outcome, seconds)


def conclude(setting: Setting, config: ExperimentConfig, folder: Path, adapter: Any) -> None:
    """Evaluate, and write eval.json, answers.jsonl and, last, the summary that marks the run as finished."""
    began = time.perf_counter()
    log.say("evaluating")
    rates, answers = evaluate(setting, adapter)
    evaluated = time.perf_counter() - began
    rows, revisions = log.read_rows(folder / METRICS), log.read_rows(folder / REVISIONS)
    log.write_json(folder / EVALUATION, rates)
    log.write_rows(folder / ANSWERS, answers)
    summary = {
        "rates": rates,
        "rounds": config.federated.rounds,
        "seed": config.seed,
        "synthetic": synthetic_parts(config),
        "adapter_parameters": size(*setting.shapes),
        "truncated_examples": setting.truncated,
        "guard": setting.guard_quality if config.filter.enabled else None,
        "filter": filtered(setting, config) if config.filter.enabled else None,
        "seconds": {
            "training": cost.seconds(rows, "seconds"),
            "with_compilation": round(sum(row["seconds"] for row in rows), 1),
            "evaluation": round(evaluated, 1),
        },
        "cost": cost.phases(setting, config, rows),
        "critique": critique(setting, revisions) if revisions else None,
    }
    log.write_json(folder / SUMMARY, summary)


def synthetic_parts(config: ExperimentConfig) -> list[str]:
    """Which parts of a run are the tiny world's."""
    parts = {"model": config.model.path, "data": config.data.train, "AdvBench prompts": config.eval.advbench}
    found, own = [name for name, source in parts.items() if source == TINY], config.cai
    made = Path(own.data) / SUMMARY if own.enabled and own.data != ONLINE else None
    return found + (["revisions"] if made and made.is_file() and log.read_json(made)["synthetic"] else [])


def filtered(setting: Setting, config: ExperimentConfig) -> dict[str, int | float]:
    """What the filter left of all clients' pairs; the harmful share is known to this simulation alone."""
    kept = Federation(setting, config).kept
    left = [setting.materials.pairs[i] for rows in kept for i in rows]
    return {
        "kept": len(left),
        "dropped": len(setting.materials.pairs) - len(left),
        "without_score": int(np.isnan(setting.scores).sum()),
        "harmful_share_kept": sum(pair.harmful for pair in left) / max(len(left), 1),
    }


def report(folder: Path) -> str:
    """A finished run's rates, a line each, and where it lies."""
    summary = log.read_json(folder / SUMMARY)
    parts = ", ".join(summary["synthetic"])
    lines = [f"{f'SYNTHETIC (tiny world: {parts}); ' if parts else ''}percent, 95 % intervals over prompts"]
    for name, rate in summary["rates"].items():
        shown = f"{rate['mean']:5.1f}  [{rate['low']:.1f}, {rate['high']:.1f}]" if rate else "not measured"
        lines.append(f"  {name:<28}{shown}")
    if summary["guard"]:
        quality = summary["guard"]["fitted"] or summary["guard"]["released"]
        lines.append(f"  guard on the clients' pairs: {', '.join(f'{name} {q:.1f}' for name, q in quality.items())}")
    if own := summary["critique"]:
        made = f"{own['unsafe']} unsafe responses, {_percent(own['made_safe'])} of them made safe"
        left = (
            f"{own['safe']} safe, {_percent(own['left_alone'])} left alone, {_percent(own['made_unsafe'])} made unsafe"
        )
        lines.append(f"  critique, by {own['judge']}: {made}; {left}")
    if own := summary["cost"]["cai"]:
        epochs = own["flops"] / own["full_epoch_flops"]
        saved = (
            f"{100 - 100 * epochs:.1f} % of a full epoch's FLOPs saved" if epochs < 1 else f"{epochs:.1f} full epochs"
        )
        lines.append(
            f"  CAI: {own['phases']} phases, {own['seconds']:.0f} s, {own['generated_tokens']} tokens generated, "
            f"{own['trained_tokens']} trained; {saved}"
        )
    return "\n".join([*lines, str(folder)])


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1f} %"


def evaluate_run(folder: Path) -> None:
    """Evaluate the adapter of a run folder once more, as its config says; rewrites its evaluation and summary."""
    if not (folder / CONFIG).is_file() or not (folder / ADAPTER).is_dir():
        raise InputError(f"{folder}: not a run folder with {CONFIG} and {ADAPTER}/ (is the run finished?)")
    config = load_config(folder / CONFIG)
    check_inputs([config])
    setting = Setting(pinned(folder, config))
    _, adapter = load_adapter(folder / ADAPTER, setting.model.config)
    conclude(setting, config, folder, adapter)
