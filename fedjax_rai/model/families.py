"""What each family of checkpoints means: `config.json` -> DecoderConfig, and where its tensors lie.

A family is one row of FAMILIES: which layers see how far, and the handful of fields in which it is not a Llama.
Defaults and the older forms of a config are transformers' business.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.errors import InputError
from fedjax_rai.model.architecture import (
    ACTIVATIONS,
    FUSED,
    DecoderConfig,
    LayerKind,
    Rope,
    fan_in,
    module_name,
    modules,
)

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


class Family(NamedTuple):
    """One row: all of it reads transformers' config object c.

    `fields(c)`: what differs from a Llama; `sliding(c, i)`: layer i has a window; `computed`: what c must say because
    we compute nothing else; `partial`: a head may be rotated in part.
    """

    fields: Callable[[Any], dict[str, Any]]
    sliding: Callable[[Any, int], bool] = lambda c, i: False
    computed: Mapping[str, Any] = {}
    partial: bool = False


def _biases(c: Any) -> dict[str, Any]:
    attention, mlp = getattr(c, "attention_bias", False), getattr(c, "mlp_bias", False)
    return {"biases": ("qkv_proj", "o_proj") * attention + ("gate_up_proj", "down_proj") * mlp}


def _gemma(c: Any) -> dict[str, Any]:
    return {
        **_biases(c),
        "activation": c.hidden_activation,
        "unit_offset": True,
        "post_norms": True,
        "embed_scale": c.hidden_size**0.5,
        "query_scale": c.query_pre_attn_scalar**-0.5,
        "attention_softcap": c.attn_logit_softcapping,
        "logit_softcap": c.final_logit_softcapping,
    }


def _by_type(c: Any, i: int) -> bool:
    return c.layer_types[i] == "sliding_attention"


def _everywhere(c: Any, i: int) -> bool:
    return c.sliding_window is not None


CAUSAL: Mapping[str, Any] = {"use_bidirectional_attention": None}
FAMILIES = {
    "llama": Family(_biases),  # and Llama Guard, SmolLM, SmolLM2
    "mistral": Family(lambda c: {}, _everywhere),
    "qwen2": Family(lambda c: {"biases": ("qkv_proj",)}, _by_type),
    "qwen3": Family(lambda c: {**_biases(c), "qk_norm": True}, _by_type),
    "gemma2": Family(_gemma, _by_type, CAUSAL),
    "gemma3_text": Family(lambda c: {**_gemma(c), "qk_norm": True}, _by_type, CAUSAL),
    "phi3": Family(lambda c: {"modules_fused": True}, _everywhere, partial=True),
    "smollm3": Family(_biases, _by_type),
}
"""By the model_type of `config.json`."""


def read_config(folder: Path, **computed: str) -> DecoderConfig:
    """Shape of the model in a Hugging Face folder, from its `config.json`.

    `computed` are DecoderConfig's last fields, how it is to be computed. The sizes must be there; other absent fields
    have transformers' defaults. Raises one `InputError` that lists everything the decoder does not compute.
    """
    path = Path(folder) / "config.json"
    return decoder_config(read_json(path), str(path), **computed)


def decoder_config(raw: Mapping[str, Any], where: str, **computed: str) -> DecoderConfig:
    """The same, of a `config.json` that was read."""
    if (kind := raw.get("model_type")) not in FAMILIES:
        close = get_close_matches(str(kind), FAMILIES, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"{where}: model_type {kind!r} is not supported{hint}, only: {', '.join(sorted(FAMILIES))}")
    family, problems = FAMILIES[kind], [f"{name} is missing" for name in SIZES if raw.get(name) is None]
    sizes = (*SIZES, "num_key_value_heads", "head_dim")
    given = {name: raw[name] for name in sizes if raw.get(name) is not None}
    problems += [f"{name} is {n!r}, must be a whole number > 0" for name, n in given.items() if not _counts(n)]
    if not problems and raw["num_attention_heads"] % given.get("num_key_value_heads", 1):
        problems.append("num_attention_heads must be a multiple of num_key_value_heads")
    c: Any = None if problems else _normalised(raw, where)
    for name, value in {"quantization_config": None, **family.computed}.items():
        if (given := getattr(c, name, raw.get(name)) or None) != value:
            problems.append(f"{name} is {given!r}, only {value!r} is supported")
    fields: dict[str, Any] = family.fields(c) if c else {}
    activation = fields.pop("activation", getattr(c, "hidden_act", "silu"))
    if activation not in ACTIVATIONS:
        problems.append(f"hidden_act is {activation!r}, only {', '.join(ACTIVATIONS)} are supported")
    layers, rope_problems = _layers(c, family) if c else ([], [])
    if problems := problems + rope_problems:
        raise InputError(f"{where}: " + "; ".join(problems))
    kinds = tuple(dict.fromkeys(layers))
    fields |= {name: getattr(c, name) for name in SIZES} | computed
    return DecoderConfig(
        num_key_value_heads=c.num_key_value_heads,
        head_dim=_head_dim(c),
        kinds=kinds,
        layer_kinds=tuple(map(kinds.index, layers)) if len(kinds) > 1 else (),
        rms_norm_eps=c.rms_norm_eps,
        tie_word_embeddings=c.tie_word_embeddings,
        activation=activation,
        **fields,
    )


def _counts(n: Any) -> bool:
    return type(n) is int and n > 0


def _normalised(raw: Mapping[str, Any], where: str) -> Any:
    """transformers' config object: absent fields, old names and old forms of rotary embeddings are resolved."""
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[raw["model_type"]].from_dict(json.loads(json.dumps(raw)))  # it changes what it is given
    except Exception as error:  # whatever its validators raise
        raise InputError(f"{where}: transformers does not accept it ({' '.join(str(error).split())})") from error


