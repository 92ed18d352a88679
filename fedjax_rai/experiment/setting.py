"""One arm of an experiment: its config, and the parts that it shares with other arms.

A part (the base, the texts, the guard, what is replayed) is built from a view of the config that holds exactly the keys
which the part and those that it needs name. Two arms share a part if and only if these keys have the same values in
both: there is no list of what may be ignored, and reading a key that is not named is an error.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from operator import attrgetter
from typing import Any

import jax
import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.aliases import Adapter
from fedjax_rai.cai.options import check_objective, make_objective, may_be_due
from fedjax_rai.config.files import ONLINE
from fedjax_rai.config.schema import TINY, ExperimentConfig
from fedjax_rai.config.views import View
from fedjax_rai.data.mix import deal, where
from fedjax_rai.errors import InputError
from fedjax_rai.evals.judge import GUARD, GuardScores
from fedjax_rai.evals.open_ended import nothing
from fedjax_rai.evals.panel import World, check_judges, invented_exchanges, judge_names
from fedjax_rai.experiment.baseline import Baseline
from fedjax_rai.experiment.guarding import Guarding
from fedjax_rai.experiment.judging import Given, device_judges, judges_of, rater_of
from fedjax_rai.experiment.keeping import Store
from fedjax_rai.experiment.models import Models, check_logits, check_numbers
from fedjax_rai.experiment.replay import Replay
from fedjax_rai.experiment.revising import Revising
from fedjax_rai.experiment.texts import Texts
from fedjax_rai.mesh import replicated
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import Lora, init_adapter, lora_shape
from fedjax_rai.safety.calibration import THRESHOLD
from fedjax_rai.safety.filter import limits
from fedjax_rai.safety.guard import score
from fedjax_rai.text.hub import commit
from fedjax_rai.text.prompts import question
from fedjax_rai.text.tokenizer import LATIN
from fedjax_rai.train.optimizers import learning_rate

NEEDS_LABELS = (
    "needs harmful and acceptable pairs to be fitted on, and in its share are none of one kind; must have labels (by "
    "data.columns, or label of a source), or be named by guard.path, guard.adapter or guard.scorer, or filter.enabled "
    "be false"
)
PARTS: tuple[Any, ...] = (Models, Texts, Revising, Guarding, Replay, Baseline)  # each after those that it needs


def keys_of(part: Any) -> set[str]:
    """The keys that a part is built from: its own, and those of the parts that it needs."""
    return {*part.KEYS}.union(*(keys_of(needed) for needed in part.NEEDS))


def views(config: ExperimentConfig) -> dict[str, View]:
    """What each part reads of a config, by the part's name: arms share the parts whose views are equal."""
    return {part.__name__: View(config, keys_of(part)) for part in PARTS}


