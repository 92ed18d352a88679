"""Every text of an experiment, encoded: the clients' corpus, the server's prompts and requests, a prepared set."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import terminal
from fedjax_rai.cai.constitution import Constitution, find_constitution
from fedjax_rai.cai.revise import Requests, encode_requests
from fedjax_rai.config.views import View
from fedjax_rai.data.examples import Examples, Prompts, encode_chats, encode_questions, pad_left
from fedjax_rai.data.sources import read_preferences
from fedjax_rai.errors import InputError
from fedjax_rai.evals.suite import ITEM_KEYS
from fedjax_rai.experiment.materials import Materials, gather
from fedjax_rai.experiment.models import Models
from fedjax_rai.mesh import replicated
from fedjax_rai.text.prompts import Turn, answered, prompt, question


class Prepared(NamedTuple):
    """A prepared set on the device, its examples all of one length; and on the host, what its pairs are good for."""

    chosen: Examples
    rejected: Examples
    usable: np.ndarray  # bool[n]: the chosen answer may be learnt
    causes: dict[str, np.ndarray]  # bool[n] by cause: why a pair is not to be preferred


class Texts:
    """What clients, server and evaluation read and write; each part is encoded when first asked for."""

    KEYS = (
        "seed",
        "data",
        "guard.pairs",
        "cai.probe",
        "cai.replay",
        "cai.constitution",
        "cai.data",
        *ITEM_KEYS,
    )
    NEEDS = (Models,)

    def __init__(self, config: View, pins: dict[str, str], models: Models):
        self._config = config
        self._models = models
        self.materials: Materials = gather(config)

    @cached_property
    def corpus(self) -> Examples:
        """Every client's examples, one row each, in the order of `materials.pairs`; on the device."""
        return self._encoded[0]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int[n]: tokens of every example of the corpus, on the host."""
        return np.asarray(self.corpus.valid.sum(axis=1))

    @property
    def truncated(self) -> int:
        """How many of the clients' examples were cut to `data.max_length` tokens."""
        return int(self._encoded[1].sum())

    @cached_property
    def _encoded(self) -> tuple[Examples, np.ndarray]:
        chats = [answered(pair.query, pair.response) for pair in self.materials.pairs]
        examples, cut = encode_chats(self._models.tokenizer, chats, self._config.data.max_length)
        self._models.check_ids(examples.tokens)
        return jax.device_put(examples, replicated(self._models.mesh)), cut

    @cached_property
    def constitution(self) -> Constitution:
        return find_constitution(self._config.cai.constitution)

    def name_unknown_categories(self) -> None:
        """A constitution may be meant for more than one set of questions, so this is no error."""
        known = {prompt.category for prompt in self.materials.red_prompts}
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
    def red_prompts(self) -> Prompts:
        """The server's red prompts, all padded to the longest, so that every round has the same shapes."""
        if not self.materials.red_prompts:
            raise InputError(f"data.train = {self._config.data.train}: no red questions left for cai.prompts")
        return self.questions(self._red_questions)

    @cached_property
    def openings(self) -> Prompts:
        """The red prompts behind the constitution's few-shot turns: what a critic reads."""
        few_shot = self.constitution.few_shot
        return self.questions(self._red_questions, few_shot) if few_shot else self.red_prompts

    @property
    def _red_questions(self) -> list[str]:
        return [prompt.query for prompt in self.materials.red_prompts]

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
        held_out = np.array([pair.prompt in self.materials.evaluated for pair in pairs])
        causes = {
            "held_out": held_out,
            "cut_off": cut[0::2] | cut[1::2],
            "equal": np.array([pair.chosen == pair.rejected for pair in pairs]),
        }
        return Prepared(chosen, rejected, ~held_out & ~cut[0::2], causes)

    def questions(self, queries: Sequence[str], before: Sequence[Turn] = ()) -> Prompts:
        """Questions behind the turns `before`, which come on top of `data.max_length`; on the device."""
        tokenizer = self._models.tokenizer
        room = len(tokenizer.encode(prompt(tokenizer, before))) if before else 0
        conversations = [[*before, *question(query)] for query in queries]
        encoded = encode_questions(tokenizer, conversations, self._config.data.max_length + room)
        padded = pad_left(encoded, tokenizer.pad_id)
        self._models.check_ids(padded.tokens)
        return Prompts(*map(jnp.asarray, padded))
