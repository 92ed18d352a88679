"""The texts of an experiment, encoded: the clients' corpus, and what the server asks."""

from collections.abc import Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import terminal
from fedjax_rai.config.views import View
from fedjax_rai.data.columns import SYSTEM
from fedjax_rai.data.examples import Examples, Prompts, encode_chats, encode_questions, pad_left
from fedjax_rai.data.mix import where
from fedjax_rai.data.sources import Choice
from fedjax_rai.data.summary import Cut, cut
from fedjax_rai.errors import InputError
from fedjax_rai.evals.choice import both_answers
from fedjax_rai.evals.evaluation import EvalSet
from fedjax_rai.evals.suite import ITEM_KEYS
from fedjax_rai.experiment.materials import Materials, gather
from fedjax_rai.experiment.models import Models
from fedjax_rai.mesh import replicated
from fedjax_rai.text.prompts import Turn, answered, chat, prompt, question
from fedjax_rai.text.tokenizer import PROBE, Tokenizer


class Texts:
    """What clients, server and evaluation read and write; each part is encoded when first asked for."""

    KEYS = (
        "seed",
        "data.train",
        "data.sources",
        "data.columns",
        "data.name",
        "data.train_split",
        "data.revision",
        "data.language",
        "data.recipe",
        "data.red",
        "data.acceptable",
        "data.max_length",
        "data.split",
        "data.evasion",
        "data.evasion_share",
        "guard.pairs",
        "guard.harmful_share",
        "guard.held_out",
        "cai.probe",
        "cai.replay",
        "cai.red_prompts",
        "cai.replay_data",
        *ITEM_KEYS,
    )
    NEEDS = (Models,)

    def __init__(self, config: View, pins: dict[str, str], models: Models):
        self._config = config
        self._models = models
        self.materials: Materials = gather(config)
        for line in self.materials.notes:
            terminal.say(line)

    @cached_property
    def corpus(self) -> Examples:
        """Every client's examples, one row each, in the order of `materials.pairs`; on the device."""
        return jax.device_put(self._encoded[0], replicated(self._models.mesh))

    @property
    def encoded(self) -> Examples:
        """The same on the host."""
        return self._encoded[0]

    @property
    def padded_length(self) -> int:
        """Tokens of a row of the corpus."""
        return self._encoded[0].tokens.shape[1]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int[n]: tokens of every example of the corpus, on the host."""
        return np.asarray(self.corpus.valid.sum(axis=1))

    @cached_property
    def answer_tokens(self) -> np.ndarray:
        """int[n]: tokens of every example that are trained on, on the host; 0 where the answer was cut off."""
        return np.asarray(self.corpus.loss_mask.sum(axis=1))

    def check_answers(self, rows: np.ndarray) -> None:
        """Raises InputError where no example of these rows has a token left to train on."""
        if not len(rows) or self.answer_tokens[rows].any():
            return
        limit = self._config.data.max_length
        needed = min(self._answer_begins(int(row)) for row in rows) + 1
        raise InputError(
            f"data.max_length = {limit}: cuts {len(rows)} of {len(rows)} training pairs before their answer begins, so "
            f"there is nothing to train on; must be at least {needed} for the first token of the shortest one"
        )

    def _answer_begins(self, row: int) -> int:
        """How many tokens of an example come before its answer."""
        tokenizer = self._models.tokenizer
        _, trained = tokenizer.encode_segments(chat(tokenizer, self.materials.pairs[row].turns))
        return list(trained).index(True)

    def length(self, turns: Sequence[Turn]) -> int:
        """Tokens of a whole conversation, up to the end of its last answer, before anything is cut."""
        tokenizer = self._models.tokenizer
        return len(tokenizer.encode_segments(chat(tokenizer, turns))[0])

    def cut_examples(self, rows: np.ndarray) -> Cut:
        """What `data.max_length` cuts of the examples in these rows of the corpus."""
        beyond = [self._whole_lengths[row] for row in rows.tolist() if row in self._whole_lengths]
        return cut(beyond, self._config.data.max_length, len(rows))

    @cached_property
    def _whole_lengths(self) -> dict[int, int]:
        """The tokens before the cut of every example of the corpus that is cut, by its row."""
        rows = np.flatnonzero(self._encoded[1]).tolist()
        return {row: self.length(self.materials.pairs[row].turns) for row in rows}

    @cached_property
    def cut(self) -> dict[str, Cut]:
        """What `data.max_length` cuts of what is asked: prompts by part, evaluation sets by name."""
        made, limit = self.materials, self._config.data.max_length
        asked = {
            "red prompts": self.red_questions,
            "probe": made.probe_prompts[: self._config.cai.probe],
            "replay": made.benign_prompts,
        }
        found = {name: cut(self._prompt_lengths(prompts), limit) for name, prompts in asked.items()}
        for name, given in made.evaluations.items():
            found[name] = cut(self._item_lengths(given), limit)
        return found

    def _item_lengths(self, given: EvalSet) -> list[int]:
        """Tokens of what an evaluation asks; of choices, with either answer."""
        choices = [item for item in given.items if isinstance(item, Choice)]
        if choices:
            return [self.length(answered(prompt, answer)) for prompt, answer in both_answers(choices)]
        return self._prompt_lengths(given.prompts)

    def _prompt_lengths(self, queries: Sequence[str]) -> list[int]:
        tokenizer = self._models.tokenizer
        known = {query: len(tokenizer.encode(prompt(tokenizer, question(query)))) for query in dict.fromkeys(queries)}
        return [known[query] for query in queries]

    @property
    def truncated(self) -> int:
        """How many of the clients' examples were cut to `data.max_length` tokens."""
        return int(self._encoded[1].sum())

    @cached_property
    def _encoded(self) -> tuple[Examples, np.ndarray]:
        chats = [pair.turns for pair in self.materials.pairs]
        check_system_prompts(self._models.tokenizer, chats)
        examples, cut = encode_chats(self._models.tokenizer, chats, self._config.data.max_length)
        self._models.check_ids(examples.tokens)
        return examples, cut

    @cached_property
    def red_prompts(self) -> Prompts:
        """The server's red prompts, all padded to the longest, so that every round has the same shapes."""
        if not self.materials.red_prompts:
            raise InputError(
                f"{where(self._config.data)}: no red questions left for cai.prompts; must hold questions with harmful "
                "answers in the server's share, or cai.red_prompts must name a source, or cai.enabled be false"
            )
        return self.questions(self.red_questions)

    @property
    def red_questions(self) -> list[str]:
        """The text of every red prompt."""
        return [prompt.query for prompt in self.materials.red_prompts]

    def questions(self, queries: Sequence[str], before: Sequence[Turn] = ()) -> Prompts:
        """Questions behind the turns `before`, which come on top of `data.max_length`; on the device."""
        tokenizer = self._models.tokenizer
        room = len(tokenizer.encode(prompt(tokenizer, before))) if before else 0
        conversations = [[*before, *question(query)] for query in queries]
        encoded = encode_questions(tokenizer, conversations, self._config.data.max_length + room)
        padded = pad_left(encoded, tokenizer.pad_id)
        self._models.check_ids(padded.tokens)
        return Prompts(*map(jnp.asarray, padded))


def check_system_prompts(tokenizer: Tokenizer, chats: Sequence[Sequence[Turn]]) -> None:
    """Raises InputError where conversations have a system prompt and the chat template does not write it out."""
    with_system = sum(turns[0].role == SYSTEM for turns in chats)
    if not with_system:
        return
    try:
        takes = PROBE in tokenizer.render([Turn(SYSTEM, PROBE), *answered("q", "a")])
    except InputError:
        takes = False
    if not takes:
        raise InputError(
            f"tokenizer {tokenizer.name}: its chat template takes no system prompt, which {with_system:,} of "
            f"{len(chats):,} training conversations begin with; must be another model, or rows without them"
        )
