"""Evaluations as values, and the table of them: what is asked, how it is answered, who judges, what tables show.

All that goes over evaluations goes over `EVALUATIONS`: measuring, tables and pictures, the memory plan, the questions
that nobody may train on, what arms share. To add one, add a value here, and to the `eval` section of the config the
keys that it reads; one that is marked as a file there is checked, and its digest noted.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fedjax_rai.config.schema import TINY, EvalConfig
from fedjax_rai.data import tiny_world
from fedjax_rai.data.mix import is_synthetic
from fedjax_rai.data.prompts import (
    LABEL,
    Given,
    Prompt,
    read_choices,
    read_harmless,
    read_prompts,
    read_tasks,
    source_of,
)
from fedjax_rai.data.sources import Choice, Pair
from fedjax_rai.errors import InputError
from fedjax_rai.evals.agreement import BY
from fedjax_rai.evals.choice import both_answers, prefers_good
from fedjax_rai.evals.judge import (
    JUDGES,
    PHRASES,
    Context,
    Exchange,
    GuardScores,
    Judge,
    Judgement,
    judgement,
    primary,
    reported,
)
from fedjax_rai.evals.open_ended import Responses, Sampled, by_prompt
from fedjax_rai.evals.rate import Rate, Verdict
from fedjax_rai.evals.refusals import refuses
from fedjax_rai.text.compare import same

CHOICES, UTILITY, OVER_REFUSAL = 200, 300, 60
LEFT_OUT = "left_out"  # of `eval.cut_off`
Answers: TypeAlias = Sequence[Sequence[str]]
"""The answers to each prompt."""


class Item(NamedTuple):
    """What is asked of a model."""

    prompt: str
    right: str | None = None
    """The one right answer, of a task that has one."""
    others: tuple[str, ...] = ()
    """The same prompt in other languages, where its row has it."""


class EvalSet(NamedTuple):
    """The items of an evaluation; none where the data cannot provide them, and then it is not measured."""

    items: Sequence[Item] | Sequence[Choice]
    synthetic: bool
    """The items are the tiny world's."""
    rest: Sequence[Item] = ()
    """What the same file holds besides, which is not asked, and which nobody trains on either."""
    left_out: int = 0
    """Items that there are besides."""
    limit: str = ""
    """What leaves them out: a key, or a number of items."""

    @property
    def prompts(self) -> list[str]:
        return [item.query if isinstance(item, Choice) else item.prompt for item in self.items]

    @property
    def asked(self) -> list[str]:
        """The prompts, the same in other languages, and the rest: what nobody may train on."""
        others = [text for item in (*self.items, *self.rest) for text in item.others]
        return [*self.prompts, *(item.prompt for item in self.rest), *others]


class Sources(NamedTuple):
    """What an evaluation may make its items of."""

    eval: Any
    """The keys of the config's section `eval` that the evaluations name as theirs, and no others."""
    data: Any
    """The keys of the config's section `data` that say which texts there are."""
    seed: int
    held_out: Sequence[Pair]
    """Pairs about questions that nothing else uses; none in the tiny world, which makes its items itself."""


class Column(NamedTuple):
    """How tables and pictures show a rate."""

    rate: str
    """Its name in `eval.json`."""
    title: str
    """What it is called; tables put the judge in brackets behind the title of the primary rate."""
    main: bool = True
    """In pictures, and among the first columns where there is room for few."""
    higher_is_better: bool = True


class Bench(NamedTuple):
    """What measuring takes, as values and functions: the model under evaluation, the guard, the primary judge."""

    config: EvalConfig
    answers_to: Callable[[str, Sequence[str], Sampled], Responses]
    """(name of the evaluation, which names its random key; prompts; how they are answered) -> answers to each."""
    likelihoods: Callable[[Sequence[Exchange]], tuple[np.ndarray, np.ndarray]]
    """Exchanges -> (float[n]: log p of each answer; bool[n]: nothing was cut off)."""
    guard: GuardScores | None
    tiny_model: bool
    """The model is the tiny world's."""
    judge: str | Judge
    """The primary judge of harm: `auto`, a name of `JUDGES`, or the user's own."""
    judges: Sequence[Judge] | None = None
    """Those that are reported beside it; None: those of ours that can."""


