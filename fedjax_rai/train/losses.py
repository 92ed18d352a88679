"""Losses as (sum, weight) of tokens, to be divided once, last."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai.aliases import Adapter, Array, Base, Bool, Float, Int
from fedjax_rai.model.decoder import Decoder, forward, unembed


class Sum(NamedTuple):
    """A total and the weight it is to be divided by; sums of sums just add."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """total / weight; 0 when there is no weight."""
        return self.total / jnp.maximum(self.weight, 1.0)


def token_logps(logits: Float[Array, "b l v"], targets: Int[Array, "b l"]) -> Float[Array, "b l"]:
    """log p(target) under each row of logits, float32."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def sequence_logps(
    model: Decoder, base: Base, adapter: Adapter | None, tokens: Int[Array, "b l"], segments: Int[Array, "b l"]
) -> Float[Array, "b l"]:
    """log p(token | those before it in its segment); 0 for a segment's first token, which nothing predicts."""
    hidden = forward(model, base, adapter, tokens, segments)
    logps = jax.checkpoint(lambda h: token_logps(unembed(model, base, h), tokens[:, 1:]))(hidden[:, :-1])
    predicted = segments[:, 1:] == segments[:, :-1]
    return jnp.pad(jnp.where(predicted, logps, 0.0), ((0, 0), (1, 0)))


def sft(
    model: Decoder,
    base: Base,
    adapter: Adapter | None,
    tokens: Int[Array, "b l"],
    loss_mask: Bool[Array, "b l"],
    segments: Int[Array, "b l"],
) -> Sum:
    """Negative log-likelihood of the tokens that are trained on; a segment's first one never is."""
    logps = sequence_logps(model, base, adapter, tokens, segments)
    predicted = segments == jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    mask = (loss_mask & predicted).astype(logps.dtype)
    return Sum(-jnp.sum(logps * mask), jnp.sum(mask))
