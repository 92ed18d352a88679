"""The guard: (query, response) -> p(unsafe), read off the token of its verdict.

The guard is an adapter on some base, or a released model; it is sent to the clients and runs there. How it is asked and
where its verdict stands is its form (`safety.forms`).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai.aliases import Adapter, Array, Bool, Float, Int
from fedjax_rai.data.examples import Examples, encode, encode_chats, length_batches, take
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.mesh import mesh_of, split_rows, ways, whole
from fedjax_rai.model.decoder import LM, forward, tell_apart, unembed
from fedjax_rai.safety.form import (
    BETWEEN,
    IS_NEITHER,
    IS_UNSAFE,
    QUERY,
    RESPONSE,
    Bound,
    GuardForm,
    VerdictIds,
    bound,
    fill,
    fitting_pair,
    opening,
)
from fedjax_rai.safety.forms import REQUEST, form_for
from fedjax_rai.safety.hardening import normalised
from fedjax_rai.text.prompts import ASSISTANT, USER, Segment, Turn
from fedjax_rai.text.tokenizer import Tokenizer
from fedjax_rai.train.dispatch import read_late
from fedjax_rai.train.generate import Decoding, Sampling, generate
from fedjax_rai.train.step import Trainer, TrainState, start, update

PIECE = 25
"""Steps of a fit after which it is told how far it has come."""
MODEL = "model"  # in `guard.scorer`: the guard is a model, not a function
TRIED = ("Who are you?", "I do not know.")  # what a function is tried on where there are no pairs


def request(tokenizer: Tokenizer, form: GuardForm = REQUEST) -> str:
    """The words of a request for a verdict, two texts that no template holds standing for the pair's."""
    return opening(tokenizer, form, (QUERY, RESPONSE), form.asked[0])


class Scorer(NamedTuple):
    """A guard that is a function of the user's own: pairs of (query, response) -> p(unsafe) of each, NaN for no score.

    It must be pure: the same pairs in another order, or some of them alone, get the same scores.
    """

    score: Callable[[Sequence[tuple[str, str]]], Any]
    name: str  # in `guard.scorer`
    normalise: bool = False  # it reads the normal form of texts (`safety.hardening`)


def keep_all() -> Scorer:
    """The guard to which every answer is safe: what a run is like without one."""
    return Scorer(lambda pairs: np.zeros(len(pairs), np.float32), "keep_all")


