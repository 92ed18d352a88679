"""The guard of an experiment, fitted, saved or as released, and its scores of the clients' pairs."""

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.aliases import Adapter, PyTree
from fedjax_rai.config.files import digest
from fedjax_rai.config.names import attribute
from fedjax_rai.config.schema import TINY
from fedjax_rai.config.views import View
from fedjax_rai.data.order import cycle
from fedjax_rai.experiment.keeping import FITTED, SCORES, Origin, Store, digest_of_texts
from fedjax_rai.experiment.models import Models
from fedjax_rai.experiment.texts import Texts
from fedjax_rai.mesh import replicated
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import Lora, init_adapter, lora_shape
from fedjax_rai.model.peft import files_of, load_adapter, name_other_base
from fedjax_rai.safety import guard as guards
from fedjax_rai.safety.form import Bound, GuardForm, bound
from fedjax_rai.safety.forms import REQUEST, form_for
from fedjax_rai.safety.hardening import augmented, normalised_pair
from fedjax_rai.safety.self_test import SelfTest, check_guard
from fedjax_rai.text.hub import contents, resolve
from fedjax_rai.text.tokenizer import Tokenizer, load_tokenizer

SHAPE = (
    "lora.rank",
    "lora.alpha",
    "lora.targets",
    "lora.rslora",
    "lora.layers",
    "lora.rank_pattern",
    "lora.alpha_pattern",
)
COMPUTED = (
    "model.dtype",
    "model.attention",
    "model.quantize",
    "model.remat",
    "mesh.fsdp",
    "mesh.tensor",
    "data.max_length",
)
FITTED_BY = (
    "seed",
    *COMPUTED,
    *SHAPE,
    "guard.steps",
    "guard.batch_size",
    "guard.micro_batch",
    "guard.learning_rate",
    "guard.label_noise",
    "guard.normalise",
    "guard.augment",
)
"""The keys that a fit reads, besides the labelled pairs and the base, which count by what is in them."""
SECONDS_BETWEEN_FITTINGS = 60.0
"""How often a fit that is under way is kept: a kill costs no more than that, and a short fit writes nothing."""
SCORED_BY = (*COMPUTED, "eval.batch_size", "guard.between", "guard.normalise")
"""The keys that scores depend on, besides the pairs and the guard."""


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
        """Whether the guard, if there is one, is fitted here: it is neither a function, nor released, nor saved."""
        config = self._config.guard
        return not self.is_function and config.path is None and config.adapter is None

    @property
    def folder(self) -> Path | None:
        """Of a released guard; None for one that is fitted."""
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
        """The shape of a released guard; None for one that is fitted, which is the base's."""
        return None if self.folder is None else self._models.read_architecture(self.folder)

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

    @cached_property
    def guard(self) -> guards.Guard | guards.Scorer:
        """The base with an adapter fitted on labelled pairs, or with the saved one of `guard.adapter`.

        With a `guard.path` that model as it is; with a `guard.scorer` of the user's own, that function.
        """
        if self._config.guard.form == "keep_all":
            return guards.keep_all()
        if self._config.guard.form == "oracle":
            return guards.oracle(self._labels)
        if self.is_function:
            scorer = self._config.guard.scorer
            return guards.Scorer(attribute(scorer, "guard.scorer"), scorer, self._config.guard.normalise)
        if self._config.guard.path is not None:
            return self.untuned
        if self._config.guard.adapter is not None:
            lora, adapter = self._saved
            lm = LM(Decoder(self._models.laid_out(self._models.architecture), lora), self._models.base)
            return self.untuned._replace(lm=lm, adapter=jax.device_put(adapter, replicated(self._models.mesh)))
        return self.untuned._replace(adapter=self._fitted)

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
        """Shape and leaves of `guard.adapter`; raises InputError where they are none, or not the base's."""
        return load_adapter(Path(self._config.guard.adapter), self._models.architecture)

    @property
    def _fitted(self) -> Adapter:
        """The adapter of a guard that is fitted: kept from before, or fitted now, and kept if it is of numbers."""
        if self._store is None:
            return self._fit()
        shape = self._adapted_base.model.config, self._adapted_base.model.lora
        kept = self._store.adapter(self._origin_of_fit, shape)
        if kept is not None:
            return jax.device_put(kept, replicated(self._models.mesh))
        fitted = self._fit()
        if _of_numbers(fitted):
            self._store.keep_adapter(self._origin_of_fit, shape, fitted)
        return fitted

    def _fit(self) -> Adapter:
        read = View(self._config, FITTED_BY)  # what it is told apart by in a store
        config, seed = read.guard, read.seed
        pairs = guards.flip_labels(self._texts.materials.guard_pairs, config.label_noise, rng.host(seed, "guard noise"))
        pairs = augmented(pairs, config.augment, seed)
        if config.normalise:
            pairs = [normalised_pair(pair) for pair in pairs]
        examples, cut = guards.training_examples(self._models.tokenizer, self.form, pairs, read.data.max_length)
        self._models.check_ids(examples.tokens)
        shortened = f", {cut.sum()} of them cut" if cut.any() else ""
        order = cycle(np.arange(len(pairs)), config.steps * config.batch_size, rng.host(seed, "guard batches"))
        rows = order.reshape(config.steps, config.batch_size)
        lm = self._adapted_base
        fresh = init_adapter(lm.model.config, lm.model.lora, rng.stream(jax.random.key(seed), "guard"))
        fitting = self._resumed(guards.begin_fit(fresh))
        data = guards.FitData(examples, jnp.asarray(rows), jnp.float32(config.learning_rate))
        described = f"fitting the guard on {len(pairs)} pairs{shortened}"
        with terminal.progress(described, config.steps, fitting.steps) as advance:
            note = self._noting(fitting.steps, advance)
            return guards.fit(lm, fitting, data, config.micro_batch, note)

    def _resumed(self, fitting: guards.Fitting) -> guards.Fitting:
        """A fit from where it was left, if it was, on every device."""
        if self._store is not None:
            kept = self._store.fitting(self._origin_of_fit, fitting.state)
            if kept is not None:
                fitting = guards.Fitting(*kept)
        # laid out as the steps leave it, so that going on from there is the same program
        return fitting._replace(state=jax.device_put(fitting.state, replicated(self._models.mesh)))

    def _noting(self, done: int, advance: terminal.Advance) -> Callable[[guards.Fitting], None]:
        """Shows how far a fit has come since `done`, and keeps it for another process now and then."""
        kept_at = time.monotonic()

        def note(fitting: guards.Fitting) -> None:
            nonlocal done, kept_at
            advance(steps=fitting.steps - done)
            done = fitting.steps
            if self._store is None or time.monotonic() - kept_at < SECONDS_BETWEEN_FITTINGS:
                return
            if _of_numbers(fitting.state):
                self._store.keep_fitting(self._origin_of_fit, fitting.steps, fitting.state)
            kept_at = time.monotonic()

        return note

    def _keys(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Values of the config by key; of the mesh those that it has, whoever chose them."""
        layout = self._models.layout
        return View(self._config, names).plain() | {"mesh.fsdp": layout.fsdp, "mesh.tensor": layout.tensor}

    @cached_property
    def _origin_of_fit(self) -> Origin:
        parts = {
            "keys": self._keys(FITTED_BY),
            "base": contents(self._models.folder),
            "request": self._request,
            "pairs": digest_of_texts(augmented(self._texts.materials.guard_pairs, self._config.guard.augment, 0)),
        }
        return Origin(FITTED, parts, self._config.model.path)

    @property
    def _request(self) -> Any:
        """The words that the guard is asked in, and of another form than our own all that makes it."""
        words = guards.request(self.tokenizer, self.form)
        return words if self.form == REQUEST else [words, *map(str, self.form[1:])]

    def _origin_of_scores(self, guard: dict[str, str]) -> Origin:
        """Of the scores that the guard, told by what it is made of, gives the clients' pairs."""
        parts = {
            "keys": self._keys(SCORED_BY),
            "guard": guard,
            "request": self._request,
            "pairs": digest_of_texts(self._client_texts),
        }
        return Origin(SCORES, parts)

    @property
    def _made_of(self) -> dict[str, str]:
        """What the guard, which is a model, is made of."""
        if self._config.guard.path is not None:
            return self._untuned_made_of
        if self._config.guard.adapter is not None:
            saved = digest(files_of(Path(self._config.guard.adapter)))
            return self._untuned_made_of | {"adapter": saved}
        return {"fitted": self._origin_of_fit.digest}

    @property
    def _untuned_made_of(self) -> dict[str, str]:
        return {"model": contents(self.folder or self._models.folder)}

    @cached_property
    def scores(self) -> np.ndarray:
        """float32[n]: p(unsafe) of every client's pairs; a conversation's is that of its most unsafe answer."""
        return self._by_pair(self.exchange_scores)

    @cached_property
    def exchange_scores(self) -> np.ndarray:
        """float32[m]: p(unsafe) of every answer in the clients' pairs, in order."""
        return self.scored.scores

    @cached_property
    def scored(self) -> guards.Scored:
        """What the guard says of every exchange of the clients' pairs."""
        if self.is_function:
            return self._score_pairs()
        return self._kept_scores(lambda: self._made_of, self._score_pairs)

    def _score_pairs(self) -> guards.Scored:
        guard, pairs = self.guard, self._client_texts  # fitted before its progress is shown
        batches = 1 if self.is_function else guards.batches(self.form, len(pairs), self._config.eval.batch_size)
        with terminal.progress(f"scoring {len(pairs)} pairs", batches, unit="batch") as advance:
            return guards.scored(guard, pairs, advance)

    def _kept_scores(
        self, made_of: Callable[[], dict[str, str]], compute: Callable[[], guards.Scored]
    ) -> guards.Scored:
        """The scores by a guard that is made of this: kept from before, or computed now, and kept."""
        if self._store is None:
            return compute()
        origin = self._origin_of_scores(made_of())
        kept = self._store.scores(origin)
        if kept is not None:
            return guards.Scored(*kept)
        found = compute()
        self._store.keep_scores(origin, np.stack(found))
        return found

    @property
    def _client_texts(self) -> list[tuple[str, str]]:
        """Every (prompt, answer) of the clients' conversations: all that they train on."""
        return [exchange for pair in self._texts.materials.pairs for exchange in pair.exchanges]

    def _by_pair(self, scores: np.ndarray) -> np.ndarray:
        """The greatest score of each pair's exchanges; NaN where one has none, as it is then not known to be safe."""
        counts = [len(pair.exchanges) for pair in self._texts.materials.pairs]
        if not counts:
            return scores
        begins = np.cumsum([0, *counts[:-1]])
        return np.maximum.reduceat(scores, begins)

    @cached_property
    def quality(self) -> dict[str, dict[str, float] | None]:
        """Of the guard on the clients' pairs, whose truth the simulation knows; as fitted (or None) and as released."""
        harmful = [pair.harmful for pair in self._texts.materials.pairs]
        threshold = self._config.guard.threshold
        used = guards.quality(self.scores, harmful, threshold)
        if self._config.guard.path is not None or self.is_function:
            return {"fitted": None, "released": used}
        released = self._kept_scores(
            lambda: self._untuned_made_of, lambda: guards.scored(self.untuned, self._client_texts)
        )
        return {"fitted": used, "released": guards.quality(self._by_pair(released.scores), harmful, threshold)}

    @cached_property
    def self_test(self) -> SelfTest | None:
        """The self-test of a released guard; None where there is none, or it is switched off.

        Raises InputError, with the numbers, for a guard that fails it.
        """
        config = self._config.guard
        if self.is_function or config.path in (None, TINY) or not config.self_test:
            return None
        return check_guard(self.untuned)

    def check(self) -> None:
        """Raises InputError where the guard can be asked in no known form; names a saved one of another base.

        A function of the user's own is tried on one pair, and InputError raised where it gives no score.
        """
        if self.is_function:
            guards.score(self.guard, self._client_texts[:1] or [guards.TRIED])
            return
        _ = self.asked
        if self._config.guard.path is None and self._config.guard.adapter is not None:
            _ = self._saved
            name_other_base(Path(self._config.guard.adapter), self._config.model.path, self._config.model.revision)


def _of_numbers(tree: PyTree) -> bool:
    """Whether every leaf is finite."""
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
