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
    outputs,
    parts_of,
)
from fedjax_rai.reading import one_line, read_object, shown

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# No model is near these; beyond them a damaged number would take all memory before any tensor is looked at.
LARGEST = dict.fromkeys(SIZES, 2**27) | {"num_hidden_layers": 10_000, "head_dim": 2**16}


class Family(NamedTuple):
    """In what a family differs from Llama, read off transformers' config object c."""

    fields: Callable[[Any], dict[str, Any]]
    """c -> the fields of DecoderConfig in which the family differs."""
    sliding: Callable[[Any, int], bool] = lambda c, i: False
    """(c, i) -> whether layer i has a window."""
    computed: Mapping[str, tuple[Any, ...]] = {}
    """Fields that c must have, with the only values that we compute."""
    partial: bool = False
    """A head may be rotated in part."""


def _biases(c: Any) -> dict[str, Any]:
    biases: tuple[str, ...] = ()
    if getattr(c, "attention_bias", False):
        biases += ("qkv_proj", "o_proj")
    if getattr(c, "mlp_bias", False):
        biases += ("gate_up_proj", "down_proj")
    return {"biases": biases}


def _gemma(c: Any) -> dict[str, Any]:
    return {**_biases(c), "unit_offset": True, "embed_scale": c.hidden_size**0.5}


def _gemma2(c: Any) -> dict[str, Any]:
    return {
        **_gemma(c),
        "activation": c.hidden_activation,
        "post_norms": True,
        "query_scale": c.query_pre_attn_scalar**-0.5,
        "attention_softcap": c.attn_logit_softcapping,
        "logit_softcap": c.final_logit_softcapping,
    }


def _granite(c: Any) -> dict[str, Any]:
    """Granite 3: a Llama with four multipliers, of embeddings, attention's logits, residuals and logits."""
    return {
        **_biases(c),
        "embed_scale": float(c.embedding_multiplier),
        "query_scale": float(c.attention_multiplier),
        "residual_scale": float(c.residual_multiplier),
        "logit_divisor": float(c.logits_scaling),
    }


def _by_type(c: Any, i: int) -> bool:
    return c.layer_types[i] == "sliding_attention"


def _everywhere(c: Any, i: int) -> bool:
    return c.sliding_window is not None


CAUSAL: Mapping[str, Any] = {"use_bidirectional_attention": (None,)}
# Gemma 1 was released with a hidden_act of "gelu", which transformers takes for the approximation that it is. An
# activation under the other name is computed by transformers 4 and passed over by 5: it must be this one.
GEGLU: Mapping[str, Any] = {"hidden_activation": (None, "gelu_pytorch_tanh")}
FAMILIES = {
    "llama": Family(_biases),  # and Llama Guard, SmolLM, SmolLM2
    "mistral": Family(lambda c: {}, _everywhere),
    "qwen2": Family(lambda c: {"biases": ("qkv_proj",)}, _by_type),
    "qwen3": Family(lambda c: {**_biases(c), "qk_norm": True}, _by_type),
    "gemma": Family(_gemma, computed={**CAUSAL, **GEGLU}),
    "gemma2": Family(_gemma2, _by_type, CAUSAL),
    "gemma3_text": Family(lambda c: {**_gemma2(c), "qk_norm": True}, _by_type, CAUSAL),
    "phi3": Family(lambda c: {"modules_fused": True}, _everywhere, partial=True),
    "smollm3": Family(_biases, _by_type),
    "granite": Family(_granite),
}
"""By the model_type of `config.json`."""


def read_config(folder: Path, **computed: Any) -> DecoderConfig:
    """Shape of the model in a Hugging Face folder, from its `config.json`.

    `computed` are DecoderConfig's last fields, how it is to be computed. The sizes must be there; other absent fields
    have transformers' defaults. Raises one `InputError` that lists everything the decoder does not compute.
    """
    path = Path(folder) / "config.json"
    return decoder_config(read_object(path), str(path), **computed)


