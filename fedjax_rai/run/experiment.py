"""One run, in one folder: train its rounds, evaluate the final adapter, and be able to go on after any interruption."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rai.config import ExperimentConfig
from fedjax_rai.config_file import check_files, dump_config, load_config
from fedjax_rai.errors import InputError
from fedjax_rai.fed.algorithm import ServerState
from fedjax_rai.model.lora import size
from fedjax_rai.model.peft import load_adapter, save_adapter
from fedjax_rai.run import log, memory
from fedjax_rai.run.checkpoint import Checkpoints
from fedjax_rai.run.evaluation import evaluate
from fedjax_rai.run.round import Federation
from fedjax_rai.run.setting import Setting

CONFIG, VERSIONS, METRICS, ADAPTER = "config.yaml", "versions.json", "metrics.jsonl", "adapter"
EVALUATION, ANSWERS, SUMMARY, CHECKPOINTS = "eval.json", "answers.jsonl", "summary.json", "checkpoints"


def run(config: ExperimentConfig, setting: Setting | None = None) -> Path:
    """The run folder of a config, finished: started, resumed, or found done.

    Nothing is written before config, data and model have been read. `setting`: one that the config's arm may use.
    """
    check_files(config)
    folder = Path(config.output or "runs/run")
    finished = check_folder(folder, config)
    if finished:
        log.say(f"{folder}: already finished")
        return folder
    setting = setting or Setting(pinned(folder, config))
    memory.announce(config, setting)
    setting.check(config)
    folder.mkdir(parents=True, exist_ok=True)
    log.write_text(folder / CONFIG, dump_config(config))
    note_versions(folder / VERSIONS, setting.commits)
    state = train(Federation(setting, config), folder)
    commit = setting.commits.get("model_commit")
    save_adapter(folder / ADAPTER, *setting.shapes, state.adapter, config.model.path, commit)
    conclude(setting, config, folder, state.adapter)
    return folder


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
    return (folder / SUMMARY).is_file()


def note_versions(path: Path, commits: dict[str, str]) -> None:
    """A list of the versions that took part: one entry, and another for each time a run was resumed under others.

    `commits`: those of the models that came from the hub.
    """
    past, now = (log.read_json(path) if path.exists() else []), log.versions() | commits
    if now not in past:
        log.write_json(path, [*past, now])


def pinned(folder: Path, config: ExperimentConfig) -> ExperimentConfig:
    """The config with the commits that the run in `folder` began with, if any: a branch on the hub may move on."""
    began = log.read_json(folder / VERSIONS)[0] if (folder / VERSIONS).is_file() else {}
    for name in ("model", "guard"):
        if commit := began.get(f"{name}_commit"):
            config = config.model_copy(update={name: getattr(config, name).model_copy(update={"revision": commit})})
    return config


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two resolved configs differ."""
    found = []
    for key in old:
        if isinstance(old[key], dict):
            found += differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            found.append((prefix + key, old[key], new[key]))
    return found


def train(federation: Federation, folder: Path) -> ServerState:
    """All rounds that are still to do, a checkpoint and a row of metrics after each.

    The metrics of a round are read after the next one was dispatched, so the device never waits for the host.
    """
    rounds = federation.config.federated.rounds
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        done, state = checkpoints.restore(federation.init())
        rows = [row for row in log.read_rows(folder / METRICS) if row["round"] <= done]
        log.write_rows(folder / METRICS, rows)
        if done:
            log.say(f"{folder}: going on after round {done} of {rounds}")
        with log.progress(folder.name, rounds, done) as advance:
            pending, began = None, time.perf_counter()

            def settle(t: int, metrics: dict[str, Any], state: ServerState) -> None:
                nonlocal began
                row = {"round": t + 1} | {name: np.asarray(value).item() for name, value in metrics.items()}
                now = time.perf_counter()
                log.append_row(folder / METRICS, row | {"seconds": round(now - began, 3)})
                checkpoints.save(t + 1, state)
                began = now
                advance(f"loss {row['train_loss']:.3f}")

            for t in range(done, rounds):
                state, metrics = federation.round(state, t)
                if pending:
                    settle(*pending)
                pending = (t, metrics, state)
            if pending:
                settle(*pending)
    return state


def conclude(setting: Setting, config: ExperimentConfig, folder: Path, adapter: Any) -> None:
    """Evaluate, and write eval.json, answers.jsonl and, last, the summary that marks the run as finished."""
    began = time.perf_counter()
    log.say("evaluating")
    rates, answers = evaluate(setting, adapter)
    evaluated = time.perf_counter() - began
    rows = log.read_rows(folder / METRICS)
    seconds = [row["seconds"] for row in rows] or [0.0]
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
        # the median round leaves out what compiling costs whichever arm comes first
        "seconds": {
            "training": round(len(rows) * float(np.median(seconds)), 1),
            "with_compilation": round(sum(seconds), 1),
            "evaluation": round(evaluated, 1),
        },
        "trained_tokens": sum(row["trained_tokens"] for row in rows),
    }
    log.write_json(folder / SUMMARY, summary)


def synthetic_parts(config: ExperimentConfig) -> list[str]:
    """Which parts of a run are the tiny world's."""
    parts = {"model": config.model.path, "data": config.data.train, "AdvBench prompts": config.eval.advbench}
    return [name for name, source in parts.items() if source == "tiny"]


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
    return "\n".join([*lines, str(folder)])


def evaluate_run(folder: Path) -> None:
    """Evaluate the adapter of a run folder once more, as its config says; rewrites its evaluation and summary."""
    if not (folder / CONFIG).is_file() or not (folder / ADAPTER).is_dir():
        raise InputError(f"{folder}: not a run folder with {CONFIG} and {ADAPTER}/ (is the run finished?)")
    config = load_config(folder / CONFIG)
    check_files(config)
    setting = Setting(pinned(folder, config))
    _, adapter = load_adapter(folder / ADAPTER, setting.model.config)
    conclude(setting, config, folder, adapter)
