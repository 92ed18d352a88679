"""Weights in and out: the base of a Hugging Face folder, and folders that transformers loads; safetensors only.

`families.places` says where each tensor of a file lies in our tree; reading, writing and merging all go by it.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from fedjax_rai.model.architecture import DecoderConfig, in_parts
from fedjax_rai.model.decoder import abstract_base
from fedjax_rai.model.families import Place, decoder_config, names, places
from fedjax_rai.model.lora import Lora
from fedjax_rai.model.quantize import Quantized, quantize
from fedjax_rai.reading import one_line, read_object, refuse_pointer

FLOATS = {"F16", "BF16", "F32", "F64"}
"""What weights may be stored in, by safetensors' names."""
PIECE = 2**17
"""Numbers that are looked at together."""
LISTED = 3
"""The most tensors of a kind that a message names one by one."""
SHARD = 4 * 2**30
"""Bytes of a written file, at most, unless one tensor is larger; who writes holds that much in memory."""


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # by safetensors' name, like BF16

    def read(self, index: Any = ..., dtype: Any = None) -> np.ndarray:
        """The tensor, or the part of it that `index` names.

        The file is mapped for this one look: what is mapped counts as this process's memory. Raises InputError where it
        holds NaN or an infinity, or a number that would become one in `dtype`, which it will be cast to.
        """
        with _opened(self.file) as file:
            part = file.get_tensor(self.name) if index is ... else file.get_slice(self.name)[index]
        check_numbers(part, part.dtype if dtype is None else dtype, f"{self.file}: {self.name}")
        return part


def check_numbers(tensor: np.ndarray, dtype: Any, where: str) -> None:
    """Raises InputError, which begins with `where`, unless every number is one, and still is when cast to `dtype`."""
    most = largest(tensor)
    if not np.isfinite(most):
        raise InputError(f"{where}: holds {_in_words(most)}; must be numbers: the file is broken, or training diverged")
    with np.errstate(over="ignore"):
        cast = most.astype(jnp.dtype(dtype))
    if not np.isfinite(cast):
        top = float(jnp.finfo(dtype).max)
        raise InputError(
            f"{where}: holds {float(most):g}, which is none in {jnp.dtype(dtype).name}; must be at most {top:g} in "
            "magnitude, or in another dtype"
        )


def largest(tensor: np.ndarray) -> np.generic:
    """The largest magnitude in a float tensor, of its dtype: NaN if there is one, else an infinity if there is one.

    One pass in pieces that stay in the processor's cache: nothing as large as the tensor is made. Without its sign a
    float is the larger, the larger its bits are as a whole number.
    """
    kind = np.dtype(f"u{tensor.dtype.itemsize}")
    bits = np.ascontiguousarray(tensor).reshape(-1).view(kind)
    magnitude = kind.type(2 ** (8 * kind.itemsize - 1) - 1)
    most = kind.type(0)
    for start in range(0, bits.size, PIECE):
        most = max(most, np.bitwise_and(bits[start : start + PIECE], magnitude).max())
    return np.array([most], kind).view(tensor.dtype)[0]


def _in_words(number: Any) -> str:
    return "NaN" if np.isnan(number) else "an infinity"


