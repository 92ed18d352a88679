"""What a run has of the data that it was given, counted: nothing is left out, cut or missing without a number."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_rai.data.sources import Pair, Read

HELD_OUT = "the evaluation, which asks the same"
"""What leaves out pairs that are evaluated."""
TURNS_BEFORE = "turns before the question"
"""What leaves out pairs of server and evaluation that continue a conversation, and cannot be asked alone."""
ONE_KIND = "one kind of answer"
"""What leaves out pairs of the evaluation of which no choice can be made."""
NO_LABEL = "no label"
"""What leaves out pairs of the server of whose question no answer has a label."""
NOTHING: Mapping[int, Pair] = {}


class Reading(NamedTuple):
    """What was read of a source."""

    rows: int
    """Rows that were read, whatever they gave."""
    pairs: int
    """Pairs of prompt and answer in them."""
    refused: int
    """Rows with an answer that makes no pair."""
    duplicates: int
    """Pairs that are the same, to a reader, as one before; they are kept."""
    unlabelled: int
    """Pairs of which nobody said whether they are harmful."""
    columns: str
    """The layout by which they were read."""
    synthetic: bool = False
    """The tiny world made them."""


class Part(NamedTuple):
    """The pairs, or the prompts, of one part of the data."""

    used: int
    """Pairs or prompts that are used."""
    left_out: dict[str, int]
    """Those that there are besides, by the key that leaves them out, or by the reason. `balance`: half of the guard's
    must be harmful; `turns before the question`: it cannot be asked alone; `one kind of answer`: a choice takes a
    question with answers of both kinds; `no label`: nobody said whether an answer is harmful; `at most 200 choices`; or
    the evaluation, which asks the same.
    """
    harmful: int | None = None
    """Used pairs that are harmful. Null: prompts, which have no label."""
    unlabelled: int | None = None
    """Used pairs without a label, which are not counted as harmless. Null: prompts, which have no label."""


class Client(NamedTuple):
    """What one client holds, and what is left of it to train on."""

    pairs: int
    """Pairs that it holds."""
    harmful: int
    """Those that are harmful."""
    unlabelled: int
    """Those without a label."""
    category: str | None
    """The category of most of its pairs; of several the first by name. Null: it holds no pair."""
    of_category: int
    """Its pairs of that category."""
    kept: int | None
    """Pairs that its filter kept. Null: there is no filter, or its guard has not been asked yet."""
    kept_harmful: int | None
    """Harmful ones among these. Null: as `kept`."""
    trained: int
    """Pairs that it can train on: those kept of which `data.max_length` leaves an answer token."""
    kept_unlabelled: int | None = None
    """Those without a label among those kept. Null: as `kept`."""
    replaced: int | None = None
    """Pairs among those kept with a refusal in the place of an answer. Null: there is none."""


class Spread(NamedTuple):
    """How a number varies over the clients."""

    low: float
    """The least."""
    median: float
    """The median."""
    high: float
    """The greatest."""


class Clients(NamedTuple):
    """All clients."""

    clients: int
    """Clients in all."""
    pairs: Spread
    """Pairs of a client."""
    harmful_share: Spread | None
    """Share (0 to 1) of a client's labelled pairs that is harmful, over those that hold any. Null: nobody does."""
    kept: int | None
    """Pairs that their filters kept, of all clients. Null: there is no filter, or its guard has not been asked yet."""
    dropped: int | None
    """Pairs that their filters dropped. Null: as `kept`."""
    kept_harmful: int | None
    """Harmful ones among those kept. Null: as `kept`."""
    kept_pairs: Spread | None
    """Kept pairs of a client. Null: as `kept`."""
    without_pairs: int
    """Clients that hold no pair."""
    without_kept: int
    """Clients that hold pairs, of which their filter kept none."""
    without_answers: int
    """Clients that kept pairs, of which `data.max_length` leaves no answer token."""
    kept_unlabelled: int | None = None
    """Those without a label among those kept. Null: as `kept`."""
    replaced: int | None = None
    """Pairs among those kept with a refusal in the place of an answer. Null: there is none."""

    @property
    def without_data(self) -> int:
        """Clients with nothing to train on."""
        return self.without_pairs + self.without_kept + self.without_answers


class Cut(NamedTuple):
    """Texts of one kind, and what `data.max_length` cuts of them."""

    texts: int
    """Texts of that kind."""
    cut: int
    """Those that are cut: examples at their end, all others at their beginning."""
    tokens: int
    """Tokens that are cut off, of all of them."""
    most: int
    """Tokens that are cut off of the longest one."""


class Less(NamedTuple):
    """Less than a key asked for."""

    key: str
    """The key."""
    asked: int
    """What it asks for."""
    there: int
    """What there is."""


class DataSummary(NamedTuple):
    """What a run has of the data that it was given, before its first step."""

    sources: dict[str, Reading]
    """What was read, by its path or name; empty where the tiny world makes all pairs."""
    parts: dict[str, Part]
    """Pairs of `clients`, `guard`, `server` and `evaluation`; `red prompts`, `probe` and `replay` of the server; and
    each evaluation set by its name.
    """
    clients: Clients
    """What the clients hold, and what is left to train on."""
    max_length: int
    """The `data.max_length` at which texts are cut."""
    cut: dict[str, Cut]
    """What is cut: `examples`, the pairs that clients hold; `guard requests`, of every exchange of these pairs; `guard
    examples`; prompts by part or evaluation set; of choices, both answers count.
    """
    without_answer: int
    """Examples, of the pairs that clients hold, of which no answer token is left: they weigh nothing."""
    less: list[Less]
    """What there is less of than was asked for."""
    evaded: int | None = None
    """Harmful answers of clients that were rewritten so that a guard does not see them. Null: there is none."""
    not_evaded: int | None = None
    """Those among `evaded` that stay as they were, as the rewriting does not apply to them. Null: there is none."""


