"""Losses as (sum, weight) of tokens, to be divided once, last; losses of preference pairs, one number a pair."""

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from fedjax_rai.aliases import Adapter, Array, Bool, Float, Int, PyTree
from fedjax_rai.data.examples import Examples
from fedjax_rai.mesh import mesh_of, split_rows, ways
from fedjax_rai.model.decoder import LM, forward, unembed, with_gathered_head
from fedjax_rai.model.lora import Dropout

X = TypeVar("X")

SLICE_TOKENS = 512
"""Tokens of a slice at least: with fewer, reading the head's weights takes longer than multiplying by them."""
SLICE_LOGITS = 2**25
"""Logits of a slice at least (128 MiB): what is smaller need not be cut."""


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


def positions_at_once(rows: int, positions: int, vocabulary: int, devices: int = 1) -> int:
    """Positions of every row whose logits are held at once: all of them, or those of one of several equal slices.

    A slice has about as many tokens on each of the `devices` that the rows lie over as SLICE_TOKENS and SLICE_LOGITS
    say, whichever is more; one position of every row at least.
    """
    tokens = devices * max(SLICE_TOKENS, SLICE_LOGITS // vocabulary)
    most = max(tokens // rows, 1)
    slices = ceil(positions / most)
    return ceil(positions / max(slices, 1))


def sequence_logps(
    lm: LM,
    adapter: Adapter | None,
    tokens: Int[Array, "b l"],
    segments: Int[Array, "b l"],
    dropout: Dropout | None = None,
    devices: int = 1,
) -> Float[Array, "b l"]:
    """log p(token | those before it in its segment); 0 for a segment's first token, which nothing predicts.

    `devices`: how many the rows lie over. Logits are held for `positions_at_once` alone; where those are not all, there
    is no gradient of the base: asking for it raises ValueError.
    """
    hidden = forward(lm, adapter, tokens, segments, dropout)
    logps = _predicted_logps(lm, hidden[:, :-1], tokens[:, 1:], devices)
    predicted = segments[:, 1:] == segments[:, :-1]
    return jnp.pad(jnp.where(predicted, logps, 0.0), ((0, 0), (1, 0)))


def _predicted_logps(
    lm: LM, hidden: Float[Array, "b l d"], targets: Int[Array, "b l"], devices: int
) -> Float[Array, "b l"]:
    """log p(target) after each hidden state; logits of no more than a slice are ever held."""
    rows, positions = targets.shape
    lm = with_gathered_head(lm, targets.size)  # once, not in every slice
    width = positions_at_once(rows, positions, lm.model.config.vocab_size, devices)
    if width == positions:  # the backward pass begins with these logits: nothing is spared by computing them again
        return token_logps(unembed(lm, hidden), targets)
    return _sliced_logps(lm, hidden, targets, width)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sliced_logps(lm: LM, hidden: Float[Array, "b l d"], targets: Int[Array, "b l"], width: int) -> Float[Array, "b l"]:
    """`_predicted_logps` of `width` positions at a time. The base has no gradient: it is frozen."""

    def logps(arrays: tuple[Array, Array]) -> Float[Array, "b s"]:
        hidden, targets = arrays
        return token_logps(unembed(lm, hidden), targets)

    return _in_slices(logps, (hidden, targets), width)


def _sliced_logps_forward(
    lm: PyTree, hidden: CustomVJPPrimal, targets: CustomVJPPrimal, width: int
) -> tuple[Float[Array, "b l"], Float[Array, "b l d"]]:
    """The log-probabilities, and what each changes by with its own hidden state: as large as those, not as logits.

    Computed while a slice's logits are there, so that the backward pass computes none. In bfloat16 this rounds once
    more than a backward pass would: before it is multiplied with the cotangent, and after.
    """
    if any(primal.perturbed for primal in jax.tree.leaves(lm, is_leaf=_is_primal)):
        raise ValueError("log-probabilities by slices have no gradient of the base: it is frozen")
    lm = jax.tree.map(lambda primal: primal.value, lm, is_leaf=_is_primal)

    def logps_and_slopes(arrays: tuple[Array, Array]) -> tuple[Float[Array, "b s"], Float[Array, "b s d"]]:
        hidden, targets = arrays
        logits, backward = jax.vjp(lambda hidden: unembed(lm, hidden), hidden)
        # One pass over the logits: the gradient of taking the target's would be scattered into zeros.
        is_target = jax.nn.one_hot(targets, logits.shape[-1])
        probability = jnp.exp(logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        (slopes,) = backward(is_target - probability)
        return token_logps(logits, targets), slopes

    return _in_slices(logps_and_slopes, (hidden.value, targets.value), width)


def _is_primal(node: object) -> bool:
    return isinstance(node, CustomVJPPrimal)


def _sliced_logps_backward(
    width: int, slopes: Float[Array, "b l d"], cotangent: Array | SymbolicZero
) -> tuple[None, Float[Array, "b l d"], None]:
    if isinstance(cotangent, SymbolicZero):  # nothing depends on the log-probabilities
        return None, jnp.zeros_like(slopes), None
    return None, (slopes * cotangent[..., None]).astype(slopes.dtype), None


_sliced_logps.defvjp(_sliced_logps_forward, _sliced_logps_backward, symbolic_zeros=True)


def _in_slices(function: Callable[[tuple[Array, Array]], X], arrays: tuple[Array, Array], width: int) -> X:
    """A function of each position of each row, leaves [b, s, ...] in and out, on `width` positions at a time."""
    rows, positions = arrays[0].shape[:2]
    if width == positions:
        return function(arrays)
    missing = -positions % width

    def sliced(array: Array) -> Array:
        # rows stay an axis of their own, so that they stay on the devices that they lie on
        filled = jnp.pad(array, ((0, 0), (0, missing)) + ((0, 0),) * (array.ndim - 2))
        return jnp.moveaxis(filled.reshape(rows, -1, width, *array.shape[2:]), 1, 0)

    def whole(slices: Array) -> Array:
        return jnp.moveaxis(slices, 0, 1).reshape(rows, -1, *slices.shape[3:])[:, :positions]

    return jax.tree.map(whole, jax.lax.map(function, jax.tree.map(sliced, arrays)))


def sft(lm: LM, adapter: Adapter | None, examples: Examples, dropout: Dropout | None = None, devices: int = 1) -> Sum:
    """Negative log-likelihood of the tokens that are trained on; a segment's first one never is.

    `devices`: how many the rows lie over.
    """
    logps = sequence_logps(lm, adapter, examples.tokens, examples.segments, dropout, devices)
    mask = _trained(examples).astype(logps.dtype)
    return Sum(-jnp.sum(logps * mask), jnp.sum(mask))


def _trained(examples: Examples) -> Bool[Array, "b l"]:
    """The tokens of the loss mask that something predicts: all but a segment's first token."""
    segments = examples.segments
    return examples.loss_mask & (segments == jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1])


def trained_tokens(examples: Examples) -> Float[Array, "b"]:
    """How many tokens of each row are trained on."""
    return jnp.sum(_trained(examples).astype(jnp.float32), axis=1)


def answer_logps(
    lm: LM, adapter: Adapter | None, examples: Examples, devices: int = 1
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """(log p of the tokens of each row that are trained on, summed; how many they are). One sequence a row.

    `devices`: how many the rows lie over.
    """
    logps = sequence_logps(lm, adapter, examples.tokens, examples.segments, devices=devices)
    mask = _trained(examples).astype(logps.dtype)
    return jnp.sum(logps * mask, axis=1), jnp.sum(mask, axis=1)


def split_answer_logps(
    lm: LM, adapter: Adapter | None, examples: Examples
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """`answer_logps` of rows that are split over the devices that the base lies on."""
    return answer_logps(lm, adapter, split_rows(examples, lm.base), ways(mesh_of(lm.base)))


def divergences(logits: Float[Array, "b l v"], others: Float[Array, "b l v"]) -> Float[Array, "b l"]:
    """KL(p || q) of each position in nats, p being the softmax of `logits` and q that of `others`; float32."""
    logp = jax.nn.log_softmax(logits)
    logq = jax.nn.log_softmax(others)
    p = jnp.exp(logp)
    return jnp.sum(jnp.where(p == 0, 0.0, p * (logp - logq)), axis=-1)


def answer_divergences(
    lm: LM, adapter: Adapter | None, examples: Examples, devices: int = 1
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """(KL(base || policy) of the next token in nats, summed over the tokens of each row that are trained on; how many).

    The policy is the base with the adapter, and both read the same row in one pass each. One sequence a row; `devices`:
    how many the rows lie over.
    """
    inputs = examples.tokens, examples.segments
    base = forward(lm, None, *inputs, None)[:, :-1]
    policy = forward(lm, adapter, *inputs, None)[:, :-1]
    rows, positions = base.shape[:2]
    lm = with_gathered_head(lm, rows * positions)
    held = 4 * lm.model.config.vocab_size  # logits and log-probabilities of both
    width = positions_at_once(rows, positions, held, devices)

    def of_slice(hidden: tuple[Array, Array]) -> Float[Array, "b s"]:
        base, policy = hidden
        return divergences(unembed(lm, base), unembed(lm, policy))

    found = _in_slices(of_slice, (base, policy), width)
    mask = _trained(examples).astype(found.dtype)
    return jnp.sum(found * mask[:, 1:], axis=1), jnp.sum(mask, axis=1)


def split_answer_divergences(
    lm: LM, adapter: Adapter | None, examples: Examples
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """`answer_divergences` of rows that are split over the devices that the base lies on."""
    return answer_divergences(lm, adapter, split_rows(examples, lm.base), ways(mesh_of(lm.base)))


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