def _head_dim(c: Any) -> int:
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def _layers(c: Any, family: Family) -> tuple[list[LayerKind], list[str]]:
    """(the kind of every layer, what is wrong)."""
    layers, problems = [], []
    for i in range(c.num_hidden_layers):
        sliding = family.sliding(c, i)
        parameters = c.rope_parameters
        if "full_attention" in parameters:
            parameters = parameters["sliding_attention" if sliding else "full_attention"]
        share, name = parameters.get("partial_rotary_factor") or 1.0, parameters.get("rope_type", "default")
        rope = None
        if share != 1.0 and not family.partial:
            problems.append(f"partial_rotary_factor is {share}, only 1.0 is supported")
        elif name not in ROPES:
            problems.append(f"rope_type {name!r} is not supported, only: {', '.join(ROPES)}")
        elif getattr(c, "no_rope_layers", None) is None or c.no_rope_layers[i]:
            try:
                rope = ROPES[name](parameters, int(_head_dim(c) * share), c)
            except KeyError as error:
                problems.append(f"{name} rope needs {error.args[0]}")
        layers.append(LayerKind(rope, c.sliding_window if sliding else None))
    return layers, list(dict.fromkeys(problems))


# ---- rotary embeddings: (rope_parameters, rotated channels of a head, config) -> Rope


def _inverse(p: Mapping[str, Any], width: int) -> np.ndarray:
    return 1.0 / np.float32(p["rope_theta"]) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))


def _rope(frequencies: Any, **fields: Any) -> Rope:
    return Rope(tuple(float(f) for f in np.asarray(frequencies, np.float32)), **fields)


def _llama3(p: Mapping[str, Any], width: int, c: Any) -> Rope:
    """Llama 3.1's: long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    inverse = _inverse(p, width)
    turns = p["original_max_position_embeddings"] * inverse / (2 * math.pi)
    smooth = np.clip((turns - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"]), 0.0, 1.0)
    return _rope(smooth * inverse + (1 - smooth) * inverse / p["factor"])


def _longrope(p: Mapping[str, Any], width: int, c: Any) -> Rope:
    """LongRoPE (arXiv 2402.13753) within the original length, where its short factors hold."""
    original = p["original_max_position_embeddings"]
    factor = p.get("factor") or c.max_position_embeddings / original
    stretched = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    frequencies = _inverse(p, width) / np.array(p["short_factor"], np.float32)
    return _rope(frequencies, magnitude=p.get("attention_factor") or stretched, limit=original)


ROPES: dict[str, Callable[[Mapping[str, Any], int, Any], Rope]] = {
    "default": lambda p, width, c: _rope(_inverse(p, width)),
    "linear": lambda p, width, c: _rope(_inverse(p, width) / np.float32(p["factor"])),
    "llama3": _llama3,
    "longrope": _longrope,
}


# ---- where the tensors of a checkpoint lie in our tree


class Place(NamedTuple):
    """`leaf` of our tree; `layer` of a stacked one; first of its columns. Kernels lie transposed in a file."""

    leaf: str
    shape: tuple[int, ...]  # in the file
    layer: int | None = None
    column: int | None = None  # None: it is no kernel


def places(config: DecoderConfig) -> dict[str, Place]:
    """Every tensor of a checkpoint."""
    width = config.hidden_size
    whole = {"model.embed_tokens.weight": Place("embed_tokens", (config.vocab_size, width))}
    whole["model.norm.weight"] = Place("norm.weight", (width,))
    if not config.tie_word_embeddings:
        whole["lm_head.weight"] = Place("lm_head", (config.vocab_size, width), column=0)
    for layer in range(config.num_hidden_layers):
        for name, size in _norms(config).items():
            leaf = f"layers.{name.rpartition('.')[2]}.weight"
            whole[f"model.layers.{layer}.{name}.weight"] = Place(leaf, (size,), layer)
        for kernel in FUSED:
            whole |= _kernel_places(config, layer, kernel)
    return whole


def _norms(config: DecoderConfig) -> dict[str, int]:
    outer = ["input_layernorm", "post_attention_layernorm"]
    outer += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] * config.post_norms
    inner = ["self_attn.q_norm", "self_attn.k_norm"] * config.qk_norm
    return dict.fromkeys(outer, config.hidden_size) | dict.fromkeys(inner, config.head_dim)


def _kernel_places(config: DecoderConfig, layer: int, kernel: str) -> dict[str, Place]:
    found, column = {}, 0
    for module, width in modules(config, kernel).items():
        name = module_name(layer, module)
        found[f"{name}.weight"] = Place(f"layers.{kernel}", (width, fan_in(config, kernel)), layer, column)
        if kernel in config.biases:
            found[f"{name}.bias"] = Place(f"layers.{kernel}_bias", (width,), layer, column)
        column += width
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises `InputError`."""
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def names(values: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(values)) or "none"
