"""Which part a question belongs to: clients, guard, server or evaluation, so that nobody's texts hold another's."""

import hashlib
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from fedjax_rai.data.mix import Mixed
from fedjax_rai.data.sources import Pair

CLIENTS, GUARD, SERVER, EVALUATION = "clients", "guard", "server", "evaluation"
SHARES = {CLIENTS: 0.55, GUARD: 0.2, SERVER: 0.1, EVALUATION: 0.15}


def share_out(sources: Sequence[Mixed], seed: int) -> dict[str, list[list[Pair]]]:
    """The pairs of each part, by part and source; all answers to a question are in one part, whatever its source.

    Questions are one that are the same to a reader, or the same in two languages of one row, or connected so by others.
    A question's part depends on its text, the seed and the shares alone, so that other data do not move it, save by
    connecting it. Pairs of the tiny world are all for clients: it makes what others need apart. So are pairs without a
    label, of which guard, server and evaluation make nothing, but for questions that have a labelled answer, too.
    """
    by_source = _forms(sources)
    texts = _representatives(by_source)
    labelled = set()
    for mixed, forms_of_source in zip(sources, by_source, strict=True):
        for pair, forms in zip(mixed.read.pairs, forms_of_source, strict=False):  # none of the tiny world's
            if pair.harmful is not None:
                labelled.add(texts[forms[0]])
    parts: dict[str, list[list[Pair]]] = {part: [[] for _ in sources] for part in SHARES}
    for i, mixed in enumerate(sources):
        if mixed.synthetic:
            parts[CLIENTS][i] = mixed.read.pairs
            continue
        for pair, forms in zip(mixed.read.pairs, by_source[i], strict=True):
            question = texts[forms[0]]
            part = part_of(question, SHARES, seed) if question in labelled else CLIENTS
            parts[part][i].append(pair)
    return parts


def representatives(sources: Sequence[Mixed]) -> dict[str, str]:
    """For each question, as it is compared, the one that stands for all that are connected with it; `share_out` goes by
    it. Nothing of the tiny world, whose questions stand for themselves.
    """
    return _representatives(_forms(sources))


def _forms(sources: Sequence[Mixed]) -> list[list[list[str]]]:
    """The questions of each pair of each source, in all its languages; none of the tiny world's."""
    return [[] if mixed.synthetic else [mixed.questions(p) for p in mixed.read.pairs] for mixed in sources]


def part_of(question: str, shares: Mapping[str, float], seed: int) -> str:
    """The part of a question, in the form that is compared; the shares are met as well as by chance."""
    bounds = list(accumulate(shares.values()))
    digest = hashlib.sha256(f"{seed}:{question}".encode()).digest()
    uniform = int.from_bytes(digest[:8]) / 2**64
    return list(shares)[bisect(bounds, uniform * bounds[-1])]


def _representatives(by_source: Sequence[Iterable[Sequence[str]]]) -> dict[str, str]:
    """For each pair's own form the one text that stands for all that are connected with it: the first in alphabetical
    order of the first source that has one of them. A text that is connected with no other stands for itself.
    """
    leader: dict[str, str] = {}

    def lead(form: str) -> str:
        while leader.setdefault(form, form) != form:
            leader[form] = leader[leader[form]]
            form = leader[form]
        return form

    for rows in by_source:
        for first, *others in rows:
            for other in others:
                leader[lead(other)] = lead(first)
    best: dict[str, tuple[int, str]] = {}
    forms = {(i, first) for i, rows in enumerate(by_source) for first, *_ in rows}
    for i, form in forms:
        root = lead(form)
        best[root] = min(best.get(root, (i, form)), (i, form))
    return {form: best[lead(form)][1] for _, form in forms}
