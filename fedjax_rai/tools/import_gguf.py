"""`fedjax-rai import-gguf`: a GGUF file as a Hugging Face folder, which this package, transformers and others read."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedjax_rai import terminal
from fedjax_rai.errors import InputError
from fedjax_rai.model.families import read_config
from fedjax_rai.model.gguf import GgufFile, config_of, open_gguf, write_weights
from fedjax_rai.model.weights import stored_tensors, write_json
from fedjax_rai.text.gguf_tokenizer import GgufTokenizer, tokenizer_of
from fedjax_rai.text.tokenizer import load_tokenizer


def import_gguf(path: Path, out: Path, dtype: str = "bfloat16") -> None:
    """Write the model in a GGUF file to the folder OUT: config, weights of `dtype`, tokenizer and chat template.

    OUT appears whole or not at all; one tensor is in memory at a time. Raises InputError for a file that cannot be read
    or is of a kind that is not computed here, and for an OUT that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not an empty folder; name another one")
    file = open_gguf(path)
    raw = config_of(file)
    tokenizer = tokenizer_of(file.metadata, str(path))
    named = len(file.metadata["tokenizer.ggml.tokens"])
    if named > raw["vocab_size"]:
        raise InputError(f"{path}: has {named} tokens, but an embedding of {raw['vocab_size']} rows")
    for note in tokenizer.notes:
        terminal.say(f"{path.name}: {note}")
    with _whole(out) as part:
        write_weights(part / "model.safetensors", file, raw, dtype)
        write_json(part / "config.json", {**raw, "dtype": dtype, "eos_token_id": _one_or_more(tokenizer.stops)})
        _write_tokenizer(part, tokenizer, raw)
        (part / "README.md").write_text(_card(file, dtype), encoding="utf-8")
        stored_tensors(part, read_config(part))
        load_tokenizer(str(part))


def _one_or_more(ids: list[int]) -> int | list[int] | None:
    """Ids as a config names them."""
    if len(ids) > 1:
        return ids
    return ids[0] if ids else None


def _write_tokenizer(folder: Path, tokenizer: GgufTokenizer, raw: Mapping[str, Any]) -> None:
    """Write the tokenizer's files, its templates, and at which tokens generation stops."""
    (folder / "tokenizer.json").write_text(tokenizer.fast.to_str(pretty=True), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json", {**tokenizer.config, "model_max_length": raw["max_position_embeddings"]}
    )
    for name, template in tokenizer.templates.items():
        if name == "default":
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
            continue
        path = folder / "additional_chat_templates" / f"{Path(name).name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")
    ids = {"bos_token_id": raw["bos_token_id"], "eos_token_id": _one_or_more(tokenizer.stops)}
    ids["pad_token_id"] = raw["pad_token_id"]
    write_json(folder / "generation_config.json", {name: value for name, value in ids.items() if value is not None})


def _card(file: GgufFile, dtype: str) -> str:
    """A model card: what the folder was made from."""
    metadata = file.metadata
    kinds = Counter(tensor.tensor_type.name for tensor in file.tensors.values())
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines = [f"# {metadata.get('general.name', file.path.stem)}", ""]
    if "general.license" in metadata:
        lines = ["---", f"license: {metadata['general.license']}", "---", "", *lines]
    lines.append(f"Made from `{file.path.name}` (architecture {file.architecture}; tensors: {listed}), as {dtype}.")
    lines.append("Quantised weights are what they were rounded to: this is not the model before it was quantised.")
    return "\n".join([*lines, ""])


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all is written, and is removed otherwise."""
    out = out.absolute()
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