def decoder_config(raw: Mapping[str, Any], where: str, **computed: Any) -> DecoderConfig:
    """Shape of the model whose `config.json`, found at `where`, was read as `raw`; see `read_config`."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        close = get_close_matches(str(kind), FAMILIES, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"{where}: model_type {kind!r} is not supported{hint}, only: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[kind]
    problems = _wrong_sizes(raw) + _wrong_fields(raw)
    c: Any = None if problems else _normalised(raw, where)
    for name, values in {"quantization_config": (None,), **family.computed}.items():
        found = getattr(c, name, raw.get(name)) or None
        if found not in values:
            supported = " or ".join(map(repr, values))
            problems.append(f"{name} is {found!r}, only {supported} is supported")
    fields: dict[str, Any] = family.fields(c) if c else {}
    activation = fields.pop("activation", getattr(c, "hidden_act", "silu"))
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        problems.append(f"hidden_act is {activation!r}, only {', '.join(ACTIVATIONS)} are supported")
    layers, rope_problems = _layers(c, family) if c else ([], [])
    problems += rope_problems
    if problems:
        raise InputError(f"{where}: " + "; ".join(problems))
    kinds = tuple(dict.fromkeys(layers))
    layer_kinds = tuple(kinds.index(layer) for layer in layers) if len(kinds) > 1 else ()
    fields |= {name: getattr(c, name) for name in SIZES} | computed
    return DecoderConfig(
        num_key_value_heads=c.num_key_value_heads,
        head_dim=_head_dim(c),
        kinds=kinds,
        layer_kinds=layer_kinds,
        max_position_embeddings=raw.get("max_position_embeddings"),
        rms_norm_eps=c.rms_norm_eps,
        tie_word_embeddings=c.tie_word_embeddings,
        activation=activation,
        **fields,
    )


def _wrong_sizes(raw: Mapping[str, Any]) -> list[str]:
    """What is wrong with the sizes in a `config.json`, which every family has."""
    problems = [f"{name} is missing" for name in SIZES if raw.get(name) is None]
    for name in (*SIZES, "num_key_value_heads", "head_dim"):
        value = raw.get(name)
        if value is not None and not _is_count(value):
            problems.append(f"{name} is {shown(value)}, must be a whole number > 0")
        elif value is not None and value > LARGEST.get(name, 2**27):
            problems.append(f"{name} is {shown(value)}, must be at most {LARGEST.get(name, 2**27)}")
    if problems:
        return problems
    groups = raw.get("num_key_value_heads")
    if groups is not None and raw["num_attention_heads"] % groups:
        problems.append("num_attention_heads must be a multiple of num_key_value_heads")
    return problems


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0  # not a bool, which is an int, too


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_positive(value: Any) -> bool:
    """A number above 0 that a float can hold; not a bool."""
    return type(value) in (int, float) and 0 < value < 1e300


def _are_layer_types(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_layer_marks(value: Any) -> bool:
    return isinstance(value, list) and all(type(mark) in (int, bool) for mark in value)


# Null, or absent, is transformers' default for all of them.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rms_norm_eps": (_is_positive, "a number > 0"),
    "rope_theta": (_is_positive, "a number > 0"),
    "max_position_embeddings": (_is_count, "a whole number > 0"),
    "original_max_position_embeddings": (_is_count, "a whole number > 0"),
    "tie_word_embeddings": (_is_flag, "true or false"),
    "attention_bias": (_is_flag, "true or false"),
    "mlp_bias": (_is_flag, "true or false"),
    "sliding_window": (_is_count, "a whole number > 0, or null"),
    "query_pre_attn_scalar": (_is_positive, "a number > 0"),
    "embedding_multiplier": (_is_positive, "a number > 0"),
    "attention_multiplier": (_is_positive, "a number > 0"),
    "residual_multiplier": (_is_positive, "a number > 0"),
    "logits_scaling": (_is_positive, "a number > 0"),
    "attn_logit_softcapping": (_is_positive, "a number > 0, or null"),
    "final_logit_softcapping": (_is_positive, "a number > 0, or null"),
    "layer_types": (_are_layer_types, "a list of names, one a layer"),
    "no_rope_layers": (_are_layer_marks, "a list of 0 and 1, one a layer"),
    "rope_parameters": (lambda value: isinstance(value, dict), "an object"),
    "rope_scaling": (lambda value: isinstance(value, dict), "an object"),
}


def _wrong_fields(raw: Mapping[str, Any]) -> list[str]:
    """What is wrong with the other fields that some family reads: their types, and lists of another length."""
    problems = []
    for name, (fits, words) in _FIELDS.items():
        value = raw.get(name)
        if value is not None and not fits(value):
            problems.append(f"{name} is {shown(value)}, must be {words}")
        elif isinstance(value, list) and len(value) != raw.get("num_hidden_layers"):
            problems.append(f"{name} has {len(value)} entries, must have one a layer (num_hidden_layers)")
    return problems


def _normalised(raw: Mapping[str, Any], where: str) -> Any:
    """transformers' config object: absent fields, old names and old forms of rotary embeddings are resolved."""
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[raw["model_type"]].from_dict(json.loads(json.dumps(raw)))  # it changes what it is given
    except Exception as error:  # whatever its validators raise
        raise InputError(f"{where}: transformers does not accept it ({one_line(error)})") from error


def _head_dim(c: Any) -> int:
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def _layers(c: Any, family: Family) -> tuple[list[LayerKind], list[str]]:
    """(the kind of every layer, what is wrong, each problem once)."""
    layers = []
    problems = []
    for i in range(c.num_hidden_layers):
        sliding = family.sliding(c, i)
        rope, problem = _layer_rope(c, family, i, sliding)
        if problem:
            problems.append(problem)
        layers.append(LayerKind(rope, c.sliding_window if sliding else None))
    return layers, list(dict.fromkeys(problems))


