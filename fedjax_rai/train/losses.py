"""Losses as (sum, weight) of tokens, to be divided once, last; losses of preference pairs, one number a pair."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rai.aliases import Adapter, Array, Bool, Float, Int
from fedjax_rai.data.examples import Examples
from fedjax_rai.model.decoder import LM, forward, unembed
from fedjax_rai.model.lora import Dropout


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
    lm: LM,
    adapter: Adapter | None,
    tokens: Int[Array, "b l"],
    segments: Int[Array, "b l"],
    dropout: Dropout | None = None,
) -> Float[Array, "b l"]:
    """log p(token | those before it in its segment); 0 for a segment's first token, which nothing predicts."""
    hidden = forward(lm, adapter, tokens, segments, dropout)
    logps = jax.checkpoint(lambda h: token_logps(unembed(lm, h), tokens[:, 1:]))(hidden[:, :-1])
    predicted = segments[:, 1:] == segments[:, :-1]
    return jnp.pad(jnp.where(predicted, logps, 0.0), ((0, 0), (1, 0)))


def sft(lm: LM, adapter: Adapter | None, examples: Examples, dropout: Dropout | None = None) -> Sum:
    """Negative log-likelihood of the tokens that are trained on; a segment's first one never is."""
    logps = sequence_logps(lm, adapter, examples.tokens, examples.segments, dropout)
    mask = _trained(examples).astype(logps.dtype)
    return Sum(-jnp.sum(logps * mask), jnp.sum(mask))


def _trained(examples: Examples) -> Bool[Array, "b l"]:
    """The tokens of the loss mask that something predicts: all but a segment's first token."""
    segments = examples.segments
    return examples.loss_mask & (segments == jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1])


def answer_logps(lm: LM, adapter: Adapter | None, examples: Examples) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """(log p of the tokens of each row that are trained on, summed; how many they are). One sequence a row."""
    logps = sequence_logps(lm, adapter, examples.tokens, examples.segments)
    mask = _trained(examples).astype(logps.dtype)
    return jnp.sum(logps * mask, axis=1), jnp.sum(mask, axis=1)


class LogRatios(NamedTuple):
    """log p(answer | prompt) under the policy minus that under the reference, summed over the answer's tokens."""

    chosen: Float[Array, "n"]
    rejected: Float[Array, "n"]
    chosen_tokens: Float[Array, "n"]  # how many were summed
    rejected_tokens: Float[Array, "n"]


def _token_means(ratios: LogRatios) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Of the chosen and of the rejected answers; that of an answer without tokens is 0."""
    chosen = ratios.chosen / jnp.maximum(ratios.chosen_tokens, 1.0)
    return chosen, ratios.rejected / jnp.maximum(ratios.rejected_tokens, 1.0)


def sigmoid(ratios: LogRatios, beta: Float[Array, ""]) -> Float[Array, "n"]:
    """-log sigmoid(beta (chosen - rejected)): DPO, arXiv 2305.18290, equation 7."""
    return -jax.nn.log_sigmoid(beta * (ratios.chosen - ratios.rejected))


def sigmoid_norm(ratios: LogRatios, beta: Float[Array, ""]) -> Float[Array, "n"]:
    """DPO of the answers' token means: length-normalised DPO, arXiv 2411.15124, section 5."""
    chosen, rejected = _token_means(ratios)
    return -jax.nn.log_sigmoid(beta * (chosen - rejected))


def ipo(ratios: LogRatios, beta: Float[Array, ""]) -> Float[Array, "n"]:
    """(chosen - rejected - 1 / (2 beta))^2: IPO, arXiv 2310.12036, equation 17, of token means as TRL takes them."""
    chosen, rejected = _token_means(ratios)
    return jnp.square(chosen - rejected - 1 / (2 * beta))


# The loss of each pair. `beta` is traced: another one compiles nothing.
PREFERENCES: dict[str, Callable[[LogRatios, Float[Array, ""]], Float[Array, "n"]]] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid_norm,
    "ipo": ipo,
}
