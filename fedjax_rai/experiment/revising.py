"""What constitutional AI reads besides the prompts: the constitution, its requests, or a prepared set."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_rai import terminal
from fedjax_rai.cai.constitution import Constitution, find_constitution
from fedjax_rai.cai.revise import Requests, encode_requests
from fedjax_rai.config.views import View
from fedjax_rai.data.examples import Examples, Prompts, encode_chats
from fedjax_rai.data.sources import read_preferences
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.models import Models
from fedjax_rai.experiment.texts import Texts
from fedjax_rai.text.compare import same
from fedjax_rai.text.prompts import answered

CAUSES = {
    "held_out": "ask what is evaluated",
    "cut_off": "longer than data.max_length",
    "equal": "with equal answers",
}


class Prepared(NamedTuple):
    """A prepared set on the device, its examples all of one length; and on the host, what its pairs are good for."""

    chosen: Examples
    rejected: Examples
    usable: np.ndarray  # bool[n]: the chosen answer may be learnt
    causes: dict[str, np.ndarray]  # bool[n] by cause: why a pair is not to be preferred


class Revising:
    """How answers are criticised and revised, or the pairs of a prepared set; each encoded when first asked for."""

    KEYS = ("cai.constitution", "cai.data")
    NEEDS = (Models, Texts)

    def __init__(self, config: View, pins: dict[str, str], models: Models, texts: Texts):
        self._config = config
        self._models = models
        self._texts = texts

    @cached_property
    def constitution(self) -> Constitution:
        return find_constitution(self._config.cai.constitution)

    def name_unknown_categories(self) -> None:
        """A constitution may be meant for more than one set of questions, so this is no error."""
        known = {prompt.category for prompt in self._texts.materials.red_prompts}
        named = {category for principle in self.constitution.principles for category in principle.categories}
        unknown = sorted(named - known)
        if unknown:
            here = ", ".join(sorted(known))
            terminal.say(f"the constitution names {', '.join(unknown)}; red prompts are of {here} only")

    @cached_property
    def requests(self) -> Requests:
        """The critique and revision requests of every principle."""
        requests = encode_requests(self._models.tokenizer, self.constitution.principles)
        self._models.check_ids(requests.critique.tokens, requests.revision.tokens)
        return requests

    @cached_property
    def openings(self) -> Prompts:
        """The red prompts behind the constitution's few-shot turns: what a critic reads."""
        few_shot = self.constitution.few_shot
        return self._texts.questions(self._texts.red_questions, few_shot) if few_shot else self._texts.red_prompts

    def check_usable(self, likelihood: bool, method: str) -> None:
        """Raises InputError where no pair of the prepared set can be trained on; `likelihood`: whole answers can be."""
        causes = dict(self.prepared.causes)
        paired = ~np.any(list(causes.values()), axis=0)
        if (self.prepared.usable if likelihood else paired).any():
            return
        counted = [f"{holds.sum()} {CAUSES[name]}" for name, holds in causes.items() if holds.any()]
        raise InputError(
            f"cai.data = {self._config.cai.data}: none of its {len(paired)} pairs can be trained on by cai.method = "
            f"{method}: {', '.join(counted)}"
        )

    @cached_property
    def prepared(self) -> Prepared:
        """The set in `cai.data`."""
        pairs = read_preferences(Path(self._config.cai.data))
        chats = [answered(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
        both, cut = encode_chats(self._models.tokenizer, chats, self._config.data.max_length)
        self._models.check_ids(both.tokens)
        chosen = Examples(*(jnp.asarray(column[0::2]) for column in both))
        rejected = Examples(*(jnp.asarray(column[1::2]) for column in both))
        # the set may be of another seed, whose questions were shared out otherwise
        held_out = np.array([same(pair.prompt) in self._texts.materials.evaluated for pair in pairs])
        causes = {
            "held_out": held_out,
            "cut_off": cut[0::2] | cut[1::2],
            "equal": np.array([pair.chosen == pair.rejected for pair in pairs]),
        }
        return Prepared(chosen, rejected, ~held_out & ~cut[0::2], causes)
