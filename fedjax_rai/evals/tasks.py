"""Tasks with one right answer each: helpfulness by exact match."""

from functools import partial

from fedjax_rai.data import tiny_world
from fedjax_rai.data.mix import is_synthetic
from fedjax_rai.data.prompts import read_tasks
from fedjax_rai.evals.answering import Answering, greedy, judge_exact
from fedjax_rai.evals.evaluation import Column, EvalSet, Evaluation, Item, Sources

UTILITY = 300  # tasks of the tiny world


def tiny_tasks(sources: Sources) -> list[Item]:
    """The tiny world's tasks, none of which its pre-training or replay holds."""
    tasks = tiny_world.utility(UTILITY, sources.data.split, sources.seed)
    return [Item(task.query, task.answer) for task in tasks]


def utility_items(sources: Sources) -> EvalSet:
    """Those of `eval.utility`; else the tiny world's tasks, which other data do not bring."""
    path = sources.eval.utility
    if path is None and is_synthetic(sources.data):
        return EvalSet(tiny_tasks(sources), synthetic=True)
    tasks = [] if path is None else read_tasks(path, sources.data.language, "eval.utility")
    return EvalSet([Item(task.query, task.answer, task.others) for task in tasks], synthetic=False)


TASKS = Evaluation(
    name="utility",
    load=utility_items,
    columns=(Column("utility", "utility"),),
    way=Answering(greedy, partial(judge_exact, "utility"), reads_cut_off=True),
    keys=("utility",),
)
