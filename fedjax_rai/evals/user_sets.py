"""Sets of the user's own (`eval.sets`): each is an evaluation, whose columns bear its name."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from fedjax_rai.data.prompts import Given, read_choices, read_prompts, read_tasks
from fedjax_rai.data.sources import Language
from fedjax_rai.errors import InputError
from fedjax_rai.evals.answering import Answering, as_configured, greedy, items_of, judge_exact, judge_refusals
from fedjax_rai.evals.choice import COMPARING, choice_columns
from fedjax_rai.evals.evaluation import Column, EvalSet, Evaluation, Item, Sources, Way
from fedjax_rai.evals.harm import harm_columns, harm_way
from fedjax_rai.evals.strongreject import with_category


class Kind(NamedTuple):
    """What a set of the user's own holds, and so what is measured."""

    load: Callable[[Given, Language, str], EvalSet]
    """(source, language, the key that names it) -> its items."""
    columns: Callable[[str], tuple[Column, ...]]
    """The set's name -> its columns."""
    way: Callable[[str], Way]
    """The set's name -> how it is measured."""


def _harmful(source: Given, language: Language, key: str) -> EvalSet:
    items = [with_category(prompt) for prompt in read_prompts(source, language, key)]
    return EvalSet(items, synthetic=False)


def _benign(source: Given, language: Language, key: str) -> EvalSet:
    return EvalSet(items_of(read_prompts(source, language, key)), synthetic=False)


def _tasks(source: Given, language: Language, key: str) -> EvalSet:
    tasks = read_tasks(source, language, key)
    return EvalSet([Item(task.query, task.answer, task.others) for task in tasks], synthetic=False)


def _choices(source: Given, language: Language, key: str) -> EvalSet:
    return EvalSet(read_choices(source, key), synthetic=False)


KINDS = {
    "harm": Kind(_harmful, lambda name: harm_columns(name, f"{name} harmless"), harm_way),
    "benign": Kind(
        _benign,
        lambda name: (Column(name, f"{name} refusals", higher_is_better=False),),
        lambda name: Answering(as_configured, partial(judge_refusals, name)),
    ),
    "task": Kind(
        _tasks,
        lambda name: (Column(name, f"{name} exact"),),
        lambda name: Answering(greedy, partial(judge_exact, name), reads_cut_off=True),
    ),
    "choice": Kind(_choices, lambda name: choice_columns(name, f"{name} choice"), lambda name: COMPARING),
}
"""By `eval.sets[...].kind`."""


IN_RATES = ("_by_", "_per_token_")
"""What stands in the name of a rate behind that of its set."""


def user_evaluation(name: str, kind: str) -> Evaluation:
    """The evaluation of a set of the user's own; its items are those of the entry of that name."""
    made = KINDS[kind]
    return Evaluation(name, partial(_items, name), made.columns(name), made.way(name), keys=("sets",))


def _items(name: str, sources: Sources) -> EvalSet:
    for i, entry in enumerate(sources.eval.sets):
        if entry.set == name:
            found = KINDS[entry.kind].load(entry.source, sources.data.language, f"eval.sets[{i}]")
            return found._replace(kind=entry.kind)
    return EvalSet([], synthetic=False)


def check_names(names: Sequence[str], taken: Mapping[str, Evaluation]) -> None:
    """Raises InputError for the name of a set that would be mistaken for another's, or for a rate of another's.

    A rate of a set begins with its name and `_`: so that no name may begin with another one so.
    """
    rates = {column.rate for evaluation in taken.values() for column in evaluation.columns}
    for i, name in enumerate(names):
        if name in taken or name in rates or any(rate.startswith(f"{name}_") for rate in rates):
            raise InputError(f"eval.sets[{i}].set = {name!r}: is the name of a shipped evaluation; must be another")
        if name in names[:i]:
            raise InputError(f"eval.sets[{i}].set = {name!r}: stands twice; must stand once")
        if any(word in f"{name}_" for word in IN_RATES):
            raise InputError(f"eval.sets[{i}].set = {name!r}: must hold neither _by_ nor _per_token, as rates do")
        for other in [*taken, *rates, *names]:
            if name.startswith(f"{other}_"):
                raise InputError(
                    f"eval.sets[{i}].set = {name!r}: could be a rate of {other}, by how it begins; must begin otherwise"
                )
