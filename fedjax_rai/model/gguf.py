"""Reading GGUF files, the form of llama.cpp: what their metadata and tensors are in a Hugging Face folder.

The file's metadata becomes a `config.json`; `families.places` then says which tensors there must be, and each is read,
dequantised to float32 and put back into Hugging Face's order, one at a time. The `gguf` package reads and dequantises.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_rai.errors import InputError, did_you_mean
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.families import decoder_config, places
from fedjax_rai.reading import POINTERS

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Hugging Face's name of a module, without its layer -> llama.cpp's."""

FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""The names of the norms where a layer has four of them."""

FREQUENCIES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that belong to the rotary embedding, and become part of `config.json`."""


class GgufFile(NamedTuple):
    """A GGUF file that was opened: its metadata, and its tensors, none of them read yet."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]
    """Name -> the `gguf` package's tensor, whose `data` is a view of the mapped file."""

    @property
    def architecture(self) -> str:
        """The architecture, as GGUF names it."""
        return str(self.metadata["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """The architecture's value of a key, such as `block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, the slowest axis first; GGUF lists the fastest first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """A tensor, dequantised to float32; InputError where its type is unknown or it holds no numbers."""
        from gguf import dequantize  # pyright: ignore[reportAttributeAccessIssue]

        tensor = self.tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            kind = getattr(tensor.tensor_type, "name", tensor.tensor_type)
            raise InputError(f"{self.path}: tensor {name} is of type {kind}, which is not read ({error})") from error
        if not np.isfinite(values).all():
            raise InputError(f"{self.path}: tensor {name} holds values that are no numbers (NaN or infinity)")
        return np.asarray(values, np.float32).reshape(self.shape(name))


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file, mapped, and read its metadata.

    Raises InputError where the `gguf` package is not there, where the file is none, is cut short or is one of several
    parts, and where its architecture is not one of ARCHITECTURES.
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; must be a GGUF file")
    reader = _reader(path)
    if "general.architecture" not in reader.fields:
        raise InputError(f"{path}: its metadata has no general.architecture; must be a language model's GGUF file")
    try:
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except Exception as error:  # text that is no UTF-8, arrays of arrays
        raise InputError(f"{path}: its metadata cannot be read ({error})") from error
    file = GgufFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})
    _check_kind(file)
    return file


def _reader(path: Path) -> Any:
    """The `gguf` package's reader; raises InputError."""
    try:
        from gguf import GGUFReader  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise InputError(
            f"{path}: reading GGUF files needs the package gguf; install it by: pip install 'fedjax-rai[gguf]'"
        ) from error
    with path.open("rb") as file:
        begin = file.read(64)
    if begin.startswith(POINTERS):
        raise InputError(f"{path}: is a pointer of Git LFS in place of the file; fetch the file: git lfs pull")
    if begin[:4] != b"GGUF":
        raise InputError(f"{path}: does not begin as a GGUF file does; must be a GGUF file")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # it checks little, so a file that is cut short fails anywhere
        raise InputError(
            f"{path}: a GGUF file that is damaged, cut short or of an unknown version ({error})"
        ) from error
    if getattr(reader, "byte_order", "I") == "S":
        raise InputError(f"{path}: its numbers are in the other byte order (a big-endian file); convert it first")
    return reader


def _check_kind(file: GgufFile) -> None:
    """Raises InputError unless the file is a whole model of an architecture that we know."""
    arch = file.architecture
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        hint = did_you_mean(arch, ARCHITECTURES)
        raise InputError(f"{file.path}: architecture {arch!r} is not read, only: {known}{hint}")
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise InputError(f"{file.path}: holds {kind!r} (general.type), must be a whole model")
    parts = int(file.metadata.get("split.count", 1))
    if parts > 1:
        raise InputError(f"{file.path}: one of {parts} parts of a model; join them first (llama-gguf-split --merge)")
    if int(file.get("expert_count") or 0) > 0:
        raise InputError(f"{file.path}: a mixture of {file.get('expert_count')} experts, which is not computed here")


# ---- config.json


