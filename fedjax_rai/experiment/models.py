"""The base of an experiment, its mesh, and the adapters on it."""

import jax

from fedjax_rai.errors import InputError
from fedjax_rai.model.architecture import DecoderConfig


def check_attention(config: DecoderConfig) -> None:
    """Raises InputError where this machine, or this model, cannot have the attention that a config asks for."""
    needed, here = {"cudnn": "gpu", "splash": "tpu"}.get(config.attention), jax.default_backend()
    if needed and needed != here:
        raise InputError(f"model.attention = {config.attention}: needs a {needed.upper()}, this is a {here.upper()}")
    if config.attention == "splash" and jax.device_count() > 1:
        raise InputError("model.attention = splash: runs on one device only yet; must be xla or chunked on several")
    if config.attention == "cudnn" and (config.dtype != "bfloat16" or config.attention_softcap):
        wrong = "model.dtype = float32" if config.dtype != "bfloat16" else "soft-capped attention, as this model has"
        raise InputError(f"model.attention = cudnn: computes no {wrong}; must be xla or chunked for that")
