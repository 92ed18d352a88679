"""The memory plan of a run: bytes a device in each of its phases, from shapes alone, before the base is loaded.

Exact: what lies there all the time, and what a local step keeps for its backward pass (read off the traced loss). The
rest, which only the compiler decides, is one formula a part, from the arrays that XLA's CPU programs hold at once;
`tests/run/test_memory.py` compares the sums with what XLA reports. Not measured on GPU or TPU, where fusing more makes
some of it smaller. Not counted: the host's own memory, XLA's workspace for products in bfloat16 on a CPU (which has
none of its own and computes them in float32), the tensor that is being loaded. On a mesh with `fsdp` or `tensor`,
activations count whole on every device: an upper bound.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from math import ceil, prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AbstractMesh

from fedjax_rai import mesh as meshes
from fedjax_rai.aliases import PyTree
from fedjax_rai.config import ExperimentConfig
from fedjax_rai.data.examples import bucket, encode_chats, encode_questions
from fedjax_rai.errors import InputError
from fedjax_rai.model.architecture import FUSED, DecoderConfig, fan_in, outputs
from fedjax_rai.model.attention import CHUNK
from fedjax_rai.model.decoder import Decoder, abstract_base
from fedjax_rai.model.lora import Lora, abstract_adapter
from fedjax_rai.run import log
from fedjax_rai.run.setting import Setting
from fedjax_rai.safety.guard import guard_form
from fedjax_rai.text.prompts import answered, question
from fedjax_rai.train.generate import start as start_decoding
from fedjax_rai.train.losses import sft

GIB = 2**30


class Lengths(NamedTuple):
    """Padded lengths in tokens; 0 where there is no such text."""

    train: int
    guard: int  # a pair in the guard's form
    guard_request: int  # what that form adds to `data.max_length`
    red: int
    requests: int  # for critique and revision, together
    replay: int
    asked: int  # prompts of the evaluation
    choice: int

    def cut(self, max_length: int) -> "Lengths":
        """With a smaller `data.max_length`."""
        texts = {name: min(getattr(self, name), bucket(max_length)) for name in ("train", "red", "replay", "asked")}
        guard = min(self.guard, bucket(max_length + self.guard_request))
        return self._replace(**texts, guard=guard, choice=min(self.choice, bucket(max_length)))


class Sizes(NamedTuple):
    """All that a plan depends on besides the config."""

    model: Decoder
    guard: DecoderConfig | None  # of a released guard
    guarded: bool
    lengths: Lengths
    pairs: int
    devices: int


class Plan(NamedTuple):
    """Bytes a device, by part: what is there in every phase, and what each phase adds."""

    held: dict[str, int]
    phases: dict[str, dict[str, int]]

    def need(self, phase: str) -> int:
        return sum(self.held.values()) + sum(self.phases[phase].values())

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.need)


def plan(config: ExperimentConfig, sizes: Sizes) -> Plan:
    """The plan of an arm of that config; nothing is allocated. `config` may differ in how the model is computed."""
    own = config.model
    computed = {"dtype": own.dtype, "attention": own.attention, "quantize": own.quantize, "remat": own.remat}
    lora = dataclasses.replace(lora_of(sizes.model), rank=config.lora.rank)
    model = Decoder(dataclasses.replace(sizes.model.config, **computed), lora)
    guard = dataclasses.replace(sizes.guard, **computed) if sizes.guard else None
    sizes = sizes._replace(model=model, guard=guard, lengths=sizes.lengths.cut(config.data.max_length))
    return Plan(_held(config, sizes), dict(_phases(config, sizes)))


def lora_of(model: Decoder) -> Lora:
    assert model.lora is not None
    return model.lora


def nbytes(tree: PyTree) -> int:
    """Of all leaves: arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def base_bytes(config: DecoderConfig, mesh: AbstractMesh) -> int:
    """Of one device's part of the base; `weights.load_base` casts what is not quantised to the config's dtype."""
    boxed = abstract_base(config)
    shardings = meshes.base_shardings(mesh, boxed)
    kernels = nn.unbox(boxed)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct, sharding: Any) -> int:
        quantised = any(getattr(key, "name", None) in ("values", "scales") for key in path)
        dtype = shape.dtype if quantised else jnp.dtype(config.dtype)
        return prod(sharding.shard_shape(shape.shape)) * dtype.itemsize

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(leaf, kernels, shardings)))


