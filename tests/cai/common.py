"""What the tests of constitutional AI share: a decoder that speaks, requests to it, and options of its programs."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.cai.options import METHODS, Options
from fedjax_rai.cai.revise import Requests
from fedjax_rai.data.examples import Prompts, pad_left
from fedjax_rai.mesh import make_mesh
from fedjax_rai.model.decoder import LM, Decoder, init_base
from fedjax_rai.train.generate import Answers
from fedjax_rai.train.losses import sigmoid
from tests import small

# Embeddings of its own for what it answers: with tied ones a random decoder repeats what it read last.
MODEL = Decoder(replace(small.CONFIG, tie_word_embeddings=False), small.LORA)
BASE = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, init_base(MODEL.config, jax.random.key(0)))
SPEAKER = LM(MODEL, BASE)
END, NEW = 0, 6
ENDS = (END, 2, 18)  # such that some answers end, others are cut off
CRITIQUE, REVISION = [[2, 2, 7], [11], [9, 9]], [[13, 4], [5, 6, 1], [3]]  # a request of each principle


def on_device(rows: list[list[int]]) -> Prompts:
    return Prompts(*map(jnp.asarray, pad_left(rows, END)))


REQUESTS = Requests(on_device(CRITIQUE), on_device(REVISION))


def options(**changes: Any) -> Options:
    """What the programs of a phase are compiled for, for the small decoder."""
    fields: dict[str, Any] = {
        "end_ids": ENDS,
        "max_new": NEW,
        "chunk": 5,
        "batch_size": 4,
        "critic_is_policy": True,
        "train_on_revisions": True,
        "reference_is_base": False,
        "objective": METHODS["sft"](sigmoid),
        "mesh": make_mesh(),
    }
    return Options(**(fields | changes))


def ids_of(answers: Answers) -> list[Any]:
    """The ids of every answer, by row; of leaves [b, n, t] by row and revision."""
    if answers.tokens.ndim == 3:
        return [ids_of(Answers(*row)) for row in zip(*answers, strict=True)]
    rows = zip(np.asarray(answers.tokens), np.asarray(answers.valid), strict=True)
    return [tokens[valid].tolist() for tokens, valid in rows]