class Judged(NamedTuple):
    """The verdicts behind one rate."""

    judge: str
    verdicts: list[list[Verdict]]
    """By prompt and answer; True counts towards the rate."""
    scores: list[list[float | None]] | None = None
    """p(unsafe) by prompt and answer, of a judge that gives one."""


Judging: TypeAlias = Callable[[EvalSet, Answers, Bench], dict[str, Judged | None]]
"""(items, answers, bench) -> by rate, its verdicts; None where its judge cannot judge here."""


class Evaluation(NamedTuple):
    """An evaluation: where its items are from, how they are answered, and who judges."""

    name: str
    """What its rows in `answers.jsonl`, and its random key, are called."""
    load: Callable[[Sources], EvalSet]
    columns: tuple[Column, ...]
    keys: tuple[str, ...] = ()
    """The keys of the config's section `eval` that `load` reads."""
    sampling: Callable[[EvalConfig], Sampled] | None = None
    """How its prompts are answered; None: two answers are given, and their likelihoods compared."""
    judging: Judging | None = None
    """The judges of sampled answers."""
    judges_harm: bool = False
    """Its answers are judged by the primary judge, and by the guard, where there is one."""
    reads_cut_off: bool = False
    """An answer that was cut off is judged in any case, as one that is not right."""


class AnswerRow(NamedTuple):
    """A row of `answers.jsonl`: a prompt, the model's answers, and what every judge made of them."""

    set: str
    """The evaluation: `advbench`, `utility`, `over_refusal`, ..."""
    prompt: str
    """What was asked."""
    answers: list[str]
    """What the model answered, sample by sample, without the end-of-turn token and white space at both ends."""
    cut_off: list[bool]
    """Of each answer, whether it had no end within `eval.max_new_tokens`."""
    verdicts: dict[str, list[Verdict]]
    """By rate of `eval.json`, one for each answer: true counts towards the rate, false does not. Null: no verdict.
    Absent: the rate was not measured.
    """
    scores: dict[str, list[float | None]]
    """By rate, p(unsafe) of each answer where the judge gives one, as the guard does. Null: it gave none."""
    right: str | None
    """The right answer. Null: the prompt is no task that has one."""
    non_finite: list[bool] = []
    """Of each answer, whether it is none because the logits were no numbers. Empty: nobody looked."""


class ChoiceRow(NamedTuple):
    """A row of `answers.jsonl`: a prompt with a good and a bad answer, whose likelihoods are compared."""

    set: str
    """The evaluation: `hhh`."""
    prompt: str
    """What is answered."""
    good: str
    """The answer that should be likelier."""
    bad: str
    """The other one."""
    category: str
    """The rate `hhh_<category>` is of the rows of one category."""
    good_logp: float | None
    """log p of the good answer, natural, summed over its tokens. Null: not a number."""
    bad_logp: float | None
    """log p of the bad answer, natural, summed over its tokens. Null: not a number."""
    whole: bool
    """Neither was cut off at `data.max_length` tokens."""
    verdicts: dict[str, list[Verdict]]
    """By rate of `eval.json`, a list of one: is the good answer likelier? Null: one was cut off or has no log p."""


class Measured(NamedTuple):
    """What an evaluation found."""

    rates: dict[str, Rate | None]
    """By name; None: not measured."""
    rows: Sequence[AnswerRow] | Sequence[ChoiceRow]


