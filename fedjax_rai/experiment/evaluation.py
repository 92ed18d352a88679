"""The evaluation of one adapter, by every value of `evals.suite`, and of what constitutional AI made of answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.aliases import Adapter
from fedjax_rai.config.schema import TINY
from fedjax_rai.data.mix import is_synthetic
from fedjax_rai.evals import open_ended
from fedjax_rai.evals.answering import LEFT_OUT, Answering
from fedjax_rai.evals.choice import likelihoods, read_once
from fedjax_rai.evals.drift import divergences
from fedjax_rai.evals.evaluation import AnswerRow, Bench, ConversationRow, Evaluation, Measured, ScoredIn, measure
from fedjax_rai.evals.judge import GUARD, PHRASES, RULE, Context, Judge, judgement
from fedjax_rai.evals.open_ended import Request, Responses, Sampled, Subject, nothing
from fedjax_rai.evals.panel import JudgesOfHarm, judged_sets
from fedjax_rai.evals.rate import Rate, Verdict
from fedjax_rai.evals.suite import evaluations, kinds_of
from fedjax_rai.experiment.judging import asked_before, judges_of, rater_of
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.safety import guard as guards

JUDGED = 512  # conversations that `critique` looks at


def evaluate(setting: Setting, adapter: Adapter | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(rates by name, as in `eval.json`; rows of `answers.jsonl`, from which every rate can be counted).

    A rate is a `Rate` as a mapping, or None: not measured. `harmless` is by the primary judge, whose name
    stands in it. What has no verdict is in no rate, counted beside it, and named on standard error. Raises InputError
    for a primary judge that cannot judge here.
    """
    sets, config = setting.texts.materials.evaluations, setting.config.eval
    ahead = ask_ahead(setting, adapter)
    scored_in = _scored_in(setting)
    known = evaluations(kinds_of(sets))
    steps = [evaluation.way.batches(sets[name], config, scored_in) for name, evaluation in known.items()]
    done = sum(known[name].way.batches(sets[name], config, None) for name in ahead.answers)
    with terminal.progress("evaluating", sum(steps), done, unit="batch") as advance:
        bench = ahead.bench(make_bench(setting, adapter, advance))
        measured = [measure(evaluation, sets[name], bench) for name, evaluation in known.items()]
    for evaluation, part in zip(known.values(), measured, strict=True):
        lost = [*_spoilt_answers(part, config.max_new_tokens), *_missing_verdicts(evaluation, part)]
        if lost:
            terminal.say(f"{evaluation.columns[0].title}: {'; '.join(lost)}")
    rates = {name: _as_mapping(rate) for part in measured for name, rate in part.rates.items()}
    return rates, [row._asdict() for part in measured for row in part.rows]


def _scored_in(setting: Setting) -> ScoredIn | None:
    """Of the guard, where it is a model that judges."""
    if not setting.judged_by_guard or setting.guarding.is_function:
        return None
    return partial(guards.batches, setting.guarding.form, batch_size=setting.config.eval.batch_size)


class Ahead(NamedTuple):
    """What was done before the evaluations are measured: dear judges have been asked, once about all answers."""

    answers: dict[str, Responses]
    """By evaluation; none where no judge is dear."""
    judges: JudgesOfHarm
    """The judges, who know by now what they think."""

    def bench(self, bench: Bench) -> Bench:
        """A bench with these answers and judges in place of its own."""

        def answers_to(name: str, prompts: Sequence[Request], sampled: Sampled) -> Responses:
            return self.answers[name] if name in self.answers else bench.answers_to(name, prompts, sampled)

        return bench._replace(answers_to=answers_to, judge=self.judges.primary, judges=self.judges.beside)


