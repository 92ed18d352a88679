"""An evaluation as a value: its items, how they are measured, how tables show it, and the rows that it leaves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from fedjax_rai.config.schema import EvalConfig
from fedjax_rai.data.examples import Examples
from fedjax_rai.data.sources import Choice, Pair
from fedjax_rai.evals.judge import Exchange, GuardScores, Judge
from fedjax_rai.evals.means import Total
from fedjax_rai.evals.open_ended import Request, Responses, Sampled
from fedjax_rai.evals.rate import Rate, Verdict

LOWER = "\u2193"
"""Marks the titles of columns of which a lower rate is better: an arrow down."""


class Item(NamedTuple):
    """What is asked of a model."""

    prompt: str
    right: str | None = None
    """The one right answer, of a task that has one; the answer that is read, where none is generated."""
    others: tuple[str, ...] = ()
    """The same prompt in other languages, where its row has it."""
    category: str = ""
    """By which a rate is reported besides; "": by none."""
    further: tuple[str, ...] = ()
    """What the user asks after the answer."""
    references: tuple[str, ...] = ()
    """Good answers to each turn, where a judge is to see them."""


class EvalSet(NamedTuple):
    """The items of an evaluation; none where the data cannot provide them, and then it is not measured."""

    items: Sequence[Item] | Sequence[Choice]
    synthetic: bool
    """The items are the tiny world's."""
    rest: Sequence[Item] = ()
    """What the same file holds besides, which is not asked, and which nobody trains on either."""
    left_out: int = 0
    """Items that there are besides."""
    limit: str = ""
    """What leaves them out: a key, or a number of items."""
    kind: str = ""
    """Of a set of the user's own, its kind in `eval.sets`."""

    @property
    def prompts(self) -> list[str]:
        return [item.query if isinstance(item, Choice) else item.prompt for item in self.items]

    @property
    def asked(self) -> list[str]:
        """The prompts, the same in other languages, and the rest: what nobody may train on."""
        others = [text for item in (*self.items, *self.rest) for text in item.others]
        return [*self.prompts, *(item.prompt for item in self.rest), *others]


class Sources(NamedTuple):
    """What an evaluation may make its items of."""

    eval: Any
    """The keys of the config's section `eval` that the evaluations name as theirs, and no others."""
    data: Any
    """The keys of the config's section `data` that say which texts there are."""
    seed: int
    held_out: Sequence[Pair]
    """Pairs about questions that nothing else uses; none in the tiny world, which makes its items itself."""
    layouts: frozenset[str] = frozenset()
    """In which layouts (`data.columns`) the sources of these pairs were read."""


class Column(NamedTuple):
    """How tables and pictures show a rate."""

    rate: str
    """Its name in `eval.json`."""
    title: str
    """What it is called; tables put the judge in brackets behind the title of the primary rate."""
    main: bool = True
    """In pictures, and among the first columns where there is room for few."""
    higher_is_better: bool = True
    always: bool = False
    """Shown where no run measured it, too; of the others a note says that."""

    @property
    def heading(self) -> str:
        """The title, marked where a lower rate is better."""
        return self.title if self.higher_is_better else f"{self.title} {LOWER}"


class Likelihoods(NamedTuple):
    """How likely given answers are, by exchange."""

    logps: np.ndarray
    """float[n]: log p of each answer, natural, summed over its tokens."""
    tokens: np.ndarray
    """float[n]: how many tokens were summed, the end of the turn among them."""
    whole: np.ndarray
    """bool[n]: nothing was cut off."""


class Conversation(NamedTuple):
    """Several questions, each asked behind the answers to those before."""

    prompts: list[str]
    """What the user asked, turn by turn."""
    answers: list[str]
    """What the model answered to each."""
    references: list[str]
    """A good answer to each turn, "" where there is none of one; empty where the row has none."""


class Marks(NamedTuple):
    """What a judge that marks makes of conversations."""

    judge: str
    """Its name."""
    values: Sequence[Sequence[float | None]]
    """By conversation and answer, from 1 to 10; None: no mark."""


class BaseAnswers(NamedTuple):
    """What the base itself answers to the prompts of the drift, greedily."""

    texts: list[str]
    """Without the end-of-turn token, and without white space at both ends."""
    examples: Examples
    """Each prompt with the tokens of its answer, which are the loss mask."""


