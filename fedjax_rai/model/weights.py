"""Weights in and out: the base of a Hugging Face folder, and folders that transformers loads; safetensors only.

`families.places` says where each tensor of a file lies in our tree; reading, writing and merging all go by it.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedjax_rai.aliases import Adapter, Array, Base, PyTree
from fedjax_rai.errors import InputError
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import abstract_base
from fedjax_rai.model.families import Place, decoder_config, names, places, read_json
from fedjax_rai.model.lora import Lora
from fedjax_rai.model.quantize import Quantized, quantize

SHARD = 4 * 2**30
"""Bytes of a written file, at most, unless one tensor is larger; who writes holds that much in memory."""


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    name: str
    shape: tuple[int, ...]

    def read(self, index: Any = ...) -> np.ndarray:
        """That part of it. The file is mapped for this one look: what is mapped counts as this process's memory."""
        with _opened(self.file) as file:
            return file.get_tensor(self.name) if index is ... else file.get_slice(self.name)[index]


def load_base(folder: Path, config: DecoderConfig, shardings: PyTree | None = None) -> Base:
    """The base in a Hugging Face folder: `model.safetensors`, or shards with `model.safetensors.index.json`.

    Of `config.dtype`, its kernels quantised if the config says so. `shardings` has the tree of the base. The host
    holds one tensor at a time, and of that one what its own devices hold. Raises one `InputError` with every tensor
    that is missing, surplus or of another shape.
    """
    abstract = nn.unbox(abstract_base(config))
    if shardings is None:
        here = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: here, abstract)
    where, stored = places(config), stored_tensors(Path(folder), config)
    shapes, tree = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=_is_leaf)
    lie = tree.flatten_up_to(shardings)
    leaves = {".".join(k.key for k in path): (shape, own) for (path, shape), own in zip(shapes, lie, strict=True)}
    parts: dict[str, list[str]] = {leaf: [] for leaf in leaves}
    for name, place in where.items():
        parts[place.leaf].append(name)
    filled = {}
    # the largest first, while the rest is not there yet
    for leaf in sorted(leaves, key=lambda leaf: -max(int(np.prod(where[name].shape)) for name in parts[leaf])):
        shape, own = leaves[leaf]
        filled[leaf] = _fill(shape, own, jnp.dtype(config.dtype), [(stored[name], where[name]) for name in parts[leaf]])
    return jax.tree.unflatten(tree, [filled[leaf] for leaf in leaves])


def _is_leaf(x: Any) -> bool:
    return isinstance(x, Quantized)


def _fill(abstract: Any, sharding: Any, dtype: Any, parts: list[tuple[Stored, Place]]) -> Any:
    """A leaf on its devices, from its tensors: one after another, cast, transposed and quantised there."""
    rows = jax.tree.leaves(sharding)[0]  # a quantised kernel's codes lie as the kernel would
    kind = abstract.kind if isinstance(abstract, Quantized) else None
    zeros = partial(_zeros, dtype=None if kind else dtype)
    whole = jax.tree.map(zeros, abstract, sharding) if parts[0][1].layer is not None else None
    for stored, place in parts:
        kernel = place.column is not None and len(place.shape) == 2
        spec = _part_spec(rows, whole is not None, kernel, place.shape)
        part = jax.make_array_from_callback(stored.shape, spec, _once(stored.read))
        if whole is None:
            return _converted(part, kernel, dtype, sharding)
        start: Any = (place.layer, 0, place.column) if kernel else (place.layer, place.column or 0)
        flat, tree = jax.tree.flatten(sharding)
        inserted = _inserted(whole, part, tuple(map(np.int32, start)), kernel, kind, (tuple(flat), tree))
        whole = jax.block_until_ready(inserted)  # or this host runs ahead, with tensors that wait for their device
    return whole


def _zeros(shape: jax.ShapeDtypeStruct, sharding: Sharding, dtype: Any) -> Array:
    return jnp.zeros(shape.shape, dtype or shape.dtype, device=sharding)


