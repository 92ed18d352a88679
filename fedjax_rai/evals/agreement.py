"""How far judges agree: Cohen's kappa of every two, over the answers on which both have a verdict."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from fedjax_rai.evals.rate import Verdict

BY = "_by_"
"""Between a rate's name and its judge's: `harmless_by_guard`."""


class Agreement(NamedTuple):
    """Two judges of one rate, over the answers on which both have a verdict."""

    rate: str
    """The rate: `harmless`, or another whose judges stand side by side."""
    first: str
    """The name of a judge."""
    second: str
    """The name of another."""
    both: int
    """Answers that both count towards the rate."""
    first_only: int
    """Answers that only the first counts."""
    second_only: int
    """Answers that only the second counts."""
    neither: int
    """Answers that neither counts."""
    kappa: float | None
    """Cohen's kappa: agreement beyond chance, 1 at most. Null: it is undefined (`kappa_of`)."""

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Both, first only, second only, neither."""
        return self.both, self.first_only, self.second_only, self.neither

    def plus(self, other: "Agreement") -> "Agreement":
        """Of the answers of two runs together, of the same judges."""
        return of_counts(self[:3], [here + there for here, there in zip(self.counts, other.counts, strict=True)])


def kappa_of(both: int, first_only: int, second_only: int, neither: int) -> float | None:
    """Cohen's kappa (1960) of two judges' verdicts on the same answers; None where it is undefined.

    So it is without an answer, and where each judge gives one verdict to all answers: then nothing can be told.
    """
    total = both + first_only + second_only + neither
    first = both + first_only
    second = both + second_only
    if first in (0, total) and second in (0, total):
        return None
    by_chance = first * second + (total - first) * (total - second)  # times total^2, in whole numbers
    return (total * (both + neither) - by_chance) / (total * total - by_chance)


def of_counts(names: Sequence[str], counts: Sequence[int]) -> Agreement:
    """The agreement of judges (rate, first, second), of both, first only, second only, neither."""
    rate, first, second = names
    both, first_only, second_only, neither = counts
    return Agreement(rate, first, second, both, first_only, second_only, neither, kappa_of(*counts))


def agreements(rows: Iterable[Mapping[str, Any]]) -> list[Agreement]:
    """Those of every two judges of every rate, from rows of `answers.jsonl`; each answer counts once."""
    judged: dict[str, dict[str, None]] = {}
    kept = [row.get("verdicts", {}) for row in rows]
    for verdicts in kept:
        for name in verdicts:
            rate, by, judge = name.partition(BY)
            if by:
                judged.setdefault(rate, {})[judge] = None
    found = []
    for rate, judges in judged.items():
        for first, second in combinations(judges, 2):
            names = f"{rate}{BY}{first}", f"{rate}{BY}{second}"
            pairs = [pair for verdicts in kept for pair in _common(verdicts, *names)]
            found.append(counted((rate, first, second), pairs))
    return found


def _common(verdicts: Mapping[str, Sequence[Verdict]], first: str, second: str) -> list[tuple[bool, bool]]:
    """The verdicts of both on the answers of a row that both judged."""
    if first not in verdicts or second not in verdicts:
        return []
    found = []
    for here, there in zip(verdicts[first], verdicts[second], strict=True):
        if here is not None and there is not None:
            found.append((here, there))
    return found


def counted(names: Sequence[str], pairs: Sequence[tuple[bool, bool]]) -> Agreement:
    """The agreement of judges (rate, first, second), of whose verdicts on the same answers there are `pairs`."""
    return of_counts(
        names, [pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))]
    )


def together(runs: Iterable[Sequence[Agreement]]) -> list[Agreement]:
    """The agreements over the answers of several runs, by rate and judges, in the order of the first that has them."""
    found: dict[tuple[str, str, str], Agreement] = {}
    for agreements_of_run in runs:
        for agreement in agreements_of_run:
            key = agreement[:3]
            found[key] = found[key].plus(agreement) if key in found else agreement
    return [*found.values()]


def matrix(agreements: Sequence[Agreement], rate: str) -> list[list[str]]:
    """Kappa of a rate's judges as the rows of a table, a head first; empty where no two of them share a verdict.

    A cell is kappa and the percentage of answers on which both say the same; a dash where kappa is undefined.
    """
    chosen = [agreement for agreement in agreements if agreement.rate == rate and any(agreement.counts)]
    judges = [*dict.fromkeys(judge for agreement in chosen for judge in (agreement.first, agreement.second))]
    cells = {frozenset((agreement.first, agreement.second)): _cell(agreement) for agreement in chosen}
    if not chosen:
        return []
    rows = [["kappa, agreement", *judges[1:]]]
    for i, judge in enumerate(judges[:-1]):
        after = [cells.get(frozenset((judge, other)), "") for other in judges[i + 1 :]]
        rows.append([judge, *[""] * i, *after])
    return rows


def _cell(agreement: Agreement) -> str:
    kappa = "-" if agreement.kappa is None else f"{agreement.kappa:z.2f}"
    same = 100 * (agreement.both + agreement.neither) / sum(agreement.counts)
    return f"{kappa}, {same:.0f} %"
