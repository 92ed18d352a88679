"""What stands in the files of a run folder, field by field: its type, its unit, and what absent means.

`docs/run_folder.md` is written from these lines (`python -m fedjax_rai.tools.run_folder_reference`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai.data.summary import DataFile, DataSummary
from fedjax_rai.errors import InputError
from fedjax_rai.evals.agreement import Agreement
from fedjax_rai.evals.rate import Rate
from fedjax_rai.evals.spoilt import AnswerCounts
from fedjax_rai.experiment.cost import Cost, Spent
from fedjax_rai.experiment.evaluation import Critique
from fedjax_rai.memory.measured import DevicePeak
from fedjax_rai.runs import files

MADE_AGAIN = "remove it and run again, which evaluates anew and writes it"


class Probe(NamedTuple):
    """The probe of a round: fixed red prompts, answered by the new adapter before any CAI phase."""

    harmless: float
    """Share (0 to 1) of the answers with a word and a score that the guard calls safe; null where none has both."""
    seconds: float
    """Seconds of answering and scoring; its tokens are not counted."""
    without_verdict: int | None = None
    """Answers without a score, which are not in `harmless`. Absent: there was none."""
    empty: int | None = None
    """Answers without a word, which are not in `harmless`. Absent: there was none."""
    cut_off: int | None = None
    """Answers without an end within `eval.max_new_tokens`, scored as they are. Absent: there was none."""


class Phase(NamedTuple):
    """The CAI phase of a round.

    What makes no pair is counted by the first cause that holds: held out, cut off, empty, equal.
    """

    pairs: int
    """Conversations, or prepared pairs, whose revision may be preferred to its response."""
    cut_off: int
    """No pair: response or revision did not come to its end."""
    equal: int
    """No pair: response and revision are the same."""
    usable: int
    """Revisions (of the control: responses) that may be learnt from: by likelihood whole ones, else pairs."""
    generated_tokens: int
    """Tokens of responses, critiques and revisions; 0 where the pairs are prepared."""
    read_tokens: int
    """Tokens read in order to generate and, for a preference, to compute the reference's log-probabilities."""
    iterations: int
    """Optimizer steps."""
    loss: float
    """Loss of the last iteration, in nats: mean over tokens of likelihood, plus mean over pairs of preference."""
    margin: float
    """Last iteration's mean of beta x (log-ratio of chosen - log-ratio of rejected); 0 where nothing is preferred."""
    diverged: bool
    """Training gave a NaN or an infinity: the phase was undone, the adapter is the one before it."""
    trained_tokens: float
    """Tokens in the loss, over all iterations, replayed answers included."""
    step_tokens: float
    """Tokens that went through the iterations, prompts included, padding not."""
    empty: int | None = None
    """No pair: response or revision is empty. Absent: the pairs are prepared."""
    held_out: int | None = None
    """No pair: the prompt is one that is evaluated. Absent: the pairs are not prepared."""
    revised: float | None = None
    """Share (0 to 1) of the conversations whose revision differs from the response. Absent: the pairs are prepared."""

    @property
    def learnt(self) -> bool:
        """Whether there was a revision to learn from, and what came of it was kept."""
        return self.usable > 0 and self.trained_tokens > 0 and not self.diverged


