"""Who judges harm in a run: the primary judge and those beside it; whether they can, and about how much."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedjax_rai.config.schema import EvalConfig
from fedjax_rai.errors import InputError
from fedjax_rai.evals.answering import Answering
from fedjax_rai.evals.evaluation import EvalSet, Evaluation
from fedjax_rai.evals.judge import JUDGES, Context, Exchange, GuardScores, Judge, judgement, primary, reported
from fedjax_rai.evals.suite import evaluations, kinds_of

INVENTED = "I do not know."
"""The answer that a judge of the user's own is tried on."""


class JudgesOfHarm(NamedTuple):
    """Who judges: as of `Bench`."""

    primary: str | Judge
    beside: Sequence[Judge] | None = None

    @property
    def named(self) -> dict[str, Judge]:
        """Those that are known by now, by name: all but a primary that is named by a word, and those beside unasked."""
        judges = [judge for judge in (self.primary, *(self.beside or ())) if isinstance(judge, Judge)]
        return {judge.name: judge for judge in judges}


class World(NamedTuple):
    """What judges may use, whatever is judged."""

    tiny_model: bool
    """The model is the tiny world's."""
    guard: GuardScores | None

    def context(self, given: EvalSet) -> Context:
        """What they may use of one set."""
        return Context(self.tiny_model and given.synthetic, self.guard)


def judged_sets(sets: Mapping[str, EvalSet]) -> dict[str, tuple[Evaluation, EvalSet]]:
    """The evaluations whose answers are judged on harm, with their items, by name; those without items are not."""
    known = evaluations(kinds_of(sets))
    return {name: (known[name], given) for name, given in sets.items() if known[name].judges_harm and given.items}


def check_judges(judges: JudgesOfHarm, sets: Mapping[str, EvalSet], world: World) -> None:
    """Raises InputError if the primary judge cannot judge one of the sets, or another that is named none of them.

    A judge of the user's own is tried on the first prompt of each, and an invented answer; no other scores anything.
    """
    judged = judged_sets(sets)
    cannot = {judge.name: judge for judge in judges.beside or ()}
    for _, given in judged.values():
        context = world.context(given)
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
    for evaluation, given in judged_sets(sets).values():
        assert isinstance(evaluation.way, Answering)
        samples = evaluation.way.sampling(config).samples
        found += [(prompt, longest) for prompt in given.prompts for _ in range(samples)]
    return found


def judge_names(judges: JudgesOfHarm, sets: Mapping[str, EvalSet], world: World) -> list[str]:
    """The names of the judges that can judge some set, the primary ones first and called so."""
    first: dict[str, str] = {}
    others: dict[str, str] = {}
    for _, given in judged_sets(sets).values():
        context = world.context(given)
        chosen = primary(judges.primary, context)
        first[chosen.name] = f"{chosen.name} (primary)"
        for judge in reported(chosen, judges.beside):
            if judge.applies(context):
                others[judge.name] = judge.name
    return [*(first | {name: text for name, text in others.items() if name not in first}).values()]