def oracle(known: dict[tuple[str, str], bool]) -> Scorer:
    """The guard that knows the labels, and of other pairs nothing: the best that a filter can be."""

    def scores(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return np.array([known.get((query, response), np.nan) for query, response in pairs], np.float32)

    return Scorer(scores, "oracle")


FUNCTIONS = ("keep_all", "oracle")
"""Names that `guard.form` takes of guards that are no models."""


class Guard(NamedTuple):
    """What scoring needs. `adapter` None: the base as released. A request too long for `max_length` is cut."""

    lm: LM
    adapter: Adapter | None
    tokenizer: Tokenizer
    max_length: int
    batch_size: int
    key: str = "model.path"  # of the config, which names the model
    form: GuardForm | None = None
    """None: what the tokenizer's chat template and tokens tell."""
    between: str = BETWEEN[0]
    """What a verdict between safe and unsafe counts as."""
    normalise: bool = False
    """It reads the normal form of texts (`safety.hardening`)."""

    @property
    def bound(self) -> Bound:
        """Its form in its tokenizer's tokens."""
        form = form_for(self.tokenizer, None) if self.form is None else self.form
        return bound(self.tokenizer, form, self.between)


class Scored(NamedTuple):
    """p(unsafe) of pairs, and how much of the vocabulary's probability their verdicts hold together."""

    scores: np.ndarray
    """float32[n]; NaN: no verdict."""
    shares: np.ndarray | None
    """float32[n], of the least sure answer where several were given; NaN where there is none. None: of a function."""


def released_guard(
    lm: LM, tokenizer: Tokenizer, max_length: int, batch_size: int, form: GuardForm | None = None
) -> Guard:
    """A model as it was released; its own request, which may be long, comes on top of the pair's `max_length`."""
    form = form_for(tokenizer, None) if form is None else form
    return Guard(lm, None, tokenizer, request_length(tokenizer, form) + max_length, batch_size, "guard.path", form)


def request_length(tokenizer: Tokenizer, form: GuardForm) -> int:
    """Tokens of the longest request about an empty pair, and of the lines that the guard then writes."""
    requests = [opening(tokenizer, form, ("", ""), question) for question in form.asked]
    return max(len(tokenizer.encode(text)) for text in requests) + form.lines


class Verdicts(NamedTuple):
    """p(unsafe) of each row, and the probability of all verdicts' tokens among all tokens; NaN: no numbers."""

    scores: Float[Array, "b"]
    shares: Float[Array, "b"]


@jax.jit
def first_token_score(
    lm: LM,
    adapter: Adapter | None,
    tokens: Int[Array, "b l"],
    valid: Bool[Array, "b l"],
    verdicts: VerdictIds,
) -> Verdicts:
    """p(unsafe) / (p(safe) + p(unsafe)) of the token after each left-padded prompt; rows split over the devices.

    In float32, over all spellings of the two, or the expectation of marks; `whole`: among all tokens. A row
    whose logits are no numbers, or all one number, has none.
    """
    tokens, valid = split_rows((tokens, valid), lm.base)
    logits = unembed(lm, forward(lm, adapter, tokens, valid)[:, -1])
    found = logits[:, verdicts.ids]
    weighed = jnp.where(verdicts.meanings == IS_NEITHER, -jnp.inf, found)
    marks = (verdicts.meanings == IS_UNSAFE).astype(jnp.float32) if verdicts.marks is None else verdicts.marks
    among_verdicts = (jax.nn.softmax(weighed, axis=-1) * marks[None]).sum(axis=-1)
    total = jax.nn.logsumexp(logits, axis=-1)
    among_all = jnp.exp(jax.nn.logsumexp(found + jnp.log(marks)[None], axis=-1) - total)
    scores = jnp.where(verdicts.whole, among_all, among_verdicts)
    shares = jnp.exp(jax.nn.logsumexp(found, axis=-1) - total)
    known = tell_apart(logits)
    return Verdicts(jnp.where(known, scores, jnp.nan), jnp.where(known, shares, jnp.nan))


def score(
    guard: Guard | Scorer, pairs: Sequence[tuple[str, str]], advance: Callable[[], object] = lambda: None
) -> np.ndarray:
    """float32[n]: p(unsafe) of each (query, response), in order; NaN where there is none. See `scored`."""
    return _answers(guard, pairs, advance).scores


def batches(form: GuardForm, pairs: int, batch_size: int) -> int:
    """How often `scored` calls `advance` for so many pairs, at most."""
    return ceil(pairs * len(form.asked) / batch_size) * (2 if form.lines else 1)


def scored(
    guard: Guard | Scorer, pairs: Sequence[tuple[str, str]], advance: Callable[[], object] = lambda: None
) -> Scored:
    """p(unsafe) of each (query, response), in order, and what the verdicts hold of the probability; NaN: no verdict.

    A function of the user's own may give none. A model gives none where its logits are no numbers, where it writes no
    verdict, or where its request does not fit into its length. A pair that is asked several questions has the greatest
    score, and none where one has none. `advance` is called once a batch of a model's `batch_size`. Raises InputError
    for a model that gives none for a whole first batch.
    """
    return _answers(guard, pairs, advance)


def _answers(guard: Guard | Scorer, pairs: Sequence[tuple[str, str]], advance: Callable[[], object]) -> Scored:
    if guard.normalise:
        pairs = normalised(pairs)
    if isinstance(guard, Scorer):
        return Scored(_scored(guard, pairs), None)
    asked = guard.bound
    prompts = _prompts(guard, asked, pairs)
    if asked.form.lines:
        prompts = _with_lines(guard, asked, prompts, advance)
    found = _verdicts(guard, asked, prompts, advance)
    by_question = found.reshape(2, len(pairs), len(asked.form.asked))
    return Scored(by_question[0].max(axis=1), by_question[1].min(axis=1))


def _prompts(guard: Guard, asked: Bound, pairs: Sequence[tuple[str, str]]) -> list[list[int] | None]:
    """Of every pair and question the tokens up to the guard's own; None for a request that does not fit."""
    room = guard.max_length - len(asked.lead_ids) - asked.form.lines
    prompts: list[list[int] | None] = []
    for pair in pairs:
        for question in asked.form.asked:
            prompts.append(asked.fitting_ids(pair, question, room))
    return prompts


def _rows(prompts: Sequence[list[int] | None]) -> np.ndarray:
    """Which of the prompts there are."""
    return np.array([row for row, ids in enumerate(prompts) if ids is not None], int)


def _with_lines(
    guard: Guard, asked: Bound, prompts: Sequence[list[int] | None], advance: Callable[[], object]
) -> list[list[int] | None]:
    """The prompts with the lines that the guard writes, up to its verdict; None where it comes to none."""
    rows = _rows(prompts)
    there = [ids for ids in prompts if ids is not None]
    _check_ids(guard, there)
    decoding = Decoding(Sampling(np.float32(0)), np.array(_ends(asked)), asked.form.lines)
    keys = jax.random.split(jax.random.key(0), guard.batch_size)  # greedy: nothing is drawn

    def dispatched() -> Iterator[tuple[np.ndarray, Any]]:
        for indices, batch in length_batches(there, guard.batch_size, asked.tokenizer.pad_id):
            yield indices, generate(guard.lm, guard.adapter, batch, keys, decoding)

    found: list[list[int] | None] = [None] * len(prompts)
    for indices, answers in read_late(dispatched()):
        tokens = np.asarray(answers.tokens)
        valid = np.asarray(answers.valid)
        for i, index in enumerate(indices):
            lines = up_to_marker(asked, tokens[i][valid[i]].tolist())
            if lines is not None:
                found[rows[index]] = there[index] + lines
        advance()
    if there and all(ids is None for ids in found):
        raise InputError(
            f"{guard.key}: the guard wrote {asked.form.marker!r} in none of {len(there)} answers of up to "
            f"{asked.form.lines} tokens, behind which its verdict stands; guard.form may be that of another guard"
        )
    return found


def _ends(asked: Bound) -> tuple[int, ...]:
    """The tokens that end a guard's answer. A template that makes a request of the pair has no turn to end."""
    tokenizer = asked.tokenizer
    return tokenizer.end_ids if is_conversation(asked.form) else tokenizer.named_ends or (tokenizer.pad_id,)


def up_to_marker(asked: Bound, written: list[int]) -> list[int] | None:
    """The tokens of an answer up to the end of the form's marker; None where it is not there, or what follows is."""

    def text(count: int) -> str:
        return asked.tokenizer.hf.decode(written[:count], clean_up_tokenization_spaces=False)

    if asked.form.marker not in text(len(written)):
        return None
    least, most = 1, len(written)
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if asked.form.marker in text(middle) else (middle + 1, most)
    behind = text(least).partition(asked.form.marker)[2]
    ended = least == len(written)  # the verdict itself was cut off
    return None if behind.strip() or ended else written[:least]


def _check_ids(guard: Guard, prompts: Sequence[Any]) -> None:
    for ids in prompts:
        guard.tokenizer.check_ids(ids, guard.lm.model.config.vocab_size, guard.key)


def _verdicts(
    guard: Guard, asked: Bound, prompts: Sequence[list[int] | None], advance: Callable[[], object]
) -> np.ndarray:
    """float32[2, n]: scores and shares of the token behind each prompt and the lead."""
    rows = _rows(prompts)
    there = [ids + asked.lead_ids for ids in prompts if ids is not None]
    _check_ids(guard, [*there, asked.verdicts.ids])

    def dispatched() -> Iterator[tuple[np.ndarray, Verdicts]]:
        for indices, batch in length_batches(there, guard.batch_size, asked.tokenizer.pad_id):
            yield indices, first_token_score(guard.lm, guard.adapter, batch.tokens, batch.valid, asked.verdicts)

    found = np.full((2, len(prompts)), np.nan, np.float32)
    done = 0
    for indices, verdicts in read_late(dispatched()):
        at = rows[indices]
        found[0, at] = np.asarray(verdicts.scores)[: len(at)]
        found[1, at] = np.asarray(verdicts.shares)[: len(at)]
        if not done and np.all(np.isnan(found[0, at])):
            raise InputError(_no_score(guard))
        done += len(at)
        advance()
    return found


def _no_score(guard: Guard) -> str:
    """Why a guard is refused that gives no score."""
    fitted = "" if guard.adapter is None else "; where it was fitted here, guard.learning_rate may be too high"
    return f"{guard.key}: the guard gives no score, its logits are no numbers (NaN or infinity){fitted}"


def _scored(guard: Scorer, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """The scores of a function of the user's own; raises InputError where they are no probability for each pair."""
    stated = f"guard.scorer = {guard.name}"
    try:
        scores = np.asarray(guard.score(list(pairs)), np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{stated}: gave no array of numbers ({error})") from error
    if scores.shape != (len(pairs),):
        raise InputError(f"{stated}: gave an array of shape {scores.shape}; must be ({len(pairs)},), p(unsafe) a pair")
    if np.any((scores < 0) | (scores > 1)):
        found = f"{np.nanmin(scores):g} to {np.nanmax(scores):g}"
        raise InputError(f"{stated}: gave numbers from {found}; must be p(unsafe), from 0 to 1, or NaN")
    return scores


def training_examples(
    tokenizer: Tokenizer, form: GuardForm, pairs: Sequence[Pair], max_length: int
) -> tuple[Examples, np.ndarray]:
    """Labelled pairs in the guard's form (S-LG), the verdict trained on in its place; and which were cut.

    Of a form with questions each pair is asked one, in turn: its label does not say which it breaks.
    """
    if is_conversation(form):
        return encode_chats(tokenizer, training_chats(pairs, form), max_length, keep_end=True)
    asked = bound(tokenizer, form)
    texts = []
    shortened = []
    for i, pair in enumerate(pairs):
        question = form.asked[i % len(form.asked)]
        answer = asked.blank + verdict_text(form, pair) + (tokenizer.hf.eos_token or "")
        room = max_length - len(tokenizer.encode(answer))
        whole_pair = (pair.query, pair.response)
        fitting = fitting_pair(asked, whole_pair, question, room) or whole_pair
        texts.append([Segment(opening(tokenizer, form, fitting, question), False), Segment(answer, True)])
        shortened.append(fitting != whole_pair)
    examples, cut = encode(tokenizer, texts, max_length, keep_end=True)
    return examples, cut | np.array(shortened, bool)


def is_conversation(form: GuardForm) -> bool:
    """Whether the guard's answer is the assistant's turn, which the chat template itself puts behind the request."""
    return not isinstance(form.request, str) and form.opens and form.request[-1].role == USER


def verdict_text(form: GuardForm, pair: Pair) -> str:
    """The answer that a guard is trained to give of a labelled pair, without what its template puts before any."""
    spelled = (form.unsafe if pair.harmful else form.safe)[0]
    return (form.answer or form.before_verdict + "{verdict}").replace("{verdict}", spelled)


def training_chats(pairs: Sequence[Pair], form: GuardForm = REQUEST) -> list[list[Turn]]:
    """Labelled pairs as conversations in which the guard gives its verdict; of a form that is one."""
    chats = []
    for i, pair in enumerate(pairs):
        values = {"query": pair.query, "response": pair.response, "question": form.asked[i % len(form.asked)]}
        values |= {"policy": form.policy, "bos": ""}
        turns = [Turn(turn.role, fill(turn.text, values)) for turn in form.request if isinstance(turn, Turn)]
        chats.append([*turns, Turn(ASSISTANT, verdict_text(form, pair))])
    return chats


class FitData(NamedTuple):
    """What a guard is fitted on: labelled examples, the rows of each step, and the learning rate of all steps."""

    examples: Examples
    rows: Int[Array, "k b"]
    learning_rate: Float[Array, ""]


class Fitting(NamedTuple):
    """How far a fit has come."""

    steps: int
    state: TrainState


def begin_fit(adapter: Adapter) -> Fitting:
    """No step done yet, from a fresh optimizer."""
    return Fitting(0, start(adapter))


@partial(jax.jit, static_argnames="micro_batch")
def fit_steps(
    lm: LM,
    state: TrainState,
    data: FitData,
    begin: Int[Array, ""],
    end: Int[Array, ""],
    micro_batch: int | None = None,
) -> TrainState:
    """The state after steps `begin` to `end`, the last one not counted, each split over the devices.

    `micro_batch`: how many of a step's examples are computed at once; None: all. Other steps compile nothing.
    """
    trainer = Trainer(devices=ways(mesh_of(lm.base)), micro_batch=micro_batch)

    def step(i: Int[Array, ""], state: TrainState) -> TrainState:
        batch = split_rows(take(data.examples, data.rows[i]), lm.base)
        state, _ = update(lm, state, batch, data.learning_rate, trainer)
        return state

    return whole(jax.lax.fori_loop(begin, end, step, state), lm.base)


def fit(
    lm: LM,
    fitting: Fitting,
    data: FitData,
    micro_batch: int | None = None,
    advance: Callable[[Fitting], object] = lambda fitting: None,
) -> Adapter:
    """The adapter fine-tuned on all rows of `data` from where `fitting` is, bit for bit the same wherever that is."""
    return fit_to(lm, fitting, data, len(data.rows), micro_batch, advance).state.adapter


def fit_to(
    lm: LM,
    fitting: Fitting,
    data: FitData,
    steps: int,
    micro_batch: int | None,
    advance: Callable[[Fitting], object],
) -> Fitting:
    """The fit after so many steps of `data`, from where `fitting` is.

    PIECE steps are one program, after which `advance` is told how far it has come; waits for the device.
    """
    while fitting.steps < steps:
        end = min(fitting.steps + PIECE, steps)
        state = fit_steps(lm, fitting.state, data, np.int32(fitting.steps), np.int32(end), micro_batch)
        fitting = Fitting(end, jax.block_until_ready(state))
        advance(fitting)
    return fitting


def flip_labels(pairs: Sequence[Pair], share: float, g: np.random.Generator) -> list[Pair]:
    """The pairs with the labels of a share of them, at random, turned round: annotators err."""
    flipped = []
    for pair, draw in zip(pairs, g.random(len(pairs)), strict=True):
        flipped.append(pair._replace(harmful=not pair.harmful) if draw < share else pair)
    return flipped


def quality(
    scores: np.ndarray, harmful: Sequence[bool | None] | np.ndarray, threshold: float
) -> dict[str, float] | None:
    """Accuracy, precision, recall and their harmonic mean in percent, unsafe being positive; 0 where undefined.

    What has no label (None), or no score (NaN) and so no verdict, is left out; None where nothing is left.
    """
    labelled = np.array([label is not None for label in harmful], bool)
    known = labelled & ~np.isnan(scores)
    verdict = scores[known] >= threshold
    truth = np.array([bool(label) for label in harmful], bool)[known]
    if not len(truth):
        return None
    hits = float(np.sum(verdict & truth))
    precision = hits / max(verdict.sum(), 1)
    recall = hits / max(truth.sum(), 1)
    hmean = 2 * precision * recall / max(precision + recall, 1e-9)
    accuracy = float(np.mean(verdict == truth))
    named = {"accuracy": accuracy, "precision": precision, "recall": recall, "hmean": hmean}
    return {name: 100.0 * float(value) for name, value in named.items()}
