"""The fit of a guard: on which examples, in which order, when it ends, and what is kept of it."""

import hashlib
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.aliases import Adapter, PyTree
from fedjax_rai.config.threshold_rule import MAX_HMEAN
from fedjax_rai.config.views import View
from fedjax_rai.data.order import cycle
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.keeping import FITTED, Origin, Store, digest_of_texts
from fedjax_rai.experiment.materials import Materials
from fedjax_rai.experiment.models import Models
from fedjax_rai.mesh import replicated
from fedjax_rai.model.lora import init_adapter
from fedjax_rai.reading import read_object
from fedjax_rai.safety import guard as guards
from fedjax_rai.safety import measures
from fedjax_rai.safety.calibration import Calibration, Notes, calibrate, parse_notes
from fedjax_rai.safety.form import GuardForm
from fedjax_rai.safety.hardening import augmented, normalised_pair
from fedjax_rai.text.hub import contents
from fedjax_rai.train.step import TrainState

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
    "model.unroll",
    "mesh.fsdp",
    "mesh.tensor",
    "data.max_length",
)
FITTED_BY = (
    "seed",
    *COMPUTED,
    *SHAPE,
    "guard.steps",
    "guard.epochs",
    "guard.batch_size",
    "guard.micro_batch",
    "guard.learning_rate",
    "guard.label_noise",
    "guard.normalise",
    "guard.augment",
    "guard.patience",
)
"""The keys that a fit reads, besides the labelled pairs and the model, which count by what is in them."""
SECONDS_BETWEEN_FITTINGS = 60.0
"""How often a fit that is under way is kept: a kill costs no more than that, and a short fit writes nothing."""
NOTES = "guard.json"
"""Beside a fitted guard's adapter: how it was fitted, and its calibration."""


class Subject(NamedTuple):
    """The model that a guard is fitted on."""

    path: str
    """What the config calls it."""
    folder: Path
    request: Callable[[], Any]
    """What tells one way of asking from another, as JSON has it."""
    form: Callable[[], GuardForm]
    """How it is asked."""
    guard: Callable[[], guards.Guard]
    """The guard before its fit, as a decoder that takes adapters of the fit's shape."""


class Fitted(NamedTuple):
    """A guard's adapter, and what is kept beside it."""

    adapter: Adapter
    notes: Notes


class Watched(NamedTuple):
    """A fit that may end early: where it is, and the best adapter so far by the loss on held-out questions."""

    state: TrainState
    best: Adapter
    loss: np.ndarray
    """float32: of the best."""
    steps: np.ndarray
    """int32: updates that made the best."""
    checked: np.ndarray
    """int32: updates that the last check came after."""
    waited: np.ndarray
    """int32: checks since the best."""


