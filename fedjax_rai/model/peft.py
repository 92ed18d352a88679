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
from fedjax_rai.model.weights import Stored, check_tensors, listed, save_safetensors, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# PEFT options that change what an adapter computes; ours computes x W + scale (x a) b and nothing else.
_REFUSED = (
    "use_dora", "use_qalora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices",
    "target_parameters", "alora_invocation_tokens", "ensure_weight_tying",
)  # fmt: skip


def files_of(folder: Path) -> list[Path]:
    """The two files of an adapter in a folder."""
    return [folder / CONFIG, folder / WEIGHTS]


def save_adapter(
    folder: Path, config: DecoderConfig, lora: Lora, adapter: Adapter, base_name: str, revision: str | None = None
) -> None:
    """Write an adapter as PEFT does, in the dtype of its leaves.

    `base_name` is the folder or the hub name of its base, `revision` that of the hub. Raises ValueError for leaves of
    other shapes than the model's.
    """
    expected = jax.tree.map(lambda leaf: leaf.shape, abstract_adapter(config, lora))
    got = jax.tree.map(np.shape, adapter)
    if got != expected:
        raise ValueError(f"cannot write {folder}: leaves are {got}, the model's are {expected}")
    tensors = {}
    for name, (target, layer, rank) in _modules(config, lora).items():
        pair = adapter["layers"][target]
        a = np.asarray(pair["a"][layer])
        b = np.asarray(pair["b"][layer])
        tensors[f"{name}.lora_A.weight"] = a[:, :rank].T
        tensors[f"{name}.lora_B.weight"] = b[:rank].T
    save_safetensors(Path(folder) / WEIGHTS, tensors)
    write_json(Path(folder) / CONFIG, _peft_config(config, lora, base_name, revision))


def _peft_config(config: DecoderConfig, lora: Lora, base_name: str, revision: str | None) -> dict[str, Any]:
    """The fields of `adapter_config.json`."""
    return {
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


def _target_modules(config: DecoderConfig, lora: Lora) -> list[str]:
    """The last names of the adapted modules; the whole names where a pattern leaves some modules out (rank 0)."""
    if all(rank for _, rank in lora.rank_pattern):
        return list(lora.targets)
    return [name.removeprefix(PREFIX) for name in _modules(config, lora)]


def _whole(number: float) -> int | float:
    """A number as an int where it is whole, as PEFT writes it."""
    return round(number) if math.isclose(number, round(number)) else number


def _modules(config: DecoderConfig, lora: Lora) -> dict[str, tuple[str, int, int]]:
    """PEFT's name of every adapted module -> (target, layer, rank)."""
    found = {}
    for target in config.targets:
        if target not in lora.targets:
            continue
        for layer, rank in enumerate(lora.ranks(target, config.num_hidden_layers)):
            if rank:
                found[f"{PREFIX}{module_name(layer, target)}"] = (target, layer, rank)
    return found


def load_adapter(folder: Path, config: DecoderConfig) -> tuple[Lora, Adapter]:
    """The adapter in a PEFT folder, float32, and its shape.

    Raises one `InputError` with all that is not LoRA as we compute it (DoRA, biases, saved modules, ...), or with
    every tensor that is missing, surplus or of another shape.
    """
    path = Path(folder) / CONFIG
    raw = read_json(path)
    weights = Path(folder) / WEIGHTS
    if not weights.is_file():
        raise InputError(f"{folder}: {WEIGHTS} is not there (only safetensors are read)")
    stored = listed([weights])
    lora = _read_shape(path, raw, config, stored)
    modules = _modules(config, lora)
    shapes = abstract_adapter(config, lora)["layers"]
    expected: dict[str, tuple[int, ...]] = {}
    for name, (target, _, rank) in modules.items():
        _, width_in, _ = shapes[target]["a"].shape
        _, _, width_out = shapes[target]["b"].shape
        expected[f"{name}.lora_A.weight"] = (rank, width_in)
        expected[f"{name}.lora_B.weight"] = (width_out, rank)
    check_tensors(weights, stored, expected)
    leaves = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    for name, (target, layer, rank) in modules.items():
        leaves[target]["a"][layer, :, :rank] = stored[f"{name}.lora_A.weight"].read().T
        leaves[target]["b"][layer, :rank] = stored[f"{name}.lora_B.weight"].read().T
    return lora, {"layers": jax.tree.map(jnp.asarray, leaves)}


def _read_shape(path: Path, raw: Mapping[str, Any], config: DecoderConfig, stored: Mapping[str, Stored]) -> Lora:
    """The shape of the adapter that `adapter_config.json` and the names of its tensors describe."""
    # the file, not `target_modules`, tells what was adapted: that field may be a pattern or "all-linear"
    parts = {part for name in stored for part in name.split(".")}
    targets = tuple(target for target in config.targets if target in parts)
    problems = _unsupported(raw)
    if not targets and not problems:
        problems.append(f"adapts none of {names(set(config.targets))}")
    if problems:
        raise InputError(f"{path}: " + "; ".join(problems))
    ranks = tuple((raw.get("rank_pattern") or {}).items())
    alphas = tuple((name, float(alpha)) for name, alpha in (raw.get("alpha_pattern") or {}).items())
    return Lora(
        targets=targets,
        rank=int(raw["r"]),
        alpha=float(raw["lora_alpha"]),
        rslora=bool(raw.get("use_rslora")),
        layers=_layers(raw.get("layers_to_transform")),
        rank_pattern=(*_left_out(raw, config, targets, stored), *ranks),
        alpha_pattern=alphas,
    )


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    """What `adapter_config.json` asks for that is not LoRA as we compute it."""
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
    return problems


def _layers(transformed: Any) -> tuple[int, ...] | None:
    """`layers_to_transform`: absent, one layer, or a list of layers; None is all of them."""
    if transformed is None:
        return None
    if isinstance(transformed, int):
        return (transformed,)
    return tuple(transformed)


def _left_out(
    raw: Mapping[str, Any], config: DecoderConfig, targets: tuple[str, ...], stored: Mapping[str, Stored]
) -> list[tuple[str, int]]:
    """A rank pattern (a module's whole name, 0) for every module of the targets that the file has no tensors of."""
    modules = raw.get("target_modules") or ()
    by_last_names = not isinstance(modules, str) and not any("." in name for name in modules)
    if by_last_names and not raw.get("exclude_modules"):
        return []  # every layer is adapted, and a tensor that is not there is missing
    patterns = []
    for layer in range(config.num_hidden_layers):
        for target in targets:
            name = module_name(layer, target)
            if f"{PREFIX}{name}.lora_A.weight" not in stored:
                patterns.append((re.escape(name), 0))
    return patterns
