"""Adapters in and out, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.aliases import Adapter
from fedjax_rai.errors import InputError
from fedjax_rai.model.architecture import DecoderConfig, module_name
from fedjax_rai.model.families import names, read_json
from fedjax_rai.model.lora import Lora, abstract_adapter
from fedjax_rai.model.weights import Stored, listed, save_safetensors, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# PEFT options that change what an adapter computes; ours computes x W + scale (x a) b and nothing else.
_REFUSED = (
    "use_dora", "use_qalora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices",
    "target_parameters", "alora_invocation_tokens", "ensure_weight_tying",
)  # fmt: skip


def save_adapter(
    folder: Path,
    config: DecoderConfig,
    lora: Lora,
    adapter: Adapter,
    base_name: str,
    revision: str | None = None,
    dtype: str = "float32",
) -> None:
    """Write an adapter as PEFT does; `base_name` is the folder or hub name of its base, `revision` of the latter."""
    expected = jax.tree.map(lambda leaf: leaf.shape, abstract_adapter(config, lora))
    if (got := jax.tree.map(np.shape, adapter)) != expected:
        raise ValueError(f"cannot write {folder}: leaves are {got}, the model's are {expected}")
    tensors = {}
    for name, (target, layer, rank) in _modules(config, lora).items():
        a, b = (np.asarray(adapter["layers"][target][part][layer], jnp.dtype(dtype)) for part in "ab")
        tensors |= {f"{name}.lora_A.weight": a[:, :rank].T, f"{name}.lora_B.weight": b[:rank].T}
    save_safetensors(Path(folder) / WEIGHTS, tensors)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": _whole(lora.alpha),
        "use_rslora": lora.rslora,
        "target_modules": _target_modules(config, lora),
        "layers_to_transform": None if lora.layers is None else list(lora.layers),
        "rank_pattern": {pattern: rank for pattern, rank in lora.rank_pattern if rank},
        "alpha_pattern": {pattern: _whole(value) for pattern, value in lora.alpha_pattern},
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    write_json(Path(folder) / CONFIG, fields)


def _target_modules(config: DecoderConfig, lora: Lora) -> list[str]:
    """By their last names; where a pattern leaves some of them out (rank 0), the whole names of the others."""
    if all(rank for _, rank in lora.rank_pattern):
        return list(lora.targets)
    return [name.removeprefix(PREFIX) for name in _modules(config, lora)]


def _whole(number: float) -> int | float:
    return round(number) if math.isclose(number, round(number)) else number


def _modules(config: DecoderConfig, lora: Lora) -> dict[str, tuple[str, int, int]]:
    """PEFT's name of every adapted module -> (target, layer, rank)."""
    depth = config.num_hidden_layers
    return {
        f"{PREFIX}{module_name(layer, target)}": (target, layer, rank)
        for target in config.targets
        if target in lora.targets
        for layer, rank in enumerate(lora.ranks(target, depth))
        if rank
    }


def load_adapter(folder: Path, config: DecoderConfig) -> tuple[Lora, Adapter]:
    """The adapter in a PEFT folder, float32, and its shape.

    Raises one `InputError` with all that is not LoRA as we compute it (DoRA, biases, saved modules, ...), or with
    every tensor that is missing, surplus or of another shape.
    """
    path = Path(folder) / CONFIG
    raw = read_json(path)
    if not (weights := Path(folder) / WEIGHTS).is_file():
        raise InputError(f"{folder}: {WEIGHTS} is not there (only safetensors are read)")
    stored = listed([weights])
    lora = _read_shape(path, raw, config, stored)
    modules = _modules(config, lora)
    shapes = abstract_adapter(config, lora)["layers"]
    expected: dict[str, tuple[int, ...]] = {}
    for name, (target, _, rank) in modules.items():
        expected[f"{name}.lora_A.weight"] = (rank, shapes[target]["a"].shape[1])
        expected[f"{name}.lora_B.weight"] = (shapes[target]["b"].shape[2], rank)
    problems = [f"missing: {name}" for name in sorted(expected.keys() - stored.keys())]
    problems += [f"surplus: {name}" for name in sorted(stored.keys() - expected.keys())]
    for name in sorted(expected.keys() & stored.keys()):
        if stored[name].shape != expected[name]:
            problems.append(f"shape of {name}: {stored[name].shape}, expected {expected[name]}")
    if problems:
        raise InputError("\n  ".join([f"{weights}: tensors do not fit the model", *problems]))
    leaves = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    for name, (target, layer, rank) in modules.items():
        leaves[target]["a"][layer, :, :rank] = stored[f"{name}.lora_A.weight"].read().T
        leaves[target]["b"][layer, :rank] = stored[f"{name}.lora_B.weight"].read().T
    return lora, {"layers": jax.tree.map(jnp.asarray, leaves)}


def _read_shape(path: Path, raw: Mapping[str, Any], config: DecoderConfig, stored: Mapping[str, Stored]) -> Lora:
    problems = [f"{name} {raw[name]!r} is not supported" for name in _REFUSED if raw.get(name)]
    if raw.get("peft_type") != "LORA":
        problems.append(f"peft_type {raw.get('peft_type')!r} is not supported, only: LORA")
    if raw.get("bias", "none") != "none":
        problems.append(f"bias {raw['bias']!r} is not supported, only: none")
    if raw.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal", "eva"):
        problems.append(f"init_lora_weights {raw['init_lora_weights']!r} is not supported: it changes the base")
    for name in ("r", "lora_alpha"):
        if not isinstance(raw.get(name), int | float) or raw[name] <= 0:
            problems.append(f"{name} is {raw.get(name)!r}, must be a positive number")
    # the file, not `target_modules`, says what was adapted: that field may be a pattern or "all-linear"
    parts = {part for name in stored for part in name.split(".")}
    targets = tuple(target for target in config.targets if target in parts)
    if not targets and not problems:
        problems.append(f"adapts none of {names(set(config.targets))}")
    if problems:
        raise InputError(f"{path}: " + "; ".join(problems))
    layers, patterns = raw.get("layers_to_transform"), tuple((raw.get("rank_pattern") or {}).items())
    asked = raw.get("target_modules") or ()
    # not by last names alone: any module may be left out
    if isinstance(asked, str) or any("." in name for name in asked) or raw.get("exclude_modules"):
        every = [module_name(layer, target) for layer in range(config.num_hidden_layers) for target in targets]
        absent = [name for name in every if f"{PREFIX}{name}.lora_A.weight" not in stored]
        patterns = (*((re.escape(name), 0) for name in absent), *patterns)
    return Lora(
        targets=targets,
        rank=int(raw["r"]),
        alpha=float(raw["lora_alpha"]),
        rslora=bool(raw.get("use_rslora")),
        layers=None if layers is None else (layers,) if isinstance(layers, int) else tuple(layers),
        rank_pattern=patterns,
        alpha_pattern=tuple((name, float(alpha)) for name, alpha in (raw.get("alpha_pattern") or {}).items()),
    )
