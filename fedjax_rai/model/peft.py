"""Adapters in and out, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import terminal
from fedjax_rai.aliases import Adapter
from fedjax_rai.config.schema import is_hub_name
from fedjax_rai.errors import InputError
from fedjax_rai.model.architecture import DecoderConfig, module_name
from fedjax_rai.model.families import names
from fedjax_rai.model.lora import Lora, abstract_adapter, matches
from fedjax_rai.model.weights import Stored, cast, check_tensors, listed, save_safetensors, write_json
from fedjax_rai.reading import one_line, read_object, shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# PEFT options that change what an adapter computes; ours computes x W + scale (x a) b and nothing else.
_REFUSED = (
    "use_dora", "use_qalora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices",
    "target_parameters", "alora_invocation_tokens", "ensure_weight_tying", "use_bdlora", "arrow_config",
    "kasa_config",
)  # fmt: skip
# What changes how an adapter was made, or where it runs, but not what it computes.
_HARMLESS = (
    "auto_mapping", "bias", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "runtime_config", "task_type",
)  # fmt: skip


def files_of(folder: Path) -> list[Path]:
    """The two files of an adapter in a folder."""
    return [folder / CONFIG, folder / WEIGHTS]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> tuple[str, str | None] | None:
    """The base that an adapter names, as a folder or `owner/name` and its revision; None where it names none."""
    raw = read_object(Path(folder) / CONFIG)
    base = raw.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return None
    return base, raw.get("revision")


def save_adapter(
    folder: Path,
    config: DecoderConfig,
    lora: Lora,
    adapter: Adapter,
    base_name: str,
    revision: str | None = None,
    dtype: str | None = None,
) -> None:
    """Write an adapter as PEFT does, in a dtype, or in that of its leaves.

    `base_name` is the folder or the hub name of its base, `revision` that of the hub: with what is written, where and
    how, seven arguments. Raises ValueError for leaves of other shapes than the model's, and InputError for a number
    that is none in the dtype.
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
        for matrix, part in (("lora_A", a[:, :rank].T), ("lora_B", b[:rank].T)):
            tensors[f"{name}.{matrix}.weight"] = cast(part, dtype or part.dtype, f"{name}.{matrix}.weight")
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

    Raises one `InputError` with all that is wrong with its settings, or not LoRA as we compute it (DoRA, biases, saved
    modules, ...); with the tensors that are missing, surplus or of another shape; or for one that holds NaN or an
    infinity. Settings that this version does not know, and that are set to something, are named on standard error.
    """
    path = Path(folder) / CONFIG
    raw = read_object(path)
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
        leaves[target]["a"][layer, :, :rank] = stored[f"{name}.lora_A.weight"].read(dtype=np.float32).T
        leaves[target]["b"][layer, :rank] = stored[f"{name}.lora_B.weight"].read(dtype=np.float32).T
    return lora, {"layers": jax.tree.map(jnp.asarray, leaves)}


def _read_shape(path: Path, raw: Mapping[str, Any], config: DecoderConfig, stored: Mapping[str, Stored]) -> Lora:
    """The shape of the adapter that `adapter_config.json` and the names of its tensors describe."""
    # the file, not `target_modules`, tells what was adapted: that field may be a pattern or "all-linear"
    parts = {part for name in stored for part in name.split(".")}
    targets = tuple(target for target in config.targets if target in parts)
    problems = _unsupported(raw) + _wrong_settings(raw, config)
    if not targets and not problems:
        problems.append(f"adapts none of {names(set(config.targets))}")
    if problems:
        raise InputError(f"{path}: " + "; ".join(problems))
    unknown = [name for name in sorted(raw) if raw[name] and name not in _KNOWN]
    if unknown:
        terminal.say(f"{path}: not known to this version, so not computed: {', '.join(unknown)}")
    ranks = tuple((raw.get("rank_pattern") or {}).items())
    alphas = tuple((name, float(alpha)) for name, alpha in (raw.get("alpha_pattern") or {}).items())
    return Lora(
        targets=targets,
        rank=raw["r"],
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
    if raw.get("init_lora_weights", True) not in (None, True, False, "gaussian", "orthogonal", "eva"):
        problems.append(f"init_lora_weights {raw['init_lora_weights']!r} is not supported: it changes the base")
    return problems


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e30


def _are_names(value: Any) -> bool:
    """A text, or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _are_layers(value: Any) -> bool:
    """A layer's number, or a list of such."""
    layers = value if isinstance(value, list) else [value]
    return all(type(layer) is int and layer >= 0 for layer in layers)