def load_base(folder: Path, config: DecoderConfig, shardings: PyTree | None = None) -> Base:
    """The base in a Hugging Face folder: `model.safetensors`, or shards with `model.safetensors.index.json`.

    Of `config.dtype`, its kernels quantised if the config says so. `shardings` has the tree of the base. The host
    holds one tensor at a time, and of that one what its own devices hold. Raises one `InputError` with the tensors
    that are missing, surplus or of another shape, and one for the first tensor that holds NaN or an infinity.
    """
    abstract = nn.unbox(abstract_base(config))
    if shardings is None:
        here = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: here, abstract)
    stored = stored_tensors(Path(folder), config)
    parts: dict[str, list[tuple[Stored, Place]]] = {}
    for name, place in places(config).items():
        parts.setdefault(place.leaf, []).append((stored[name], place))
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=_is_leaf)
    shapes = {".".join(key.key for key in path): shape for path, shape in leaves}
    leaf_shardings = dict(zip(shapes, tree.flatten_up_to(shardings), strict=True))

    def largest_tensor(leaf: str) -> int:
        return max(int(np.prod(place.shape)) for _, place in parts[leaf])

    filled = {}
    for leaf in sorted(shapes, key=largest_tensor, reverse=True):  # the largest first, while the rest is not there yet
        filled[leaf] = _fill(shapes[leaf], leaf_shardings[leaf], jnp.dtype(config.dtype), parts[leaf])
    return jax.tree.unflatten(tree, [filled[leaf] for leaf in shapes])


def _is_leaf(x: Any) -> bool:
    return isinstance(x, Quantized)


def _fill(abstract: Any, sharding: Any, dtype: Any, parts: list[tuple[Stored, Place]]) -> Any:
    """A leaf on its devices, from its tensors: one after another, cast, transposed and quantised there."""
    kernel_sharding = jax.tree.leaves(sharding)[0]  # a quantised kernel's codes lie as the kernel would
    if parts[0][1].layer is None:  # a leaf that is not stacked is one tensor
        ((stored, place),) = parts
        spec = _part_spec(kernel_sharding, False, place.is_kernel, place.shape)
        part = jax.make_array_from_callback(stored.shape, spec, _once(partial(stored.read, dtype=dtype)))
        return _converted(part, place.is_kernel, dtype, sharding)
    kind = abstract.kind if isinstance(abstract, Quantized) else None
    flat, tree = jax.tree.flatten(sharding)
    hashable_shardings = (tuple(flat), tree)
    whole = jax.tree.map(partial(_zeros, dtype=None if kind else dtype), abstract, sharding)
    for stored, place in parts:
        spec = _part_spec(kernel_sharding, True, place.is_kernel, place.shape)
        part = jax.make_array_from_callback(stored.shape, spec, _once(partial(stored.read, dtype=dtype)))
        first: Any = place.layer, (place.column or 0) // place.parts
        start = tuple(map(np.int32, first))
        form = _Form(place.is_kernel, kind, place.parts, place.widths)
        inserted = _inserted(whole, part, start, form, hashable_shardings)
        whole = jax.block_until_ready(inserted)  # or this host runs ahead, with tensors that wait for their device
    return whole


def _zeros(shape: jax.ShapeDtypeStruct, sharding: Sharding, dtype: Any) -> Array:
    """Zeros of a leaf's shape on its devices; `dtype` None is the shape's."""
    return jnp.zeros(shape.shape, dtype or shape.dtype, device=sharding)