def measure(evaluation: Evaluation, given: EvalSet, bench: Bench) -> Measured:
    """Rates, and every answer with its verdicts, from which the rates can be counted."""
    if not given.items:
        return Measured({column.rate: None for column in evaluation.columns}, [])
    if evaluation.sampling is None or evaluation.judging is None:
        return _compare(evaluation.name, given, bench)
    responses = bench.answers_to(evaluation.name, given.prompts, evaluation.sampling(bench.config))
    judged = evaluation.judging(given, responses.texts, bench)
    if bench.config.cut_off == LEFT_OUT and not evaluation.reads_cut_off:
        judged = {rate: of_rate and _of_ended(of_rate, responses.cut_off) for rate, of_rate in judged.items()}
    rates = {rate: _rate(of_rate, responses) for rate, of_rate in judged.items()}
    return Measured(rates, _answer_rows(evaluation.name, given, responses, judged))


def _of_ended(judged: Judged, cut_off: Sequence[Sequence[bool]]) -> Judged:
    """Without a verdict on what was cut off: how it would have gone on, nobody knows."""
    kept = []
    for verdicts, samples in zip(judged.verdicts, cut_off, strict=True):
        kept.append([None if cut else verdict for verdict, cut in zip(verdicts, samples, strict=True)])
    return judged._replace(verdicts=kept)


def _rate(judged: Judged | None, responses: Responses) -> Rate | None:
    """A judge's rate, and what the answers were that it is of."""
    rate = None if judged is None else Rate.of(judged.verdicts, judged.judge)
    if rate is None:
        return None
    texts = [text for samples in responses.texts for text in samples]
    empty = [text for text in texts if not text.strip()]
    cut_off = sum(sum(samples) for samples in responses.cut_off)
    non_finite = sum(sum(samples) for samples in responses.non_finite or ())
    return rate._replace(answers=len(texts), empty=len(empty), cut_off=cut_off, non_finite=non_finite)


def _answer_rows(
    name: str, given: EvalSet, responses: Responses, judged: Mapping[str, Judged | None]
) -> list[AnswerRow]:
    """A row for each item: what was answered, and what every judge that could judge made of that."""
    rows = []
    for i, item in enumerate(given.items):
        assert isinstance(item, Item)
        verdicts = {}
        scores = {}
        for rate, of_rate in judged.items():
            if of_rate is None:
                continue
            verdicts[rate] = of_rate.verdicts[i]
            if of_rate.scores is not None:
                scores[rate] = of_rate.scores[i]
        texts = list(responses.texts[i])
        cut_off = list(responses.cut_off[i])
        lost = list(responses.non_finite[i]) if responses.non_finite else []
        rows.append(AnswerRow(name, item.prompt, texts, cut_off, verdicts, scores, item.right, lost))
    return rows


def _compare(name: str, given: EvalSet, bench: Bench) -> Measured:
    """The share of choices whose good answer is likelier, of all (`name`) and by category."""
    choices = [item for item in given.items if isinstance(item, Choice)]
    logps, whole = bench.likelihoods(both_answers(choices))
    rows = []
    for i, choice in enumerate(choices):
        good, bad = logps[2 * i], logps[2 * i + 1]
        both_whole = bool(whole[2 * i] and whole[2 * i + 1])
        verdict = [prefers_good(good, bad, both_whole)]
        verdicts = {name: verdict, f"{name}_{choice.category}": verdict}
        texts = (choice.query, choice.good, choice.bad, choice.category)
        rows.append(ChoiceRow(name, *texts, _number(good), _number(bad), both_whole, verdicts))
    categories = sorted({choice.category for choice in choices})
    names = [name, *(f"{name}_{category}" for category in categories)]
    rates = {}
    for name_of_rate in names:
        compared = [row for row in rows if name_of_rate in row.verdicts]
        cut_off = sum(not row.whole for row in compared)
        rate = Rate.of([row.verdicts[name_of_rate] for row in compared], "likelihood")
        rates[name_of_rate] = rate and rate._replace(answers=len(compared), cut_off=cut_off)
    return Measured(rates, rows)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# --- judging ----------------------------------------------------------------------------------------------------


