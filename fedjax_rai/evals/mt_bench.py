"""MT-Bench (arXiv 2306.05685): two turns, each answered, and marked from 1 to 10 by a judge.

The first answer is put before the second question. Without a judge that marks there is no mean, and the conversations
are kept, to be marked later.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, nan
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai.config.names import attribute
from fedjax_rai.config.schema import EvalConfig
from fedjax_rai.data.columns import show
from fedjax_rai.data.prompts import TURNS, Prompt, read_prompts
from fedjax_rai.data.turns import is_absent, listed, written
from fedjax_rai.errors import InputError
from fedjax_rai.evals.answering import greedy
from fedjax_rai.evals.evaluation import (
    Bench,
    Column,
    Conversation,
    ConversationRow,
    EvalSet,
    Evaluation,
    Item,
    Marks,
    Measured,
    ScoredIn,
    Sources,
)
from fedjax_rai.evals.harm import slug
from fedjax_rai.evals.judge import Exchange
from fedjax_rai.evals.means import MARK, Total, mean_rate
from fedjax_rai.evals.open_ended import Request
from fedjax_rai.evals.rate import Rate
from fedjax_rai.text.prompts import ASSISTANT, USER, Turn

REFERENCE = "reference"
BY_CATEGORY = "by_category"
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""At which FastChat, the benchmark's own program, answers the questions of a category, by its lower-case name."""
OTHER_TEMPERATURE = 0.7
"""At which it answers those of any other."""


def mt_bench_items(sources: Sources) -> EvalSet:
    """All questions of `eval.mt_bench`: rows with `turns`, a list of two, and maybe `category` and `reference`."""
    path = sources.eval.mt_bench
    if path is None:
        return EvalSet([], synthetic=False)
    prompts = read_prompts(path, sources.data.language, "eval.mt_bench")
    return EvalSet([_item(prompt) for prompt in prompts], synthetic=False)


def _item(prompt: Prompt) -> Item:
    turns = _texts(prompt, TURNS)
    if len(turns) != 2 or not all(turns):
        wrong = f"column {TURNS!r} is {show(prompt.row.get(TURNS))}"
        raise InputError(f"{prompt.place}: {wrong}; must be two texts, neither empty, one for each turn")
    references = _texts(prompt, REFERENCE)
    return Item(turns[0], category=prompt.category, further=(turns[1],), references=tuple(references))


def _texts(prompt: Prompt, column: str) -> list[str]:
    """The texts of a column that holds a list of them, or such a list as text; none where it is absent."""
    value = listed(prompt.row.get(column))
    if is_absent(value):
        return []
    found = written(value) if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise InputError(f"{prompt.place}: column {column!r} is {show(value)}; must be a list of texts")
    return [text.strip() for text in found]


class TwoTurns:
    """Both questions are answered, the second behind the first answer; a judge marks each answer, if there is one."""

    @property
    def judges_harm(self) -> bool:
        return False

    @property
    def generates(self) -> bool:
        return True

    def measure(self, name: str, given: EvalSet, bench: Bench) -> Measured:
        items = [item for item in given.items if isinstance(item, Item)]
        temperatures = temperatures_of(items, bench.config)
        first = _answered(bench, name, [item.prompt for item in items], temperatures)
        conversations = [_behind(item, answer.text) for item, answer in zip(items, first, strict=True)]
        second = _answered(bench, f"{name} second turn", conversations, temperatures)
        held = []
        for item, *answers in zip(items, first, second, strict=True):
            texts = [answer.text for answer in answers]
            held.append(Conversation([item.prompt, *item.further], texts, list(item.references)))
        marks = bench.marks(held) if bench.marks else None
        rows = []
        for i, item in enumerate(items):
            cut_off = [first[i].cut_off, second[i].cut_off]
            of_item = None if marks is None else _marks_of(held[i], marks.values[i])
            texts = held[i]
            row = ConversationRow(name, texts.prompts, texts.answers, texts.references, item.category, cut_off, of_item)
            rows.append(row)
        rates = {} if marks is None else rates_of(name, rows, marks.judge)
        return Measured({column.rate: rates.get(column.rate) for column in MT_BENCH.columns} | rates, rows)

    def batches(self, given: EvalSet, config: EvalConfig, scored_in: ScoredIn | None) -> int:
        items = [item for item in given.items if isinstance(item, Item)]
        together = Counter(temperatures_of(items, config)).values()
        return 2 * sum(ceil(count / config.batch_size) for count in together)

    def asked(self, given: EvalSet) -> Sequence[Sequence[Turn]]:
        """The conversations up to the second question, with a word in the place of the first answer."""
        return [_behind(item, "-") for item in given.items if isinstance(item, Item)]

    def read(self, given: EvalSet) -> Sequence[Exchange]:
        return []


def temperatures_of(items: Sequence[Item], config: EvalConfig) -> list[float]:
    """At which each question's two turns are answered, by `eval.mt_bench_temperature`; 0: the likeliest answer."""
    if config.mt_bench_temperature == BY_CATEGORY:
        return [TEMPERATURES.get((item.category or "").lower(), OTHER_TEMPERATURE) for item in items]
    return [0.0] * len(items)