# Setting -> (what fits, in words). Null, or absent, is PEFT's default for all but the first two.
_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_count, "a whole number > 0"),
    "lora_alpha": (_is_positive, "a number > 0"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "target_modules": (_are_names, "a text or a list of texts"),
    "exclude_modules": (_are_names, "a text or a list of texts"),
    "layers_to_transform": (_are_layers, "a layer's number, from 0, or a list of such"),
    "rank_pattern": (lambda value: isinstance(value, dict), "an object"),
    "alpha_pattern": (lambda value: isinstance(value, dict), "an object"),
    "base_model_name_or_path": (lambda value: isinstance(value, str), "a text"),
    "revision": (lambda value: isinstance(value, str), "a text"),
}
_KNOWN = {*_REFUSED, *_HARMLESS, *_SETTINGS}
_OF_PATTERNS = {"rank_pattern": (_is_count, "a whole number > 0"), "alpha_pattern": (_is_positive, "a number > 0")}


def _wrong_settings(raw: Mapping[str, Any], config: DecoderConfig) -> list[str]:
    """What is wrong with the settings that we read: their types, values that are none, patterns that are none."""
    problems = []
    for name, (fits, words) in _SETTINGS.items():
        value = raw.get(name)
        needed = name in ("r", "lora_alpha")
        if (needed or value is not None) and not fits(value):
            problems.append(f"{name} is {shown(value)}, must be {words}")
        elif name in _OF_PATTERNS and value:
            problems += _wrong_patterns(name, value)
    layers = raw.get("layers_to_transform")
    if layers is not None and _are_layers(layers):
        beyond = [layer for layer in _layers(layers) or () if layer >= config.num_hidden_layers]
        if beyond:
            problems.append(f"layers_to_transform has {beyond[0]}, must be below {config.num_hidden_layers}")
    return problems


def _wrong_patterns(name: str, patterns: Mapping[str, Any]) -> list[str]:
    """What is wrong with a pattern's regular expressions and their values."""
    fits, words = _OF_PATTERNS[name]
    problems = []
    for pattern, value in patterns.items():
        try:
            matches(pattern, "")
        except (re.error, RecursionError, OverflowError) as error:
            problems.append(f"{name} has {shown(pattern)}, which is no regular expression ({one_line(error)})")
        if not fits(value):
            problems.append(f"{name} of {shown(pattern)} is {shown(value)}, must be {words}")
    return problems


def name_other_base(folder: Path, model: str, revision: str | None = None) -> str | None:
    """A line, where the adapter in a PEFT folder says that it is of another base than `model`; said on standard error.

    Names are compared, not places: a folder that was moved is the same base, and so is a local copy of a model of that
    name on the hub. Two names on the hub are compared whole. None where nothing is known to differ.
    """
    raw = read_object(Path(folder) / CONFIG)
    named, named_revision = raw.get("base_model_name_or_path"), raw.get("revision")
    if not isinstance(named, str) or not named:
        return None
    line = None
    if _is_other(named, model):
        line = f"{folder}: is an adapter of {named}, not of {model}"
    elif revision and named_revision and revision != named_revision:
        line = f"{folder}: is an adapter of {named} at revision {named_revision}, not at {revision}"
    if line is not None:
        terminal.say(line)
    return line


def _is_other(one: str, other: str) -> bool:
    if all(is_hub_name(name) and not Path(name).exists() for name in (one, other)):
        return one.lower() != other.lower()
    return _last_name(one) != _last_name(other)


def _last_name(path: str) -> str:
    """The last name of a path; of a snapshot in the hub's cache that of its model."""
    place = Path(path).expanduser()
    parts = place.resolve().parts if place.is_dir() else place.parts
    cached = [part for part in parts if part.startswith("models--")]
    if cached and "snapshots" in parts:
        return cached[-1].rpartition("--")[2].lower()
    return parts[-1].lower() if parts else ""


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