class GuardFit:
    """The fit of a guard on labelled pairs, kept by a store, and gone on with where it was interrupted."""

    def __init__(self, config: View, models: Models, materials: Materials, subject: Subject, store: Store | None):
        self._config = config
        self._models = models
        self._materials = materials
        self.subject = subject
        self._store = store

    @cached_property
    def origin(self) -> Origin:
        """What the fitted adapter is made of."""
        parts = {
            "keys": plain_keys(self._config, FITTED_BY, self._models),
            "base": contents(self.subject.folder),
            "request": self.subject.request(),
            "pairs": digest_of_texts(augmented(self._materials.guard_pairs, self._config.guard.augment, 0)),
        }
        if self._materials.guard_held_out:
            parts["held out"] = digest_of_texts(self._materials.guard_held_out)
        return Origin(FITTED, parts, self.subject.path)

    @cached_property
    def fitted(self) -> Fitted:
        """Kept from before, or fitted now, and kept if the adapter is of numbers."""
        if self._store is None:
            return self._fit()
        lm = self.subject.guard().lm
        shape = lm.model.config, lm.model.lora
        kept = self._store.adapter(self.origin, shape)
        if kept is not None:
            adapter = jax.device_put(kept, replicated(self._models.mesh))
            noted = self._kept_notes or self._notes(adapter, self._steps, False)
            notes = self._under_rule(noted)
            if notes != noted:  # who takes it by guard.adapter is to have the rule that was asked for last
                self._store.keep_adapter(self.origin, shape, adapter, plain_notes(notes))
            return Fitted(adapter, notes)
        fitted = self._fit()
        if of_numbers(fitted.adapter):
            self._store.keep_adapter(self.origin, shape, fitted.adapter, plain_notes(fitted.notes))
        return fitted

    @cached_property
    def notes(self) -> Notes:
        """What is kept beside the adapter; fits it where it is not kept."""
        noted = self._kept_notes
        return self.fitted.notes if noted is None else self._under_rule(noted)

    @property
    def _kept_notes(self) -> Notes | None:
        raw = None if self._store is None else self._store.notes(self.origin)
        return None if raw is None else parse_notes(raw, NOTES)

    def _under_rule(self, notes: Notes) -> Notes:
        """The notes with the threshold that the config asks for, whoever had the guard fitted."""
        rule = self._config.guard.choose or MAX_HMEAN
        if notes.calibration is None or notes.calibration.rule == rule:
            return notes
        return notes._replace(calibration=notes.calibration.under(rule))

    @property
    def _steps(self) -> int:
        """Optimizer updates that the config asks for."""
        config = View(self._config, FITTED_BY).guard
        if config.epochs is None:
            return config.steps
        pairs = augmented(self._materials.guard_pairs, config.augment, self._config.seed)
        return ceil(config.epochs * len(pairs) / config.batch_size)

    def _fit(self) -> Fitted:
        read = View(self._config, FITTED_BY)  # what it is told apart by in a store
        config, seed = read.guard, read.seed
        self.check()
        pairs = guards.flip_labels(self._materials.guard_pairs, config.label_noise, rng.host(seed, "guard noise"))
        pairs = augmented(pairs, config.augment, seed)
        if config.normalise:
            pairs = [normalised_pair(pair) for pair in pairs]
        guard = self.subject.guard()
        examples, cut = guards.training_examples(guard.tokenizer, self.subject.form(), pairs, guard.max_length)
        guard.tokenizer.check_ids(examples.tokens, guard.lm.model.config.vocab_size, guard.key)
        shortened = f", {cut.sum()} of them cut" if cut.any() else ""
        order = cycle(np.arange(len(pairs)), self._steps * config.batch_size, rng.host(seed, "guard batches"))
        rows = order.reshape(self._steps, config.batch_size)
        model = guard.lm.model
        fresh = init_adapter(model.config, model.lora, rng.stream(jax.random.key(seed), "guard"))
        data = guards.FitData(examples, jnp.asarray(rows), jnp.float32(config.learning_rate))
        described = f"fitting the guard on {len(pairs)} pairs{shortened}"
        if config.patience is not None:
            return self._watched(guard, fresh, data, described)
        fitting = self._resumed(guards.begin_fit(fresh))
        with terminal.progress(described, self._steps, fitting.steps) as advance:
            note = self._noting(fitting.steps, advance, lambda state: state)
            adapter = guards.fit(guard.lm, fitting, data, config.micro_batch, note)
        return Fitted(adapter, self._notes(adapter, self._steps, False))

    def check(self) -> None:
        """Raises InputError where questions are to be held out, and these have not both kinds of answers."""
        share = self._config.guard.held_out
        if not share:
            return
        labels = [pair.harmful for pair in self._materials.guard_held_out]
        harmful = labels.count(True)
        if not 0 < harmful < len(labels):
            raise InputError(
                f"guard.held_out = {share:g}: holds out {harmful} harmful and {len(labels) - harmful} acceptable "
                "answers; must hold out both kinds: a larger share, or more labelled pairs"
            )

    # --- ending early ---

    def _watched(self, guard: guards.Guard, fresh: Adapter, data: guards.FitData, described: str) -> Fitted:
        """The best adapter by the loss on held-out questions, which is looked at after every pass over the pairs."""
        config = View(self._config, FITTED_BY).guard
        total = len(data.rows)
        pass_steps = ceil(len(data.examples.tokens) / config.batch_size)
        zero = np.int32(0)
        begun = guards.begin_fit(fresh)
        resumed = self._resumed(
            guards.Fitting(0, Watched(begun.state, fresh, np.float32(np.inf), zero, zero, zero))  # pyright: ignore
        )
        done = resumed.steps
        watched: Any = resumed.state  # a `Watched`, kept in the place of the state alone
        fitting = guards.Fitting(done, watched.state)
        with terminal.progress(described, total, done) as advance:
            while watched.checked < total and watched.waited < config.patience:
                end = min(int(watched.checked) + pass_steps, total)
                whole = watched  # as it is until the next check
                note = self._noting(fitting.steps, advance, lambda state, whole=whole: whole._replace(state=state))
                fitting = guards.fit_to(guard.lm, fitting, data, end, config.micro_batch, note)
                loss = self._held_out_loss(guard._replace(adapter=fitting.state.adapter))
                watched = after_check(watched._replace(state=fitting.state), end, loss)
                advance(f"loss on held-out questions {loss:.3f}", steps=0)
        stopped = int(watched.checked) < total
        if stopped:
            terminal.say(
                f"the fit stopped after {int(watched.checked)} of {total} steps: the loss on held-out questions was "
                f"least, {float(watched.loss):.3f}, after {int(watched.steps)}"
            )
        return Fitted(watched.best, self._notes(watched.best, int(watched.steps), stopped))

    def _held_out_loss(self, guard: guards.Guard) -> float:
        """-mean log p(label) of the held-out answers, of those with a score; infinite where none has one."""
        held_out = self._materials.guard_held_out
        scores = guards.score(guard, [(pair.query, pair.response) for pair in held_out])
        known = ~np.isnan(scores)
        labels = np.array([bool(pair.harmful) for pair in held_out])
        loss = measures.log_loss(scores[known], labels[known])
        return float("inf") if np.isnan(loss) else loss

    # --- resuming, and keeping what is under way ---

    def _resumed(self, fitting: guards.Fitting) -> guards.Fitting:
        """A fit from where it was left, if it was, on every device."""
        if self._store is not None:
            kept = self._store.fitting(self.origin, fitting.state)
            if kept is not None:
                fitting = guards.Fitting(*kept)
        # laid out as the steps leave it, so that going on from there is the same program
        return fitting._replace(state=jax.device_put(fitting.state, replicated(self._models.mesh)))

    def _noting(
        self, done: int, advance: terminal.Advance, whole: Callable[[TrainState], PyTree]
    ) -> Callable[[guards.Fitting], None]:
        """Shows how far a fit has come since `done`, and keeps it, `whole`, for another process now and then."""
        _ = self._kept_at  # the first minute is counted from here

        def note(fitting: guards.Fitting) -> None:
            nonlocal done
            advance(steps=fitting.steps - done)
            done = fitting.steps
            if self._store is None or time.monotonic() - self._kept_at < SECONDS_BETWEEN_FITTINGS:
                return
            if of_numbers(fitting.state):
                self._store.keep_fitting(self.origin, fitting.steps, whole(fitting.state))
            self._kept_at = time.monotonic()

        return note

    @cached_property
    def _kept_at(self) -> float:
        """When the fit was last kept; at first, when it began."""
        return time.monotonic()

    # --- what is kept beside the adapter ---

    def _notes(self, adapter: Adapter, steps: int, stopped_early: bool) -> Notes:
        made = self._materials
        asked = {made.question(pair) for pair in (*made.guard_pairs, *made.guard_held_out)}
        return Notes(
            form=self.subject.form().name,
            request=self.origin.parts["request"],
            base=self.origin.parts["base"],
            base_name=self.subject.path,
            data=self.origin.parts["pairs"],
            pairs=len(made.guard_pairs),
            harmful=sum(bool(pair.harmful) for pair in made.guard_pairs),
            steps=steps,
            stopped_early=stopped_early,
            questions=sorted(question_digests(asked)),
            calibration=self._calibration(adapter),
        )

    def _calibration(self, adapter: Adapter) -> Calibration | None:
        held_out = self._materials.guard_held_out
        if not held_out or not of_numbers(adapter):
            return None
        guard = self.subject.guard()._replace(adapter=adapter)
        return calibrated_on(guard, held_out, self._materials, self._config.guard.choose)