def _layer_rope(c: Any, family: Family, layer: int, sliding: bool) -> tuple[Rope | None, str | None]:
    """(a layer's rotary embedding, if it has one; what is wrong with it)."""
    parameters = c.rope_parameters
    if "full_attention" in parameters:  # a config may have one for each kind of layer
        parameters = parameters.get("sliding_attention" if sliding else "full_attention")
    if not isinstance(parameters, Mapping):
        return None, f"rope_parameters is {shown(parameters)}, must be an object"
    share = parameters.get("partial_rotary_factor") or 1.0
    if not _is_positive(share) or share > 1:
        return None, f"partial_rotary_factor is {shown(share)}, must be a number > 0, at most 1"
    if share != 1.0 and not family.partial:
        return None, f"partial_rotary_factor is {share}, only 1.0 is supported"
    name = parameters.get("rope_type", "default")
    if not isinstance(name, str) or name not in ROPES:
        return None, f"rope_type {name!r} is not supported, only: {', '.join(ROPES)}"
    rotated_layers = getattr(c, "no_rope_layers", None)  # despite its name: 1 where a layer is rotated
    if rotated_layers is not None and not rotated_layers[layer]:
        return None, None
    try:
        with np.errstate(all="ignore"):
            rope = ROPES[name](parameters, int(_head_dim(c) * share), c)
    except KeyError as error:
        return None, f"{name} rope needs {error.args[0]}"
    except (TypeError, ValueError, ArithmeticError) as error:
        return None, f"{name} rope cannot be computed ({one_line(error)})"
    if not all(math.isfinite(number) for number in (rope.magnitude, *rope.frequencies)):
        return None, f"{name} rope gives frequencies that are no finite numbers"
    return rope, None


# ---- rotary embeddings: (rope_parameters, rotated channels of a head, config) -> Rope


def _inverse(p: Mapping[str, Any], width: int) -> np.ndarray:
    """The plain embedding's frequencies, computed in float32 as transformers does."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return 1.0 / np.float32(p["rope_theta"]) ** exponents


def _rope(frequencies: Any, **fields: Any) -> Rope:
    return Rope(tuple(float(f) for f in np.asarray(frequencies, np.float32)), **fields)


def _llama3(p: Mapping[str, Any], width: int, c: Any) -> Rope:
    """Llama 3.1's rotary embedding: long wavelengths are stretched by `factor`, short ones kept, the others blended."""
    inverse = _inverse(p, width)
    low = p["low_freq_factor"]
    high = p["high_freq_factor"]
    turns = p["original_max_position_embeddings"] * inverse / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
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
    """Where a tensor of a checkpoint lies in our tree."""

    leaf: str  # its path, with dots
    shape: tuple[int, ...]  # in the file
    layer: int | None = None  # of a leaf that stacks all layers
    column: int | None = None  # the first that the tensor fills of a kernel's, or of a bias's; None: a whole leaf
    parts: int = 1  # of the leaf's columns; each holds as large a share of every projection
    widths: tuple[int, ...] = ()  # of the projections in the tensor

    @property
    def is_kernel(self) -> bool:
        """Kernels lie transposed in a file."""
        return self.column is not None and len(self.shape) == 2


def places(config: DecoderConfig) -> dict[str, Place]:
    """Where every tensor of a checkpoint lies, by its name there."""
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
    """Name -> size of a layer's norms."""
    outer = ["input_layernorm", "post_attention_layernorm"]
    if config.post_norms:
        outer += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    inner = []
    if config.qk_norm:
        inner = ["self_attn.q_norm", "self_attn.k_norm"]
    return dict.fromkeys(outer, config.hidden_size) | dict.fromkeys(inner, config.head_dim)


def _kernel_places(config: DecoderConfig, layer: int, kernel: str) -> dict[str, Place]:
    """Where the tensors of a layer's kernel, and of its bias, lie."""
    found = {}
    column = 0
    parts = parts_of(config, kernel)
    for module, width in modules(config, kernel).items():
        name = module_name(layer, module)
        widths = tuple(outputs(config, kernel).values()) if config.modules_fused else (width,)
        where = (layer, column, parts, widths)
        found[f"{name}.weight"] = Place(f"layers.{kernel}", (width, fan_in(config, kernel)), *where)
        if kernel in config.biases:
            found[f"{name}.bias"] = Place(f"layers.{kernel}_bias", (width,), *where)
        column += width
    return found


def names(values: Sequence[str] | set[str]) -> str:
    """The values as a message lists them."""
    return ", ".join(sorted(values)) or "none"
