"""A finished run in words, and the parts of its summary that say where its numbers come from."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
import numpy as np
from fedjax_rai.aliases import Adapter
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.load import dump_config
from fedjax_rai.config.load import load_config
from fedjax_rai.errors import InputError
from fedjax_rai.fed.algorithm import ServerState
from fedjax_rai.model.lora import size
from fedjax_rai.model.peft import load_adapter, save_adapter
from fedjax_rai.experiment import cost
from fedjax_rai.runs import files
from fedjax_rai.memory import advice
from fedjax_rai.experiment.evaluation import critique
from fedjax_rai.experiment.evaluation import evaluate
from fedjax_rai.config.files import ONLINE
from fedjax_rai.runs.inputs import check_inputs
from fedjax_rai.runs.inputs import check_unchanged
from fedjax_rai.config.files import digests
from fedjax_rai.runs.record import METRICS
from fedjax_rai.runs.record import REVISIONS
from fedjax_rai.runs.record import Record
from fedjax_rai.runs.record import timed
from fedjax_rai.experiment.round import Federation
from fedjax_rai.experiment.round import Outcome
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.config.schema import TINY
from fedjax_rai.runs.folder import SUMMARY



def synthetic_parts(config: ExperimentConfig) -> list[str]:
    """Which parts of a run are the tiny world's."""
    parts = {"model": config.model.path, "data": config.data.train, "AdvBench prompts": config.eval.advbench}
    found, own = [name for name, source in parts.items() if source == TINY], config.cai
    made = Path(own.data) / SUMMARY if own.enabled and own.data != ONLINE else None
    return found + (["revisions"] if made and made.is_file() and files.read_json(made)["synthetic"] else [])


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
    summary = files.read_json(folder / SUMMARY)
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