def calibrated_on(
    guard: guards.Guard | guards.Scorer, held_out: Iterable[Pair], materials: Materials, rule: str | None
) -> Calibration:
    """What held-out pairs tell of a guard."""
    pairs = list(held_out)
    scores = guards.score(guard, [(pair.query, pair.response) for pair in pairs])
    questions = [materials.question(pair) for pair in pairs]
    return calibrate(scores, [bool(pair.harmful) for pair in pairs], questions, rule)


def after_check(watched: Watched, steps: int, loss: float) -> Watched:
    """What is best, and how long since, when a check after so many steps found this loss of `watched.state`."""
    checked = watched._replace(checked=np.int32(steps))
    if np.float32(loss) < watched.loss:
        return checked._replace(
            best=watched.state.adapter, loss=np.float32(loss), steps=np.int32(steps), waited=np.int32(0)
        )
    return checked._replace(waited=np.int32(watched.waited + 1))


def question_digests(questions: Iterable[str]) -> set[str]:
    """64 bits of the digest of each question, in the form that is compared."""
    return {hashlib.sha256(question.encode()).hexdigest()[:16] for question in questions}


def plain_keys(config: View, names: tuple[str, ...], models: Models) -> dict[str, Any]:
    """Values of the config by key; of the mesh those that it has, whoever chose them."""
    layout = models.layout
    return View(config, names).plain() | {"mesh.fsdp": layout.fsdp, "mesh.tensor": layout.tensor}


def plain_notes(notes: Notes) -> dict[str, Any]:
    """As JSON has it."""
    held_out = notes.calibration
    return notes._asdict() | {"calibration": None if held_out is None else held_out._asdict()}


def saved_notes(folder: Path) -> Notes | None:
    """What is kept beside a saved guard's adapter; None where nothing is. Raises InputError for anything else."""
    path = folder / NOTES
    return parse_notes(read_object(path), str(path)) if path.is_file() else None


def of_numbers(tree: PyTree) -> bool:
    """Whether every leaf is finite."""
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