class _Answer(NamedTuple):
    text: str
    cut_off: bool


def _answered(bench: Bench, name: str, asked: Sequence[Request], temperatures: Sequence[float]) -> list[_Answer]:
    """The answer to each request; those of one temperature are answered together, by a random key of their own.

    A temperature is traced: another one compiles nothing.
    """
    found: dict[int, _Answer] = {}
    for temperature in sorted(set(temperatures)):
        places = [place for place, wanted in enumerate(temperatures) if wanted == temperature]
        key = f"{name} at {temperature:g}" if temperature else name
        sampled = greedy(bench.config)._replace(temperature=temperature)
        responses = bench.answers_to(key, [asked[place] for place in places], sampled)
        for place, (text,), (cut_off,) in zip(places, responses.texts, responses.cut_off, strict=True):
            found[place] = _Answer(text, cut_off)
    return [found[place] for place in range(len(asked))]


def _behind(item: Item, answer: str) -> list[Turn]:
    """The conversation up to the second question; an answer without a word leaves a place for it all the same."""
    return [Turn(USER, item.prompt), Turn(ASSISTANT, answer), Turn(USER, item.further[0])]


def _marks_of(held: Conversation, marks: Sequence[float | None]) -> list[float | None]:
    """A judge's marks of both answers; one without a word has none, whoever judges."""
    return [mark if answer.strip() else None for mark, answer in zip(marks, held.answers, strict=True)]


def rates_of(name: str, rows: Sequence[ConversationRow], judge: str) -> dict[str, Rate | None]:
    """The mean mark of all answers, of the first and of the second ones, and of both in each category."""
    found = {mean: _mean(rows, turns, judge) for mean, turns in _turns_of(name).items()}
    for category in sorted({row.category for row in rows}):
        of_category = [row for row in rows if row.category == category]
        found[_of_category(name, category)] = _mean(of_category, BOTH, judge)
    return found


def totals_of(name: str, category: str, marks: Sequence[float | None] | None) -> dict[str, Total]:
    """What a row of a category adds to each of the means of `rates_of`."""
    turns_of = _turns_of(name) | {_of_category(name, category): BOTH}
    return {mean: _total(marks, turns) for mean, turns in turns_of.items()}


BOTH = (0, 1)


def _turns_of(name: str) -> dict[str, Sequence[int]]:
    """The answers that are in each mean of rows of any category."""
    return {name: BOTH, f"{name}_turn_1": (0,), f"{name}_turn_2": (1,)}


def _of_category(name: str, category: str) -> str:
    return f"{name}_{slug(category)}"


def _total(marks: Sequence[float | None] | None, turns: Sequence[int]) -> Total:
    """Of the marks of these answers; of weight 0 where there is none."""
    of_turns = [marks[turn] for turn in turns] if marks else []
    known = [mark for mark in of_turns if mark is not None]
    return Total(sum(known) if known else nan, len(known))


def _mean(rows: Sequence[ConversationRow], turns: Sequence[int], judge: str) -> Rate | None:
    mean = mean_rate([_total(row.marks, turns) for row in rows], MARK, judge)
    answers = [(row, turn) for row in rows for turn in turns]
    return mean and mean._replace(
        without_verdict=sum(row.marks is None or row.marks[turn] is None for row, turn in answers),
        answers=len(answers),
        empty=sum(not row.answers[turn].strip() for row, turn in answers),
        cut_off=sum(row.cut_off[turn] for row, turn in answers),
    )


RATER, NO_RATER = "eval.rater", "none"
_FORM = "a function of (prompts, answers, references) that gives for each answer a mark from 1 to 10, or None"


def rater(name: str) -> Callable[[Sequence[Conversation]], Marks] | None:
    """What `eval.rater` names; None for `none`. Raises InputError for what cannot be imported."""
    if name == NO_RATER:
        return None
    return partial(_rated, attribute(name, RATER), name.rpartition(":")[2])


def _rated(function: Callable[..., Any], name: str, held: Sequence[Conversation]) -> Marks:
    """What a function of the user's own makes of conversations; InputError where it fails, or gives anything else."""
    values = []
    for conversation in held:
        try:
            marks = list(function(*conversation))
        except Exception as error:  # whatever the user's own raises
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{RATER} = {name}: calling it failed ({reason}); must be {_FORM}") from error
        if len(marks) != len(conversation.answers):
            raise InputError(f"{RATER} = {name}: gave {len(marks)} marks of {len(conversation.answers)} answers")
        values.append([_mark(mark, name) for mark in marks])
    return Marks(name, values)


def _mark(value: Any, name: str) -> float | None:
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 1 <= value <= 10:
        raise InputError(f"{RATER} = {name}: gave {value!r}; must be a mark from 1 to 10, or None")
    return float(value)


MT_BENCH = Evaluation(
    name="mt_bench",
    load=mt_bench_items,
    columns=(
        Column("mt_bench", "MT-Bench", main=False),
        Column("mt_bench_turn_1", "MT-Bench (turn 1)", main=False),
        Column("mt_bench_turn_2", "MT-Bench (turn 2)", main=False),
    ),
    way=TwoTurns(),
    keys=("mt_bench",),
)
