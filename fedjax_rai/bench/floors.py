"""Floors: the FLOPs and bytes that a work cannot do without, as parts whose limits are met one after another.

FLOPs are those of the matrix products with the base and the adapters, without attention's own and without padding, as
of `experiment.cost`; the unembedding counts for tokens whose logits are needed. Bytes are those of weights and KV
cache, read; activations are not counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fedjax_rai.bench.shapes import CaiShape, DecodingShape, RoundShape, ScoreShape
from fedjax_rai.experiment.cost import Parameters


class Part(NamedTuple):
    """A part of a work, limited by the machine's products or by its copies."""

    name: str
    flops: int
    bytes: int


class Sizes(NamedTuple):
    """What the floors know of a model."""

    count: Parameters
    weight_bytes: int  # of what every pass reads: base and adapter, without embeddings that are not the unembedding
    head_bytes: int  # of these, the unembedding's
    slot_bytes: int  # of the keys and values of one token


def forward(sizes: Sizes, tokens: int, heads: int) -> int:
    """FLOPs of a forward pass of `tokens`, of which so many need logits."""
    layers = sizes.count.kernels - sizes.count.unembedding + sizes.count.adapter
    return 2 * (tokens * layers + heads * sizes.count.unembedding)


def training(sizes: Sizes, tokens: int, heads: int) -> int:
    """FLOPs of training steps on `tokens`, of which so many are in the loss: twice a forward pass's for what is frozen,
    three times for the adapter, and where layers are computed again a forward pass of theirs more.
    """
    layers = tokens * (4 * (sizes.count.kernels - sizes.count.unembedding) + 6 * sizes.count.adapter)
    again = forward(sizes, tokens, heads=0) if sizes.count.remat else 0
    return layers + heads * 4 * sizes.count.unembedding + again


def step_bytes(sizes: Sizes) -> int:
    """Of the weights that a training step reads: once forward, once backward, and layers that are computed again."""
    again = sizes.weight_bytes - sizes.head_bytes if sizes.count.remat else 0
    return 2 * sizes.weight_bytes + again


def round_floor(sizes: Sizes, shape: RoundShape) -> list[Part]:
    """Local training: every step reads the weights for a chunk of clients together."""
    steps = shape.steps * -(-shape.clients // shape.chunk)
    return [Part("train", training(sizes, shape.tokens, shape.tokens), steps * step_bytes(sizes))]


def decoding_floor(sizes: Sizes, shape: DecodingShape) -> list[Part]:
    """Reading the prompts, then a pass for each further token, which reads the weights and each row's cache."""
    prompts = shape.rows * shape.prompt
    passes = shape.new - 1
    reading = Part("read", forward(sizes, prompts, shape.rows), sizes.weight_bytes)
    cache = shape.rows * _filled(shape.prompt + 1, passes) * sizes.slot_bytes
    further = shape.rows * passes
    return [reading, Part("decode", forward(sizes, further, further), passes * sizes.weight_bytes + cache)]


def job_floor(sizes: Sizes, shape: DecodingShape, lengths: Sequence[int]) -> list[Part]:
    """As of decoding, for answers of these lengths, as many at once as there are rows, none of which ever waits."""
    answers = len(lengths)
    reading = Part("read", forward(sizes, sum(shape.prompts), answers), -(-answers // shape.rows) * sizes.weight_bytes)
    further = sum(length - 1 for length in lengths)
    passes = max(-(-further // shape.rows), max(lengths) - 1)
    filled = sum(_filled(prompt + 1, length - 1) for prompt, length in zip(shape.prompts, lengths, strict=True))
    moved = passes * sizes.weight_bytes + filled * sizes.slot_bytes
    return [reading, Part("decode", forward(sizes, further, further), moved)]


def _filled(first: int, passes: int) -> int:
    """Slots that are read by so many passes, the first of which reads `first` of them and each further one more."""
    return passes * first + passes * (passes - 1) // 2


def cai_floor(
    sizes: Sizes,
    shape: CaiShape,
    is_preference: bool = False,
    reads_again: bool = False,
    generating: Sizes | None = None,
) -> list[Part]:
    """Respond, critique, revise, then the iterations.

    `is_preference`: iterations take pairs, whose log-probabilities under the reference come first. `reads_again`: the
    critic has another adapter, and reads prompt and response itself. `generating`: of the model that generates, where
    it is another: one that has the adapter in its kernels.
    """
    answers = 2 if is_preference else 1
    learnt = answers * shape.iterations * shape.batch * shape.new
    flops = training(sizes, answers * shape.trained, learnt)
    parts = [_conversations(generating or sizes, shape, reads_again)]
    if is_preference:
        pairs = 2 * shape.prompts
        tokens = pairs * (shape.prompt + shape.new)
        parts.append(Part("reference", forward(sizes, tokens, pairs * shape.new), sizes.weight_bytes))
    return [*parts, Part("train", flops, shape.iterations * step_bytes(sizes))]


def _conversations(sizes: Sizes, shape: CaiShape, reads_again: bool) -> Part:
    """All that is generated: for each turn a pass for what is asked, and one for each further token."""
    generated = shape.turns * shape.new
    read = shape.prompt + 2 * shape.revisions * shape.request
    again = shape.prompt + shape.new if reads_again else 0
    flops = forward(sizes, shape.prompts * (generated - 1 + read + again), shape.prompts * generated)
    filled = 0
    context = shape.prompt
    for _ in range(shape.turns):
        filled += _filled(context + 1, shape.new - 1)
        context += shape.new + shape.request
    cache = shape.prompts * filled * sizes.slot_bytes
    passes = shape.chunks * (generated + (1 if reads_again else 0))
    return Part("converse", flops, passes * sizes.weight_bytes + cache)


def score_floor(sizes: Sizes, shape: ScoreShape) -> list[Part]:
    """One forward pass of every pair, one token of which needs logits; each batch reads the weights."""
    batches = -(-shape.pairs // shape.batch)
    return [Part("score", forward(sizes, shape.tokens, shape.pairs), batches * sizes.weight_bytes)]


def floor_seconds(parts: Sequence[Part], matmul_flops: float, copy_bytes: float) -> float:
    """Seconds that no program can do with fewer of: each part at the limit that binds it, one after another."""
    return sum(max(part.flops / matmul_flops, part.bytes / copy_bytes) for part in parts)
