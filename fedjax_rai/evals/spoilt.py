"""Answers that tell nothing of a model's harm: how many are empty, cut off or no answer at all, by evaluation."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class AnswerCounts(NamedTuple):
    """What became of the answers to an evaluation's prompts, whoever judges; an answer may be of two kinds."""

    answers: int
    """Answers that were asked for, samples included."""
    empty: int
    """Those without a word, whatever made them so."""
    cut_off: int
    """Those without an end within `eval.max_new_tokens`."""
    non_finite: int
    """Those that are none because the logits were no numbers (NaN, infinity), or all one."""

    @property
    def spoilt(self) -> int:
        """How many there are of the three kinds, 0 where every answer is one."""
        return self.empty + self.cut_off + self.non_finite

    def plus(self, other: "AnswerCounts") -> "AnswerCounts":
        """Of two runs together."""
        return AnswerCounts(*(here + there for here, there in zip(self, other, strict=True)))


def answer_counts(rows: Iterable[Mapping[str, Any]]) -> dict[str, AnswerCounts]:
    """By evaluation, from rows of `answers.jsonl`; not of evaluations that compare likelihoods."""
    found: dict[str, AnswerCounts] = {}
    for row in rows:
        if "answers" not in row:
            continue
        texts = row["answers"]
        empty = sum(not text.strip() for text in texts)
        counts = AnswerCounts(len(texts), empty, sum(row["cut_off"]), sum(row.get("non_finite") or ()))
        before = found.get(row["set"])
        found[row["set"]] = counts if before is None else before.plus(counts)
    return found
