"""Weights in and out: Hugging Face folders for the base, PEFT folders for adapters; safetensors only.

One table, `_base_places` (or `_adapter_places`), says where in our tree each tensor of a file lies. Reading and
writing go through the same views of it, so that one is the inverse of the other by construction.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedjax_rai import trees
from fedjax_rai.aliases import Adapter, Array, Base, PyTree
from fedjax_rai.errors import InputError
from fedjax_rai.model.decoder import TARGETS, Decoder, DecoderConfig, RopeScaling, abstract_params
from fedjax_rai.model.lora import FUSED, abstract_adapter

MODEL_TYPES = {"llama": "LlamaForCausalLM"}
"""model_type of a `config.json` that we read -> the architecture that we write."""

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# PEFT options that change what an adapter computes; ours computes x W + (alpha / r) (x a) b and nothing else.
_PEFT_REFUSED = (
    "use_dora", "use_rslora", "use_qalora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern",
    "layers_to_transform", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens",
)  # fmt: skip


def read_config(folder: Path, dtype: str = "float32", remat: bool = False) -> DecoderConfig:
    """Shape of the model in a Hugging Face folder, from its `config.json`.

    Absent fields take transformers' defaults, except the five sizes, which must be there. Reads `rope_parameters`
    (transformers 5) and `rope_scaling` with `rope_theta` (older). Raises one `InputError` that lists everything
    the decoder does not compute.
    """
    path = Path(folder) / "config.json"
    raw = _read_json(path)
    if (kind := raw.get("model_type")) not in MODEL_TYPES:
        raise InputError(f"{path}: model_type {kind!r} is not supported, only: {_names(MODEL_TYPES)}")
    problems = [f"{name} is missing" for name in _SIZES if raw.get(name) is None]
    computed = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None}
    for name, value in computed.items():
        if raw.get(name, value) != value:
            problems.append(f"{name} is {raw[name]!r}, only {value!r} is supported")
    theta, scaling, rope_problems = _read_rope(raw)
    if problems := problems + rope_problems:
        raise InputError(f"{path}: " + "; ".join(problems))
    heads = raw["num_attention_heads"]
    return DecoderConfig(
        **{name: raw[name] for name in _SIZES},
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        dtype=dtype,
        remat=remat,
    )


def _read_rope(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None, list[str]]:
    """(theta, scaling, problems); which field wins over which is transformers' order."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    problems = []
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor")) not in (None, 1.0):
        problems.append("partial_rotary_factor other than 1 is not supported")
    if kind not in ("default", "llama3"):
        problems.append(f"rope_type {kind!r} is not supported, only: default, llama3")
    if kind != "llama3":
        return theta, None, problems
    trained = raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    fields: dict[str, Any] = {**rope, "original_max_position_embeddings": trained or raw.get("max_position_embeddings")}
    missing = [f"llama3 rope needs {name}" for name in _LLAMA3 if fields.get(name) is None]
    if missing:
        return theta, None, problems + missing
    return theta, RopeScaling(**{name: fields[name] for name in _LLAMA3}), problems


def load_base(folder: Path, config: DecoderConfig, shardings: PyTree | None = None) -> Base:
    """The base in a Hugging Face folder: `model.safetensors`, or shards with `model.safetensors.index.json`.

    float32 where `config.dtype` is float32, else bfloat16. `shardings` has the tree of the base; each leaf goes to
    its devices as soon as it is read, so the host holds one (stacked) leaf at a time. Raises one `InputError` with
    every tensor that is missing, surplus or of another shape.
    """
    dtype = jnp.float32 if config.dtype == "float32" else jnp.bfloat16
    abstract = _abstract_base(config)
    placed = None if shardings is None else iter(jax.tree.leaves(jax.tree.map(lambda _, own: own, abstract, shardings)))

    def place(array: np.ndarray) -> Array:
        if placed is None:
            return jnp.asarray(array)
        return jax.make_array_from_callback(array.shape, next(placed), array.__getitem__)

    def ignored(name: str) -> bool:
        return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")

    return _read(_files(Path(folder)), abstract, _base_places(config), dtype, place, ignored)