class DataFile(NamedTuple):
    """`data.json`, written before the first step."""

    summary: DataSummary
    """The whole, as it stands in `summary.json`, too."""
    clients: list[Client]
    """Every client, in order."""


def reading(read: Read, synthetic: bool = False) -> Reading:
    """What was read, counted; `synthetic`: the tiny world made it."""
    return Reading(read.rows, len(read.pairs), read.refused, read.duplicates, read.unlabelled, read.columns, synthetic)


def part(used: Sequence[Pair], left_out: Mapping[str, int] | None = None) -> Part:
    """The pairs of a part; `left_out` by key, of which those of 0 are passed over."""
    harmful = sum(pair.harmful is True for pair in used)
    return Part(len(used), _some(left_out or {}), harmful, _unlabelled(used))


def prompts(used: int, left_out: Mapping[str, int] | None = None) -> Part:
    """So many prompts of a part, as `part`."""
    return Part(used, _some(left_out or {}))


def _some(counts: Mapping[str, int]) -> dict[str, int]:
    return {key: count for key, count in counts.items() if count}


def _unlabelled(pairs: Sequence[Pair]) -> int:
    return sum(pair.harmful is None for pair in pairs)


def left_out_by_kind(
    there: Sequence[Pair], used: Sequence[Pair], red_key: str, acceptable_key: str, else_key: str
) -> dict[str, int]:
    """How many pairs each key leaves out: that of harmful ones, of acceptable ones, of unlabelled ones."""
    counts: Counter[str] = Counter()
    for harmful, key in ((True, red_key), (False, acceptable_key), (None, else_key)):
        counts[key] += sum(pair.harmful is harmful for pair in there) - sum(pair.harmful is harmful for pair in used)
    return dict(counts)


def client(
    pairs: Sequence[Pair],
    rows: np.ndarray,
    kept: np.ndarray | None,
    answer_tokens: np.ndarray,
    replaced: Mapping[int, Pair] = NOTHING,
) -> Client:
    """A client that holds these rows of the pairs and keeps some of them (None: not known, all count as kept).

    `answer_tokens`: int[n], of every pair the tokens of its answer that are left. `replaced`: by row the pairs that are
    trained on in place of those that it holds; of what is kept they count.
    """
    held = [pairs[row] for row in rows]
    left = rows if kept is None else kept
    used = [replaced.get(row, pairs[row]) for row in left.tolist()]
    category, of_category = None, 0
    if held:
        counts = Counter(pair.category for pair in held)
        category, of_category = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return Client(
        pairs=len(held),
        harmful=sum(pair.harmful is True for pair in held),
        unlabelled=_unlabelled(held),
        category=category,
        of_category=of_category,
        kept=None if kept is None else len(kept),
        kept_harmful=None if kept is None else sum(pair.harmful is True for pair in used),
        kept_unlabelled=None if kept is None else _unlabelled(used),
        replaced=sum(row in replaced for row in left.tolist()) or None,
        trained=int((answer_tokens[left] > 0).sum()) if len(left) else 0,
    )


def all_clients(table: Sequence[Client]) -> Clients:
    """What the clients have in all; there is at least one."""
    shares = [one.harmful / (one.pairs - one.unlabelled) for one in table if one.pairs > one.unlabelled]
    kept = [one.kept for one in table if one.kept is not None]
    filtered = len(kept) == len(table)
    kept_harmful = [one.kept_harmful for one in table if one.kept_harmful is not None]
    kept_unlabelled = [one.kept_unlabelled for one in table if one.kept_unlabelled is not None]
    idle = [one for one in table if not one.trained]
    empty = [one for one in idle if not one.pairs]
    dropped_all = [one for one in idle if one.pairs and one.kept == 0]
    return Clients(
        clients=len(table),
        pairs=spread([one.pairs for one in table]),
        harmful_share=spread(shares) if shares else None,
        kept=sum(kept) if filtered else None,
        dropped=sum(one.pairs for one in table) - sum(kept) if filtered else None,
        kept_harmful=sum(kept_harmful) if filtered else None,
        kept_unlabelled=sum(kept_unlabelled) if filtered else None,
        replaced=sum(one.replaced or 0 for one in table) or None,
        kept_pairs=spread(kept) if filtered else None,
        without_pairs=len(empty),
        without_kept=len(dropped_all),
        without_answers=len(idle) - len(empty) - len(dropped_all),
    )


def spread(values: Sequence[int | float]) -> Spread:
    """The least, the median and the greatest of at least one number."""
    return Spread(float(min(values)), float(np.median(values)), float(max(values)))


def cut(lengths: Sequence[int] | np.ndarray, most: int, texts: int | None = None) -> Cut:
    """What a limit cuts of texts of so many tokens; `texts`: how many there are, where only some lengths are given.

    Lengths that are not given are of texts that are not cut.
    """
    beyond = [int(length) - most for length in lengths if length > most]
    count = len(lengths) if texts is None else texts
    return Cut(count, len(beyond), sum(beyond), max(beyond, default=0))


def less(asked: Mapping[str, tuple[int, int]]) -> list[Less]:
    """Where there is less than was asked for; `asked`: key -> (asked, there)."""
    return [Less(key, wanted, there) for key, (wanted, there) in asked.items() if there < wanted]
