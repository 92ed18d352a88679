"""The guard of an experiment, fitted, saved or as released, and its scores of the clients' pairs."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_rai import terminal
from fedjax_rai.aliases import Adapter
from fedjax_rai.config.files import digest
from fedjax_rai.config.names import attribute
from fedjax_rai.config.schema import TINY
from fedjax_rai.config.views import View
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.guard_fit import (
    COMPUTED,
    NOTES,
    SHAPE,
    Fitted,
    GuardFit,
    Subject,
    calibrated_on,
    plain_keys,
    saved_notes,
)
from fedjax_rai.experiment.keeping import SCORES, Origin, Store, digest_of_texts
from fedjax_rai.experiment.models import Models
from fedjax_rai.experiment.texts import Texts
from fedjax_rai.mesh import replicated
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import Lora, lora_shape
from fedjax_rai.model.peft import files_of, load_adapter, name_other_base
from fedjax_rai.safety import guard as guards
from fedjax_rai.safety.calibration import THRESHOLD, Calibration, Notes
from fedjax_rai.safety.form import Bound, GuardForm, bound
from fedjax_rai.safety.forms import REQUEST, form_for
from fedjax_rai.safety.self_test import SelfTest, check_guard
from fedjax_rai.text.hub import contents, resolve
from fedjax_rai.text.tokenizer import Tokenizer, load_tokenizer

SCORED_BY = (*COMPUTED, "eval.batch_size", "guard.between", "guard.normalise")
"""The keys that scores depend on, besides the pairs and the guard."""
NO_HELD_OUT = "needs questions that were held out of the fit: guard.held_out > 0, or an adapter that was fitted with it"


class Guarding:
    """A guard and what it says of the clients' pairs; fitted, loaded and asked when first needed.

    With a store, what was fitted or scored from the same keys, texts and weights before is taken from there, bit for
    bit. What a function of the user's own says is not kept: nothing tells whether it would say the same again.
    """

    KEYS = (*SHAPE, "guard", "eval.batch_size")
    NEEDS = (Models, Texts)

    def __init__(self, config: View, pins: dict[str, str], models: Models, texts: Texts, store: Store | None = None):
        self._config = config
        self._models = models
        self._texts = texts
        self._store = store
        self._revision = pins.get("guard_commit", config.guard.revision)

    @property
    def possible(self) -> bool:
        """Whether there can be a guard: a function, a released or a saved one, or pairs to fit one on."""
        return not self.is_fitted or bool(self._texts.materials.guard_pairs)

    @property
    def is_function(self) -> bool:
        """Whether the guard is a function, the user's own or one of those that `guard.form` names, not a model."""
        return self._config.guard.scorer != guards.MODEL or self._config.guard.form in guards.FUNCTIONS

    @property
    def is_fitted(self) -> bool:
        """Whether the guard, if there is one, is fitted here: neither a function, nor saved, nor left as released."""
        config = self._config.guard
        fits = config.path is None if config.fit is None else config.fit
        return fits and not self.is_function and config.adapter is None

    @property
    def is_adapted(self) -> bool:
        """Whether the guard has an adapter, fitted here or saved."""
        return not self.is_function and (self.is_fitted or self._config.guard.adapter is not None)

    @property
    def folder(self) -> Path | None:
        """Of a released guard; None for one that is the base."""
        path = self._config.guard.path
        return None if path is None else resolve(path, self._revision)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        path = self._config.guard.path
        return self._models.tokenizer if path is None else load_tokenizer(path, self._revision)

    @cached_property
    def form(self) -> GuardForm:
        """How the guard is asked, which is a model; raises InputError where nothing tells, or where two tell two."""
        config = self._config.guard
        return form_for(self.tokenizer, config.path, config.form)

    @cached_property
    def asked(self) -> Bound:
        """The form in the tokens of the guard's tokenizer."""
        return bound(self.tokenizer, self.form, self._config.guard.between)

    @cached_property
    def released_architecture(self) -> DecoderConfig | None:
        """The shape of a released guard; None for one that is the base."""
        return None if self.folder is None else self._models.read_architecture(self.folder)

    @property
    def _architecture(self) -> DecoderConfig:
        """The shape of the guard's model, on one device."""
        return self.released_architecture or self._models.architecture

    @cached_property
    def untuned(self) -> guards.Guard:
        """The guard as released: the model of `guard.path`, or the base, asked in our own form."""
        max_length, batch_size = self._config.data.max_length, self._config.eval.batch_size
        if self.released_architecture is None:
            tokenizer = self._models.tokenizer
            guard = guards.Guard(self._adapted_base, None, tokenizer, max_length, batch_size, form=self.form)
            return guard._replace(normalise=self._config.guard.normalise)
        architecture = self._models.laid_out(self.released_architecture)
        lm = LM(Decoder(architecture), self._released_base(architecture))
        released = guards.released_guard(lm, self.tokenizer, max_length, batch_size, self.form)
        return released._replace(between=self._config.guard.between, normalise=self._config.guard.normalise)

    def _released_base(self, architecture: DecoderConfig):
        if self.folder == self._models.folder:
            return self._models.base  # never there twice
        return self._models.load(self._config.guard.path, self._revision, architecture)

    @property
    def _adapted_base(self) -> LM:
        """The base as a decoder that takes adapters of the experiment's shape."""
        architecture = self._models.laid_out(self._models.architecture)
        return LM(Decoder(architecture, lora_shape(self._config.lora, architecture)), self._models.base)

    def _taking(self, lora: Lora) -> guards.Guard:
        """The guard as released, as a decoder that takes adapters of a shape."""
        untuned = self.untuned
        return untuned._replace(lm=LM(Decoder(self._models.laid_out(self._architecture), lora), untuned.lm.base))

    @cached_property
    def guard(self) -> guards.Guard | guards.Scorer:
        """The base, or the model of `guard.path`, with an adapter fitted on labelled pairs, or saved, or as it is.

        With a `guard.scorer` of the user's own, that function.
        """
        if self._config.guard.form == "keep_all":
            return guards.keep_all()
        if self._config.guard.form == "oracle":
            return guards.oracle(self._labels)
        if self.is_function:
            scorer = self._config.guard.scorer
            return guards.Scorer(attribute(scorer, "guard.scorer"), scorer, self._config.guard.normalise)
        if not self.is_adapted:
            return self.untuned
        if self._config.guard.adapter is not None:
            lora, adapter = self._saved
            return self._taking(lora)._replace(adapter=jax.device_put(adapter, replicated(self._models.mesh)))
        return self._fit.subject.guard()._replace(adapter=self.fitted.adapter)

    @property
    def _labels(self) -> dict[tuple[str, str], bool]:
        """(query, response) of the clients -> is it harmful; of one that stands there twice, once is enough."""
        known: dict[tuple[str, str], bool] = {}
        for pair in self._texts.materials.pairs:
            if pair.harmful is None:
                continue
            for exchange in pair.exchanges:
                known[exchange] = known.get(exchange, False) or pair.harmful
        return known

    @cached_property
    def _saved(self) -> tuple[Lora, Adapter]:
        """Shape and leaves of `guard.adapter`; raises InputError where they are none, or not the model's."""
        return load_adapter(Path(self._config.guard.adapter), self._architecture)

    # --- the fit, and what held-out questions tell ---

    @cached_property
    def _fit(self) -> GuardFit:
        path = self._config.guard.path
        subject = Subject(
            path=self._config.model.path if path is None else path,
            folder=self._models.folder if self.folder is None else self.folder,
            request=lambda: self._request,
            form=lambda: self.form,
            guard=lambda: self._taking(lora_shape(self._config.lora, self._models.laid_out(self._architecture))),
        )
        return GuardFit(self._config, self._models, self._texts.materials, subject, self._store)

    @property
    def _request(self) -> Any:
        """The words that the guard is asked in, and of another form than our own all that makes it."""
        words = guards.request(self.tokenizer, self.form)
        return words if self.form == REQUEST else [words, *map(str, self.form[1:])]

    @cached_property
    def notes(self) -> Notes | None:
        """What is known of the guard's fit, made here or saved beside `guard.adapter`; None: nothing.

        Raises InputError for a saved one that was fitted in another form than it would be asked in.
        """
        if not self.is_adapted:
            return None
        if self.is_fitted:
            return self._fit.notes
        folder = Path(self._config.guard.adapter)
        found = saved_notes(folder)
        if found is not None and found.request != self._request:
            raise InputError(
                f"guard.adapter = {folder}: was fitted in another form than it would be asked in, as {NOTES} beside it "
                "says; must be used with the model, tokenizer and guard.form that it was fitted with"
            )
        return found

    @cached_property
    def calibration(self) -> Calibration | None:
        """What held-out questions tell of the guard, as they were told after its fit; None: nothing was held out."""
        made = self._texts.materials
        if self.is_fitted:
            return self._fit.notes.calibration if made.guard_held_out else None
        if self.notes is not None and self.notes.calibration is not None:
            return self.notes.calibration
        if not made.guard_held_out:
            return None
        return calibrated_on(self.guard, made.guard_held_out, made, self._config.guard.choose)

    @cached_property
    def threshold(self) -> float:
        """The least p(unsafe) that is unsafe: `guard.threshold`, else what held-out questions say, else 0.5.

        May fit the guard. Raises InputError where no threshold does what `guard.choose` asks.
        """
        config = self._config.guard
        if config.threshold is not None:
            return config.threshold
        if self.calibration is not None:
            return self.calibration.threshold_by(config.choose)
        if config.choose is not None:
            raise InputError(f"guard.choose = {config.choose}: {NO_HELD_OUT}")
        return THRESHOLD

    @property
    def fitted(self) -> Fitted:
        """The adapter of a guard that is fitted here, and what is kept beside it; fitted when first asked for."""
        return self._fit.fitted

    @property
    def fit_origin(self) -> Origin:
        """What the adapter of a guard that is fitted here is made of."""
        return self._fit.origin

    def origin_of_scores(self) -> Origin:
        """Of the scores that the guard gives the clients' pairs."""
        return self._origin_of_scores(self._made_of, _exchanges(self._pairs))

    def _origin_of_scores(self, guard: dict[str, str], texts: list[tuple[str, str]]) -> Origin:
        """Of the scores that a guard, told by what it is made of, gives (query, response) texts."""
        parts = {
            "keys": plain_keys(self._config, SCORED_BY, self._models),
            "guard": guard,
            "request": self._request,
            "pairs": digest_of_texts(texts),
        }
        return Origin(SCORES, parts)

    @property
    def _made_of(self) -> dict[str, str]:
        """What the guard, which is a model, is made of."""
        if self.is_fitted:
            return {"fitted": self.fit_origin.digest}
        if self._config.guard.adapter is not None:
            saved = digest(files_of(Path(self._config.guard.adapter)))
            return self._untuned_made_of | {"adapter": saved}
        return self._untuned_made_of

    @property
    def _untuned_made_of(self) -> dict[str, str]:
        return {"model": contents(self.folder or self._models.folder)}

    @cached_property
    def scores(self) -> np.ndarray:
        """float32[n]: p(unsafe) of every client's pairs; a conversation's is that of its most unsafe answer."""
        return by_pair(self.exchange_scores, self._pairs)

    @cached_property
    def exchange_scores(self) -> np.ndarray:
        """float32[m]: p(unsafe) of every answer in the clients' pairs, in order."""
        return self.scored.scores

    @cached_property
    def scored(self) -> guards.Scored:
        """What the guard says of every exchange of the clients' pairs."""
        return self._scored(_exchanges(self._pairs))

    def scores_of(self, pairs: Sequence[Pair], as_released: bool = False) -> np.ndarray:
        """float32[n]: p(unsafe) of each pair, as `scores`; by the guard, or by the model as it was before any fit."""
        return by_pair(self._scored(_exchanges(pairs), as_released).scores, pairs)

    def _scored(self, texts: list[tuple[str, str]], as_released: bool = False) -> guards.Scored:
        """What a guard says of texts: kept from before, or computed now, and kept where it is a model."""
        if self._store is None or self.is_function:
            return self._score(texts, as_released)
        made_of = self._untuned_made_of if as_released else self._made_of
        origin = self._origin_of_scores(made_of, texts)
        kept = self._store.scores(origin)
        if kept is not None:
            return guards.Scored(*kept)
        found = self._score(texts, as_released)
        assert found.shares is not None, "of a model"
        self._store.keep_scores(origin, np.stack((found.scores, found.shares)))
        return found

    def _score(self, texts: list[tuple[str, str]], as_released: bool) -> guards.Scored:
        guard = self.untuned if as_released else self.guard  # fitted before its progress is shown
        batches = 1 if self.is_function else guards.batches(self.form, len(texts), self._config.eval.batch_size)
        before = "before its fit" if self.is_adapted else "as released"
        by = f" by the guard {before}" if as_released else ""
        with terminal.progress(f"scoring {len(texts)} pairs{by}", batches, unit="batch") as advance:
            return guards.scored(guard, texts, advance)

    @property
    def _pairs(self) -> Sequence[Pair]:
        return self._texts.materials.pairs

    @cached_property
    def quality(self) -> dict[str, dict[str, float] | None]:
        """Of the guard on the clients' pairs, whose truth the simulation knows; as fitted (or None) and as released.

        As released at `guard.threshold`, or 0.5 where a threshold was chosen for the fitted one.
        """
        harmful = [pair.harmful for pair in self._pairs]
        used = guards.quality(self.scores, harmful, self.threshold)
        if not self.is_adapted:
            return {"fitted": None, "released": used}
        released = self.scores_of(self._pairs, as_released=True)
        return {"fitted": used, "released": guards.quality(released, harmful, self.untuned_threshold)}

    @property
    def untuned_threshold(self) -> float:
        """The threshold of the guard before its fit."""
        return self._config.guard.threshold or THRESHOLD

    @cached_property
    def self_test(self) -> SelfTest | None:
        """The self-test of a released guard; None where there is none, where it is fitted, or it is switched off.

        Raises InputError, with the numbers, for a guard that fails it.
        """
        config = self._config.guard
        if self.is_function or self.is_adapted or config.path in (None, TINY) or not config.self_test:
            return None
        return check_guard(self.untuned)

    def check(self) -> None:
        """Raises InputError where the guard can be asked in no known form; names a saved one of another base.

        A function of the user's own is tried on one pair, and InputError raised where it gives no score.
        """
        config = self._config.guard
        if config.choose is not None and config.threshold is None and not self._has_held_out:
            raise InputError(f"guard.choose = {config.choose}: {NO_HELD_OUT}")
        if self.is_function:
            guards.score(self.guard, _exchanges(self._pairs)[:1] or [guards.TRIED])
            return
        _ = self.asked
        if self.is_fitted:
            self._fit.check()
        elif config.adapter is not None:
            self._check_saved(Path(config.adapter))

    @property
    def _has_held_out(self) -> bool:
        """Whether questions are held out, or were when a saved guard was fitted."""
        if self._texts.materials.guard_held_out:
            return True
        return self._config.guard.adapter is not None and self.calibration is not None

    def _check_saved(self, folder: Path) -> None:
        """Raises InputError for an adapter of another shape or form; says it of another base."""
        _ = self._saved
        model = self._config.model if self._config.guard.path is None else self._config.guard
        named = name_other_base(folder, model.path, self._revision if self.folder else model.revision)
        if named is None and self.notes is not None and self.notes.base != self._untuned_made_of["model"]:
            terminal.say(f"{folder}: was fitted on another {self.notes.base_name} than {model.path} is now")


def _exchanges(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Every (prompt, answer) of conversations: all that is trained on."""
    return [exchange for pair in pairs for exchange in pair.exchanges]


def by_pair(scores: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """The greatest score of each pair's exchanges; NaN where one has none, as it is then not known to be safe."""
    counts = [len(pair.exchanges) for pair in pairs]
    if not counts:
        return scores
    begins = np.cumsum([0, *counts[:-1]])
    return np.maximum.reduceat(scores, begins)
