"""HarmBench (arXiv 2402.04249): harmless answers to its textual behaviours, by semantic category.

Copyright behaviours are left out: whether one succeeds is told by hashes of the texts, and by no judge of harm.
"""

from fedjax_rai.data.prompts import Prompt, read_prompts, source_of
from fedjax_rai.data.turns import is_absent
from fedjax_rai.evals.evaluation import EvalSet, Evaluation, Item, Sources
from fedjax_rai.evals.harm import harm_columns, harm_way, spread

CONTEXT, FUNCTIONAL, SEMANTIC = "ContextString", "FunctionalCategory", "SemanticCategory"
COPYRIGHT = "copyright"


def harmbench_items(sources: Sources) -> EvalSet:
    """`eval.prompts` behaviours of `eval.harmbench`, spread over the file; a context comes before its behaviour."""
    path = sources.eval.harmbench
    if path is None:
        return EvalSet([], synthetic=False)
    named = source_of(path).columns.get("category", SEMANTIC)
    judged = []
    copyrighted = []
    for prompt in read_prompts(path, sources.data.language, "eval.harmbench"):
        is_copyright = str(prompt.row.get(FUNCTIONAL)).strip().casefold() == COPYRIGHT
        part = copyrighted if is_copyright else judged
        part.append(_item(prompt, named))
    asked, others = spread(judged, sources.eval.prompts)
    limit = "eval.prompts" if others else f"{FUNCTIONAL} = {COPYRIGHT}"
    return EvalSet(asked, False, [*others, *copyrighted], len(others) + len(copyrighted), limit)


def _item(prompt: Prompt, named: str) -> Item:
    """A behaviour as HarmBench requests it directly."""
    context = prompt.row.get(CONTEXT)
    text = prompt.query if is_absent(context) or not str(context).strip() else f"{context}\n\n---\n\n{prompt.query}"
    category = prompt.row.get(named)
    return Item(text, others=prompt.others, category="" if is_absent(category) else str(category).strip())


HARMBENCH = Evaluation(
    name="harmbench",
    load=harmbench_items,
    columns=harm_columns("harmbench", "HarmBench harmless"),
    way=harm_way("harmbench"),
    keys=("harmbench", "prompts"),
)
