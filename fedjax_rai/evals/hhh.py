"""HHH alignment (arXiv 2112.00861): is the better answer likelier? By configuration: harmless, helpful, honest, other."""

from fedjax_rai.data.prompts import read_choices
from fedjax_rai.evals.choice import COMPARING, choice_columns
from fedjax_rai.evals.evaluation import Evaluation, EvalSet, Sources


def hhh_items(sources: Sources) -> EvalSet:
    """Those of `eval.hhh`, if it names any."""
    path = sources.eval.hhh
    return EvalSet([] if path is None else read_choices(path, "eval.hhh"), synthetic=False)


HHH = Evaluation(
    name="hhh",
    load=hhh_items,
    columns=choice_columns("hhh", "HHH"),
    way=COMPARING,
    keys=("hhh",),
)
