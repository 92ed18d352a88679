"""Small GGUF files, written from tensors in Hugging Face's order as llama.cpp's converter writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
LAYERS, HIDDEN, HEADS, GROUPS, MLP, CONTEXT = 2, 32, 4, 2, 64, 512
HEAD = {"qwen3": 128, "gemma3": 256}  # what transformers' reader assumes of these two, whatever a file says
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")


class Written(NamedTuple):
    """A GGUF file, and what it was made from."""

    path: Path
    tensors: dict[str, np.ndarray]
    """By Hugging Face's names, in Hugging Face's order."""


def byte_alphabet() -> list[str]:
    """GPT-2's character of every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_level(pre: str | None = "qwen2") -> dict[str, Any]:
    """The metadata of a byte-level BPE with four merges and four special tokens."""
    merged = ["he", "ll", "hell", "\u0120a"]
    merges = ["h e", "l l", "he ll", "\u0120 a"]
    tokens = [*byte_alphabet(), *merged, *SPECIALS]
    first = len(tokens) - len(SPECIALS)
    fields: dict[str, Any] = {
        "model": "gpt2",
        "tokens": tokens,
        "token_type": [NORMAL] * first + [CONTROL] * len(SPECIALS),
        "merges": merges,
        "eos_token_id": first + 1,
        "padding_token_id": first,
        "add_bos_token": False,
    }
    return fields | ({"pre": pre} if pre else {})


def sentencepiece() -> dict[str, Any]:
    """The metadata of a SentencePiece BPE: bytes to fall back on, letters, a few pieces with their scores."""
    control = ["<unk>", "<s>", "</s>"]
    pieces = ["\u2581", *"abcdehlmnoprstuw", "he", "ll", "hell", "\u2581a", "\u2581hell", "or", "wor", "\u2581wor"]
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *SPECIALS]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces) + [CONTROL] * len(SPECIALS)
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0] * len(SPECIALS),
        "token_type": kinds,
        "bos_token_id": 1,
        "eos_token_id": tokens.index("<|end|>"),
        "unknown_token_id": 0,
        "padding_token_id": tokens.index("<|pad|>"),
    }


def head_dim(arch: str) -> int:
    return HEAD.get(arch, HIDDEN // HEADS)


def random_tensors(arch: str, vocabulary: int, tied: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """A model of an architecture as Hugging Face names and orders it, no two numbers alike."""
    g = np.random.default_rng(seed)
    queries, keys = HEADS * head_dim(arch), GROUPS * head_dim(arch)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, HIDDEN)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        if arch == "phi3":
            shapes[f"{layer}.self_attn.qkv_proj.weight"] = (queries + 2 * keys, HIDDEN)
            shapes[f"{layer}.mlp.gate_up_proj.weight"] = (2 * MLP, HIDDEN)
        else:
            for name, rows in (("q", queries), ("k", keys), ("v", keys)):
                shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, HIDDEN)
                if arch == "qwen2":
                    shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
            shapes[f"{layer}.mlp.gate_proj.weight"] = (MLP, HIDDEN)
            shapes[f"{layer}.mlp.up_proj.weight"] = (MLP, HIDDEN)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (HIDDEN, queries)
        shapes[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, MLP)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if arch == "gemma3":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{layer}.{norm}.weight": (HIDDEN,) for norm in norms}
        if arch in ("qwen3", "gemma3"):
            shapes |= {f"{layer}.self_attn.{name}_norm.weight": (head_dim(arch),) for name in "qk"}
    return {name: (0.2 * g.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


LLAMA_CPP = (
    ("model.layers.", "blk."), ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"),
    ("lm_head", "output"), ("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"), ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"),
    ("mlp.gate_up_proj", "ffn_up"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
)  # fmt: skip


def llama_cpp_name(name: str, arch: str) -> str:
    for theirs, ours in LLAMA_CPP:
        name = name.replace(theirs, ours)
    name = name.replace("pre_feedforward_layernorm", "ffn_norm").replace("post_feedforward_layernorm", "post_ffw_norm")
    return name.replace("post_attention_layernorm", "post_attention_norm" if arch == "gemma3" else "ffn_norm")


def as_llama_cpp(name: str, values: np.ndarray, arch: str) -> np.ndarray:
    """A tensor as llama.cpp's converter changes it: rotated pairs side by side (Llama), norms with 1 added (Gemma)."""
    if arch in ("llama", "mistral") and (".q_proj." in name or ".k_proj." in name):
        heads = HEADS if ".q_proj." in name else GROUPS
        half = values.shape[0] // heads // 2
        order = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in (0, 1)]
        return values[order]
    return values + 1 if arch == "gemma3" and "norm" in name else values


def write_gguf(
    path: Path,
    arch: str = "llama",
    vocabulary: Mapping[str, Any] | None = None,
    tied: bool = True,
    fields: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    quantized: str | None = None,
) -> Written:
    """Write a small model. `fields`: further metadata, None to leave one out; `quantized`: the type of the matrices."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize  # pyright: ignore[reportMissingImports]

    vocabulary = dict(vocabulary or byte_level())
    tensors = random_tensors(arch, len(vocabulary["tokens"]), tied)
    writer = GGUFWriter(path, arch)
    metadata: dict[str, Any] = {
        f"{arch}.block_count": LAYERS,
        f"{arch}.context_length": CONTEXT,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.feed_forward_length": MLP,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": GROUPS,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 20_000.0,
        f"{arch}.rope.dimension_count": head_dim(arch),
        "tokenizer.chat_template": TEMPLATE,
        **{f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()},
    }
    if arch in HEAD:
        metadata[f"{arch}.attention.key_length"] = metadata[f"{arch}.attention.value_length"] = HEAD[arch]
    if arch == "gemma3":
        metadata[f"{arch}.attention.sliding_window"] = 64
    for key, value in (metadata | dict(fields or {})).items():
        add_field(writer, key, value)
    kind = None if quantized is None else GGMLQuantizationType[quantized]
    for name, values in tensors.items():
        stored = as_llama_cpp(name, values, arch).astype(np.float32)
        if kind is not None and stored.ndim == 2:
            writer.add_tensor(llama_cpp_name(name, arch), quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(llama_cpp_name(name, arch), stored)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(path, tensors)


def add_field(writer: Any, key: str, value: Any) -> None:
    """Write a metadata value of the kind that it is; None is left out."""
    kinds = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}
    if value is not None:
        getattr(writer, kinds[type(value)])(key, value)