def judge_harm(rate: str, given: EvalSet, answers: Answers, bench: Bench) -> dict[str, Judged | None]:
    """The share that is not unsafe: `<rate>` by the primary judge, `<rate>_by_<judge>` by every one that is reported.

    Raises InputError where the primary judge cannot judge here.
    """
    context = Context(bench.tiny_model and given.synthetic, bench.guard)
    chosen = primary(bench.judge, context)
    exchanges = []
    for prompt, prompt_answers in zip(given.prompts, answers, strict=True):
        exchanges += [(prompt, answer) for answer in prompt_answers]
    sizes = [len(prompt_answers) for prompt_answers in answers]
    found: dict[str, Judged | None] = {}
    for judge in reported(chosen, bench.judges):
        by_judge = f"{rate}{BY}{judge.name}"
        found[by_judge] = None
        if judge.applies(context):
            found[by_judge] = _harmless(judge.name, judgement(judge, exchanges, context), sizes)
    return {rate: found[f"{rate}{BY}{chosen.name}"]} | found


def _harmless(judge: str, made: Judgement, sizes: Sequence[int]) -> Judged:
    harmless = [None if unsafe is None else not unsafe for unsafe in made.unsafe]
    scores = None if made.scores is None else by_prompt(made.scores, sizes)
    return Judged(judge, by_prompt(harmless, sizes), scores)


def judge_exact(rate: str, given: EvalSet, answers: Answers, bench: Bench) -> dict[str, Judged | None]:
    """The share that is the right answer to the letter."""
    right = [item.right for item in given.items if isinstance(item, Item)]
    verdicts: list[list[Verdict]] = []
    for prompt_answers, right_answer in zip(answers, right, strict=True):
        verdicts.append([answer == right_answer for answer in prompt_answers])
    return {rate: Judged("exact_match", verdicts)}


def judge_refusals(rate: str, given: EvalSet, answers: Answers, bench: Bench) -> dict[str, Judged | None]:
    """The share that holds a refusal phrase; an answer without a word is neither refused nor given."""
    verdicts = [[_refused(answer) for answer in prompt_answers] for prompt_answers in answers]
    return {rate: Judged(PHRASES.name, verdicts)}


def _refused(answer: str) -> Verdict:
    return refuses(answer) if answer.strip() else None


# --- items ------------------------------------------------------------------------------------------------------


def advbench_items(sources: Sources) -> EvalSet:
    """`eval.prompts` requests of `eval.advbench`."""
    wanted = sources.eval.prompts
    path = sources.eval.advbench
    if path == TINY:
        goals = tiny_world.advbench_like(wanted, sources.data.split, sources.seed)
        return EvalSet([Item(goal) for goal in goals], synthetic=True)
    given = _asked(read_prompts(path, sources.data.language, "eval.advbench"))
    rest = given.items[wanted:]
    return given._replace(items=given.items[:wanted], rest=rest, left_out=len(rest), limit="eval.prompts")


def choice_items(sources: Sources) -> EvalSet:
    """Those of `eval.hhh`; else the tiny world's, or held-out questions with answers of both kinds."""
    path = sources.eval.hhh
    if _is_tiny(path, sources):
        return EvalSet(tiny_world.hhh_like(CHOICES, sources.data.split, sources.seed), synthetic=True)
    if path is not None:
        return EvalSet(read_choices(path, "eval.hhh"), synthetic=False)
    choices = both_ways(sources.held_out)
    left_out = max(len(choices) - CHOICES, 0)
    return EvalSet(choices[:CHOICES], synthetic=False, left_out=left_out, limit=f"at most {CHOICES} choices")


def utility_items(sources: Sources) -> EvalSet:
    """Those of `eval.utility`; else the tiny world's tasks, which other data do not bring."""
    path = sources.eval.utility
    if _is_tiny(path, sources):
        tasks = tiny_world.utility(UTILITY, sources.data.split, sources.seed)
        return EvalSet([Item(task.query, task.answer) for task in tasks], synthetic=True)
    tasks = [] if path is None else read_tasks(path, sources.data.language, "eval.utility")
    return EvalSet([Item(task.query, task.answer, task.others) for task in tasks], synthetic=False)


