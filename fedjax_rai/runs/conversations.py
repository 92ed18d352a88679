"""The conversations of a rollout as text, and what becomes of each."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_rai.cai.revise import Rollout, degenerate, empty
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
    whole: bool  # the last revision holds something, and came to its end
    degenerate: str | None  # why it makes no pair: cut_off, empty, equal; None: it makes one


def read(setting: Setting, rollout: Rollout) -> Iterator[Conversation]:
    """Every conversation of a rollout, in order; waits for the device, once.

    What is asked of a rollout here is computed on the host: the device has the next round before it by now, and would
    answer after that.
    """
    rollout = jax.device_get(rollout)
    responses, critiques, revisions = (_texts(setting, answers) for answers in rollout.answers)
    causes: dict[str, Any] = degenerate(rollout)
    whole = rollout.last.ended & ~empty(rollout.last)
    names = [principle.name for principle in setting.revising.constitution.principles]
    for i, row in enumerate(rollout.rows):
        prompt = setting.texts.materials.red_prompts[row]
        yield Conversation(
            prompt=prompt.query,
            category=prompt.category,
            principles=[names[principle] for principle in rollout.principles[i]],
            response=responses[i],
            critiques=critiques[i],
            revisions=revisions[i],
            whole=bool(whole[i]),
            degenerate=_first(causes, i),
        )


def _first(causes: dict[str, np.ndarray], i: int) -> str | None:
    """The first cause that holds in row i."""
    for name, holds in causes.items():
        if holds[i]:
            return name
    return None


def _texts(setting: Setting, answers: Answers) -> Any:
    """The text of every answer, nested as `[b]` or `[b, n]`."""
    tokens: Any = answers.tokens
    shown: Any = answers.valid & ~np.isin(tokens, setting.models.tokenizer.end_ids)
    length = tokens.shape[-1]
    texts = []
    for ids, mask in zip(tokens.reshape(-1, length), shown.reshape(-1, length), strict=True):
        texts.append(setting.models.tokenizer.decode(ids[mask]).strip())
    nested: Any = np.array(texts, object)
    return nested.reshape(tokens.shape[:-1]).tolist()