def _once(read: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """`read`, one look and one copy for all devices that hold the same part."""
    held: dict[tuple, np.ndarray] = {}

    def shared(index: tuple[slice, ...]) -> np.ndarray:
        place = tuple((own.start, own.stop) for own in index)
        if place not in held:
            held[place] = read(index)
        return held[place]

    return shared


def _part_spec(sharding: Sharding, stacked: bool, transposed: bool, shape: tuple[int, ...]) -> Sharding:
    """How a tensor, as its file holds it, is spread over the mesh that the leaf is spread over."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    axes = list(sharding.spec[1:] if stacked else sharding.spec)
    axes += [None] * (len(shape) - len(axes))
    axes = axes[::-1] if transposed else axes
    ways = [np.prod([sharding.mesh.shape[a] for a in np.atleast_1d(own)]) if own else 1 for own in axes]
    even = [own if size % n == 0 else None for own, size, n in zip(axes, shape, ways, strict=True)]
    return NamedSharding(sharding.mesh, PartitionSpec(*even))


def _converted(part: Array, transposed: bool, dtype: Any, sharding: Sharding) -> Array:
    if not transposed and part.dtype == dtype:
        return part if part.sharding == sharding else jax.device_put(part, sharding)
    return jax.jit(lambda x: (x.T if transposed else x).astype(dtype), out_shardings=sharding)(part)


@partial(jax.jit, donate_argnums=0, static_argnums=(3, 4, 5))
def _inserted(whole: PyTree, part: Array, start: tuple, transposed: bool, kind: str | None, shardings: tuple) -> PyTree:
    part = part.T if transposed else part
    parts = part if kind is None else quantize(part, kind)
    done = jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype)[None], start), whole, parts
    )
    flat, tree = shardings
    return jax.lax.with_sharding_constraint(done, jax.tree.unflatten(tree, flat))


def stored_tensors(folder: Path, config: DecoderConfig) -> dict[str, Stored]:
    """The tensors of a model's files, each of which our tree has a place for, and none is missing."""
    where, stored, problems = places(config), listed(_files(folder)), []
    for name in sorted(stored):
        tied_head = config.tie_word_embeddings and name == "lm_head.weight"
        if name not in where and not tied_head and not name.endswith("rotary_emb.inv_freq"):
            problems.append(f"surplus: {name}")
    problems = [f"missing: {name}" for name in sorted(where.keys() - stored.keys())] + problems
    for name in sorted(where.keys() & stored.keys()):
        if stored[name].shape != where[name].shape:
            problems.append(f"shape of {name}: {stored[name].shape}, expected {where[name].shape}")
    if problems:
        raise InputError("\n  ".join([f"{folder}: tensors do not fit the model", *problems]))
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        _check_tied(folder, stored["model.embed_tokens.weight"], stored["lm_head.weight"])
    return {name: stored[name] for name in where}


def _check_tied(folder: Path, embedding: Stored, head: Stored) -> None:
    """Raises `InputError` where a head that is said to be the embedding is another; transformers would use it."""
    rows = embedding.shape[0]
    parts = [(slice(row, min(row + 4096, rows)), slice(None)) for row in range(0, rows, 4096)]
    if embedding.shape != head.shape or not all(np.array_equal(embedding.read(i), head.read(i)) for i in parts):
        raise InputError(
            f"{folder}: config.json ties the head to the embedding, but lm_head.weight differs from it; set "
            "tie_word_embeddings to false there, or remove the tensor"
        )


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a model; raises `InputError` when there are none or a shard is not there."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise InputError(f"{folder}: has neither {whole.name} nor {index.name} (only safetensors are read)")
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{index}: must have a weight_map, of tensors' names to files")
    files = [folder / name for name in sorted(set(listed.values()))]
    if absent := {file.name for file in files if not file.is_file()}:
        raise InputError(f"{index}: names files that are not there: {names(absent)}")
    return files


def listed(files: list[Path]) -> dict[str, Stored]:
    """Every tensor of the files, by name."""
    found = {}
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                found[name] = Stored(path, name, tuple(file.get_slice(name).get_shape()))
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = safe_open(path, "numpy")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error
    with file:
        yield file


# ---- out


def save_base(folder: Path, raw: Mapping[str, Any], base: Base, dtype: str) -> None:
    """Write a Hugging Face folder that transformers loads. `raw` is its `config.json`, which says what the base is."""
    config = decoder_config(raw, "config.json")
    expected, got = (_shapes(tree) for tree in (nn.unbox(abstract_base(config)), base))
    if got != expected:
        raise ValueError(f"cannot write {folder}: leaves are {got}, the model's are {expected}")

    def read(name: str) -> np.ndarray:
        place = places(config)[name]
        leaf = base
        for key in place.leaf.split("."):
            leaf = leaf[key]
        part = np.asarray(leaf if place.layer is None else leaf[place.layer])
        if place.column is not None and place.layer is not None:
            part = part[..., place.column : place.column + place.shape[0]]
        return part.T if part.shape != place.shape or place.column is not None else part

    save_model(folder, raw, {name: place.shape for name, place in places(config).items()}, dtype, read)


def save_merged(folder: Path, source: Path, config: DecoderConfig, lora: Lora, adapter: Adapter, dtype: str) -> None:
    """Write the model in `source` with an adapter added to its weights, one file of at most SHARD bytes at a time.

    The sum is made in float32 and rounded to `dtype` once; nothing but the adapter is read as a tree.
    """
    stored, where, depth = stored_tensors(source, config), places(config), config.num_hidden_layers

    def read(name: str) -> np.ndarray:
        module, layer = name.removesuffix(".weight").rpartition(".")[2], where[name].layer
        tensor = stored[name].read()
        if layer is None or module not in adapter["layers"] or not name.endswith(".weight"):
            return tensor
        a, b = (np.asarray(adapter["layers"][module][part][layer], np.float32) for part in "ab")
        return tensor.astype(np.float32) + lora.scales(module, depth)[layer] * (a @ b).T

    raw = read_json(source / "config.json")
    save_model(folder, raw, {name: own.shape for name, own in stored.items()}, dtype, read)


def save_model(
    folder: Path,
    raw: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    read: Callable[[str], np.ndarray],
) -> None:
    """Write `config.json` and the tensors that `read` gives, of `dtype`, in files of at most SHARD bytes."""
    size = jnp.dtype(dtype).itemsize
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        own = int(np.prod(shape)) * size
        if shards[-1] and held + own > SHARD:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += own
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_safetensors(folder / file, {name: read(name).astype(jnp.dtype(dtype)) for name in shard})
    if len(shards) > 1:
        total = sum(int(np.prod(shape)) for shape in shapes.values()) * size
        index = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    write_json(folder / "config.json", {**raw, "torch_dtype" if "torch_dtype" in raw else "dtype": dtype})


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


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """The same for a JSON object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda temporary: temporary.write_text(json.dumps(fields, indent=2) + "\n"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
