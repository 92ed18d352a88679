"""The table of evaluations, each of which is a value in a file of its own.

All that goes over evaluations goes over `EVALUATIONS`: measuring, tables and pictures, the memory plan, the questions
that nobody may train on, what arms share. To add one, add its file and its row here, and to the `eval` section of the
config the keys that it reads; one that is marked as a file there is checked, and its digest noted.
"""

from collections.abc import Mapping

from fedjax_rai.evals.advbench import ADVBENCH
from fedjax_rai.evals.drift import DRIFT
from fedjax_rai.evals.evaluation import Column, EvalSet, Evaluation, Sources
from fedjax_rai.evals.harmbench import HARMBENCH
from fedjax_rai.evals.held_out import HELD_OUT_CHOICE, SQUARE_CHOICE, SYNTHETIC_CHOICE
from fedjax_rai.evals.hhh import HHH
from fedjax_rai.evals.judge import Exchange
from fedjax_rai.evals.mt_bench import MT_BENCH
from fedjax_rai.evals.open_ended import Request
from fedjax_rai.evals.perplexity import PERPLEXITY_OF_PAIRS
from fedjax_rai.evals.strongreject import STRONGREJECT
from fedjax_rai.evals.tasks import TASKS
from fedjax_rai.evals.user_sets import check_names, user_evaluation
from fedjax_rai.evals.xstest import BENIGN, CONTRAST

_ROWS = (
    ADVBENCH,
    HARMBENCH,
    STRONGREJECT,
    HHH,
    SQUARE_CHOICE,
    HELD_OUT_CHOICE,
    SYNTHETIC_CHOICE,
    TASKS,
    BENIGN,
    CONTRAST,
    DRIFT,
    PERPLEXITY_OF_PAIRS,
    MT_BENCH,
)
EVALUATIONS = {evaluation.name: evaluation for evaluation in _ROWS}
"""The shipped evaluations, in the order of tables."""
ITEM_KEYS = sorted({"eval.sets", *(f"eval.{key}" for evaluation in EVALUATIONS.values() for key in evaluation.keys)})
"""The config's keys that items are made of, besides seed and data: arms that agree in these share their items."""


def evaluations(kinds: Mapping[str, str]) -> dict[str, Evaluation]:
    """The shipped evaluations, and those of the user's own sets, of which `kinds` has the kind by name."""
    return EVALUATIONS | {name: user_evaluation(name, kind) for name, kind in kinds.items()}


def columns() -> list[Column]:
    """The columns of all shipped evaluations, in the order of tables."""
    return [column for evaluation in EVALUATIONS.values() for column in evaluation.columns]


def load_sets(sources: Sources) -> dict[str, EvalSet]:
    """The items of every evaluation, by its name. Raises InputError for a set that has the name of another."""
    check_names([entry.set for entry in sources.eval.sets], EVALUATIONS)
    kinds = {entry.set: entry.kind for entry in sources.eval.sets}
    return {name: evaluation.load(sources) for name, evaluation in evaluations(kinds).items()}


def kinds_of(sets: Mapping[str, EvalSet]) -> dict[str, str]:
    """The kinds of the sets of the user's own, by name."""
    return {name: given.kind for name, given in sets.items() if given.kind}


def evaluation_texts(sets: Mapping[str, EvalSet]) -> tuple[list[Request], list[Exchange]]:
    """(every prompt that is answered; every exchange whose likelihood is taken): what memory must hold."""
    asked: list[Request] = []
    compared: list[Exchange] = []
    known = evaluations(kinds_of(sets))
    for name, given in sets.items():
        asked += known[name].way.asked(given)
        compared += known[name].way.read(given)
    return asked, compared
