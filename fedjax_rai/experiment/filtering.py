"""What the clients of an arm train on: their pairs after each one's filter, with refusals where it puts them."""

from functools import cached_property

import jax
import numpy as np

from fedjax_rai.data.examples import Examples, encode_chats, with_rows
from fedjax_rai.data.sources import Pair
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.mesh import replicated
from fedjax_rai.safety.filter import ACTIONS, REFUSALS, Decision, flag, limits, with_refusals


class ClientPairs:
    """The clients' rows of the corpus after their filters, and the corpus that they are rows of.

    That is the arm's texts' own, unless a refusal stands in the place of an answer.
    """

    def __init__(self, setting: Setting):
        self._setting = setting
        self.kept: list[np.ndarray] = list(setting.client_rows)
        """Of each client the rows that it trains on."""
        self.replaced: dict[int, Pair] = {}
        """By row, the pairs in which a refusal stands."""
        if setting.config.filter.enabled:
            self._filter()

    def _filter(self) -> None:
        setting = self._setting
        filtering, clients = setting.config.filter, setting.config.federated.clients
        scores = setting.guarding.exchange_scores
        act, keep_unscored = ACTIONS[filtering.action], filtering.no_verdict == "keep"
        found = limits(filtering, setting.guarding.threshold, clients)
        for client, rows in enumerate(setting.client_rows):
            places, pair = self._answers(rows)
            decision = act(flag(scores[places], pair, found[client], keep_unscored))
            self.kept[client] = rows[decision.kept]
            self._replace(rows, pair, decision)

    def _answers(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of all answers, which of these rows each is of), int[m], of the answers in these rows."""
        begins, sizes = self._places
        pair = np.repeat(np.arange(len(rows)), sizes[rows])
        first = np.cumsum(sizes[rows]) - sizes[rows]
        return begins[rows][pair] + np.arange(len(pair)) - first[pair], pair

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Of every pair the first of its answers among all, and how many it has."""
        sizes = np.array([len(pair.exchanges) for pair in self._setting.texts.materials.pairs], int)
        return np.cumsum(sizes) - sizes, sizes

    def _replace(self, rows: np.ndarray, pair: np.ndarray, decision: Decision) -> None:
        made = self._setting.texts.materials
        for i in np.unique(pair[decision.replaced]).tolist():
            row = int(rows[i])
            refusal = self._setting.config.filter.refusal or REFUSALS[made.sources[made.origins[row]].language]
            self.replaced[row] = with_refusals(made.pairs[row], decision.replaced[pair == i], refusal)

    def pair(self, row: int) -> Pair:
        """The pair that is trained on in a row."""
        return self.replaced.get(row, self._setting.texts.materials.pairs[row])

    @property
    def corpus(self) -> Examples:
        """Every client's examples, one row each; on the device."""
        return self._altered if self.replaced else self._setting.texts.corpus

    @cached_property
    def _altered(self) -> Examples:
        texts, models = self._setting.texts, self._setting.models
        rows = sorted(self.replaced)
        chats = [self.replaced[row].turns for row in rows]
        examples, _ = encode_chats(models.tokenizer, chats, self._setting.config.data.max_length)
        models.check_ids(examples.tokens)
        together = with_rows(texts.encoded, np.array(rows), examples, models.tokenizer.pad_id)
        return jax.device_put(together, replicated(models.mesh))

    @property
    def lengths(self) -> np.ndarray:
        """int[n]: tokens of every example of the corpus, on the host."""
        return self._altered_counts[0] if self.replaced else self._setting.texts.lengths

    @property
    def answer_tokens(self) -> np.ndarray:
        """int[n]: tokens of every example that are trained on, on the host; 0 where the answer was cut off."""
        return self._altered_counts[1] if self.replaced else self._setting.texts.answer_tokens

    @cached_property
    def _altered_counts(self) -> tuple[np.ndarray, np.ndarray]:
        corpus = self._altered
        return np.asarray(corpus.valid.sum(axis=1)), np.asarray(corpus.loss_mask.sum(axis=1))

    @cached_property
    def unscored(self) -> int:
        """Pairs of all clients that have an answer without a score; 0 without a filter."""
        if not self._setting.config.filter.enabled:
            return 0
        dealt = np.concatenate(self._setting.client_rows)
        return int(np.isnan(self._setting.guarding.scores[dealt]).sum())