class Round(NamedTuple):
    """A row of `metrics.jsonl`: what one round did, and how long it took.

    A key of something that the round did not have is absent; a number that is none (NaN, infinity) is null.
    """

    round: int
    """Number of the round, from 1."""
    clients: int
    """Clients that the aggregate counts: those that have something to train on and did not diverge."""
    diverged: float
    """Clients (a whole number) whose training gave a NaN or an infinity; the aggregate leaves them out."""
    delta_norm: float
    """Euclidean norm of what local training adds to the adapter, over all its parameters."""
    train_loss: float
    """Mean cross-entropy of a trained token, in nats, over clients and steps; null where `trained_tokens` is 0."""
    trained_tokens: float
    """Tokens in the loss, over the clients that count and their local steps."""
    step_tokens: int
    """Tokens that went through the local steps of all clients with data, prompts included, padding not."""
    seconds: float
    """Seconds from the end of the round before, or the start of the run, to the end of this one."""
    local_seconds: float
    """Seconds of `seconds` until the new adapter was there, probe and CAI phase not included."""
    cai_seconds: float
    """Seconds of `seconds` that the CAI phase took; 0 where there was none."""
    without_data: int | None = None
    """Clients of the cohort with nothing to train on: the filter dropped all, or `data.max_length` cut every answer
    off. Absent: there was none.
    """
    probe: Probe | None = None
    """The probe, as keys that begin with `probe_`. Absent: there was none."""
    cai: Phase | None = None
    """The CAI phase, as keys that begin with `cai_`. Absent: there was none after this round."""
    together: int | None = None
    """Runs whose rounds were computed at once, which share their seconds out evenly. Absent: the run went by itself."""
    start_seconds: float | None = None
    """Seconds from the start of the process until its first local step was given to the device: models and data read,
    the guard fitted, programs compiled or found. Absent: the round is not its process's first.
    """
    more: dict[str, float] = {}
    """What an algorithm reports besides, under names of its own."""

    @property
    def local_spent(self) -> Spent:
        """What local training took."""
        return Spent(self.local_seconds, 0, 0, self.trained_tokens, self.step_tokens)

    @property
    def cai_spent(self) -> Spent:
        """What the CAI phase took; raises ValueError where there was none."""
        if self.cai is None:
            raise ValueError(f"round {self.round} had no CAI phase")
        phase = self.cai
        tokens = phase.generated_tokens, phase.read_tokens, phase.trained_tokens, phase.step_tokens
        return Spent(self.cai_seconds, *tokens, phase.learnt)


class Revision(NamedTuple):
    """A row of `revisions.jsonl`: one conversation of a CAI phase. A prepared set has none."""

    round: int
    """Number of the round, from 1."""
    prompt: str
    """The red prompt."""
    category: str
    """The red prompt's category, by which principles are drawn."""
    principles: list[str]
    """Names of the principles, one a revision."""
    response: str
    """The first answer, which is criticised."""
    critiques: list[str]
    """Critiques, one a principle."""
    revisions: list[str]
    """Revisions, one a principle; the last one is trained on."""
    whole: bool
    """The last revision says something, and came to its end."""
    degenerate: str | None
    """Why this makes no pair: `cut_off`, `empty` or `equal`, the first that holds. Null: it makes one."""


class Quality(NamedTuple):
    """The guard's verdicts on the clients' pairs against their true labels; unsafe is positive."""

    accuracy: float
    """Percent of the pairs."""
    precision: float
    """Percent of those called unsafe that are harmful; 0 where none is called so."""
    recall: float
    """Percent of the harmful that are called unsafe; 0 where there are none."""
    hmean: float
    """Harmonic mean of precision and recall, in percent."""


class GuardQuality(NamedTuple):
    """The guard's quality, known to the simulation alone."""

    fitted: Quality | None
    """Of the guard as fitted, which is the one used. Null: a released model is used as it is."""
    released: Quality
    """Of the model before fitting, or of the released guard."""
    threshold: float | None = None
    """The least p(unsafe) that the guard that is used calls unsafe. Null: an older version ran."""


class GuardAsked(NamedTuple):
    """How the guard, which is a model, was asked about the clients' pairs, and how sure it was of giving a verdict."""

    form: str
    """The form, as `guard.form` names it."""
    share: float | None
    """Mean share (0 to 1) of the probability of all tokens that those of verdicts hold. Null: there was no verdict."""
    least_share: float | None
    """The least of these. Null: there was no verdict."""
    without_verdict: int
    """Exchanges of the clients' pairs for which it gave none."""
    self_test: float | None
    """AUROC (0 to 1) on the obvious pairs. Null: the guard was fitted, or the test was switched off."""


