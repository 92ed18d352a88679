"""The guard: (query, response) -> p(unsafe), read off the first token of its answer, as Llama Guard's is.

The guard is an adapter on some base, or a released model; it is sent to the clients and runs there.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from os.path import commonprefix
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_rai.aliases import Adapter, Array, Bool, Float, Int
from fedjax_rai.data.examples import Examples, encode_chats, encode_questions, length_batches, take
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.mesh import mesh_of, split_rows, ways, whole
from fedjax_rai.model.decoder import LM, forward, unembed
from fedjax_rai.safety.hardening import normalised
from fedjax_rai.text.prompts import ASSISTANT, SAFE, UNSAFE, Turn, answered, chat, guard_question, prompt
from fedjax_rai.text.tokenizer import Tokenizer
from fedjax_rai.train.dispatch import read_late
from fedjax_rai.train.step import Trainer, TrainState, start, update

# Words of Llama Guard's chat template, which is itself the request for a verdict on the conversation put into it. Other
# guards have such categories too (Qwen3Guard), and answer in another form.
CATEGORIES = "UNSAFE CONTENT CATEGORIES"
LLAMA_GUARD = re.compile(r"first\s+line\s+must\s+read\W+safe\W+or\W+unsafe\b", re.IGNORECASE)
PIECE = 25
"""Steps of a fit after which it is told how far it has come."""
MODEL = "model"  # in `guard.scorer`: the guard is a model, not a function
QUERY, RESPONSE = "zqxj", "jxqz"  # texts that no template holds
TRIED = ("Who are you?", "I do not know.")  # what a function is tried on where there are no pairs


class GuardForm(NamedTuple):
    """How a guard is asked, and where its verdict stands."""

    conversation: Callable[[str, str], list[Turn]]  # (query, response) -> the turns that its verdict follows
    lead_ids: list[int]  # what the guard writes before the verdict: nothing, white space, an empty thought
    verdict_ids: tuple[int, int]  # the next token of (safe, unsafe)


def guard_form(tokenizer: Tokenizer) -> GuardForm:
    """Llama Guard's where the tokenizer's chat template is that, else our own request as a user's turn.

    Lead and verdict are read off the tokens that a whole conversation with either verdict has: what they share behind
    the request, and the first in which they differ. Raises InputError for a guard's template that asks for its verdict
    in another form, and for one that leaves out query or response.
    """
    if LLAMA_GUARD.search(tokenizer.template):
        conversation = answered
        opening = prompt(tokenizer, conversation(QUERY, RESPONSE))
        # Llama 3 puts a blank line behind a turn's header; Llama Guard 3's template leaves it for the model to say
        lead = "\n\n" if opening.endswith("<|end_header_id|>") else ""
    elif CATEGORIES in tokenizer.template:
        raise InputError(
            f"tokenizer {tokenizer.name}: its chat template is a guard's whose verdict is no first line of `{SAFE}` or "
            f"`{UNSAFE}`; must be Llama Guard (1 to 3), or a chat model, which is asked in our own form"
        )
    else:
        conversation = guard_question
        turns = conversation(QUERY, RESPONSE)
        opening = prompt(tokenizer, turns)
        answers = [chat(tokenizer, [*turns, Turn(ASSISTANT, verdict)])[-1].text for verdict in (SAFE, UNSAFE)]
        lead = commonprefix(answers)
    for name, text in (("query", QUERY), ("response", RESPONSE)):
        if text not in opening:
            raise InputError(f"tokenizer {tokenizer.name}: its chat template leaves out the {name} to be judged")
    safe = tokenizer.encode_after(opening, lead + SAFE)
    unsafe = tokenizer.encode_after(opening, lead + UNSAFE)
    shared = len(commonprefix([safe, unsafe]))
    if shared == min(len(safe), len(unsafe)):
        raise InputError(f"tokenizer {tokenizer.name}: `{SAFE}` begins `{UNSAFE}` in its tokens: no guard can use it")
    return GuardForm(conversation, safe[:shared], (safe[shared], unsafe[shared]))


def request(tokenizer: Tokenizer, conversation: Callable[[str, str], list[Turn]]) -> str:
    """The words of a request for a verdict, two texts that no template holds standing for the pair's."""
    return prompt(tokenizer, conversation(QUERY, RESPONSE))


class Scorer(NamedTuple):
    """A guard that is a function of the user's own: pairs of (query, response) -> p(unsafe) of each, NaN for no score.

    It must be pure: the same pairs in another order, or some of them alone, get the same scores.
    """

    score: Callable[[Sequence[tuple[str, str]]], Any]
    name: str  # in `guard.scorer`
    normalise: bool = False  # it reads the normal form of texts (`safety.hardening`)