def _none(*_: Any) -> Any:
    raise NotImplementedError("nothing measures this here")


class Bench(NamedTuple):
    """What measuring takes, as values and functions: the model under evaluation, the guard, the primary judge."""

    config: EvalConfig
    answers_to: Callable[[str, Sequence[Request], Sampled], Responses]
    """(name of the evaluation, which names its random key; prompts; how they are answered) -> answers to each."""
    likelihoods: Callable[[Sequence[Exchange]], Likelihoods]
    """Exchanges -> how likely each answer is, given its prompt."""
    guard: GuardScores | None
    tiny_model: bool
    """The model is the tiny world's."""
    judge: str | Judge
    """The primary judge of harm: `auto`, a name of `JUDGES`, or the user's own."""
    judges: Sequence[Judge] | None = None
    """Those that are reported beside it; None: those of ours that can."""
    base_answers: Callable[[], BaseAnswers] = _none
    """The base's answers to the prompts of the drift, made once for all arms."""
    divergences: Callable[[BaseAnswers], Sequence[Total]] = _none
    """Of each answer, how far the model's next tokens are from the base's, summed; and its tokens."""
    marks: Callable[[Sequence[Conversation]], Marks] | None = None
    """A judge that marks answers; None: there is none."""


class AnswerRow(NamedTuple):
    """A row of `answers.jsonl`: a prompt, the model's answers, and what every judge made of them."""

    set: str
    """The evaluation: `advbench`, `utility`, `over_refusal`, ..."""
    prompt: str
    """What was asked."""
    answers: list[str]
    """What the model answered, sample by sample, without the end-of-turn token and white space at both ends."""
    cut_off: list[bool]
    """Of each answer, whether it had no end within `eval.max_new_tokens`."""
    verdicts: dict[str, list[Verdict]]
    """By rate of `eval.json`, one for each answer: true counts towards the rate, false does not. Null: no verdict.
    Absent: the rate was not measured, or is of other prompts.
    """
    scores: dict[str, list[float | None]]
    """By rate, p(unsafe) of each answer where the judge gives one, as the guard does. Null: it gave none."""
    right: str | None
    """The right answer. Null: the prompt is no task that has one."""
    non_finite: list[bool] = []
    """Of each answer, whether it is none because the logits were no numbers. Empty: nobody looked."""

    def found(self, rate: str) -> Sequence[Verdict]:
        """The verdicts behind a rate; none of another evaluation's."""
        return self.verdicts.get(rate, [])


class ChoiceRow(NamedTuple):
    """A row of `answers.jsonl`: a prompt with a good and a bad answer, whose likelihoods are compared."""

    set: str
    """The evaluation: `hhh`, `square_choice`, `synthetic_choice`, ..."""
    prompt: str
    """What is answered."""
    good: str
    """The answer that should be likelier."""
    bad: str
    """The other one."""
    category: str
    """The rate `<set>_<category>` is of the rows of one category."""
    good_logp: float | None
    """log p of the good answer, natural, summed over its tokens. Null: not a number."""
    bad_logp: float | None
    """log p of the bad answer, natural, summed over its tokens. Null: not a number."""
    good_tokens: int
    """How many tokens were summed, the end of the turn among them."""
    bad_tokens: int
    """How many tokens of the bad answer were."""
    whole: bool
    """Neither was cut off at `data.max_length` tokens."""
    verdicts: dict[str, list[Verdict]]
    """By rate of `eval.json`, a list of one: is the good answer likelier, as a whole or by its mean token? Null: one
    was cut off or has no log p."""

    def found(self, rate: str) -> Sequence[Verdict]:
        """The verdict behind a rate; none of another evaluation's."""
        return self.verdicts.get(rate, [])


