"""Who speaks, where texts are generated: the model with its adapter beside the base, or merged into a copy of it."""

from dataclasses import replace
from typing import NamedTuple

import jax

from fedjax_rai.aliases import Adapter
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import merged_kernels


class Speaker(NamedTuple):
    """A model, and the adapter that it is computed with."""

    lm: LM
    adapter: Adapter | None  # None: the base alone, or one that has its adapter in its kernels


def speaker(lm: LM, adapter: Adapter | None) -> Speaker:
    """Who generates texts for a model with that adapter, by `model.answering`; within a program or outside.

    Merged, it multiplies by fewer kernels a token, and those that are adapted are held twice. Its texts are those of
    the adapter beside the base up to rounding: a sum is rounded to the kernels' type.
    """
    if adapter is None or lm.model.config.answering == "apart":
        return Speaker(lm, adapter)
    return Speaker(merged(lm, adapter), None)


def merged(lm: LM, adapter: Adapter) -> LM:
    """The model that has the adapter in its kernels, and takes none: `forward(merged, None) == forward(lm, adapter)`.

    It is not quantised, whatever `lm` is; what is not adapted is shared with `lm`.
    """
    model = lm.model
    layers = lm.base["layers"]
    added = _merged_kernels(model.config, model.lora, layers, adapter)
    config = replace(model.config, quantize="none", answering="apart")
    return LM(Decoder(config), {**lm.base, "layers": {**layers, **added}})


# What a program gives are new arrays, so it gives no more than what changes.
_merged_kernels = jax.jit(merged_kernels, static_argnames=("config", "lora"))