def over_refusal_items(sources: Sources) -> EvalSet:
    """Those of `eval.over_refusal`; else the tiny world's harmless prompts, half of which look harmful."""
    path = sources.eval.over_refusal
    if _is_tiny(path, sources):
        prompts = tiny_world.over_refusal(OVER_REFUSAL, sources.data.split, sources.seed)
        return EvalSet([Item(prompt) for prompt in prompts], synthetic=True)
    language = sources.data.language
    harmless, unsafe = ([], []) if path is None else read_harmless(path, language, "eval.over_refusal")
    rest = _asked(unsafe).items
    label = LABEL if path is None else source_of(path).columns.get(LABEL, LABEL)
    return _asked(harmless)._replace(rest=rest, left_out=len(rest), limit=f"{label} = unsafe")


def _is_tiny(path: Given | None, sources: Sources) -> bool:
    """Whether items are the tiny world's: with its data, where no others are named."""
    return path is None and is_synthetic(sources.data)


def _asked(prompts: Sequence[Prompt]) -> EvalSet:
    return EvalSet([Item(prompt.query, others=prompt.others) for prompt in prompts], synthetic=False)


def both_ways(pairs: Sequence[Pair]) -> list[Choice]:
    """A choice for each question that has an acceptable and an unacceptable answer: the first of each."""
    answers: dict[str, dict[bool, Pair]] = {}
    for pair in pairs:
        if pair.harmful is not None and not pair.before:  # a choice is a question alone, with two labelled answers
            answers.setdefault(same(pair.query), {}).setdefault(pair.harmful, pair)
    choices = []
    for by_label in answers.values():
        if len(by_label) == 2:
            acceptable = by_label[False]
            unacceptable = by_label[True]
            choices.append(Choice(acceptable.query, acceptable.response, unacceptable.response, unacceptable.category))
    return choices


# --- the table --------------------------------------------------------------------------------------------------


def as_configured(config: EvalConfig) -> Sampled:
    """`eval.samples` answers at `eval.temperature`."""
    return Sampled(config.samples, config.temperature, config.max_new_tokens)


def greedy(config: EvalConfig) -> Sampled:
    """The likeliest answer, once."""
    return Sampled(1, 0.0, config.max_new_tokens)


def harm_columns() -> tuple[Column, ...]:
    """The harmless rate by the primary judge, then by each that is reported unasked."""
    found = [Column("harmless", "harmless")]
    for judge in JUDGES.values():
        if judge.beside:
            found.append(Column(f"harmless_by_{judge.name}", f"harmless ({judge.title})", main=False))
    return tuple(found)


ADVBENCH = Evaluation(
    name="advbench",
    load=advbench_items,
    columns=harm_columns(),
    keys=("advbench", "prompts"),
    sampling=as_configured,
    judging=partial(judge_harm, "harmless"),
    judges_harm=True,
)
HHH = Evaluation("hhh", load=choice_items, columns=(Column("hhh", "HHH"),), keys=("hhh",))
TASKS = Evaluation(
    name="utility",
    load=utility_items,
    columns=(Column("utility", "utility"),),
    keys=("utility",),
    sampling=greedy,
    judging=partial(judge_exact, "utility"),
    reads_cut_off=True,
)
BENIGN = Evaluation(
    name="over_refusal",
    load=over_refusal_items,
    columns=(Column("over_refusal", "over-refusal", higher_is_better=False),),
    keys=("over_refusal",),
    sampling=as_configured,
    judging=partial(judge_refusals, "over_refusal"),
)
EVALUATIONS = {evaluation.name: evaluation for evaluation in (ADVBENCH, HHH, TASKS, BENIGN)}
ITEM_KEYS = sorted({f"eval.{key}" for evaluation in EVALUATIONS.values() for key in evaluation.keys})
"""The config's keys that items are made of, besides seed and data: arms that agree in these share their items."""


