"""Who writes answers: the model with its adapter beside the base, or added to a copy of the base's kernels."""

from dataclasses import replace
from typing import NamedTuple

import jax

from fedjax_rai.aliases import Adapter
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import merge


class Writer(NamedTuple):
    """A model, and the adapter that it is computed with."""

    lm: LM
    adapter: Adapter | None  # None: the base alone, or one that has its adapter in its kernels


def writer(lm: LM, adapter: Adapter | None) -> Writer:
    """Who writes the answers of a model with that adapter, by `model.answering`; within a program or outside.

    Merged, it multiplies by fewer kernels a token, and is held beside the base. Its answers are those of the adapter
    beside the base up to rounding: an added adapter is rounded to the kernels' type.
    """
    if adapter is None or lm.model.config.answering == "apart":
        return Writer(lm, adapter)
    return Writer(_merged(lm, adapter), None)


def merged(lm: LM, adapter: Adapter) -> LM:
    """The model that has the adapter in its kernels, and takes none; what is not adapted is shared with `lm`."""
    model = lm.model
    config = replace(model.config, quantize="none", answering="apart")
    return LM(Decoder(config), merge(model.config, model.lora, lm.base, adapter))


_merged = jax.jit(merged)
