"""Drift from the base on benign prompts: mean KL(base || policy) of a token of the base's own greedy answers.

Helpfulness without a judge: a policy that answers benign prompts as the base does has 0, as a fresh adapter has.
"""

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any

import jax
import numpy as np

from fedjax_rai.config.schema import EvalConfig
from fedjax_rai.data.examples import Examples, bucket, encode_questions, take
from fedjax_rai.data.mix import is_synthetic
from fedjax_rai.data.prompts import read_prompts
from fedjax_rai.evals.answering import items_of
from fedjax_rai.evals.evaluation import (
    BaseAnswers,
    Bench,
    Column,
    EvalSet,
    Evaluation,
    Item,
    Measured,
    ScoredIn,
    Sources,
    TokensRow,
    WithoutAnswers,
)
from fedjax_rai.evals.judge import Exchange
from fedjax_rai.evals.means import NATS, Total, mean_rate
from fedjax_rai.evals.open_ended import Subject, nothing
from fedjax_rai.evals.tasks import tiny_tasks
from fedjax_rai.text.compare import same
from fedjax_rai.text.prompts import question
from fedjax_rai.train.dispatch import read_late
from fedjax_rai.train.generate import Decoding, Sampling
from fedjax_rai.train.losses import split_answer_divergences
from fedjax_rai.train.queue import answer_all, read

_answer_divergences = jax.jit(split_answer_divergences)


def drift_items(sources: Sources) -> EvalSet:
    """`eval.drift_prompts` of the benign prompts of `eval.drift`; else the tiny world's tasks, or held-out questions.

    Of the data's own these are the questions that have an acceptable answer, each once. They are benign where the data
    are: SQuARe's are sensitive ones.
    """
    wanted = sources.eval.drift_prompts
    path = sources.eval.drift
    synthetic = path is None and is_synthetic(sources.data)
    if wanted == 0:
        return EvalSet([], synthetic)
    if path is not None:
        items = items_of(read_prompts(path, sources.data.language, "eval.drift"))
    elif synthetic:
        items = [Item(task.prompt) for task in tiny_tasks(sources)]
    else:
        items = _held_out_questions(sources)
    rest = items[wanted:] if path is not None else []
    return EvalSet(items[:wanted], synthetic, rest, len(rest), "eval.drift_prompts" if rest else "")


def _held_out_questions(sources: Sources) -> list[Item]:
    acceptable = [pair.query for pair in sources.held_out if pair.harmful is False and not pair.before]
    return [Item(query) for query in {same(query): query for query in acceptable}.values()]


def base_answers(subject: Subject, prompts: Sequence[str], max_new: int) -> BaseAnswers:
    """The greedy answers of a subject without an adapter, as the tokens that it decoded."""
    tokenizer = subject.tokenizer
    asked = encode_questions(tokenizer, [question(prompt) for prompt in prompts], subject.max_length)
    for ids in asked:
        tokenizer.check_ids(ids, subject.lm.model.config.vocab_size, "model.path")
    keys = jax.random.split(jax.random.key(0), len(asked))  # of no use to the likeliest token
    ends = np.array(tokenizer.end_ids, np.int32)
    decoding = Decoding(Sampling(np.float32(0)), ends, max_new)
    answers: list[list[int]] = [[] for _ in asked]
    rows = min(subject.batch_size, len(asked))
    for finished in read_late(answer_all(subject.lm, None, asked, keys, decoding, rows)):
        numbers, found = read(finished)
        for place, number in enumerate(numbers):
            answers[number] = found.tokens[place][found.valid[place]].tolist()
    texts = [tokenizer.decode([token for token in ids if token not in ends]).strip() for ids in answers]
    return BaseAnswers(texts, answered_examples(asked, answers, tokenizer.pad_id))


def answered_examples(asked: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int) -> Examples:
    """Prompts with their answers, whose tokens are the loss mask; right-padded to a bucket."""
    length = bucket(max(len(ids) + len(answer) for ids, answer in zip(asked, answers, strict=True)))
    tokens: Any = np.full((len(asked), length), pad_id, np.int32)
    loss_mask: Any = np.zeros(tokens.shape, bool)
    segments: Any = np.zeros(tokens.shape, np.int32)
    for row, (ids, answer) in enumerate(zip(asked, answers, strict=True)):
        end = len(ids) + len(answer)
        tokens[row, :end] = [*ids, *answer]
        loss_mask[row, len(ids) : end] = True
        segments[row, :end] = 1
    return Examples(tokens, loss_mask, segments)


def divergences(subject: Subject, examples: Examples, advance: Callable[[], object] = nothing) -> list[Total]:
    """Of each example KL(base || subject) in nats, summed over the tokens of its answer, and how many these are.

    `advance` is called once a batch.
    """
    count = len(examples.tokens)
    size = min(subject.batch_size, count)

    def dispatched() -> Iterator[tuple[int, Any]]:
        for begin in range(0, count, size):
            rows = np.arange(begin, min(begin + size, count))
            filled: Any = np.resize(rows, size)  # the last batch filled up with copies
            yield len(rows), _answer_divergences(subject.lm, subject.adapter, take(examples, filled))

    found = []
    for rows, (totals, tokens) in read_late(dispatched()):
        pairs = zip(np.asarray(totals)[:rows].tolist(), np.asarray(tokens)[:rows].tolist(), strict=True)
        found += [Total(*pair) for pair in pairs]
        advance()
    return found


class Drifting(WithoutAnswers):
    """The base's own answers are read by base and policy, and their next tokens' distributions compared."""

    def measure(self, name: str, given: EvalSet, bench: Bench) -> Measured:
        answers = bench.base_answers()
        totals = bench.divergences(answers)
        rate = mean_rate(totals, NATS, "base")
        rows = []
        for prompt, answer, total in zip(given.prompts, answers.texts, totals, strict=True):
            rows.append(TokensRow.of(name, prompt, answer, total))
        empty = sum(not text for text in answers.texts)
        return Measured({name: rate and rate._replace(answers=len(rows), empty=empty)}, rows)

    def batches(self, given: EvalSet, config: EvalConfig, scored_in: ScoredIn | None) -> int:
        return ceil(len(given.items) / config.batch_size)

    def asked(self, given: EvalSet) -> Sequence[str]:
        return given.prompts

    def read(self, given: EvalSet) -> Sequence[Exchange]:
        return []


DRIFT = Evaluation(
    name="drift",
    load=drift_items,
    columns=(Column("drift", "drift", main=False, higher_is_better=False),),
    way=Drifting(),
    keys=("drift", "drift_prompts"),
)