def _once(read: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """`read`, with one look and one copy for all devices that hold the same part."""
    held: dict[tuple, np.ndarray] = {}

    def shared(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple((axis.start, axis.stop) for axis in index)
        if bounds not in held:
            held[bounds] = read(index)
        return held[bounds]

    return shared


def _part_spec(sharding: Sharding, stacked: bool, transposed: bool, shape: tuple[int, ...]) -> Sharding:
    """The sharding of a tensor, as its file holds it, over the mesh that its leaf is spread over.

    An axis that does not divide evenly is not spread.
    """
    if not isinstance(sharding, NamedSharding):
        return sharding
    leaf_axes = sharding.spec[1:] if stacked else sharding.spec
    axes = [*leaf_axes, *[None] * (len(shape) - len(leaf_axes))]
    if transposed:
        axes.reverse()
    spec = []
    for mesh_axes, size in zip(axes, shape, strict=True):
        axis_names = () if mesh_axes is None else np.atleast_1d(mesh_axes)
        ways = math.prod(sharding.mesh.shape[name] for name in axis_names)
        spec.append(mesh_axes if size % ways == 0 else None)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def _converted(part: Array, transposed: bool, dtype: Any, sharding: Sharding) -> Array:
    """A tensor of a file as the leaf that it is: transposed and cast where need be."""
    if not transposed and part.dtype == dtype:
        return part if part.sharding == sharding else jax.device_put(part, sharding)
    return jax.jit(lambda x: (x.T if transposed else x).astype(dtype), out_shardings=sharding)(part)


class _Form(NamedTuple):
    """How a tensor of a file becomes a part of a leaf."""

    transposed: bool
    quantized: str | None
    parts: int  # of the leaf's columns
    widths: tuple[int, ...]  # of the projections in the tensor; none: it is one


@partial(jax.jit, donate_argnums=0, static_argnums=(3, 4))
def _inserted(whole: PyTree, tensor: Array, start: tuple, form: _Form, shardings: tuple) -> PyTree:
    """The stacked leaf with one layer's tensor written at `start`: (layer, first column of every part)."""
    tensor = tensor.T if form.transposed else tensor
    tensors = tensor if form.quantized is None else quantize(tensor, form.quantized)
    layer, column = start

    def insert(old: Array, new: Array) -> Array:
        by_part = in_parts(old, form.parts)
        zeros = (0,) * (by_part.ndim - 2)
        ends = np.cumsum(form.widths, dtype=int)[:-1]
        place = column
        for piece in jnp.split(new.astype(old.dtype)[None], ends, axis=-1):
            dealt = in_parts(piece, form.parts)
            by_part = jax.lax.dynamic_update_slice(by_part, dealt, (layer, *zeros, place))
            place += dealt.shape[-1]
        return by_part.reshape(old.shape)

    flat, tree = shardings
    return jax.lax.with_sharding_constraint(jax.tree.map(insert, whole, tensors), jax.tree.unflatten(tree, flat))


def stored_tensors(folder: Path, config: DecoderConfig) -> dict[str, Stored]:
    """The tensors of a model's files, by name: those that our tree has a place for.

    Raises one `InputError` with the tensors that are missing, surplus or of another shape.
    """
    stored = listed(_files(folder))
    expected = {name: place.shape for name, place in places(config).items()}
    ignored = {name for name in stored if name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings:
        ignored.add("lm_head.weight")
    check_tensors(folder, stored, expected, ignored)
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        _check_tied(folder, stored["model.embed_tokens.weight"], stored["lm_head.weight"])
    return {name: stored[name] for name in expected}


def check_tensors(
    path: Path,
    stored: Mapping[str, Stored],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Collection[str] = (),
) -> None:
    """Raises one `InputError` with the tensors of `path` that are missing, surplus (but `ignored`), of a shape other
    than the expected, or of a type that is no float; of many a few, how many there are, and the likely cause.
    """
    missing = sorted(expected.keys() - stored.keys())
    surplus = sorted(stored.keys() - expected.keys() - set(ignored))
    common = sorted(expected.keys() & stored.keys())
    misshapen = [name for name in common if stored[name].shape != expected[name]]
    no_floats = [name for name in common if stored[name].dtype not in FLOATS]
    floats = ", ".join(sorted(FLOATS))
    problems = likely_cause(missing, surplus) if missing else []
    problems += _summed_up("missing: ", missing)
    problems += _summed_up("surplus: ", surplus)
    problems += _summed_up("shape of ", misshapen, lambda name: f": {stored[name].shape}, expected {expected[name]}")
    problems += _summed_up("type of ", no_floats, lambda name: f": {stored[name].dtype}, must be one of {floats}")
    if problems:
        raise InputError("\n  ".join([f"{path}: tensors do not fit the model", *problems]))


def _summed_up(kind: str, found: Sequence[str], tail: Callable[[str], str] = lambda name: "") -> list[str]:
    """A line for each of the tensors, or for the first few and one for the others."""
    shown = found if len(found) <= LISTED + 1 else found[:LISTED]
    lines = [f"{kind}{name}{tail(name)}" for name in shown]
    if len(found) > len(shown):
        lines.append(f"{kind}{len(found) - len(shown)} more")
    return lines


def likely_cause(missing: Sequence[str], surplus: Sequence[str]) -> list[str]:
    """A line, where most of the missing tensors are there by names with some pieces more, or fewer; else none.

    The pieces (`model`, `language_model`, `default`) stand at one place of all names, counted from either end.
    """
    wanted = [tuple(name.split(".")) for name in missing]
    there = {tuple(name.split(".")) for name in surplus}
    first = wanted[0]
    for other in sorted(there):
        more = len(other) > len(first)
        shorter, longer = (first, other) if more else (other, first)
        start = _parting(shorter, longer)
        if start is None or shorter == longer:
            continue
        extra = longer[start : start + len(longer) - len(shorter)]
        from_front = [start] * len(wanted)
        from_end = [start + len(name) - len(first) for name in wanted]
        for starts in (from_front, from_end):
            changed = [_changed(name, at, extra, more) for name, at in zip(wanted, starts, strict=True)]
            found = len(there.intersection(changed))
            if 2 * found > len(missing):
                differs = "with" if more else "without"
                return [
                    f"likely cause: {found} of the {len(missing)} missing tensors are there {differs} "
                    f"`{'.'.join(extra)}.` in their names, like {'.'.join(other)}"
                ]
    return []


def _parting(shorter: tuple[str, ...], longer: tuple[str, ...]) -> int | None:
    """Where the longer name has pieces that the shorter has not, all in one place; None for names that differ more."""
    for start in range(len(shorter) + 1):
        rest = len(shorter) - start
        if shorter[:start] == longer[:start] and shorter[start:] == longer[len(longer) - rest :]:
            return start
    return None


def _changed(name: tuple[str, ...], at: int, extra: tuple[str, ...], more: bool) -> tuple[str, ...]:
    """A name with the pieces put in at a place, or taken out there; as it is where they are not there."""
    if more:
        return name[:at] + extra + name[at:]
    end = at + len(extra)
    return name[:at] + name[end:] if name[at:end] == extra else name


def _check_tied(folder: Path, embedding: Stored, head: Stored) -> None:
    """Raises `InputError` where a head that should be the embedding is another; transformers would use that head."""
    if embedding.shape != head.shape or not _equal(embedding, head):
        raise InputError(
            f"{folder}: config.json ties the head to the embedding, but lm_head.weight differs from it; set "
            "tie_word_embeddings to false there, or remove the tensor"
        )


def _equal(x: Stored, y: Stored) -> bool:
    """Whether two matrices of one shape hold the same values; 4096 rows of each are read at a time."""
    rows = x.shape[0]
    for start in range(0, rows, 4096):
        index = (slice(start, min(start + 4096, rows)), slice(None))
        if not np.array_equal(x.read(index), y.read(index)):
            return False
    return True


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a model; raises `InputError` when there are none or a shard is not there."""
    whole = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise InputError(f"{folder}: has neither {whole.name} nor {index.name} (only safetensors are read)")
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
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
                part = file.get_slice(name)
                found[name] = Stored(path, name, tuple(part.get_shape()), part.get_dtype())
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = safe_open(path, "numpy")
    except (OSError, SafetensorError) as error:
        refuse_pointer(path)
        raise InputError(f"{path}: not a whole safetensors file ({one_line(error)})") from error
    with file:
        yield file


# ---- out


def save_base(folder: Path, raw: Mapping[str, Any], base: Base, dtype: str) -> None:
    """Write a Hugging Face folder that transformers loads. `raw` is its `config.json`, which says what the base is."""
    config = decoder_config(raw, "config.json")
    expected = _shapes(nn.unbox(abstract_base(config)))
    got = _shapes(base)
    if got != expected:
        raise ValueError(f"cannot write {folder}: leaves are {got}, the model's are {expected}")
    where = places(config)
    shapes = {name: place.shape for name, place in where.items()}
    save_model(folder, raw, shapes, dtype, lambda name: _part_of(base, where[name]))


def _part_of(base: Base, place: Place) -> np.ndarray:
    """One tensor of a checkpoint, out of our tree and as a file holds it: the other way round than `_fill`."""
    leaf = base
    for key in place.leaf.split("."):
        leaf = leaf[key]
    part = np.asarray(leaf if place.layer is None else leaf[place.layer])
    if place.layer is not None and place.column is not None:
        width = place.shape[0]
        part = part[..., place.column : place.column + width]
    return part.T if place.is_kernel else part


def save_merged(folder: Path, source: Path, config: DecoderConfig, lora: Lora, adapter: Adapter, dtype: str) -> None:
    """Write the model in `source` with an adapter added to its weights, one file of at most SHARD bytes at a time.

    The sum is made in float32 and rounded to `dtype` once; nothing but the adapter is read as a tree. Raises InputError
    where a number of the sum is none in `dtype`.
    """
    stored = stored_tensors(source, config)
    where = places(config)

    def read(name: str) -> np.ndarray:
        tensor = stored[name].read()
        layer = where[name].layer
        module = name.removesuffix(".weight").rpartition(".")[2]
        if layer is None or module not in adapter["layers"] or not name.endswith(".weight"):
            return tensor
        pair = adapter["layers"][module]
        a = np.asarray(pair["a"][layer], np.float32)
        b = np.asarray(pair["b"][layer], np.float32)
        scale = lora.scales(module, config.num_hidden_layers)[layer]
        with np.errstate(all="ignore"):  # what overflows is refused by its name when it is written
            return tensor.astype(np.float32) + scale * (a @ b).T

    shapes = {name: tensor.shape for name, tensor in stored.items()}
    save_model(folder, read_object(source / "config.json"), shapes, dtype, read)


def save_model(
    folder: Path,
    raw: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    read: Callable[[str], np.ndarray],
) -> None:
    """Write `config.json` and the tensors that `read` gives, of `dtype`, in files of at most SHARD bytes.

    Raises InputError where a tensor holds a number that is none in `dtype`.
    """
    itemsize = jnp.dtype(dtype).itemsize
    nbytes = {name: math.prod(shape) * itemsize for name, shape in shapes.items()}
    shards = _shards(nbytes)
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_safetensors(folder / file, {name: cast(read(name), dtype, name) for name in shard})
    if len(shards) > 1:
        index = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = {"total_size": sum(nbytes.values())}
        write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": index})
    dtype_key = "torch_dtype" if "torch_dtype" in raw else "dtype"  # older configs have the former
    write_json(folder / "config.json", {**raw, dtype_key: dtype})


def cast(tensor: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """A tensor in the dtype that it is written in; raises InputError where a number of it is none there."""
    check_numbers(tensor, dtype, name)
    return tensor.astype(jnp.dtype(dtype))


def _shards(nbytes: Mapping[str, int]) -> list[list[str]]:
    """The tensors' names in order, divided into files of at most SHARD bytes; a larger tensor has a file alone."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in nbytes.items():
        if shards[-1] and held + size > SHARD:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def save_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to `path`, making its folder; a reader sees the whole new file or the old one.

    safetensors (0.8 at least) writes the memory of an array whatever its strides, so each one is made contiguous.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    solid = {name: np.ascontiguousarray(tensor).reshape(np.shape(tensor)) for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        # transformers refuses a file whose metadata does not name a framework
        try:
            save_file(solid, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # what the file system refuses, of which it tells no number
            full = "No space left" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from None
        temporary.chmod(0o644)  # safetensors lets only the owner read it

    _replace(path, write)


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a JSON object to `path`, making its folder; a reader sees the whole new file or the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda temporary: temporary.write_text(json.dumps(fields, indent=2) + "\n"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Put what `write` writes to a temporary file in the place of `path`, at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every leaf."""
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