class Guard(NamedTuple):
    """What scoring needs. `adapter` None: the base as released. A prompt too long for `max_length` keeps its end."""

    lm: LM
    adapter: Adapter | None
    tokenizer: Tokenizer
    max_length: int
    batch_size: int
    key: str = "model.path"  # of the config, which names the model
    normalise: bool = False  # it reads the normal form of texts (`safety.hardening`)


def released_guard(lm: LM, tokenizer: Tokenizer, max_length: int, batch_size: int) -> Guard:
    """A model as it was released; its own request, which may be long, comes on top of the pair's `max_length`."""
    (request,) = encode_questions(tokenizer, [guard_form(tokenizer).conversation("", "")], sys.maxsize)
    return Guard(lm, None, tokenizer, len(request) + max_length, batch_size, "guard.path")


@jax.jit
def first_token_score(
    lm: LM,
    adapter: Adapter | None,
    tokens: Int[Array, "b l"],
    valid: Bool[Array, "b l"],
    verdict_ids: Int[Array, "2"],
) -> Float[Array, "b"]:
    """p(unsafe) / (p(safe) + p(unsafe)) of the token after each left-padded prompt; rows split over the devices."""
    tokens, valid = split_rows((tokens, valid), lm.base)
    logits = unembed(lm, forward(lm, adapter, tokens, valid)[:, -1])
    return jax.nn.softmax(logits[:, verdict_ids], axis=-1)[:, 1]


def score(
    guard: Guard | Scorer, pairs: Sequence[tuple[str, str]], advance: Callable[[], object] = lambda: None
) -> np.ndarray:
    """float32[n]: p(unsafe) of each (query, response), in order; NaN where there is none.

    A function of the user's own may give none; a model gives none where its logits are no numbers. `advance` is called
    once a batch of a model's `batch_size`. Raises InputError for a model that gives none for a whole first batch.
    """
    if guard.normalise:
        pairs = normalised(pairs)
    if isinstance(guard, Scorer):
        return _scored(guard, pairs)
    form = guard_form(guard.tokenizer)
    conversations = [form.conversation(query, response) for query, response in pairs]
    room = guard.max_length - len(form.lead_ids)
    prompts = [ids + form.lead_ids for ids in encode_questions(guard.tokenizer, conversations, room)]
    for ids in (*prompts, form.verdict_ids):
        guard.tokenizer.check_ids(ids, guard.lm.model.config.vocab_size, guard.key)
    verdict_ids = np.array(form.verdict_ids)

    def dispatched() -> Iterator[tuple[np.ndarray, Array]]:
        for rows, batch in length_batches(prompts, guard.batch_size, guard.tokenizer.pad_id):
            yield rows, first_token_score(guard.lm, guard.adapter, batch.tokens, batch.valid, verdict_ids)

    scores = np.zeros(len(prompts), np.float32)
    done = 0
    for rows, batch_scores in read_late(dispatched()):
        scores[rows] = np.asarray(batch_scores)[: len(rows)]
        if not done and np.all(np.isnan(scores[rows])):
            raise InputError(_no_score(guard))
        done += len(rows)
        advance()
    return scores


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


def training_examples(tokenizer: Tokenizer, pairs: Sequence[Pair], max_length: int) -> tuple[Examples, np.ndarray]:
    """Labelled pairs in the guard's form (S-LG), the verdict trained on; and which were cut, at their beginning."""
    return encode_chats(tokenizer, training_chats(pairs), max_length, keep_end=True)


def training_chats(pairs: Sequence[Pair]) -> list[list[Turn]]:
    """Labelled pairs as conversations in which the guard gives its verdict."""
    chats = []
    for pair in pairs:
        verdict = UNSAFE if pair.harmful else SAFE
        chats.append([*guard_question(pair.query, pair.response), Turn(ASSISTANT, verdict)])
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
    """The adapter fine-tuned on all rows of `data` from where `fitting` is, bit for bit the same wherever that is.

    PIECE steps are one program, after which `advance` is told how far it has come; waits for the device.
    """
    while fitting.steps < len(data.rows):
        end = min(fitting.steps + PIECE, len(data.rows))
        state = fit_steps(lm, fitting.state, data, np.int32(fitting.steps), np.int32(end), micro_batch)
        fitting = Fitting(end, jax.block_until_ready(state))
        advance(fitting)
    return fitting.state.adapter


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
