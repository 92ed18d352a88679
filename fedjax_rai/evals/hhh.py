"""HHH alignment (arXiv 2112.00861): is the better answer likelier? By its four configurations and over all rows."""

from collections.abc import Iterator
from pathlib import Path

from fedjax_rai.config.files import may_be_on_hub
from fedjax_rai.config.schema import PromptSource
from fedjax_rai.data.columns import ETC
from fedjax_rai.data.prompts import Given, read_choices, source_of
from fedjax_rai.evals.choice import COMPARING, choice_columns
from fedjax_rai.evals.evaluation import EvalSet, Evaluation, Sources

CONFIGURATIONS = ("harmless", "helpful", "honest", "other")


def hhh_items(sources: Sources) -> EvalSet:
    """Those of `eval.hhh`, if it names any; a row's category is its own, else its configuration."""
    given = sources.eval.hhh
    choices = []
    for configuration, part in parts(given) if given is not None else ():
        for choice in read_choices(part, "eval.hhh"):
            choices.append(choice._replace(category=configuration) if choice.category == ETC else choice)
    return EvalSet(choices, synthetic=False)


def parts(given: Given) -> Iterator[tuple[str, Given]]:
    """(configuration, where its rows are) of each that there is: of a folder that has a file or a folder for each, or
    of a data set on the hub, whose split is `test`. Anything else is one part, of the configuration that it names.
    """
    source = source_of(given)
    here = Path(source.path)
    if here.is_dir() and source.name is None:
        inside = {path.name.partition(".")[0]: path for path in sorted(here.iterdir())}
        found = [name for name in CONFIGURATIONS if name in inside]
        if found:
            for name in found:
                yield name, _part(given, path=str(inside[name]))
            return
    if may_be_on_hub(source.path) and source.name is None:
        for name in CONFIGURATIONS:
            yield name, _part(given, name=name, split="test" if isinstance(given, str) else source.split)
        return
    named = source.name or here.name.partition(".")[0]
    yield named if named in CONFIGURATIONS else ETC, given


def _part(given: Given, **changed: str) -> Given:
    """The same source with another path, configuration or split."""
    if isinstance(given, PromptSource):
        return given.model_copy(update=changed)
    if changed.keys() == {"path"}:
        return changed["path"]
    return PromptSource.model_validate({"path": str(given)} | changed)


HHH = Evaluation(
    name="hhh",
    load=hhh_items,
    columns=choice_columns("hhh", "HHH"),
    way=COMPARING,
    keys=("hhh",),
)
