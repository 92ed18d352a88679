"""The judges that a config names, as values: ours, the user's own, guards on the device, models behind endpoints.

A guard on the device is loaded when it is asked and freed when it has answered, so that beside the base there is one at
a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fedjax_rai import terminal
from fedjax_rai.aliases import Adapter
from fedjax_rai.config.schema import TINY, EndpointConfig, ExperimentConfig
from fedjax_rai.config.views import View
from fedjax_rai.errors import InputError
from fedjax_rai.evals.evaluation import Conversation, Marks
from fedjax_rai.evals.judge import AUTO, GUARD, JUDGES, Context, Exchange, Judge, Judgement, named, safe_name
from fedjax_rai.evals.mt_bench import rater
from fedjax_rai.evals.panel import JudgesOfHarm
from fedjax_rai.evals.rubric import RUBRICS, UNSAFE_FROM, Rubric, in_conversation, of_file
from fedjax_rai.experiment.endpoint import Endpoint, Message
from fedjax_rai.experiment.guarding import SCORED_BY
from fedjax_rai.experiment.keeping import SCORES, Origin, Store, digest_of_texts
from fedjax_rai.experiment.models import Models
from fedjax_rai.mesh import replicated
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import NO_LORA, Lora
from fedjax_rai.model.peft import CONFIG, base_of, is_adapter, load_adapter
from fedjax_rai.reading import read_text
from fedjax_rai.safety import guard as guards
from fedjax_rai.safety.form import GuardForm, bound
from fedjax_rai.safety.forms import AUTO as AUTO_FORM
from fedjax_rai.safety.forms import form_for
from fedjax_rai.safety.self_test import check_guard
from fedjax_rai.text.hub import commit, contents, resolve
from fedjax_rai.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer

GUARD_JUDGE, ENDPOINT_JUDGE = "guard", "endpoint"
"""What stands before the colon in the name of a judge that is a model."""
_passed: set[str] = set()  # digests of the judges whose self-test was passed in this process


class Given(NamedTuple):
    """What judges are made of."""

    config: ExperimentConfig
    models: Models
    store: Store | None
    pins: Mapping[str, str]
    """The commits that the run began with; of a judge from the hub as `judge <name>`."""


def judges_of(given: Given) -> JudgesOfHarm:
    """Who judges by `eval.judge` and `eval.judges`. Raises InputError for two that would have one name."""
    config = given.config.eval
    chosen = AUTO if config.judge == AUTO else _judge(config.judge, "eval.judge", given)
    if config.judges is None:
        return JudgesOfHarm(chosen)
    beside = [_judge(name, f"eval.judges[{i}]", given) for i, name in enumerate(config.judges)]
    named_beside = [*zip(config.judges, beside, strict=True)]
    others = [(name, judge) for name, judge in named_beside if name != config.judge and judge != chosen]
    _check_names(named_beside if isinstance(chosen, str) else [(config.judge, chosen), *others])
    if config.by_guard and GUARD not in beside:
        beside.append(GUARD)
    return JudgesOfHarm(chosen, beside)


def _judge(name: str, key: str, given: Given) -> Judge:
    word, _, text = name.partition(":")
    if word == GUARD_JUDGE and text:
        return device_judge(name, key, given).judge
    if word == ENDPOINT_JUDGE:
        return endpoint_judge(text, given)
    judge = named(name, key)
    return JUDGES[judge] if isinstance(judge, str) else judge


def _check_names(judges: Sequence[tuple[str, Judge]]) -> None:
    """Raises InputError where two judges have one name, by which columns and rates are told apart."""
    seen: dict[str, str] = {}
    for key, judge in judges:
        if judge.name in seen:
            raise InputError(
                f"eval.judges: {seen[judge.name]} and {key} would both be named {judge.name}, as folder or function is "
                "called; must have names of their own"
            )
        seen[judge.name] = key


# --- guards and classifiers on the device -----------------------------------------------------------------------


class DeviceJudge:
    """A released guard or classifier, asked in its own form: a whole model, or an adapter on the base that it names."""

    def __init__(self, path: str, form: str, key: str, given: Given):
        """`path`: a folder or `owner/name`; `form`: as `guard.form` takes it. Raises InputError for the filter's."""
        self.name = f"{GUARD_JUDGE}_{safe_name(path)}"
        self.path = str(Path(path).expanduser()) if path.startswith("~") else path
        self._chosen = form
        self._key = f"{key} = {GUARD_JUDGE}:{path}"
        self._given = given
        self._revision = given.pins.get(f"judge {self.name}")
        guard = given.config.guard
        filter_path = guard.path if guard.adapter is None else guard.adapter
        if filter_path is not None and _place(path) == _place(filter_path):
            filter_key = "guard.path" if guard.adapter is None else "guard.adapter"
            raise InputError(f"{self._key}: is the filter's own guard, {filter_key}; must be named {GUARD_JUDGE}")

    @property
    def judge(self) -> Judge:
        """It as a judge."""
        title = self.name.replace("_", " ")
        return Judge(self.name, title, self._judged, lambda context: True, asked_once=True, check=self._check)

    @cached_property
    def folder(self) -> Path:
        """Where it lies; only its config and tokenizer are sure to be there."""
        with self._named():
            return resolve(self.path, self._revision)

    @cached_property
    def is_adapter(self) -> bool:
        """Whether it was released as an adapter."""
        return is_adapter(self.folder)

    @cached_property
    def _base(self) -> tuple[str, str | None]:
        """The whole model, by path and revision: itself, or what its adapter is of."""
        if not self.is_adapter:
            return self.path, self._revision
        with self._named():
            base = base_of(self.folder)
            if base is None:
                raise InputError(f"{self.folder}: {CONFIG} names no base; must have base_model_name_or_path")
        return base[0], self._given.pins.get(f"judge {self._base_name}", base[1])

    @cached_property
    def _base_folder(self) -> Path:
        """Where the whole model lies."""
        with self._named():
            return resolve(*self._base)

    @property
    def _base_name(self) -> str:
        """By which the commit of an adapter's base is kept; no judge's name has a space."""
        return f"{self.name} base"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its own; of an adapter without any its base's."""
        with self._named():
            if has_tokenizer(self.folder):
                return load_tokenizer(self.path, self._revision)
            return load_tokenizer(*self._base)

    @cached_property
    def form(self) -> GuardForm:
        with self._named():
            return form_for(self.tokenizer, self.path, self._chosen)

    @cached_property
    def architecture(self) -> DecoderConfig:
        """Its shape, as on one device."""
        folder = self._base_folder
        with self._named():
            return self._given.models.read_architecture(folder)

    def adapter(self) -> tuple[Lora, Adapter | None]:
        """Shape and leaves of its adapter, read anew each time; none of a whole model."""
        if not self.is_adapter:
            return NO_LORA, None
        with self._named():
            return load_adapter(resolve(self.path, self._revision, weights=True), self.architecture)

    @property
    def adapter_bytes(self) -> int:
        """On a device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.adapter()[1]))

    @property
    def commits(self) -> dict[str, str]:
        """Of what is from the hub, by its name: the judge, and the base that its adapter is of."""
        folders = {self.name: self.folder}
        if self.is_adapter:
            folders[self._base_name] = self._base_folder
        found = {name: commit(folder) for name, folder in folders.items()}
        return {name: known for name, known in found.items() if known is not None}

    @property
    def is_base(self) -> bool:
        """Whether its weights, without an adapter, are the base's."""
        return self._base_folder == self._given.models.folder

    @property
    def request_length(self) -> int:
        """Tokens of its own words around a pair."""
        return guards.request_length(self.tokenizer, self.form)

    def _check(self, prompts: Sequence[Exchange], reach: bool) -> None:
        tokenizer, form, _ = self.tokenizer, self.form, self.architecture
        with self._named():
            bound(tokenizer, form)
        config = self._given.config
        if reach and config.guard.self_test and self._origin([]).digest not in _passed:
            check_guard(self._load(config.data.max_length))
            _passed.add(self._origin([]).digest)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What is wrong is said with the key that names the judge."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self._key}: {error}") from error

    def _judged(self, exchanges: Sequence[Exchange], context: Context) -> Judgement:
        scores = self._scores(exchanges)
        verdicts = [None if np.isnan(score) else bool(score >= UNSAFE_FROM) for score in scores]
        return Judgement(verdicts, [None if np.isnan(score) else float(score) for score in scores])

    def _scores(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """Kept from before, or given now, and kept."""
        store = self._given.store
        origin = self._origin(exchanges)
        kept = store.scores(origin) if store else None
        if kept is not None:
            return kept[0]
        found = self._asked(exchanges)
        if store and found.shares is not None:
            store.keep_scores(origin, np.stack([found.scores, found.shares]))
        return found.scores

    def _origin(self, exchanges: Sequence[Exchange]) -> Origin:
        layout = self._given.models.layout
        keys = View(self._given.config, [key for key in SCORED_BY if not key.startswith("guard.")]).plain()
        guard = {"model": contents(self.folder)}
        if self.is_adapter:
            guard["base"] = contents(self._base_folder)
        parts = {
            "keys": keys | {"mesh.fsdp": layout.fsdp, "mesh.tensor": layout.tensor},
            "guard": guard,
            "request": [guards.request(self.tokenizer, self.form), *map(str, self.form[1:])],
            "pairs": digest_of_texts(exchanges),
        }
        return Origin(SCORES, parts)

    def _asked(self, exchanges: Sequence[Exchange]) -> guards.Scored:
        """Load the model, ask it, and free it."""
        guard = self._load(self._longest(exchanges))
        batches = guards.batches(self.form, len(exchanges), guard.batch_size)
        with terminal.progress(f"{self.name}: judging {len(exchanges)} answers", batches, unit="batch") as advance:
            return guards.scored(guard, exchanges, advance)

    def _load(self, room: int) -> guards.Guard:
        """The model, asked in its form about pairs of at most `room` tokens."""
        models = self._given.models
        architecture = models.laid_out(self.architecture)
        terminal.say(f"{self.name}: loading {self.path}, asked in the form {self.form.name}")
        base = models.base if self.is_base else models.load(*self._base, architecture)
        lora, adapter = self.adapter()
        batch_size = self._given.config.eval.batch_size
        lm = LM(Decoder(architecture, lora), base)
        guard = guards.released_guard(lm, self.tokenizer, room, batch_size, self.form)
        return guard._replace(key=self._key, adapter=jax.device_put(adapter, replicated(models.mesh)))

    def _longest(self, exchanges: Sequence[Exchange]) -> int:
        """Tokens of the longest pair, so that none is cut, unless the model itself reads no more."""
        longest = max(len(self.tokenizer.encode(prompt + answer)) for prompt, answer in exchanges)
        room = max(longest, self._given.config.data.max_length)
        most = self.architecture.longest
        return room if most is None else min(room, most - self.request_length)


def _place(path: str) -> Path | str:
    """Where a model lies, however its path is written; the name itself of one that is no folder here."""
    if path == TINY:
        return resolve(path).resolve()
    folder = Path(path).expanduser()
    return folder.resolve() if folder.is_dir() else path.rstrip("/")


def device_judge(name: str, key: str, given: Given) -> DeviceJudge:
    """The judge that `guard:PATH`, or `guard:FORM:PATH`, names."""
    form, path = form_and_path(name)
    return DeviceJudge(path, form, key, given)


def form_and_path(name: str) -> tuple[str, str]:
    """What `guard:PATH`, or `guard:FORM:PATH`, names; `auto` where it says no form."""
    _, _, text = name.partition(":")
    form, colon, path = text.partition(":")
    return (form, path) if colon else (AUTO_FORM, text)


def device_judges(given: Given) -> list[DeviceJudge]:
    """Those that `eval.judge` and `eval.judges` name, each once."""
    config = given.config.eval
    names = dict.fromkeys((config.judge, *(config.judges or ())))
    return [device_judge(name, "eval.judges", given) for name in names if name.startswith(f"{GUARD_JUDGE}:")]


# --- models behind endpoints ------------------------------------------------------------------------------------


def endpoint_judge(name: str, given: Given) -> Judge:
    """The entry of `eval.endpoints` of that name as a judge of harm.

    Raises InputError where the variable of its key is not set, and for one that marks quality.
    """
    config = _entry(name, given.config)
    rubric = rubric_of(config)
    if not rubric.of_harm:
        raise InputError(f"eval.endpoints: {name}: template = {rubric.name} marks quality, and is no judge of harm")
    endpoint = open_endpoint(config, given.store)

    def judged(exchanges: Sequence[Exchange], context: Context) -> Judgement:
        marks = marks_of(endpoint, rubric, exchanges)
        return Judgement([None if mark is None else mark >= UNSAFE_FROM for mark in marks], marks)

    def check(exchanges: Sequence[Exchange], reach: bool) -> None:
        """Say what it will cost at most, and see that somebody answers."""
        asked = [_request(rubric, exchange) for exchange in exchanges]
        terminal.say(f"eval.endpoints: {name}: at most {endpoint.cost(asked, len(asked))}")
        if reach:
            endpoint.check(_request(rubric, guards.TRIED))

    title = f"{ENDPOINT_JUDGE} {name}"
    return Judge(f"{ENDPOINT_JUDGE}_{name}", title, judged, lambda context: True, asked_once=True, check=check)


def rater_of(given: Given) -> Callable[[Sequence[Conversation]], Marks] | None:
    """Who marks MT-Bench's answers by `eval.rater`; None where nobody does.

    Raises InputError for a function that cannot be imported, and for an endpoint that does not mark quality.
    """
    word, _, name = given.config.eval.rater.partition(":")
    if word != ENDPOINT_JUDGE:
        return rater(given.config.eval.rater)
    config = _entry(name, given.config)
    rubric = rubric_of(config)
    if rubric.of_harm:
        raise InputError(f"eval.rater = endpoint:{name}: its template must be mtbench, which marks quality")
    endpoint = open_endpoint(config, given.store)

    def marked(held: Sequence[Conversation]) -> Marks:
        exchanges = [exchange for conversation in held for exchange in in_conversation(*conversation)]
        marks = iter(marks_of(endpoint, rubric, exchanges))
        values = [[next(marks) for _ in conversation.answers] for conversation in held]
        return Marks(f"{ENDPOINT_JUDGE}_{name}", values)

    return marked


def _entry(name: str, config: ExperimentConfig) -> EndpointConfig:
    (entry,) = [entry for entry in config.eval.endpoints if entry.name == name]  # the schema has seen to that
    return entry


def rubric_of(config: EndpointConfig) -> Rubric:
    """What an endpoint is asked. Raises InputError for a file that leaves out prompt or answer."""
    if config.request is None:
        return RUBRICS[config.template]
    rubric = of_file(read_text(Path(config.request)))
    if rubric is None:
        raise InputError(f"{config.request}: must hold {{prompt}} and {{answer}}, in whose place the texts are put")
    return rubric


def open_endpoint(config: EndpointConfig, store: Store | None) -> Endpoint:
    """The endpoint of an entry, its replies kept where there is a store."""
    return Endpoint(config, store.replies(config.name) if store else None)


def marks_of(endpoint: Endpoint, rubric: Rubric, exchanges: Sequence[Exchange]) -> list[float | None]:
    """The mark of each answer; None where there is no reply, or none that holds what was asked for.

    What it costs is said before it begins, and how many replies hold no mark behind it.
    """
    asked = [_request(rubric, exchange) for exchange in exchanges]
    endpoint.announce(asked)
    with terminal.progress(f"{endpoint.config.name}: judging", endpoint.missing(asked), unit="request") as advance:
        replies = endpoint.ask(asked, advance)
    marks = [None if reply is None else rubric.read(reply) for reply in replies]
    unread = sum(mark is None and reply is not None for mark, reply in zip(marks, replies, strict=True))
    if unread:
        example = next(reply for mark, reply in zip(marks, replies, strict=True) if mark is None and reply is not None)
        terminal.say(
            f"eval.endpoints: {endpoint.config.name}: {unread:,} of {len(replies):,} replies hold no verdict, as it "
            f"was asked for; one begins {example[:80]!r}"
        )
    return marks


def _request(rubric: Rubric, exchange: Exchange) -> list[Message]:
    return [{"role": "user", "content": rubric.asked(*exchange)}]


# --- asking once ------------------------------------------------------------------------------------------------


def asked_before(judge: Judge, exchanges: Sequence[Exchange], context: Context) -> Judge:
    """A judge that has been asked about these exchanges, each once, and tells of them what it said.

    It knows nothing of others: an answer that it was not asked about has no verdict.
    """
    distinct = [*dict.fromkeys(exchanges)]
    made = judge.judge(distinct, context) if distinct else Judgement([], [])
    scores: Sequence[float | None] = made.scores or [None] * len(distinct)
    known = dict(zip(distinct, zip(made.unsafe, scores, strict=True), strict=True))

    def told(wanted: Sequence[Exchange], _: Context) -> Judgement:
        found = [known.get(exchange, (None, None)) for exchange in wanted]
        unsafe = [verdict for verdict, _ in found]
        return Judgement(unsafe, None if made.scores is None else [score for _, score in found])

    return judge._replace(judge=told)
