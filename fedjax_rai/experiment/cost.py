"""What the phases of a run cost: seconds, tokens, FLOPs, and the share that a full epoch of CAI would have added.

Of the probe, only seconds; the guard and its scores are not in it.

FLOPs are those of the matrix products, without attention's own and without padding: 2 a parameter and token forward; a
training step of an adapter takes 4 for the frozen base, whose own gradient nobody needs, and 6 for the adapter.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np

from fedjax_rai.config.files import ONLINE
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.model.architecture import FUSED, DecoderConfig, fan_in, outputs
from fedjax_rai.model.lora import size

Rows = Sequence[Mapping[str, Any]]


def kernels(config: DecoderConfig) -> int:
    """Parameters that a token is multiplied with: all kernels, and the unembedding."""
    layer = sum(fan_in(config, kernel) * sum(outputs(config, kernel).values()) for kernel in FUSED)
    return config.num_hidden_layers * layer + config.vocab_size * config.hidden_size


def forward_flops(setting: Setting) -> int:
    """Of one token."""
    return 2 * (kernels(setting.models.architecture) + size(*setting.shapes))


def step_flops(setting: Setting) -> int:
    """Of one token of a training step; with `remat` full the forward pass is done twice."""
    again = forward_flops(setting) if setting.models.architecture.remat != "none" else 0
    return 4 * kernels(setting.models.architecture) + 6 * size(*setting.shapes) + again


def phases(setting: Setting, rows: Rows) -> dict[str, dict[str, Any] | None]:
    """Totals by phase over a run's rows of metrics; `probe` and `cai` None where there was none."""
    probed = [row for row in rows if "probe_harmless" in row]
    aligned = [row for row in rows if "cai_iterations" in row]
    return {
        "local": _total(rows, "", setting) | {"seconds": seconds(rows, "local_seconds")},
        "probe": {"probes": len(probed), "seconds": seconds(probed, "probe_seconds")} if probed else None,
        "cai": _cai(setting, aligned) if aligned else None,
    }


def seconds(rows: Rows, name: str) -> float:
    """Rounds times the median round, the first left out where there are others: whichever arm comes first compiles."""
    return round(len(rows) * float(np.median([row[name] for row in rows[1:] or rows])), 1) if rows else 0.0


def _total(rows: Rows, prefix: str, setting: Setting) -> dict[str, Any]:
    names = ("generated_tokens", "read_tokens", "trained_tokens", "step_tokens")
    tokens = {name: int(sum(row.get(prefix + name, 0) for row in rows)) for name in names}
    forward = (tokens["generated_tokens"] + tokens["read_tokens"]) * forward_flops(setting)
    return tokens | {"flops": float(forward + tokens["step_tokens"] * step_flops(setting))}


def _cai(setting: Setting, rows: Rows) -> dict[str, Any]:
    """`full_epoch_flops`: had each phase revised each of the server's red questions once, and trained on it once."""
    total, own = _total(rows, "cai_", setting), setting.config.cai
    steps = total["step_tokens"] * step_flops(setting)
    questions = {prompt.query for prompt in setting.texts.materials.red_prompts}
    everything = len(questions if own.data == ONLINE else setting.texts.prepared.chosen.tokens)
    replay = len(setting.replay.examples.tokens)
    revisions = own.batch_size * own.prompts / (own.prompts + replay)  # of an iteration's batch
    generated = (total["flops"] - steps) * everything / own.prompts
    full = generated + steps * ceil(everything / revisions) / own.iterations
    return total | {
        "phases": len(rows),
        "seconds": seconds(rows, "cai_seconds"),
        "full_epoch_flops": float(full),
        "share_saved": 1 - total["flops"] / full,
    }
