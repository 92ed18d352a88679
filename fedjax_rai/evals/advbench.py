"""AdvBench (arXiv 2307.15043): the share of answers to harmful requests that is harmless."""

from fedjax_rai.config.schema import TINY
from fedjax_rai.data import tiny_world
from fedjax_rai.data.prompts import read_prompts
from fedjax_rai.evals.answering import items_of
from fedjax_rai.evals.evaluation import EvalSet, Evaluation, Item, Sources
from fedjax_rai.evals.harm import harm_columns, harm_way


def advbench_items(sources: Sources) -> EvalSet:
    """The first `eval.prompts` requests of `eval.advbench`."""
    wanted = sources.eval.prompts
    path = sources.eval.advbench
    if path == TINY:
        goals = tiny_world.advbench_like(wanted, sources.data.split, sources.seed)
        return EvalSet([Item(goal) for goal in goals], synthetic=True)
    items = items_of(read_prompts(path, sources.data.language, "eval.advbench"))
    rest = items[wanted:]
    return EvalSet(items[:wanted], synthetic=False, rest=rest, left_out=len(rest), limit="eval.prompts")


ADVBENCH = Evaluation(
    name="advbench",
    load=advbench_items,
    columns=harm_columns("harmless", "harmless", always=True),
    way=harm_way("harmless"),
    keys=("advbench", "prompts"),
)
