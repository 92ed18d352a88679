"""The end of a run: its evaluation, and the summary that marks it as finished."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rai import terminal
from fedjax_rai.config.files import ONLINE
from fedjax_rai.config.schema import TINY, ExperimentConfig
from fedjax_rai.experiment import cost
from fedjax_rai.experiment.evaluation import critique, evaluate
from fedjax_rai.experiment.round import Federation
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.model.lora import size
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import ANSWERS, EVALUATION, SUMMARY
from fedjax_rai.runs.record import METRICS, REVISIONS


def conclude(setting: Setting, config: ExperimentConfig, folder: Path, adapter: Any) -> None:
    """Evaluate, and write eval.json, answers.jsonl and, last, the summary that marks the run as finished."""
    began = time.perf_counter()
    terminal.say("evaluating")
    rates, answers = evaluate(setting, adapter)
    evaluated = time.perf_counter() - began
    rows, revisions = files.read_rows(folder / METRICS), files.read_rows(folder / REVISIONS)
    files.write_json(folder / EVALUATION, rates)
    files.write_rows(folder / ANSWERS, answers)
    summary = {
        "rates": rates,
        "rounds": config.federated.rounds,
        "seed": config.seed,
        "synthetic": synthetic_parts(config),
        "adapter_parameters": size(*setting.shapes),
        "truncated_examples": setting.texts.truncated,
        "guard": setting.guarding.quality if config.filter.enabled else None,
        "filter": filtered(setting) if config.filter.enabled else None,
        "seconds": {
            "training": cost.seconds(rows, "seconds"),
            "with_compilation": round(sum(row["seconds"] for row in rows), 1),
            "evaluation": round(evaluated, 1),
        },
        "cost": cost.phases(setting, rows),
        "critique": critique(setting, revisions) if revisions else None,
    }
    files.write_json(folder / SUMMARY, summary)


def synthetic_parts(config: ExperimentConfig) -> list[str]:
    """Which parts of a run are the tiny world's."""
    parts = {"model": config.model.path, "data": config.data.train, "AdvBench prompts": config.eval.advbench}
    found, own = [name for name, source in parts.items() if source == TINY], config.cai
    made = Path(own.data) / SUMMARY if own.enabled and own.data != ONLINE else None
    return found + (["revisions"] if made and made.is_file() and files.read_json(made)["synthetic"] else [])


def filtered(setting: Setting) -> dict[str, int | float]:
    """What the filter left of all clients' pairs; the harmful share is known to this simulation alone."""
    kept = Federation(setting).kept
    left = [setting.texts.materials.pairs[i] for rows in kept for i in rows]
    return {
        "kept": len(left),
        "dropped": len(setting.texts.materials.pairs) - len(left),
        "without_score": int(np.isnan(setting.guarding.scores).sum()),
        "harmful_share_kept": sum(pair.harmful for pair in left) / max(len(left), 1),
    }
