"""Evaluations whose prompts the model answers: how often, and what judges make of the answers."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import NamedTuple, TypeAlias

from fedjax_rai.config.schema import EvalConfig
from fedjax_rai.data.prompts import Prompt
from fedjax_rai.evals.evaluation import AnswerRow, Bench, EvalSet, Item, Measured, ScoredIn
from fedjax_rai.evals.judge import PHRASES, Exchange
from fedjax_rai.evals.open_ended import Responses, Sampled
from fedjax_rai.evals.rate import Rate, Verdict
from fedjax_rai.evals.refusals import refusal

LEFT_OUT = "left_out"  # of `eval.cut_off`
Answers: TypeAlias = Sequence[Sequence[str]]
"""The answers to each prompt."""


class Judged(NamedTuple):
    """The verdicts behind one rate."""

    judge: str
    verdicts: Sequence[list[Verdict] | None]
    """By prompt and answer; True counts towards the rate. None: the rate is not of this prompt."""
    scores: Sequence[list[float | None]] | None = None
    """p(unsafe) by prompt and answer, of a judge that gives one."""


Judging: TypeAlias = Callable[[EvalSet, Answers, Bench], Mapping[str, Judged | None]]
"""(items, answers, bench) -> by rate, its verdicts; None where its judge cannot judge here."""


class Answering(NamedTuple):
    """The model answers each prompt, and judges count its answers."""

    sampling: Callable[[EvalConfig], Sampled]
    """How its prompts are answered."""
    judging: Judging
    judges_harm: bool = False
    reads_cut_off: bool = False
    """An answer that was cut off is judged in any case, as one that is not right."""

    @property
    def generates(self) -> bool:
        return True

    def measure(self, name: str, given: EvalSet, bench: Bench) -> Measured:
        responses = bench.answers_to(name, given.prompts, self.sampling(bench.config))
        judged = self.judging(given, responses.texts, bench)
        if bench.config.cut_off == LEFT_OUT and not self.reads_cut_off:
            judged = {rate: made and of_ended(made, responses.cut_off) for rate, made in judged.items()}
        rates = {rate: rate_of(verdicts, responses) for rate, verdicts in judged.items()}
        return Measured(rates, answer_rows(name, given, responses, judged))

    def batches(self, given: EvalSet, config: EvalConfig, scored_in: ScoredIn | None) -> int:
        answers = len(given.items) * self.sampling(config).samples
        scored = scored_in(answers) if self.judges_harm and scored_in is not None else 0
        return ceil(answers / config.batch_size) + scored

    def asked(self, given: EvalSet) -> Sequence[str]:
        return given.prompts

    def read(self, given: EvalSet) -> Sequence[Exchange]:
        return []


def as_configured(config: EvalConfig) -> Sampled:
    """`eval.samples` answers at `eval.temperature`."""
    return Sampled(config.samples, config.temperature, config.max_new_tokens)


def greedy(config: EvalConfig) -> Sampled:
    """The likeliest answer, once."""
    return Sampled(1, 0.0, config.max_new_tokens)


def of_ended(judged: Judged, cut_off: Sequence[Sequence[bool]]) -> Judged:
    """Without a verdict on what was cut off: how it would have gone on, nobody knows."""
    kept = []
    for verdicts, samples in zip(judged.verdicts, cut_off, strict=True):
        if verdicts is not None:
            verdicts = [None if cut else verdict for verdict, cut in zip(verdicts, samples, strict=True)]
        kept.append(verdicts)
    return judged._replace(verdicts=kept)


def rate_of(judged: Judged | None, responses: Responses) -> Rate | None:
    """A judge's rate, and what the answers were that it is of."""
    if judged is None:
        return None
    verdicts = []
    texts = []
    cut_off = 0
    non_finite = 0
    for i, of_prompt in enumerate(judged.verdicts):
        if of_prompt is not None:
            verdicts.append(of_prompt)
            texts += responses.texts[i]
            cut_off += sum(responses.cut_off[i])
            non_finite += sum(responses.non_finite[i]) if responses.non_finite else 0
    rate = Rate.of(verdicts, judged.judge)
    empty = [text for text in texts if not text.strip()]
    counts = {"answers": len(texts), "empty": len(empty), "cut_off": cut_off, "non_finite": non_finite}
    return rate and rate._replace(**counts)


def answer_rows(
    name: str, given: EvalSet, responses: Responses, judged: Mapping[str, Judged | None]
) -> list[AnswerRow]:
    """A row for each item: what was answered, and what every judge that could judge made of that."""
    rows = []
    for i, item in enumerate(given.items):
        assert isinstance(item, Item)
        verdicts = {}
        scores = {}
        for rate, of_rate in judged.items():
            of_prompt = of_rate and of_rate.verdicts[i]
            if of_rate is None or of_prompt is None:
                continue
            verdicts[rate] = of_prompt
            if of_rate.scores is not None:
                scores[rate] = of_rate.scores[i]
        texts = list(responses.texts[i])
        cut_off = list(responses.cut_off[i])
        lost = list(responses.non_finite[i]) if responses.non_finite else []
        rows.append(AnswerRow(name, item.prompt, texts, cut_off, verdicts, scores, item.right, lost))
    return rows


def items_of(prompts: Sequence[Prompt]) -> list[Item]:
    """What rows ask, without their categories."""
    return [Item(prompt.query, others=prompt.others) for prompt in prompts]


def judge_exact(rate: str, given: EvalSet, answers: Answers, bench: Bench) -> dict[str, Judged | None]:
    """The share that is the right answer to the letter."""
    right = [item.right for item in given.items if isinstance(item, Item)]
    verdicts: list[list[Verdict]] = []
    for prompt_answers, right_answer in zip(answers, right, strict=True):
        verdicts.append([answer == right_answer for answer in prompt_answers])
    return {rate: Judged("exact_match", verdicts)}


def judge_refusals(rate: str, given: EvalSet, answers: Answers, bench: Bench) -> dict[str, Judged | None]:
    """The share that holds a refusal phrase; an answer that cannot be read is neither refused nor given."""
    verdicts = [[refusal(answer) for answer in prompt_answers] for prompt_answers in answers]
    return {rate: Judged(PHRASES.name, verdicts)}
