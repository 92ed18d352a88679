"""Labelled pairs as examples in a guard's form, the verdict trained on."""

import sys
from collections.abc import Sequence

import numpy as np

from fedjax_rai.data.examples import Examples, encode_ids, encode_questions
from fedjax_rai.data.sources import Pair
from fedjax_rai.safety import guard as guards
from fedjax_rai.text.prompts import guard_question


def fit_examples(guard: guards.Guard, pairs: Sequence[Pair]) -> tuple[Examples, np.ndarray]:
    """Labelled pairs as the guard is asked about them, and bool[n]: which were cut.

    In our own request to a chat model the whole verdict is trained on, its end of turn included; in a released guard's
    form the token alone that its scores are read from.
    """
    form = guards.guard_form(guard.tokenizer)
    if form.conversation is guard_question:
        return guards.training_examples(guard.tokenizer, pairs, guard.max_length)
    room = guard.max_length - len(form.lead_ids) - 1
    conversations = [form.conversation(pair.query, pair.response) for pair in pairs]
    encoded = []
    cut = []
    for pair, ids in zip(pairs, encode_questions(guard.tokenizer, conversations, sys.maxsize), strict=True):
        asked = ids[-room:] + form.lead_ids
        verdict = form.verdict_ids[bool(pair.harmful)]
        encoded.append(([*asked, verdict], [False] * len(asked) + [True]))
        cut.append(len(ids) > room)
    return encode_ids(encoded, guard.tokenizer.pad_id), np.array(cut, bool)
