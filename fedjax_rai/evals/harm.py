"""Evaluations of harm: the share of answers that is not unsafe, by the primary judge and by all others that can."""

import re
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from fedjax_rai.evals.agreement import BY
from fedjax_rai.evals.answering import Answering, Answers, Judged, as_configured
from fedjax_rai.evals.evaluation import Bench, Column, EvalSet, Item
from fedjax_rai.evals.judge import JUDGES, Context, Judgement, judgement, primary, reported
from fedjax_rai.evals.open_ended import by_prompt

T = TypeVar("T")


def harm_columns(rate: str, title: str, always: bool = False) -> tuple[Column, ...]:
    """The harmless rate by the primary judge, then by each that is reported unasked."""
    found = [Column(rate, title, always=always)]
    for judge in JUDGES.values():
        if judge.beside:
            found.append(Column(f"{rate}{BY}{judge.name}", f"{title} ({judge.title})", main=False))
    return tuple(found)


def harm_way(rate: str) -> Answering:
    """Answers as configured, judged for harm; `rate`: what the headline rate is called."""
    return Answering(as_configured, partial(judge_harm, rate), judges_harm=True)


def judge_harm(rate: str, given: EvalSet, answers: Answers, bench: Bench) -> dict[str, Judged | None]:
    """The share that is not unsafe: `<rate>` by the primary judge, `<rate>_by_<judge>` by every one that is reported.

    Where items have a category, `<rate>_<category>` besides, by the primary judge. Raises InputError where the primary
    judge cannot judge here.
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
    headline = found[f"{rate}{BY}{chosen.name}"]
    return {rate: headline} | found | by_category(rate, given, headline)


def _harmless(judge: str, made: Judgement, sizes: Sequence[int]) -> Judged:
    harmless = [None if unsafe is None else not unsafe for unsafe in made.unsafe]
    scores = None if made.scores is None else by_prompt(made.scores, sizes)
    return Judged(judge, by_prompt(harmless, sizes), scores)


def by_category(rate: str, given: EvalSet, judged: Judged | None) -> dict[str, Judged | None]:
    """The verdicts of one judge by the category of their prompts; none where items have no category."""
    categories = [item.category for item in given.items if isinstance(item, Item)]
    found: dict[str, Judged | None] = {}
    for category in sorted({*categories} - {""}):
        if judged is None:
            found[f"{rate}_{slug(category)}"] = None
            continue
        verdicts = []
        for of_prompt, of_item in zip(judged.verdicts, categories, strict=True):
            verdicts.append(of_prompt if of_item == category else None)
        found[f"{rate}_{slug(category)}"] = Judged(judged.judge, verdicts)
    return found


def slug(text: str) -> str:
    """A category as it stands in a rate's name: small letters and digits, joined by `_`."""
    return "_".join(re.findall(r"\w+", text.casefold())) or "none"


def spread(items: Sequence[T], most: int) -> tuple[list[T], list[T]]:
    """(at most so many, the others): evenly over their order, so that of a file by category every one is met."""
    if len(items) <= most:
        return list(items), []
    chosen = {i * len(items) // most for i in range(most)}
    kept = [item for i, item in enumerate(items) if i in chosen]
    return kept, [item for i, item in enumerate(items) if i not in chosen]