def ask_ahead(setting: Setting, adapter: Adapter) -> Ahead:
    """Where some judge is dear, the answers that are judged on harm, and what such judges make of them.

    They are asked about each pair of prompt and answer once, and not about what they may not judge: an answer without a
    word, or one that was cut off, where `eval.cut_off` leaves it out.
    """
    judges = judges_of(setting.given_to_judges)
    dear = {name: judge for name, judge in judges.named.items() if judge.asked_once}
    if not dear:
        return Ahead({}, judges)
    sets, config = setting.texts.materials.evaluations, setting.config.eval
    asked = judged_sets(sets)
    steps = [evaluation.way.batches(given, config, None) for evaluation, given in asked.values()]
    answers = {}
    with terminal.progress("answering", sum(steps), unit="batch") as advance:
        bench = make_bench(setting, adapter, advance)
        for name, (evaluation, given) in asked.items():
            assert isinstance(evaluation.way, Answering)
            answers[name] = bench.answers_to(name, given.prompts, evaluation.way.sampling(config))
    exchanges = []
    for name, responses in answers.items():
        exchanges += judged_exchanges(sets[name].prompts, responses, config.cut_off)
    context = Context(templated=False, guard=None)
    told = {name: asked_before(judge, exchanges, context) for name, judge in dear.items()}
    chosen = judges.primary if isinstance(judges.primary, str) else told.get(judges.primary.name, judges.primary)
    beside = None if judges.beside is None else [told.get(judge.name, judge) for judge in judges.beside]
    return Ahead(answers, JudgesOfHarm(chosen, beside))


def judged_exchanges(prompts: Sequence[str], responses: Responses, cut_off: str) -> list[tuple[str, str]]:
    """The pairs of prompt and answer that have a verdict, if a judge gives one."""
    found = []
    for prompt, texts, cuts in zip(prompts, responses.texts, responses.cut_off, strict=True):
        for text, cut in zip(texts, cuts, strict=True):
            if text.strip() and not (cut and cut_off == LEFT_OUT):
                found.append((prompt, text))
    return found