def save_base(
    folder: Path, config: DecoderConfig, base: Base, dtype: str, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a Hugging Face folder that transformers loads: `config.json` and one `model.safetensors` of `dtype`.

    `extra` adds to `config.json` what a decoder does not know of (`eos_token_id`, `max_position_embeddings`);
    without it an exported model has no token to stop at.
    """
    _write(Path(folder) / "model.safetensors", _abstract_base(config), base, _base_places(config), dtype)
    scaling, rope = config.rope_scaling, {"rope_type": "default", "rope_theta": config.rope_theta}
    unknown: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    if scaling is not None:
        rope |= {"rope_type": "llama3", **{name: getattr(scaling, name) for name in _LLAMA3}}
        unknown["max_position_embeddings"] = int(scaling.factor * scaling.original_max_position_embeddings)
    shape = (*_SIZES, "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings")
    fields = {
        "architectures": [MODEL_TYPES["llama"]],
        "model_type": "llama",
        **{name: getattr(config, name) for name in shape},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": rope,
        "dtype": dtype,
    }
    _write_json(Path(folder) / "config.json", {**unknown, **(extra or {}), **fields})


def save_adapter(folder: Path, model: Decoder, adapter: Adapter, base_name: str) -> None:
    """Write an adapter as PEFT does, float32; `base_name` is the folder or hub name of its base."""
    alpha = model.lora_scale * model.lora_rank
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": model.lora_rank,
        "lora_alpha": round(alpha) if math.isclose(alpha, round(alpha)) else alpha,
        "target_modules": list(model.lora_targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    weights = Path(folder) / "adapter_model.safetensors"
    _write(weights, abstract_adapter(model), adapter, _adapter_places(model), "float32")
    _write_json(Path(folder) / "adapter_config.json", fields)


def load_adapter(folder: Path, model: Decoder) -> Adapter:
    """The adapter in a PEFT folder, float32. Raises `InputError` if it is not plain LoRA of the model's rank,
    alpha and targets, or if a tensor is missing, surplus or of another shape."""
    path, weights = Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"
    raw = _read_json(path)
    problems = [f"{name} {raw[name]!r} is not supported" for name in _PEFT_REFUSED if raw.get(name)]
    if raw.get("peft_type") != "LORA":
        problems.append(f"peft_type {raw.get('peft_type')!r} is not supported, only: LORA")
    if raw.get("bias", "none") != "none":
        problems.append(f"bias {raw['bias']!r} is not supported, only: none")
    if raw.get("init_lora_weights", True) not in (True, False, "gaussian"):
        problems.append(f"init_lora_weights {raw['init_lora_weights']!r} is not supported: it changes the base")
    if raw.get("r") != model.lora_rank:
        problems.append(f"r is {raw.get('r')}, the model's rank is {model.lora_rank}")
    alpha = model.lora_scale * model.lora_rank
    if not math.isclose(raw.get("lora_alpha") or 0.0, alpha):
        problems.append(f"lora_alpha is {raw.get('lora_alpha')}, the model's (lora_scale * rank) is {alpha:g}")
    if not weights.is_file():
        problems.append(f"{weights.name} is not there")
    else:  # the file, not `target_modules`, says what was trained: that field may be a pattern
        with _open(weights) as file:
            found = {part for key in file.keys() for part in key.split(".") if part in TARGETS}  # noqa: SIM118
        if found != set(model.lora_targets):
            problems.append(f"targets are {_names(found)}, the model's are {_names(model.lora_targets)}")
    if problems:
        raise InputError(f"{path}: " + "; ".join(problems))
    return _read([weights], abstract_adapter(model), _adapter_places(model), jnp.float32)


def save_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to `path`, making its folder; a reader sees the whole new file or the old one.

    safetensors (0.8 at least) writes the memory of an array whatever its strides, so each one is made contiguous.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    solid = {name: np.ascontiguousarray(tensor).reshape(np.shape(tensor)) for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        # transformers refuses a file whose metadata does not name a framework
        save_file(solid, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors lets only the owner read it

    _replace(path, write)


class _Place(NamedTuple):
    """Where a tensor of a file lies in our tree: `view(leaf)` is that part of the leaf, shaped as in the file."""

    leaf: str
    at: tuple[int | slice, ...] = ()
    transposed: bool = True

    def view(self, leaf: np.ndarray) -> np.ndarray:
        part = leaf[self.at]
        return part.T if self.transposed else part


def _abstract_base(config: DecoderConfig) -> PyTree:
    return nn.unbox(abstract_params(Decoder(config)))["params"]


def _module(layer: int, target: str) -> str:
    return f"model.layers.{layer}.{'mlp' if target in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{target}"


def _base_places(config: DecoderConfig) -> dict[str, _Place]:
    pairs = abstract_adapter(Decoder(config, TARGETS, 1))["layers"]
    places = {
        "model.embed_tokens.weight": _Place("embed_tokens", transposed=False),
        "model.norm.weight": _Place("norm.weight", transposed=False),
    }
    if not config.tie_word_embeddings:
        places["lm_head.weight"] = _Place("lm_head")
    for layer in range(config.num_hidden_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            places[f"model.layers.{layer}.{norm}.weight"] = _Place(f"layers.{norm}.weight", (layer,), transposed=False)
        for fused, targets in FUSED.items():
            column = 0
            for target in targets:
                columns = slice(column, column := column + pairs[target]["b"].shape[-1])
                places[f"{_module(layer, target)}.weight"] = _Place(f"layers.{fused}", (layer, slice(None), columns))
    return places


def _adapter_places(model: Decoder) -> dict[str, _Place]:
    places = {}
    for layer in range(model.config.num_hidden_layers):
        for target in model.lora_targets:
            module = f"base_model.model.{_module(layer, target)}"
            places[f"{module}.lora_A.weight"] = _Place(f"layers.{target}.a", (layer,))
            places[f"{module}.lora_B.weight"] = _Place(f"layers.{target}.b", (layer,))
    return places


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a model; raises `InputError` when there are none or a shard is not there."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise InputError(f"{folder}: has neither {whole.name} nor {index.name} (only safetensors are read)")
    files = [folder / name for name in sorted(set(_read_json(index).get("weight_map", {}).values()))]
    if absent := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{index}: names files that are not there: {_names(absent)}")
    return files


def _read(
    files: list[Path],
    abstract: PyTree,
    places: Mapping[str, _Place],
    dtype: Any,
    place: Callable[[np.ndarray], Array] = jnp.asarray,
    ignored: Callable[[str], bool] = lambda name: False,
) -> PyTree:
    """Leaves of `abstract`, in tree order, filled from the files one tensor at a time and handed to `place`."""
    shapes = {path: leaf.shape for path, leaf in trees.paths(abstract)}
    with ExitStack() as stack:
        opened = [stack.enter_context(_open(file)) for file in files]
        source = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
        problems = [f"missing: {name}" for name in sorted(places.keys() - source.keys())]
        problems += [f"surplus: {name}" for name in sorted(source.keys() - places.keys()) if not ignored(name)]
        for name in sorted(places.keys() & source.keys()):
            got = tuple(source[name].get_slice(name).get_shape())
            leaf = np.broadcast_to(np.int8(0), shapes[places[name].leaf])  # a shape to take the view of, no memory
            if got != (expected := places[name].view(leaf).shape):
                problems.append(f"shape of {name}: {got}, expected {expected}")
        if problems:
            raise InputError("\n  ".join([f"{files[0].parent}: tensors do not fit the model", *problems]))
        leaves = []
        for path, shape in shapes.items():
            array = np.empty(shape, dtype)
            for name, where in places.items():
                if where.leaf == path:
                    where.view(array)[...] = source[name].get_tensor(name)
            leaves.append(place(array))
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _write(path: Path, abstract: PyTree, tree: PyTree, places: Mapping[str, _Place], dtype: str) -> None:
    """The inverse of `_read`, into one file; a tree that is not `abstract`'s is refused, whatever it would slice to."""
    expected = {name: leaf.shape for name, leaf in trees.paths(abstract)}
    got = {name: leaf.shape for name, leaf in trees.paths(tree)}
    if got != expected:
        raise ValueError(f"cannot write {path}: leaves are {got}, the model's are {expected}")
    leaves = {name: np.asarray(leaf).astype(jnp.dtype(dtype)) for name, leaf in trees.paths(tree)}
    save_safetensors(path, {name: where.view(leaves[where.leaf]) for name, where in places.items()})


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda temporary: temporary.write_text(json.dumps(fields, indent=2) + "\n"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _names(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
