"""The conversations of a CAI phase as text, and what becomes of each."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.cai.revise import degenerate, empty
from fedjax_rai.experiment.phase import Said
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.train.generate import Answers


class Conversation(NamedTuple):
    """A red prompt, the answer to it, and its critiques and revisions, each pair by a principle."""

    prompt: str
    category: str
    principles: list[str]
    response: str
    critiques: list[str]
    revisions: list[str]
    whole: bool  # the last revision says something, and came to its end
    degenerate: str | None  # why it makes no pair: cut off, empty, equal; None: it makes one


def read(setting: Setting, said: Said) -> Iterator[Conversation]:
    """Every conversation of a phase, in order; waits for the device."""
    response, critiques, revisions = (_texts(setting, own) for own in said.chain)
    causes = {name: np.asarray(holds) for name, holds in degenerate(said.chain).items()}
    whole = np.asarray(said.chain.last.ended & ~empty(said.chain.last))
    names = [principle.name for principle in setting.constitution.principles]
    for i, row in enumerate(said.rows):
        asked, cause = setting.materials.red_prompts[row], next((name for name in causes if causes[name][i]), None)
        principles = [names[p] for p in said.principles[i]]
        texts = response[i], critiques[i], revisions[i]
        yield Conversation(asked.query, asked.category, principles, *texts, bool(whole[i]), cause)


def _texts(setting: Setting, answers: Answers) -> Any:
    """The text of every answer, nested as `[b]` or `[b, n]`."""
    tokens = np.asarray(answers.tokens)
    spoken = np.asarray(answers.valid) & ~np.isin(tokens, setting.tokenizer.end_ids)
    flat = zip(tokens.reshape(-1, tokens.shape[-1]), spoken.reshape(-1, tokens.shape[-1]), strict=True)
    texts: Any = np.array([setting.tokenizer.decode(ids[own]).strip() for ids, own in flat], object)
    return texts.reshape(tokens.shape[:-1]).tolist()
