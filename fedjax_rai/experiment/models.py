"""The frozen base of an experiment: its shape, its place on the mesh, its weights and its tokenizer."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import jax
from jax.sharding import Mesh

from fedjax_rai.aliases import Adapter, Base
from fedjax_rai.config.schema import MeshConfig
from fedjax_rai.config.views import View
from fedjax_rai.data.examples import pad_left
from fedjax_rai.errors import InputError
from fedjax_rai.mesh import base_shardings, make_mesh
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder, abstract_base, gives_numbers
from fedjax_rai.model.families import read_config
from fedjax_rai.model.weights import load_base
from fedjax_rai.text.generation import name_uncomputed
from fedjax_rai.text.hub import resolve
from fedjax_rai.text.prompts import Turn, prompt
from fedjax_rai.text.tokenizer import Tokenizer, load_tokenizer

CHECKED = 64  # the most tokens of the conversation that a model is tried on


class Models:
    """The base that clients, policy, reference and a fitted guard share; each part is read when first asked for."""

    KEYS = ("model", "mesh")
    NEEDS = ()

    def __init__(self, config: View, pins: dict[str, str]):
        """`pins`: the commits of models on the hub that a run began with, by `model_commit` and `guard_commit`."""
        self._config = config.model
        self.layout: MeshConfig = config.mesh
        """How the base is split; where the config leaves it to the memory plan, as `experiment.layout` has chosen."""
        self.layout_reason: str | None = None
        """Why that was chosen; None: the config says it."""
        self._revision = pins.get("model_commit", config.model.revision)
        self.tokenizer: Tokenizer = load_tokenizer(config.model.path, self._revision)

    @cached_property
    def mesh(self) -> Mesh:
        return make_mesh(self.layout.fsdp, self.layout.tensor)

    @property
    def folder(self) -> Path:
        """Where the base lies; only its config and tokenizer are sure to be there."""
        return resolve(self._config.path, self._revision)

    @cached_property
    def not_computed(self) -> list[str]:
        """Lines on what the base's files ask of generation and is not done; said when first read."""
        return name_uncomputed(self.folder)

    @cached_property
    def architecture(self) -> DecoderConfig:
        """The base's shape, as on one device. Raises InputError for what this machine does not compute."""
        architecture = self.read_architecture(self.folder)
        check_computed(architecture)
        return architecture

    @cached_property
    def base(self) -> Base:
        return self.load(self._config.path, self._revision, self.laid_out(self.architecture))

    @property
    def lm(self) -> LM:
        """The base without any adapter."""
        return LM(Decoder(self.laid_out(self.architecture)), self.base)

    def read_architecture(self, folder: Path) -> DecoderConfig:
        """The shape of the model in a folder, computed as `model` says."""
        config = self._config
        return read_config(
            folder,
            dtype=config.dtype,
            attention=config.attention,
            quantize=config.quantize,
            kv_cache=config.kv_cache,
            remat=config.remat,
            unroll=config.unroll,
            answering=config.answering,
        )

    def laid_out(self, architecture: DecoderConfig) -> DecoderConfig:
        """The shape of a model whose columns are sorted by the parts that the mesh splits them into."""
        return replace(architecture, parts=self.mesh.shape["tensor"])

    def load(self, path: str, revision: str | None, architecture: DecoderConfig) -> Base:
        """The weights of a model, each where it lies on the mesh."""
        folder = resolve(path, revision, weights=True)
        return load_base(folder, architecture, base_shardings(self.mesh, abstract_base(architecture)))

    def check_ids(self, *tokens) -> None:
        """Raises InputError where a token has no embedding in the base."""
        for ids in tokens:
            self.tokenizer.check_ids(ids, self.architecture.vocab_size, "model.path")


def check_logits(lm: LM, adapter: Adapter | None, tokenizer: Tokenizer, turns: Sequence[Turn], key: str) -> None:
    """Raises InputError for a model whose logits behind a conversation are no numbers; `key` of the config names it.

    Numbers that are finite in the files may overflow when they are multiplied. Of a long conversation the end is read.
    """
    check_numbers(lm, adapter, tokenizer, tokenizer.encode(prompt(tokenizer, turns)), key)


def check_numbers(lm: LM, adapter: Adapter | None, tokenizer: Tokenizer, ids: Sequence[int], key: str) -> None:
    """Raises InputError for a model whose logits behind a text are no numbers; see `check_logits`."""
    ids = ids[-CHECKED:]
    if lm.model.config.longest is not None:
        ids = ids[-lm.model.config.longest :]
    tokenizer.check_ids(ids, lm.model.config.vocab_size, key)
    text = pad_left([ids], tokenizer.pad_id, lm.model.config.longest)
    if not gives_numbers(lm, adapter, *text):
        which = "the model" if adapter is None else "the model with its adapter"
        raise InputError(
            f"{key}: the first logits of {which} are no numbers (NaN or infinity), or all one number, in model.dtype = "
            f"{lm.model.config.dtype}: its weights are finite and overflow when multiplied"
        )


def check_computed(config: DecoderConfig) -> None:
    """Raises InputError where this machine, or this model, cannot be computed as a config asks for."""
    if config.unroll == "full" and jax.default_backend() == "cpu":
        raise InputError(
            "model.unroll = full: needs a GPU or TPU; a CPU would hold more and gain nothing: must be none"
        )
    if config.unroll == "full" and config.remat == "full":
        raise InputError("model.unroll = full: must be none with model.remat = full, which would spare no memory")
    needed, here = {"cudnn": "gpu", "splash": "tpu"}.get(config.attention), jax.default_backend()
    if needed and needed != here:
        raise InputError(f"model.attention = {config.attention}: needs a {needed.upper()}, this is a {here.upper()}")
    if config.attention == "splash" and jax.device_count() > 1:
        raise InputError("model.attention = splash: runs on one device only yet; must be xla or chunked on several")
    if config.attention == "cudnn" and (config.dtype != "bfloat16" or config.attention_softcap):
        wrong = "model.dtype = float32" if config.dtype != "bfloat16" else "soft-capped attention, as this model has"
        raise InputError(f"model.attention = cudnn: computes no {wrong}; must be xla or chunked for that")
