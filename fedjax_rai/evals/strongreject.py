"""StrongREJECT (arXiv 2402.10260): harmless answers to its forbidden prompts, by category."""

from fedjax_rai.data.columns import ETC
from fedjax_rai.data.prompts import Prompt, read_prompts
from fedjax_rai.evals.evaluation import EvalSet, Evaluation, Item, Sources
from fedjax_rai.evals.harm import harm_columns, harm_way, spread


def strongreject_items(sources: Sources) -> EvalSet:
    """`eval.prompts` forbidden prompts of `eval.strongreject`, spread over the file, which goes by category."""
    path = sources.eval.strongreject
    if path is None:
        return EvalSet([], synthetic=False)
    prompts = read_prompts(path, sources.data.language, "eval.strongreject")
    asked, others = spread([with_category(prompt) for prompt in prompts], sources.eval.prompts)
    return EvalSet(asked, False, others, len(others), "eval.prompts")


def with_category(prompt: Prompt) -> Item:
    """What a row asks, and its category."""
    return Item(prompt.query, others=prompt.others, category="" if prompt.category == ETC else prompt.category)


STRONGREJECT = Evaluation(
    name="strongreject",
    load=strongreject_items,
    columns=harm_columns("strongreject", "StrongREJECT harmless"),
    way=harm_way("strongreject"),
    keys=("strongreject", "prompts"),
)