def _mesh(config: ExperimentConfig, devices: int) -> AbstractMesh:
    fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
    return AbstractMesh((devices // (fsdp * tensor), fsdp, tensor), meshes.AXES)


def _held(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    mesh, model = _mesh(config, sizes.devices), sizes.model
    adapter = nbytes(abstract_adapter(model.config, lora_of(model)))
    # A round's state is kept until the next one's is there. SCAFFOLD's has a control variate of everyone and its own.
    states = 2 * (1 + (1 + config.federated.clients if config.federated.algorithm == "scaffold" else 0))
    fitted = 1 if sizes.guarded and sizes.guard is None else 0
    parts = {"base": base_bytes(model.config, mesh), "adapters": (states + fitted) * adapter}
    if sizes.guard:
        parts["guard"] = base_bytes(sizes.guard, mesh)
    return parts | {"data": sizes.pairs * sizes.lengths.train * (4 + 1 + 1)}  # tokens and two masks


def _phases(config: ExperimentConfig, sizes: Sizes) -> Iterator[tuple[str, dict[str, int]]]:
    model, lengths = sizes.model, sizes.lengths
    fed, cai, own, fsdp = config.federated, config.cai, config.eval, config.mesh.fsdp
    if sizes.guarded and sizes.guard is None and config.guard.steps:
        yield "fitting the guard", _training(model, config.guard.batch_size, lengths.guard, fsdp)
    if sizes.guarded:
        scorer = sizes.guard or model.config
        yield "scoring", _whole_sequences(scorer, own.batch_size, lengths.guard, 1, fsdp)
    if fed.rounds:
        yield "local training", _local_training(config, sizes)
    if fed.rounds and cai.enabled:
        if lengths.replay:
            slots = lengths.replay + cai.max_new_tokens
            yield "answering replay", _decoding(model.config, cai.replay, lengths.replay, slots, fsdp)
        slots = lengths.red + lengths.requests + 3 * cai.max_new_tokens
        caches = 1 if cai.critic == "policy" else 2
        yield "CAI, generating", _decoding(model.config, cai.prompts, lengths.red, slots, fsdp, caches)
        longest = max(lengths.red, lengths.replay) + cai.max_new_tokens
        yield "CAI, training", _training(model, cai.batch_size, longest, fsdp)
    slots = lengths.asked + own.max_new_tokens
    yield "evaluation, answering", _decoding(model.config, own.batch_size, lengths.asked, slots, fsdp)
    if lengths.choice:
        yield "evaluation, choices", _whole_sequences(model.config, own.batch_size, lengths.choice, lengths.choice, fsdp)


def _local_training(config: ExperimentConfig, sizes: Sizes) -> dict[str, int]:
    fed, mesh = config.federated, _mesh(config, sizes.devices)
    adapter = nbytes(abstract_adapter(sizes.model.config, lora_of(sizes.model)))
    own = ceil(fed.clients_per_chunk / mesh.shape["clients"])  # a chunk is a multiple of the clients axis
    in_chunk = own * mesh.shape["clients"]
    kept = ceil(fed.cohort / in_chunk) * own  # of the cohort, padded to whole chunks, on this device
    parts = _training(sizes.model, fed.batch_size, sizes.lengths.train, config.mesh.fsdp, own)
    if fed.algorithm == "scaffold":
        return parts | {"deltas": kept * adapter, "control variates": (kept + own) * adapter}  # theirs and corrections
    return parts | {"deltas": kept * adapter}


def _training(model: Decoder, rows: int, length: int, fsdp: int, clients: int = 1) -> dict[str, int]:
    """Steps of that many clients at once, each on `rows` sequences."""
    config = model.config
    adapter = nbytes(abstract_adapter(config, lora_of(model)))
    kept = _saved(model, rows, length)
    if config.remat != "none":  # one layer is computed again, with all that it would have kept
        whole = Decoder(dataclasses.replace(config, remat="none"), model.lora)
        again = _saved(whole, rows, length) // config.num_hidden_layers
    else:
        again = 0
    transient = max(again + _layer_backward(config, rows, length), _head(config, rows * length, backward=True))
    return {
        "clients' adapters": 2 * clients * adapter,  # while training, and the delta that is made of it
        "optimizer and gradient": 3 * clients * adapter,  # Adam's two moments
        "activations": clients * (kept + transient),
        "kernels in use": _kernels(config, fsdp),
    }


def _decoding(
    config: DecoderConfig, rows: int, length: int, slots: int, fsdp: int, caches: int = 1
) -> dict[str, int]:
    """Prompts of `length` into a cache of `slots`, then token by token."""
    state = jax.eval_shape(lambda: start_decoding(Decoder(config), rows, slots))
    prefill = _layer_forward(config, rows, length, slots, cached=True)
    # the logits that come next, those before, and the noise of sampling
    return {
        "KV cache": caches * nbytes(state.cache),
        "activations": max(prefill, 3 * nbytes(state.logits)),
        "kernels in use": _kernels(config, fsdp),
    }


def _whole_sequences(config: DecoderConfig, rows: int, length: int, scored: int, fsdp: int) -> dict[str, int]:
    """A forward pass without a cache, and the logits of `scored` tokens a row."""
    layer, head = _layer_forward(config, rows, length, length), _head(config, rows * scored)
    return {"activations": max(layer, head), "kernels in use": _kernels(config, fsdp)}


@lru_cache(maxsize=64)
def _saved(model: Any, rows: int, length: int) -> int:
    """Bytes that a local step keeps from its forward for its backward pass, the base and the adapter left out.

    What the linearised loss takes and is none of its own arguments: so it follows remat, attention and quantisation
    as they are, whatever the layer saves.
    """
    base = jax.tree.map(partial_cast(model.config.dtype), nn.unbox(abstract_base(model.config)))
    tokens, mask = (jax.ShapeDtypeStruct((rows, length), dtype) for dtype in (jnp.int32, jnp.bool_))

    def residuals(base: PyTree, adapter: PyTree, tokens: Any, mask: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(lambda a: sft(model, base, a, tokens, mask, mask).mean(), adapter)[1])

    traced = jax.make_jaxpr(residuals)(base, abstract_adapter(model.config, model.lora), tokens, mask).jaxpr
    given = {id(own) for own in (*traced.invars, *traced.constvars)}
    kept = {id(own): own.aval for own in traced.outvars if id(own) not in given and not hasattr(own, "val")}
    return nbytes([jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in kept.values()])


def partial_cast(dtype: str) -> Callable[[Any], Any]:
    return lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype if leaf.dtype == jnp.float32 else leaf.dtype)


def _item(config: DecoderConfig) -> int:
    return jnp.dtype(config.dtype).itemsize


def _widths(config: DecoderConfig) -> tuple[int, int]:
    """Columns of q|k|v and of gate|up."""
    return sum(outputs(config, "qkv_proj").values()), sum(outputs(config, "gate_up_proj").values())


def _logits_of_attention(config: DecoderConfig, rows: int, queries: int, keys: int, cached: bool = False) -> int:
    """Bytes of attention's float32 logits at any one time; fused kernels hold none."""
    if config.attention in ("cudnn", "splash") and not cached:
        return 0
    if config.attention != "xla":
        queries = ceil(queries / ceil(queries / CHUNK))
    return 4 * rows * config.num_attention_heads * queries * keys


def _layer_forward(config: DecoderConfig, rows: int, length: int, keys: int, cached: bool = False) -> int:
    """One layer: the residual stream, and the larger of attention and MLP."""
    qkv, gate_up = _widths(config)
    token = rows * length * _item(config)
    own_keys = 2 * rows * keys * config.num_key_value_heads * config.head_dim * _item(config)
    # logits, probabilities, and one of the two in the layout of the next product
    attention = 3 * _logits_of_attention(config, rows, length, keys, cached) + own_keys + token * qkv
    mlp = token * (2 * gate_up + config.hidden_size)  # the product, its halves apart, and the normed input
    return token * config.hidden_size + max(attention, mlp)


def _layer_backward(config: DecoderConfig, rows: int, length: int) -> int:
    """What one layer's backward pass adds to what was kept: the larger of attention and MLP."""
    qkv, gate_up = _widths(config)
    token = rows * length * _item(config)
    # logits and probabilities again, and the cotangents of both; then those of q, k, v
    attention = 4 * _logits_of_attention(config, rows, length, length) + token * qkv
    # gate and up apart; their cotangents apart and side by side; the cotangent of their product
    mlp = token * (3 * gate_up + gate_up // 2)
    return 2 * token * config.hidden_size + max(attention, mlp)


def _head(config: DecoderConfig, tokens: int, backward: bool = False) -> int:
    """Logits in float32, and those in the config's dtype that they are cast from; both again for the backward pass."""
    once = 4 + (_item(config) if _item(config) < 4 else 0)
    return tokens * config.vocab_size * once * (2 if backward else 1)


def _kernels(config: DecoderConfig, fsdp: int) -> int:
    """A layer's largest kernel, out of its stack (or dequantised, in float32) and as the product wants it.

    With `fsdp` its rows are gathered, and so are those of the unembedding.
    """
    largest = max(fan_in(config, kernel) * sum(outputs(config, kernel).values()) for kernel in FUSED)
    held = largest * (_item(config) + (4 if config.quantize != "none" else _item(config)))
    return max(held, config.vocab_size * config.hidden_size * _item(config)) if fsdp > 1 else held


def sizes(setting: Setting) -> Sizes:
    """Those of a setting; reads its data and the shapes of its models, and encodes the texts."""
    devices = prod(setting.mesh.shape.values())
    guard = setting.guard_model.config if setting.config.guard.path is not None else None
    return Sizes(setting.model, guard, setting.guarded, _lengths(setting), len(setting.materials.pairs), devices)


def _lengths(setting: Setting) -> Lengths:
    made, tokenizer, most = setting.materials, setting.tokenizer, setting.config.data.max_length
    train = setting.corpus.tokens.shape[1]

    def longest(queries: list[str]) -> int:
        encoded = encode_questions(tokenizer, [question(query) for query in queries], most)
        return bucket(max(map(len, encoded))) if encoded else 0

    conversation = guard_form(setting.guard_tokenizer).conversation("", "") if setting.guarded else []
    (asked,) = encode_questions(setting.guard_tokenizer, [conversation], 2**31) if conversation else ([],)
    released = setting.config.guard.path is not None
    request = len(asked) if released else 0
    choices = [answered(c.query, text) for c in made.choices for text in (c.good, c.bad)]
    cai = setting.config.cai.enabled
    return Lengths(
        train=train,
        guard=bucket(min(train + len(asked), most + request)),
        guard_request=request,
        red=longest(list(made.red_prompts)),
        requests=sum(side.tokens.shape[1] for side in setting.requests) if cai else 0,
        replay=longest(list(made.benign_prompts)),
        asked=longest([*made.advbench, *(q.query for q in made.utility), *made.over_refusal]),
        choice=encode_chats(tokenizer, choices, most)[0].tokens.shape[1] if choices else 0,
    )