class Filtered(NamedTuple):
    """What the clients' filters left, over all clients."""

    kept: int
    """Pairs that are trained on, those with a refusal in them included."""
    dropped: int
    """Pairs dropped."""
    without_score: int
    """Pairs with an answer for which the guard gave no number: dropped, unless `filter.no_verdict` or the control keeps
    them.
    """
    harmful_share_kept: float | None
    """Share (0 to 1) of the kept pairs that are harmful, known to the simulation alone; of those that have a label. One
    whose own answer a refusal replaced is not. Null: there is none.
    """
    replaced: int = 0
    """Pairs among those kept with a refusal in the place of an answer."""
    evaded_kept: int | None = None
    """Harmful answers rewritten by `data.evasion` that are trained on. Null: none was rewritten."""


class PairCounts(NamedTuple):
    """What became of the conversations, or of the prepared pairs, of all CAI phases: those add up to `conversations`
    that make a pair and those that do not by the first cause that holds.
    """

    conversations: int
    """Conversations, or prepared pairs, that there were."""
    pairs: int
    """Those whose revision may be preferred to its response."""
    usable: int
    """Revisions (of the control: responses) that may be learnt from."""
    held_out: int
    """No pair: the prompt is one that is evaluated; only of prepared pairs."""
    cut_off: int
    """No pair: cut off at `cai.max_new_tokens`, or of prepared pairs at `data.max_length`."""
    empty: int
    """No pair: response or revision is empty; only of conversations."""
    equal: int
    """No pair: response and revision are the same."""


class Seconds(NamedTuple):
    """How long a run took. Reading the model, fitting the guard and scoring the clients' pairs are not counted."""

    training: float
    """Seconds: rounds x the median of all rounds but the first, which compiles."""
    with_compilation: float
    """Seconds of all rounds as they were."""
    evaluation: float
    """Seconds of the evaluation, compilation included."""
    start: float | None = None
    """Seconds until the first local step, from the start of the process that began the run. Null: it had done other
    rounds before, or there are no rounds.
    """


class PlannedMemory(NamedTuple):
    """The memory plan that a run has before it starts: estimated from shapes, in bytes a device."""

    need: int
    """Bytes a device in the phase that needs most."""
    phase: str
    """That phase."""
    held: dict[str, int]
    """What is there in every phase: bytes by part."""
    phases: dict[str, dict[str, int]]
    """What each phase adds: by its name, bytes by part."""


class Memory(NamedTuple):
    """What the run was planned to hold, and what the process that finished it held at most.

    A peak is of the whole process, whatever it held, from its own start to the end of the run's evaluation.
    """

    plan: PlannedMemory
    """The memory plan."""
    process: int
    """Bytes of resident memory at most; on a CPU the arrays are among them."""
    devices: list[DevicePeak]
    """What each of its devices held at most."""
    other_runs: int
    """Runs that the process had taken up before or beside this one, what they held counts, too. Where there is one, and
    this run was not resumed, peaks are upper bounds.
    """
    resumed: bool
    """Whether an earlier process had done rounds of it, as after an interruption. What an earlier process held, or one
    that fitted a guard which this one found, is in none of these numbers.
    """