class Setting:
    """An arm: `config` is its own; its parts (`models`, `texts`, `guarding`, ...) may be those of other arms, too."""

    def __init__(
        self,
        config: ExperimentConfig,
        previous: "Setting | None" = None,
        pins: Mapping[str, str] | None = None,
        store: Store | None = None,
    ):
        """Takes over from the arm `previous` the parts that it shares with it; the others are built when needed.

        `pins`: the commits of models on the hub that the run began with, if it did. `store` keeps guards and scores
        for other processes. Data are read at once, so that what is wrong with them is said (InputError) before anything
        is written.
        """
        self.config = config
        self.pins = dict(pins or {})
        self._store = store
        self.root = jax.random.key(config.seed)
        self._views = views(config)
        self._parts: dict[str, Any] = {}
        for part in PARTS:
            self._parts[part.__name__] = self._shared(part, previous) or self._built(part)
        made = self.texts.materials
        clients = config.federated.clients
        self.client_rows = deal(made.pairs, made.origins, config.data, clients, config.seed, dict(config))
        if config.filter.enabled:
            limits(config.filter, 0.5, clients)  # says at once where thresholds name clients that there are not
        left = len(made.pairs) - sum(map(len, self.client_rows))
        if left:
            terminal.say(f"{left:,} of {len(made.pairs):,} pairs are held by no client (data.partition)")

    def _shared(self, part: Any, previous: "Setting | None") -> Any:
        name = part.__name__
        if previous is None or previous.pins != self.pins or previous._views[name] != self._views[name]:
            return None
        return previous._parts[name]

    def _built(self, part: Any) -> Any:
        needed = [self._parts[needs.__name__] for needs in part.NEEDS]
        if part is Guarding:
            needed.append(self._store)
        return part(self._views[part.__name__], self.pins, *needed)

    @property
    def models(self) -> Models:
        return self._parts["Models"]

    @property
    def texts(self) -> Texts:
        return self._parts["Texts"]

    @property
    def revising(self) -> Revising:
        return self._parts["Revising"]

    @property
    def guarding(self) -> Guarding:
        return self._parts["Guarding"]

    @property
    def replay(self) -> Replay:
        return self._parts["Replay"]

    @property
    def baseline(self) -> Baseline:
        return self._parts["Baseline"]

    @property
    def planned(self) -> ExperimentConfig:
        """The config as the memory plan reads it: with the mesh that the base lies on, whoever chose that."""
        return self.config.model_copy(update={"mesh": self.models.layout})

    @cached_property
    def shapes(self) -> tuple[DecoderConfig, Lora]:
        """Of the base and of every adapter."""
        architecture = self.models.architecture
        return self.models.laid_out(architecture), lora_shape(self.config.lora, architecture)

    @cached_property
    def model(self) -> Decoder:
        """The base's decoder, which takes adapters of this arm's shape."""
        return Decoder(*self.shapes)

    @property
    def lm(self) -> LM:
        return LM(self.model, self.models.base)

    def fresh_adapter(self, name: str) -> Adapter:
        """An adapter that changes nothing yet, drawn by the key of that name; on every device."""
        fresh = init_adapter(*self.shapes, rng.stream(self.root, name))
        return jax.device_put(fresh, replicated(self.models.mesh))

    @property
    def commits(self) -> dict[str, Any]:
        """Which commit each model from the hub is of."""
        folders = {"model_commit": self.models.folder, "guard_commit": self.guarding.folder}
        found = {name: commit(folder) for name, folder in folders.items() if folder is not None}
        known = {name: revision for name, revision in found.items() if revision is not None}
        judges = {name: of for judge in device_judges(self.given_to_judges) for name, of in judge.commits.items()}
        return known | {"judge_commits": judges} if judges else known

    @property
    def guarded(self) -> bool:
        """Whether anything of this arm reads the guard's scores; where nothing does, there is no need for one."""
        return self.guarding.possible and (self._works_with_guard or self._asks_guard_to_judge)

    @property
    def judged_by_guard(self) -> bool:
        """Whether the guard is among the judges of answers: `harmless_by_guard` is measured."""
        return self.guarding.possible and self._asks_guard_to_judge

    @property
    def _works_with_guard(self) -> bool:
        """Whether filter or probe need the guard, whoever judges answers."""
        probed = self.config.cai.probe > 0 and self.config.federated.rounds > 0
        return self.config.filter.enabled or probed

    @property
    def _asks_guard_to_judge(self) -> bool:
        evaluation = self.config.eval
        named = evaluation.judges or ()
        if GUARD.name in (evaluation.judge, *named):
            return True
        if evaluation.by_guard is not None or evaluation.judges is not None:
            return bool(evaluation.by_guard)
        costs_little = not self.guarding.is_fitted or self.config.model.path == TINY
        return costs_little or self._works_with_guard

    def check(self) -> None:
        """Read all that this arm will use. Raises InputError for what is wrong, before anything is written."""
        self._check_schedule_and_objective()
        _read(self, "model", "models.not_computed", "models.base", "models.tokenizer.closing", "texts.corpus")
        self._check_language()
        self.check_logits(None)
        if self.config.federated.rounds:
            self.texts.check_answers(np.concatenate(self.client_rows))
        cai = self.config.cai
        if cai.enabled and cai.data == ONLINE:
            _read(self, "revising.requests", "texts.red_prompts", "revising.openings")
            self.revising.name_unknown_categories()
        elif cai.enabled:
            _read(self, "revising.prepared")
            if may_be_due(cai, self.config.federated.rounds):
                self.revising.check_usable(make_objective(cai).likelihood, cai.method)
        if cai.enabled and cai.replay and not self.texts.materials.benign_prompts:
            terminal.say("cai.replay: nothing is replayed, as there are no benign prompts; cai.replay_data names some")
        if cai.probe:
            self._check_probe(cai.probe)
        config = self.config
        if self.guarded:
            self.check_guard()
        if not self.guarding.possible and config.filter.enabled:
            raise InputError(f"{where(config.data)}: the filter's guard {NEEDS_LABELS}")
        if not self.guarding.possible and config.eval.by_guard:
            raise InputError(f"eval.by_guard = true: needs a guard, which {NEEDS_LABELS}")
        self.check_judge()

    def check_values(self) -> None:
        """Try the functions of the user's own, as `check` does, and read no weights.

        Raises InputError for one that fails, or gives something else than its key takes.
        """
        self._check_schedule_and_objective()
        if self.guarded and self.guarding.is_function:
            self.guarding.check()
        self.check_judge(reach=False)

    def _check_schedule_and_objective(self) -> None:
        for t in range(self.config.federated.rounds):
            learning_rate(self.config.federated, t)
        if self.config.cai.enabled:
            check_objective(self.config.cai)

    @property
    def given_to_judges(self) -> Given:
        """What judges are made of."""
        return Given(self.config, self.models, self._store, self.pins)

    def check_judge(self, reach: bool = True) -> None:
        """Raises InputError where a judge cannot judge here, or fails when it is tried; says what some will cost.

        `reach`: whether a judge behind an endpoint is asked something.
        """
        judges = judges_of(self.given_to_judges)
        sets = self.texts.materials.evaluations
        check_judges(judges, sets, self._judged_world)
        longest = invented_exchanges(sets, self.config.eval)
        for judge in judges.named.values():
            judge.check(longest, reach)
        rater_of(self.given_to_judges)

    @property
    def _judged_world(self) -> World:
        guard = None
        if self.judged_by_guard:  # which is not fitted for being there
            guard = GuardScores(lambda pairs: score(self.guarding.guard, pairs), THRESHOLD)
        return World(self.config.model.path == TINY, guard)

    @property
    def judge_names(self) -> list[str]:
        """The judges of harm, the primary one first."""
        return judge_names(judges_of(self.given_to_judges), self.texts.materials.evaluations, self._judged_world)

    def guard_scores(self, advance: Callable[[], object] = nothing) -> GuardScores | None:
        """The guard as judges see it; None where it is not among them. May fit it, for its threshold."""
        if not self.judged_by_guard:
            return None
        return GuardScores(lambda pairs: score(self.guarding.guard, pairs, advance), self.guarding.threshold)

    def check_guard(self) -> None:
        """Raises InputError for a guard that cannot be asked, a released one without numbers, or failing its test."""
        self.guarding.check()
        if self.guarding.folder is None or self.guarding.is_function:
            return
        guard = self.guarding.untuned
        asked = self.guarding.asked
        ids = asked.request_ids(LATIN, LATIN, asked.form.asked[0])
        check_numbers(guard.lm, None, guard.tokenizer, ids, f"guard.path = {self.config.guard.path}")
        _ = self.guarding.self_test

    def _check_language(self) -> None:
        if self.config.data.language == "ko" and not self.models.tokenizer.has_hangul:
            raise InputError(
                f"data.language = ko: the tokenizer of model.path = {self.config.model.path} has no Hangul, and would "
                "lose the text; must be a model that reads Korean, or en"
            )

    def check_logits(self, adapter: Adapter | None) -> None:
        """Raises InputError where the base, or the base with an adapter, gives no numbers."""
        check_logits(self.lm, adapter, self.models.tokenizer, question(LATIN), f"model.path = {self.config.model.path}")

    def _check_probe(self, wanted: int) -> None:
        there = len(self.texts.materials.probe_prompts)
        if there < wanted:
            raise InputError(f"cai.probe = {wanted}: there are only {there} prompts")
        if not self.guarding.possible:
            raise InputError(f"cai.probe = {wanted}: needs a guard, which {NEEDS_LABELS}")


def _read(owner: Any, *names: str) -> None:
    """Have what is computed when first asked for computed now."""
    for name in names:
        attrgetter(name)(owner)