def config_of(file: GgufFile) -> dict[str, Any]:
    """The `config.json` that the file's metadata amounts to; InputError for what no `config.json` could say."""
    wanted = ("block_count", "embedding_length", "attention.head_count", "attention.layer_norm_rms_epsilon")
    absent = [f"{file.architecture}.{key}" for key in wanted if file.get(key) is None]
    absent += [name for name in ("token_embd.weight",) if name not in file.tensors]
    if absent:
        raise InputError(f"{file.path}: has no {', '.join(absent)}, which a language model's GGUF file must have")
    heads = _count(file, "attention.head_count")
    hidden = _count(file, "embedding_length")
    head_dim = int(file.get("attention.key_length") or hidden // heads)
    values = int(file.get("attention.value_length") or head_dim)
    if values != head_dim:
        raise InputError(f"{file.path}: keys have {head_dim} channels a head and values {values}; must be as many")
    ids = {
        f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    common = {
        "vocab_size": file.shape("token_embd.weight")[0],
        "hidden_size": hidden,
        "intermediate_size": _count(file, "feed_forward_length"),
        "num_hidden_layers": _count(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _count(file, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _count(file, "context_length"),
        "rms_norm_eps": _plain(file.get("attention.layer_norm_rms_epsilon")),
        "rope_theta": _plain(file.get("rope.freq_base", 10_000.0)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **ids,
    }
    return common | ARCHITECTURES[file.architecture].config(file, common)


def _count(file: GgufFile, key: str, default: int | None = None) -> int:
    """A whole number of the metadata, which may be listed once a layer; InputError unless all layers have the same."""
    value = file.get(key, default)
    if value is None:
        raise InputError(f"{file.path}: has no {file.architecture}.{key}")
    counts = set(value) if isinstance(value, list) else {value}
    if len(counts) != 1:
        raise InputError(f"{file.path}: {file.architecture}.{key} differs between layers, which is not computed here")
    return int(counts.pop())


def _plain(value: float) -> float:
    """A float32 of the metadata as the shortest number that it stands for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _llama(file: GgufFile, common: Mapping[str, Any]) -> dict[str, Any]:
    _check_whole_heads(file, common)
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "rope_scaling": _scaling(file, common),
    }


def _mistral(file: GgufFile, common: Mapping[str, Any]) -> dict[str, Any]:
    _check_whole_heads(file, common)
    return {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": _window(file),
        "rope_scaling": _scaling(file, common),
    }


def _qwen2(file: GgufFile, common: Mapping[str, Any]) -> dict[str, Any]:
    _check_whole_heads(file, common)
    fields = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}
    return {**fields, "rope_scaling": _scaling(file, common)}


def _qwen3(file: GgufFile, common: Mapping[str, Any]) -> dict[str, Any]:
    return _qwen2(file, common) | {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
    }


def _phi3(file: GgufFile, common: Mapping[str, Any]) -> dict[str, Any]:
    original = file.get("rope.scaling.original_context_length")
    return {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "sliding_window": _window(file),
        "partial_rotary_factor": _rotated(file, common) / common["head_dim"],
        "original_max_position_embeddings": int(original or common["max_position_embeddings"]),
        "rope_scaling": _scaling(file, common),
        # Phi3Config's own default is an id of Phi-3's vocabulary, which another model may not have
        "pad_token_id": common["pad_token_id"] if common["pad_token_id"] is not None else common["eos_token_id"],
    }


def _gemma3(file: GgufFile, common: Mapping[str, Any]) -> dict[str, Any]:
    _check_whole_heads(file, common)
    layers = common["num_hidden_layers"]
    pattern = file.get("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        slides = [bool(slide) for slide in pattern[:layers]]
    else:
        slides = [(i + 1) % int(pattern) != 0 for i in range(layers)]
    softcap = file.get("final_logit_softcapping")
    local = file.get("rope.freq_base_swa", 10_000.0)
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window": _window(file),
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
        "query_pre_attn_scalar": _query_scalar(file, common),
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": _plain(softcap) if softcap else None,
        "attn_logit_softcapping": None,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": _plain(local)},
            "full_attention": {"rope_theta": common["rope_theta"], **(_scaling(file, common) or PLAIN)},
        },
    }


PLAIN = {"rope_type": "default"}


def _query_scalar(file: GgufFile, common: Mapping[str, Any]) -> int:
    """By what Gemma 3 scales its queries: files say it seldom. All sizes have 256, but the one of 62 layers."""
    scale = file.get("attention.scale")
    if scale:
        return round(float(scale) ** -2)
    if common["num_hidden_layers"] == 62:
        return common["hidden_size"] // common["num_attention_heads"]
    return 256


def _window(file: GgufFile) -> int | None:
    """The sliding window; llama.cpp writes 0 for none."""
    return int(file.get("attention.sliding_window") or 0) or None


def _rotated(file: GgufFile, common: Mapping[str, Any]) -> int:
    """How many channels of a head are rotated."""
    return int(file.get("rope.dimension_count") or common["head_dim"])


def _check_whole_heads(file: GgufFile, common: Mapping[str, Any]) -> None:
    """Raises InputError where a head is rotated in part: only Phi-3's are computed so."""
    rotated = _rotated(file, common)
    if rotated != common["head_dim"]:
        raise InputError(f"{file.path}: {rotated} of {common['head_dim']} channels of a head are rotated; must be all")


def _scaling(file: GgufFile, common: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `rope_scaling` that metadata and frequency tensors amount to; None where positions are plain."""
    kind = file.get("rope.scaling.type") or "none"
    if "rope_freqs.weight" in file.tensors:
        factors = file.read("rope_freqs.weight").astype(np.float64)
        if not np.all(factors == 1.0):
            return llama3_scaling(file, factors, common)
    if "rope_factors_long.weight" in file.tensors:
        return _longrope(file)
    if kind == "none":
        return None
    factor = file.get("rope.scaling.factor")
    if kind == "linear" and factor:
        return {"rope_type": "linear", "factor": _plain(factor)} if factor != 1.0 else None
    raise InputError(f"{file.path}: rope scaling {kind!r} is not computed here, only linear, llama3 and longrope")


def _longrope(file: GgufFile) -> dict[str, Any]:
    """LongRoPE's factors, which lie in two tensors."""
    if "rope_factors_short.weight" not in file.tensors:
        raise InputError(f"{file.path}: has rope_factors_long.weight but no rope_factors_short.weight")
    sides = {side: file.read(f"rope_factors_{side}.weight") for side in ("short", "long")}
    factors = {f"{side}_factor": [_plain(value) for value in values.tolist()] for side, values in sides.items()}
    return {"rope_type": "longrope", **factors}


def llama3_scaling(file: GgufFile, factors: np.ndarray, common: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling whose divisors of the frequencies are these; InputError where none gives them.

    A frequency f is divided by 1 where it turns often, by `factor` where it seldom turns, and in between by
    1 / (s + (1 - s) / factor) with s = (f original / 2 pi - low) / (high - low), a line in f. Only the line is known,
    so low is 1, as in all of Meta's models, and the others follow.
    """
    exponents = np.arange(0, common["head_dim"], 2, dtype=np.float64) / common["head_dim"]
    frequencies = common["rope_theta"] ** -exponents
    wrong = InputError(f"{file.path}: rope_freqs.weight is no scaling of Llama 3's form, the only one that is computed")
    if factors.shape != frequencies.shape:
        raise wrong
    factor = round(float(factors.max()), 5)
    blended = (factors > 1 + 1e-5) & (factors < factor * (1 - 1e-5))
    smooth = (1 / factors[blended] - 1 / factor) / (1 - 1 / factor)
    low, high = 1.0, 4.0
    if blended.sum() > 1:
        slope, start = np.polyfit(frequencies[blended], smooth, 1)
        high = round(1 - 1 / start, 3)
        original = 2 * math.pi * slope * (high - low)
    elif blended.sum() == 1:
        original = 2 * math.pi * (smooth[0] * (high - low) + low) / frequencies[blended][0]
    else:
        original = 8192
    original = round(float(original))
    turns = original * frequencies / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    if not np.allclose(1 / (share + (1 - share) / factor), factors, rtol=1e-3):
        raise wrong
    names = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    return names | {"original_max_position_embeddings": original}


class Architecture(NamedTuple):
    """What an architecture of llama.cpp's means."""

    config: Callable[[GgufFile, Mapping[str, Any]], dict[str, Any]]
    """(file, fields that all have) -> the rest of `config.json`."""
    interleaved: bool = False
    """Channels of a rotated pair lie side by side in queries and keys, where Hugging Face's lie half a head apart."""
    norm_offset: float = 0.0
    """What llama.cpp has added to the norms' weights."""


ARCHITECTURES = {
    "llama": Architecture(_llama, interleaved=True),
    "mistral": Architecture(_mistral, interleaved=True),
    "qwen2": Architecture(_qwen2),
    "qwen3": Architecture(_qwen3),
    "gemma3": Architecture(_gemma3, norm_offset=1.0),
    "phi3": Architecture(_phi3),
}
"""By GGUF's `general.architecture`. llama.cpp writes Mistral's models, too, as `llama`."""


# ---- tensors


def gguf_name(name: str, four_norms: bool) -> str:
    """llama.cpp's name of the tensor that a Hugging Face folder calls `name`."""
    module, _, suffix = name.rpartition(".")
    prefix = ""
    if module.startswith("model.layers."):
        _, _, layer, module = module.split(".", 3)
        prefix = f"blk.{layer}."
    names = NAMES | FOUR_NORMS if four_norms else NAMES
    return f"{prefix}{names[module]}.{suffix}"


def tensor_names(file: GgufFile, config: DecoderConfig) -> dict[str, str]:
    """Hugging Face's name of every tensor of the model -> the file's.

    Raises one InputError with every tensor that is missing, surplus or of another shape.
    """
    expected = {name: place.shape for name, place in places(config).items()}
    stored = {name: gguf_name(name, config.post_norms) for name in expected}
    problems = [f"missing: {found}" for found in sorted(set(stored.values()) - file.tensors.keys())]
    problems += [f"surplus: {found}" for found in sorted(file.tensors.keys() - {*stored.values(), *FREQUENCIES})]
    for name, found in stored.items():
        if found in file.tensors and file.shape(found) != expected[name]:
            problems.append(f"shape of {found}: {file.shape(found)}, expected {expected[name]}")
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise InputError("\n  ".join([f"{file.path}: tensors do not fit the model", *problems[:20], *more]))
    return stored


def read_tensor(file: GgufFile, config: DecoderConfig, name: str) -> np.ndarray:
    """The tensor that a Hugging Face folder calls `name`, float32, in that folder's order, norms without an offset."""
    architecture = ARCHITECTURES[file.architecture]
    values = file.read(gguf_name(name, config.post_norms))
    module = name.rpartition(".")[0].rpartition(".")[2]
    if architecture.interleaved and module in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if module == "q_proj" else config.num_key_value_heads
        return halves(values, heads)
    if architecture.norm_offset and "norm" in module:
        return values - np.float32(architecture.norm_offset)
    return values


def halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of heads whose pairs lie side by side (0, h, 1, h + 1, ...), in halves: (0, 1, ..., h, h + 1, ...)."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def write_weights(path: Path, file: GgufFile, raw: Mapping[str, Any], dtype: str) -> None:
    """Write the file's tensors as safetensors of `dtype`, named and ordered as a Hugging Face folder has them.

    One tensor is held at a time. `raw` is the model's `config.json`.
    """
    config = decoder_config(raw, str(file.path))
    names = tensor_names(file, config)
    shapes = {name: file.shape(found) for name, found in names.items()}
    write_safetensors(path, shapes, dtype, lambda name: read_tensor(file, config, name))


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, read: Callable[[str], np.ndarray]
) -> None:
    """Write a safetensors file tensor by tensor: a length, a JSON header padded to eight bytes, then the values."""
    stored_dtype = jnp.dtype(dtype)
    with path.open("wb") as out:
        header = json.dumps(dict(_entries(shapes, dtype, stored_dtype.itemsize)), separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        out.write(len(header).to_bytes(8, "little"))
        out.write(header)
        for name in shapes:
            _write_values(out, read(name).astype(stored_dtype))


def _write_values(out: Any, values: np.ndarray) -> None:
    """Write an array's values; by a function, so that they are gone before the next are read."""
    out.write(np.ascontiguousarray(values).view(np.uint8).data)


def _entries(shapes: Mapping[str, Sequence[int]], dtype: str, itemsize: int) -> Iterator[tuple[str, Any]]:
    """The header of a safetensors file: where each tensor lies; transformers wants a framework named."""
    yield "__metadata__", {"format": "pt"}
    start = 0
    for name, shape in shapes.items():
        end = start + math.prod(shape) * itemsize
        yield (
            name,
            {"dtype": {"bfloat16": "BF16", "float32": "F32"}[dtype], "shape": shape, "data_offsets": [start, end]},
        )
        start = end