class Summary(NamedTuple):
    """`summary.json`, written last: a run that has it is finished. Every key is there; null is said below."""

    rates: dict[str, Rate | None]
    """Rates by name, the judge in it. Null: not measured, for want of prompts or of that judge."""
    rounds: int
    """Rounds."""
    seed: int
    """Seed of the run."""
    synthetic: list[str]
    """Parts that are the tiny world's; where there is one, the numbers say nothing about real models."""
    adapter_parameters: int
    """Parameters of the adapter, which is what a client sends a round."""
    truncated_examples: int
    """Clients' examples that were cut to `data.max_length` tokens."""
    diverged_clients: int
    """Clients whose training diverged and was left out, summed over rounds."""
    guard: GuardQuality | None
    """The guard's quality. Null: there was no filter, or no pair has a label."""
    filter: Filtered | None
    """What the filter left. Null: there was no filter."""
    seconds: Seconds
    """How long the run took."""
    cost: Cost
    """What training cost, by phase."""
    critique: Critique | None
    """What revision made of responses. Null: no conversation was held, or the pairs were prepared."""
    pairs: PairCounts | None = None
    """What became of conversations or prepared pairs. Null: there was no CAI phase."""
    data: DataSummary | None = None
    """What the run has of the data that it was given, as under `summary` in data.json. Null: an older version ran."""
    not_computed: list[str] = []
    """What the model's `generation_config.json` asks of generation and is not done, in lines; empty: nothing."""
    sets: dict[str, str] = {}
    """Sets of the user's own (`eval.sets`), which the rates of their names are of: kind by name."""
    layout: str | None = None
    """The mesh that `mesh: auto` chose, and why. Null: the config names the mesh."""
    answers: dict[str, AnswerCounts] = {}
    """By evaluation, how many answers there are, and how many that say nothing. Empty: an older version ran."""
    agreement: list[Agreement] = []
    """How far every two judges of a rate agree, over the answers on which both have a verdict. Empty: there is one."""
    guard_asked: GuardAsked | None = None
    """How the filter's guard was asked. Null: there was no filter, or its guard is a function."""
    memory: Memory | None = None
    """What it held. Null: not measured, as by older versions, or where a run without a summary was only evaluated."""


class Versions(NamedTuple):
    """An entry of `versions.json`: one when the run began, one more each time it went on under others."""

    python: str
    """Version of Python."""
    platform: str
    """The machine's processor architecture."""
    devices: list[str]
    """Kinds of devices that JAX saw, each once."""
    packages: dict[str, str]
    """Versions of the packages that the numbers may depend on; one that is not installed is absent."""
    files: dict[str, str] = {}
    """Digests of the files that the config names, by key; the run goes on only with the same."""
    model_commit: str | None = None
    """Commit of the base on the hub. Absent: it is not from the hub."""
    guard_commit: str | None = None
    """Commit of the guard on the hub. Absent: there is none, or it is not from the hub."""
    judge_commits: dict[str, str] | None = None
    """Commits of judges on the hub, by their names; of the base of one that is an adapter by `NAME base`. Absent: there
    is none."""


PARTS = {"probe": Probe, "cai": Phase}  # of a round, whose keys stand among its own behind their name


def present(value: Round | Probe | Phase | Versions) -> dict[str, Any]:
    """The fields of a value that are not absent."""
    return {name: content for name, content in value._asdict().items() if content is not None}


def flat(value: Round) -> dict[str, Any]:
    """A row of `metrics.jsonl` as the file holds it: parts and `more` among its own keys, no key for what is absent."""
    row = present(value)
    more = row.pop("more")
    for part in PARTS:
        numbers = present(row.pop(part)) if part in row else {}
        row |= {f"{part}_{name}": number for name, number in numbers.items()}
    return row | more


def nested(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `metrics.jsonl` by the fields of `Round`: the other way round of `flat`."""
    found: dict[str, Any] = {"more": {}}
    for key, content in row.items():
        part, _, name = key.partition("_")
        if key in Round._fields:
            found[key] = content
        elif part in PARTS and name in PARTS[part]._fields:
            found.setdefault(part, {})[name] = content
        else:
            found["more"][key] = content
    return found


def read_rounds(path: Path) -> list[Round]:
    """The rows of a `metrics.jsonl`, in order; none without the file. InputError where one holds anything else."""
    found = enumerate(files.read_rows(path), 1)
    return [files.typed(Round, nested(row), f"{path}, line {line}") for line, row in found]


def read_data(path: Path) -> DataFile:
    """A run's `data.json`; InputError where it holds anything else."""
    return files.typed(DataFile, files.read_json(path), str(path))


def read_summary(path: Path) -> Summary:
    """A run's `summary.json`; raises InputError, with the way out, where it holds anything else."""
    content = files.read_object(path, MADE_AGAIN)
    try:
        return files.typed(Summary, content, str(path))
    except InputError as error:
        raise InputError(f"{error}; {MADE_AGAIN}") from None
