"""Choices between an acceptable and an unacceptable answer to one question, made of the data's own held-out pairs."""

from collections.abc import Sequence

from fedjax_rai.data import tiny_world
from fedjax_rai.data.mix import is_synthetic
from fedjax_rai.data.sources import Choice, Pair
from fedjax_rai.evals.choice import COMPARING, choice_columns
from fedjax_rai.evals.evaluation import EvalSet, Evaluation, Sources
from fedjax_rai.text.compare import same

CHOICES = 200
AT_MOST = f"at most {CHOICES} choices"
"""What leaves out choices."""
SQUARE = frozenset({"square"})


def tiny_choices(sources: Sources) -> list[Choice]:
    """The tiny world's pairs of answers."""
    return tiny_world.hhh_like(CHOICES, sources.data.split, sources.seed)


def synthetic_items(sources: Sources) -> EvalSet:
    """The tiny world's choices; other data have none."""
    return EvalSet(tiny_choices(sources) if is_synthetic(sources.data) else [], synthetic=True)


def square_items(sources: Sources) -> EvalSet:
    """Held-out questions that SQuARe answers both ways; none where the pairs are of other sources, too."""
    return _held_out(sources) if sources.layouts == SQUARE else EvalSet([], synthetic=False)


def other_items(sources: Sources) -> EvalSet:
    """Held-out questions that the data answer both ways; none where all of them are SQuARe's."""
    return EvalSet([], synthetic=False) if sources.layouts == SQUARE else _held_out(sources)


def _held_out(sources: Sources) -> EvalSet:
    choices = both_ways(sources.held_out)
    left_out = max(len(choices) - CHOICES, 0)
    return EvalSet(choices[:CHOICES], synthetic=False, left_out=left_out, limit=AT_MOST)


def both_ways(pairs: Sequence[Pair]) -> list[Choice]:
    """A choice for each question that has an acceptable and an unacceptable answer: the first of each."""
    answers: dict[str, dict[bool, Pair]] = {}
    for pair in pairs:
        if pair.harmful is not None and not pair.before:  # a choice is a question alone, with two labelled answers
            answers.setdefault(same(pair.query), {}).setdefault(pair.harmful, pair)
    choices = []
    for by_label in answers.values():
        if len(by_label) == 2:
            acceptable = by_label[False]
            unacceptable = by_label[True]
            choices.append(Choice(acceptable.query, acceptable.response, unacceptable.response, unacceptable.category))
    return choices


SYNTHETIC_CHOICE = Evaluation(
    name="synthetic_choice",
    load=synthetic_items,
    columns=choice_columns("synthetic_choice", "synthetic choice"),
    way=COMPARING,
)
SQUARE_CHOICE = Evaluation(
    name="square_choice",
    load=square_items,
    columns=choice_columns("square_choice", "SQuARe choice"),
    way=COMPARING,
)
HELD_OUT_CHOICE = Evaluation(
    name="held_out_choice",
    load=other_items,
    columns=choice_columns("held_out_choice", "held-out choice"),
    way=COMPARING,
)