def columns() -> list[Column]:
    """The columns of all evaluations, in the order of tables."""
    return [column for evaluation in EVALUATIONS.values() for column in evaluation.columns]


def load_sets(sources: Sources) -> dict[str, EvalSet]:
    """The items of every evaluation, by its name."""
    return {name: evaluation.load(sources) for name, evaluation in EVALUATIONS.items()}


def batches(evaluation: Evaluation, given: EvalSet, config: EvalConfig, guarded: bool) -> int:
    """How many batches of `eval.batch_size` rows measuring takes: answers, what the guard scores, what is read."""
    if evaluation.sampling is None:
        return ceil(2 * len(given.items) / config.batch_size)
    answers = len(given.items) * evaluation.sampling(config).samples
    scored = 2 if evaluation.judges_harm and guarded else 1
    return scored * ceil(answers / config.batch_size)


def evaluation_texts(sets: Mapping[str, EvalSet]) -> tuple[list[str], list[Exchange]]:
    """(every prompt that is answered; every exchange whose likelihood is taken): what memory must hold."""
    asked: list[str] = []
    compared: list[Exchange] = []
    for name, given in sets.items():
        if EVALUATIONS[name].sampling is None:
            compared += both_answers([item for item in given.items if isinstance(item, Choice)])
        else:
            asked += given.prompts
    return asked, compared


INVENTED = "I do not know."
"""The answer that a judge of the user's own is tried on."""


class JudgesOfHarm(NamedTuple):
    """Who judges: as of `Bench`."""

    primary: str | Judge
    beside: Sequence[Judge] | None = None


def check_judges(
    judges: JudgesOfHarm, sets: Mapping[str, EvalSet], tiny_model: bool, guard: GuardScores | None
) -> None:
    """Raises InputError if the primary judge cannot judge one of the sets, or another that is named none of them.

    A judge of the user's own is tried on the first prompt of each, and an invented answer; no other scores anything.
    """
    cannot = {judge.name: judge for judge in judges.beside or ()}
    judged = False
    for name, given in sets.items():
        if not EVALUATIONS[name].judges_harm or not given.items:
            continue
        judged = True
        context = Context(tiny_model and given.synthetic, guard)
        chosen = primary(judges.primary, context)
        for judge in reported(chosen, judges.beside):
            if judge.applies(context):
                cannot.pop(judge.name, None)
            if judge.name not in JUDGES and not judge.asked_once:
                judgement(judge, [(given.prompts[0], INVENTED)], context)
    for judge in cannot.values() if judged else ():
        raise InputError(f"eval.judges: {judge.name} needs {judge.needs}; must be left out here")


def invented_exchanges(sets: Mapping[str, EvalSet], config: EvalConfig) -> list[Exchange]:
    """As many exchanges as will be judged on harm, at most, with answers that are as long as they may be."""
    longest = "word " * config.max_new_tokens
    found = []
    for name, given in sets.items():
        evaluation = EVALUATIONS[name]
        if evaluation.judges_harm and evaluation.sampling is not None:
            samples = evaluation.sampling(config).samples
            found += [(prompt, longest) for prompt in given.prompts for _ in range(samples)]
    return found


def judge_names(
    judges: JudgesOfHarm, sets: Mapping[str, EvalSet], tiny_model: bool, guard: GuardScores | None
) -> list[str]:
    """The names of the judges that can judge some set, the primary ones first and called so."""
    first: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, given in sets.items():
        if not EVALUATIONS[name].judges_harm or not given.items:
            continue
        context = Context(tiny_model and given.synthetic, guard)
        chosen = primary(judges.primary, context)
        first[chosen.name] = f"{chosen.name} (primary)"
        for judge in reported(chosen, judges.beside):
            if judge.applies(context):
                others[judge.name] = judge.name
    return [*(first | {name: text for name, text in others.items() if name not in first}).values()]
