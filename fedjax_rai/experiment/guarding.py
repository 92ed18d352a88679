"""The guard of an experiment, fitted or as released, and its scores of the clients' pairs."""

from functools import cached_property
from math import ceil
from pathlib import Path

import jax
import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.config.names import attribute
from fedjax_rai.config.views import View
from fedjax_rai.data.order import cycle
from fedjax_rai.experiment.models import Models
from fedjax_rai.experiment.texts import Texts
from fedjax_rai.mesh import replicated
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import init_adapter, lora_shape
from fedjax_rai.safety import guard as guards
from fedjax_rai.text.hub import resolve
from fedjax_rai.text.tokenizer import Tokenizer, load_tokenizer


class Guarding:
    """A guard and what it says of the clients' pairs; fitted, loaded and asked when first needed."""

    KEYS = (
        "lora.rank",
        "lora.alpha",
        "lora.targets",
        "lora.rslora",
        "lora.layers",
        "lora.rank_pattern",
        "lora.alpha_pattern",
        "guard",
        "eval.batch_size",
    )
    NEEDS = (Models, Texts)

    def __init__(self, config: View, pins: dict[str, str], models: Models, texts: Texts):
        self._config = config
        self._models = models
        self._texts = texts
        self._revision = pins.get("guard_commit", config.guard.revision)

    @property
    def possible(self) -> bool:
        """Whether there can be a guard: a function, a released one, or pairs to fit one on."""
        released = self._config.guard.path is not None
        return self.is_function or released or bool(self._texts.materials.guard_pairs)

    @property
    def is_function(self) -> bool:
        """Whether the guard is a function of the user's own, not a model."""
        return self._config.guard.scorer != guards.MODEL

    @property
    def by_model(self) -> bool:
        """Whether there can be a guard that is a model."""
        return self.possible and not self.is_function

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
    def released_architecture(self) -> DecoderConfig | None:
        """The shape of a released guard; None for one that is fitted, which is the base's."""
        return None if self.folder is None else self._models.read_architecture(self.folder)

    @cached_property
    def untuned(self) -> guards.Guard:
        """The guard as released: the model of `guard.path`, or the base, asked in our own form."""
        max_length, batch_size = self._config.data.max_length, self._config.eval.batch_size
        if self.released_architecture is None:
            return guards.Guard(self._adapted_base, None, self._models.tokenizer, max_length, batch_size)
        lm = LM(Decoder(self.released_architecture), self._released_base(self.released_architecture))
        return guards.released_guard(lm, self.tokenizer, max_length, batch_size)

    def _released_base(self, architecture: DecoderConfig):
        if self.folder == self._models.folder:
            return self._models.base  # never there twice
        return self._models.load(self._config.guard.path, self._revision, architecture)

    @property
    def _adapted_base(self) -> LM:
        """The base as a decoder that takes adapters of the experiment's shape."""
        architecture = self._models.architecture
        return LM(Decoder(architecture, lora_shape(self._config.lora, architecture)), self._models.base)

    @cached_property
    def guard(self) -> guards.Guard | guards.Scorer:
        """The base with an adapter fitted on labelled pairs; with a `guard.path` that model as it is.

        With a `guard.scorer` of the user's own, that function.
        """
        if self.is_function:
            scorer = self._config.guard.scorer
            return guards.Scorer(attribute(scorer, "guard.scorer"), scorer)
        if self._config.guard.path is not None:
            return self.untuned
        return self.untuned._replace(adapter=self._fit())

    def _fit(self):
        config, seed = self._config.guard, self._config.seed
        pairs = guards.flip_labels(self._texts.materials.guard_pairs, config.label_noise, rng.host(seed, "guard noise"))
        examples, cut = guards.training_examples(self._models.tokenizer, pairs, self._config.data.max_length)
        self._models.check_ids(examples.tokens)
        shortened = f", {cut.sum()} of them cut" if cut.any() else ""
        order = cycle(np.arange(len(pairs)), config.steps * config.batch_size, rng.host(seed, "guard batches"))
        rows = order.reshape(config.steps, config.batch_size)
        lm = self._adapted_base
        fresh = init_adapter(lm.model.config, lm.model.lora, rng.stream(jax.random.key(seed), "guard"))
        fresh = jax.device_put(fresh, replicated(self._models.mesh))
        with terminal.progress(f"fitting the guard on {len(pairs)} pairs{shortened}", None):
            return jax.block_until_ready(guards.fit(lm, fresh, examples, rows, np.float32(config.learning_rate)))

    @cached_property
    def scores(self) -> np.ndarray:
        """float32[n]: p(unsafe) of every client's pairs."""
        guard, pairs = self.guard, self._client_texts  # fitted before its progress is shown
        batches = ceil(len(pairs) / self._config.eval.batch_size)
        with terminal.progress(f"scoring {len(pairs)} pairs", batches, unit="batch") as advance:
            return guards.score(guard, pairs, advance)

    @property
    def _client_texts(self) -> list[tuple[str, str]]:
        return [(pair.query, pair.response) for pair in self._texts.materials.pairs]

    @cached_property
    def quality(self) -> dict[str, dict[str, float] | None]:
        """Of the guard on the clients' pairs, whose truth the simulation knows; as fitted (or None) and as released."""
        harmful = [pair.harmful for pair in self._texts.materials.pairs]
        threshold = self._config.guard.threshold
        used = guards.quality(self.scores, harmful, threshold)
        if self._config.guard.path is not None or self.is_function:
            return {"fitted": None, "released": used}
        released = guards.score(self.untuned, self._client_texts)
        return {"fitted": used, "released": guards.quality(released, harmful, threshold)}

    def check(self) -> None:
        """Raises InputError where the guard can be asked in no form that is known."""
        if self.is_function:
            attribute(self._config.guard.scorer, "guard.scorer")
        else:
            guards.guard_form(self.untuned.tokenizer)
