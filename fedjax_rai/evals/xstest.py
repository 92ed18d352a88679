"""XSTest (arXiv 2308.01263): refusals of harmless prompts, and of the unsafe ones beside them for contrast."""

from functools import partial

from fedjax_rai.data import tiny_world
from fedjax_rai.data.mix import is_synthetic
from fedjax_rai.data.prompts import read_harmless
from fedjax_rai.evals.answering import Answering, as_configured, items_of, judge_refusals
from fedjax_rai.evals.evaluation import Column, EvalSet, Evaluation, Item, Sources

OVER_REFUSAL = 60  # prompts of the tiny world


def over_refusal_items(sources: Sources) -> EvalSet:
    """The safe prompts of `eval.over_refusal`; else the tiny world's, half of which look harmful."""
    path = sources.eval.over_refusal
    if path is None and is_synthetic(sources.data):
        prompts = tiny_world.over_refusal(OVER_REFUSAL, sources.data.split, sources.seed)
        return EvalSet([Item(prompt) for prompt in prompts], synthetic=True)
    harmless = [] if path is None else read_harmless(path, sources.data.language, "eval.over_refusal")[0]
    return EvalSet(items_of(harmless), synthetic=False)


def contrast_items(sources: Sources) -> EvalSet:
    """The unsafe prompts of `eval.over_refusal`; the tiny world has none."""
    path = sources.eval.over_refusal
    unsafe = [] if path is None else read_harmless(path, sources.data.language, "eval.over_refusal")[1]
    return EvalSet(items_of(unsafe), synthetic=False)


BENIGN = Evaluation(
    name="over_refusal",
    load=over_refusal_items,
    columns=(Column("over_refusal", "over-refusal", higher_is_better=False),),
    way=Answering(as_configured, partial(judge_refusals, "over_refusal")),
    keys=("over_refusal",),
)
CONTRAST = Evaluation(
    name="contrast_refusal",
    load=contrast_items,
    columns=(Column("contrast_refusal", "contrast refusal"),),
    way=Answering(as_configured, partial(judge_refusals, "contrast_refusal")),
    keys=("over_refusal",),
)