def _as_mapping(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else rate._asdict()


def _missing_verdicts(evaluation: Evaluation, measured: Measured) -> Iterator[str]:
    """Of how many answers rates have no verdict, by their titles; those that lack as many stand together."""
    titles = {column.rate: column.title for column in evaluation.columns}
    alike: dict[tuple[int, int], list[str]] = {}
    for name in measured.rates:
        verdicts = [verdict for row in measured.rows for verdict in row.found(name)]
        title = titles.get(name, name.replace("_", " "))
        alike.setdefault((verdicts.count(None), len(verdicts)), []).append(title)
    for (missing, count), names in alike.items():
        if missing:
            yield f"{missing} of {count} have no verdict, and are kept out of {', '.join(names)}"


def _spoilt_answers(measured: Measured, max_new: int) -> Iterator[str]:
    """How many answers of an evaluation were cut off or are empty."""
    cut_off = [cut for row in measured.rows if isinstance(row, AnswerRow | ConversationRow) for cut in row.cut_off]
    texts = [text for row in measured.rows if isinstance(row, AnswerRow | ConversationRow) for text in row.answers]
    empty = sum(not text.strip() for text in texts)
    if any(cut_off):
        yield f"{sum(cut_off)} of {len(texts)} answers were cut off at eval.max_new_tokens = {max_new}"
    if empty:
        yield f"{empty} of {len(texts)} answers are empty"


def make_bench(setting: Setting, adapter: Adapter | None, advance: Callable[[], object] = nothing) -> Bench:
    """What measuring an adapter takes; `advance` is called once a batch."""
    judges = judges_of(setting.given_to_judges)
    return Bench(
        config=setting.config.eval,
        answers_to=partial(answers_to, setting, adapter, advance=advance),
        likelihoods=read_once(partial(likelihoods, subject(setting, adapter), advance=advance)),
        guard=setting.guard_scores(advance),
        tiny_model=setting.config.model.path == TINY,
        judge=judges.primary,
        judges=judges.beside,
        base_answers=lambda: setting.baseline.answers,
        divergences=lambda answers: divergences(subject(setting, adapter), answers.examples, advance),
        marks=rater_of(setting.given_to_judges),
    )


def subject(setting: Setting, adapter: Adapter | None) -> Subject:
    """The setting's model with an adapter, or without one, to be evaluated."""
    config = setting.config
    return Subject(setting.lm, adapter, setting.models.tokenizer, config.data.max_length, config.eval.batch_size)


def answers_to(
    setting: Setting,
    adapter: Adapter | None,
    name: str,
    prompts: Sequence[Request],
    sampled: Sampled,
    advance: Callable[[], object] = nothing,
) -> Responses:
    """Answers to each prompt; `name`, of the evaluation or the probe, is that of their random key."""
    key = rng.stream(setting.root, f"eval {name}")
    return open_ended.answers_to(subject(setting, adapter), prompts, key, sampled, advance)


class Critique(NamedTuple):
    """What revision made of the responses of the CAI phases, over at most 512 conversations spread over the run."""

    judge: str
    """Who calls an answer unsafe: `rule` where prompts are the tiny world's, else `guard` where it is among the judges
    (`eval.by_guard`), else `refusal_phrases`.
    """
    unsafe: int
    """Responses that the judge calls unsafe."""
    made_safe: float | None
    """Percent of the unsafe ones whose last revision is safe and whole. Null: there was no unsafe response."""
    safe: int
    """Responses that the judge calls safe."""
    left_alone: float | None
    """Percent of the safe ones whose last revision is the same text, and whole. Null: there was no safe response."""
    made_unsafe: float | None
    """Percent of the safe ones whose last revision is unsafe. Null: there was no safe response."""
    without_verdict: int = 0
    """Conversations that are in no other of these numbers: the judge had no verdict on response or last revision."""


def critique(setting: Setting, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `Critique` of rows of `revisions.jsonl`, as a mapping; of many rows `JUDGED`, evenly over the run."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), JUDGED)).astype(int))
    judge, context = _judge_of_revisions(setting)
    looked_at = [rows[i] for i in chosen]
    before = judgement(judge, [(row["prompt"], row["response"]) for row in looked_at], context).unsafe
    after = judgement(judge, [(row["prompt"], row["revisions"][-1]) for row in looked_at], context).unsafe
    return count_critique(judge.name, looked_at, before, after)._asdict()


def count_critique(
    judge: str, rows: Sequence[Mapping[str, Any]], before: Sequence[Verdict], after: Sequence[Verdict]
) -> Critique:
    """Shares of rows of `revisions.jsonl`, given whether response and last revision are unsafe."""
    judged = [i for i in range(len(rows)) if before[i] is not None and after[i] is not None]
    unsafe = [i for i in judged if before[i]]
    safe = [i for i in judged if not before[i]]
    mended = [i for i in unsafe if not after[i] and rows[i]["whole"]]
    same = [i for i in safe if rows[i]["revisions"][-1] == rows[i]["response"] and rows[i]["whole"]]
    spoiled = [i for i in safe if after[i]]
    return Critique(
        judge=judge,
        unsafe=len(unsafe),
        made_safe=_percent(mended, unsafe),
        safe=len(safe),
        left_alone=_percent(same, safe),
        made_unsafe=_percent(spoiled, safe),
        without_verdict=len(rows) - len(judged),
    )


def _percent(part: Sequence[int], whole: Sequence[int]) -> float | None:
    return 100 * len(part) / len(whole) if whole else None


def _judge_of_revisions(setting: Setting) -> tuple[Judge, Context]:
    config = setting.config
    if config.model.path == TINY and is_synthetic(config.data) and config.cai.red_prompts is None:
        return RULE, Context(templated=True, guard=None)
    guard = setting.guard_scores()
    return (GUARD if guard else PHRASES), Context(templated=False, guard=guard)