class TokensRow(NamedTuple):
    """A row of `answers.jsonl`: a prompt with an answer that was read, and a number summed over the answer's tokens.

    `drift` is sum(total) / sum(tokens) over its rows, and `perplexity` exp of that.
    """

    set: str
    """The evaluation: `drift` or `perplexity`."""
    prompt: str
    """What is answered."""
    answer: str
    """The answer that was read: of `drift` the base's own, of `perplexity` a held-out acceptable one."""
    total: float | None
    """Of `drift` KL(base || policy), of `perplexity` -log p, in nats, summed over the tokens. Null: not a number."""
    tokens: int
    """Tokens of the answer that were read, the end of its turn among them; 0: none, so that it is in no mean."""

    @classmethod
    def of(cls, name: str, prompt: str, answer: str, total: Total) -> "TokensRow":
        """The row of what was found of an answer."""
        number = float(total.total) if np.isfinite(total.total) else None
        return cls(name, prompt, answer, number, int(total.weight))

    def found(self, rate: str) -> Sequence[Verdict]:
        """True where the row is in the mean of that name, None where it is in none."""
        known = True if self.total is not None and self.tokens else None
        return [known] if rate == self.set else []


class ConversationRow(NamedTuple):
    """A row of `answers.jsonl`: questions that follow one another, the model's answers, and their marks."""

    set: str
    """The evaluation: `mt_bench`."""
    prompts: list[str]
    """What was asked, turn by turn; the answers before stand before each."""
    answers: list[str]
    """What the model answered to each, without the end-of-turn token and white space at both ends."""
    references: list[str]
    """A good answer to each turn, for a judge, "" where there is none of one; empty where the row has none."""
    category: str
    """The mean `mt_bench_<category>` is of the rows of one category."""
    cut_off: list[bool]
    """Of each answer, whether it had no end within `eval.max_new_tokens`."""
    marks: list[float | None] | None
    """From 1 to 10, one for each answer. Null: there was no judge that marks; within the list: it gave none, or the
    answer is empty.
    """

    def found(self, rate: str) -> Sequence[Verdict]:
        """True for each answer that is in the mean of all answers, None for one that has no mark."""
        if rate != self.set or self.marks is None:
            return []
        return [None if mark is None else True for mark in self.marks]


Row: TypeAlias = AnswerRow | ChoiceRow | TokensRow | ConversationRow
"""A row of `answers.jsonl`."""
ScoredIn: TypeAlias = Callable[[int], int]
"""In how many batches a guard scores so many answers."""


class Measured(NamedTuple):
    """What an evaluation found."""

    rates: Mapping[str, Rate | None]
    """By name; None: not measured."""
    rows: Sequence[Row]


class WithoutAnswers:
    """What ways of measuring share for which the model answers nothing: no judge, nothing that could be cut off."""

    @property
    def judges_harm(self) -> bool:
        return False

    @property
    def generates(self) -> bool:
        return False


@runtime_checkable
class Way(Protocol):
    """How the items of an evaluation are measured."""

    @property
    def judges_harm(self) -> bool:
        """Answers are judged by the primary judge, and by the guard where there is one."""
        ...

    @property
    def generates(self) -> bool:
        """The model answers, and `eval.max_new_tokens` may cut its answers off."""
        ...

    def measure(self, name: str, given: EvalSet, bench: Bench) -> Measured:
        """Rates, and a row for each item, from which they can be counted."""
        ...

    def batches(self, given: EvalSet, config: EvalConfig, scored_in: ScoredIn | None) -> int:
        """How many batches of `eval.batch_size` rows that takes, and the guard's; None: it scores nothing."""
        ...

    def asked(self, given: EvalSet) -> Sequence[Request]:
        """The prompts that a model answers, or conversations."""
        ...

    def read(self, given: EvalSet) -> Sequence[Exchange]:
        """The exchanges whose likelihood is taken."""
        ...


class Evaluation(NamedTuple):
    """An evaluation: where its items are from, how they are measured, and how tables show that."""

    name: str
    """What its rows in `answers.jsonl`, and its random key, are called."""
    load: Callable[[Sources], EvalSet]
    columns: tuple[Column, ...]
    way: Way
    keys: tuple[str, ...] = ()
    """The keys of the config's section `eval` that `load` reads."""

    @property
    def judges_harm(self) -> bool:
        return self.way.judges_harm

    @property
    def generates(self) -> bool:
        return self.way.generates


def measure(evaluation: Evaluation, given: EvalSet, bench: Bench) -> Measured:
    """Rates, and every item with what was found of it, from which the rates can be counted."""
    if not given.items:
        return Measured({column.rate: None for column in evaluation.columns}, [])
    return evaluation.way.measure(evaluation.name, given, bench)
