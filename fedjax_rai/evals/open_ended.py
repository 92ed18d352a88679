"""The answers of a model to prompts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.aliases import Adapter, Array, Key
from fedjax_rai.data.examples import encode_questions
from fedjax_rai.model.decoder import LM
from fedjax_rai.text.prompts import ASSISTANT, Turn, question
from fedjax_rai.text.tokenizer import Tokenizer
from fedjax_rai.train.dispatch import read_late
from fedjax_rai.train.generate import Decoding, Sampling
from fedjax_rai.train.queue import answer_all, read
from fedjax_rai.train.speaker import speaker

Request: TypeAlias = str | Sequence[Turn]
"""A prompt, or a conversation whose last turn is the user's."""


class Subject(NamedTuple):
    """The model that is evaluated, and how much of it is computed at once."""

    lm: LM
    adapter: Adapter | None
    """None: the base as released."""
    tokenizer: Tokenizer
    max_length: int
    """The most tokens of a prompt, whose end is kept; of a prompt with its answer, where both are given."""
    batch_size: int
    """Rows computed at once; in float32 no number depends on it, in bfloat16 by rounding."""


class Responses(NamedTuple):
    """What a model answered, by prompt and sample."""

    texts: list[list[str]]
    """Without the end-of-turn token, and without white space at both ends."""
    cut_off: list[list[bool]]
    """Whether the answer had no end within `Sampled.max_new` tokens."""
    non_finite: list[list[bool]] | None = None
    """Whether there is no answer because the logits were no numbers, or all one; None: nobody looked."""


class Sampled(NamedTuple):
    """How often, how warm and how long each prompt is answered."""

    samples: int
    temperature: float
    """0: the likeliest token each time."""
    max_new: int
    """The most tokens of an answer, its end included."""


def nothing() -> None:
    """What is called after each batch where nobody watches."""


def answers_to(
    subject: Subject,
    prompts: Sequence[Request],
    key: Key[Array, ""],
    sampled: Sampled,
    advance: Callable[[], object] = nothing,
) -> Responses:
    """`sampled.samples` answers to each prompt, in order.

    In float32 they depend neither on a prompt's neighbours nor on the batch size; in bfloat16 only by rounding, which
    may turn a near tie. An answer whose logits are no numbers is empty, and how many are is said on standard error.
    `advance` is called once for each batch of prompts, as soon as the answers are there that ended while its prompts
    were given rows. Raises InputError for a prompt with a token that the model has no row for.
    """
    tokenizer = subject.tokenizer
    encoded = []
    for turns in map(turns_of, prompts):
        answers = sum(turn.role == ASSISTANT for turn in turns)  # come on top of what the user may ask
        encoded += encode_questions(tokenizer, [turns], subject.max_length + answers * sampled.max_new)
    for ids in encoded:
        tokenizer.check_ids(ids, subject.lm.model.config.vocab_size, "model.path")
    repeated = [ids for ids in encoded for _ in range(sampled.samples)]
    keys = jax.vmap(lambda row: rng.stream(key, "answer", row=row))(np.arange(len(repeated)))
    ends = np.array(tokenizer.end_ids, np.int32)
    decoding = Decoding(Sampling(np.float32(sampled.temperature)), ends, sampled.max_new)

    lm, adapter = speaker(subject.lm, subject.adapter)
    programs = answer_all(lm, adapter, repeated, keys, decoding, subject.batch_size)
    texts = [""] * len(repeated)
    cut_off = [False] * len(repeated)
    lost = [False] * len(repeated)
    for finished in read_late(programs):
        rows, answers = read(finished)
        shown = answers.valid & ~np.isin(answers.tokens, ends)  # not every end is a token that decoding skips
        for place, row in enumerate(rows):
            texts[row] = tokenizer.decode(answers.tokens[place][shown[place]]).strip()
            cut_off[row] = not answers.ended[place]
            lost[row] = not answers.valid[place].any()
        advance()
    if any(lost):
        terminal.say(
            f"{sum(lost)} of {len(texts)} answers are none: the logits are no numbers (NaN, infinity), or all one"
        )
    sizes = [sampled.samples] * len(prompts)
    return Responses(by_prompt(texts, sizes), by_prompt(cut_off, sizes), by_prompt(lost, sizes))


def turns_of(request: Request) -> Sequence[Turn]:
    """A request as a conversation."""
    return question(request) if isinstance(request, str) else request


def by_prompt(values: Sequence, sizes: Sequence[int]) -> list[list]:
    """Consecutive values, so many for each prompt."""
    ends = np.cumsum(sizes)
    return [list(values[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
