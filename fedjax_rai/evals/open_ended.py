"""Answers to prompts, and the rates that judges make of them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from fedjax_rai import rng
from fedjax_rai.aliases import Adapter, Array, Key
from fedjax_rai.data.examples import encode_questions, length_batches
from fedjax_rai.model.decoder import LM
from fedjax_rai.text.prompts import question
from fedjax_rai.text.tokenizer import Tokenizer
from fedjax_rai.train.generate import Decoding, Sampling, generate


class Rate(NamedTuple):
    """A mean in percent with its 95 % interval over prompts."""

    mean: float
    low: float
    high: float
    prompts: int

    @classmethod
    def of(cls, hits: np.ndarray) -> "Rate":
        """`hits[n, samples]`: Wilson's interval with n prompts (1927), which holds near 0 and 100.

        A prompt counts once however often it was sampled: for several samples the interval is conservative.
        """
        n, z = len(hits), 1.96
        share = float(np.asarray(hits, float).mean())
        scale = 1 + z * z / n
        middle = (share + z * z / (2 * n)) / scale
        margin = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / scale
        low, high = max(middle - margin, 0.0), min(middle + margin, 1.0)
        # at 0 and 1 rounding may put a limit on the wrong side of the share
        return cls(100 * share, 100 * min(low, share), 100 * max(high, share), n)


def answer(
    lm: LM,
    adapter: Adapter | None,
    tokenizer: Tokenizer,
    queries: Sequence[str],
    key: Key[Array, ""],
    *,
    samples: int,
    temperature: float,
    max_new: int,
    max_length: int,
    batch_size: int,
) -> list[list[str]]:
    """`samples` answers to each query, in order; they depend neither on its neighbours nor on the batch size."""
    prompts = encode_questions(tokenizer, [question(query) for query in queries], max_length)
    for ids in prompts:
        tokenizer.check_ids(ids, lm.model.config.vocab_size, "model.path")
    repeated = [ids for ids in prompts for _ in range(samples)]
    keys = jax.vmap(lambda row: rng.stream(key, "answer", row=row))(np.arange(len(repeated)))
    ends = np.array(tokenizer.end_ids, np.int32)
    decoding = Decoding(Sampling(np.float32(temperature)), ends, max_new)
    pending = []
    for own, batch in length_batches(repeated, batch_size, tokenizer.pad_id):
        pending.append((own, generate(lm, adapter, batch, keys[np.resize(own, batch_size)], decoding)))
    texts = [""] * len(repeated)
    for own, said in pending:
        tokens = np.asarray(said.tokens)
        spoken = np.asarray(said.valid) & ~np.isin(tokens, ends)  # not every end is a token that decoding skips
        for row, i in enumerate(own):
            texts[i] = tokenizer.decode(tokens[row][spoken[row]]).strip()
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def share(answers: Sequence[Sequence[str]], holds) -> Rate:
    """How often `holds(answer)`."""
    return Rate.of(np.array([[holds(text) for text in samples] for samples in answers]))
