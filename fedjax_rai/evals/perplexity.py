"""Perplexity of held-out acceptable answers: exp of the mean -log p of a token, which for uniform logits is the
vocabulary's size."""

from collections.abc import Sequence
from math import ceil

from fedjax_rai.config.schema import EvalConfig
from fedjax_rai.data.mix import is_synthetic
from fedjax_rai.evals.evaluation import (
    Bench,
    Column,
    EvalSet,
    Evaluation,
    Item,
    Measured,
    ScoredIn,
    Sources,
    TokensRow,
    WithoutAnswers,
)
from fedjax_rai.evals.held_out import tiny_choices
from fedjax_rai.evals.judge import Exchange
from fedjax_rai.evals.means import PERPLEXITY, Total, mean_rate


def perplexity_items(sources: Sources) -> EvalSet:
    """`eval.perplexity_pairs` held-out questions with an acceptable answer each; of the tiny world, of its choices."""
    wanted = sources.eval.perplexity_pairs
    if is_synthetic(sources.data):
        chosen = tiny_choices(sources)[:wanted]
        return EvalSet([Item(choice.query, choice.good) for choice in chosen], synthetic=True)
    pairs = [pair for pair in sources.held_out if pair.harmful is False and not pair.before]
    left_out = max(len(pairs) - wanted, 0) if wanted else 0
    items = [Item(pair.query, pair.response) for pair in pairs[:wanted]]
    return EvalSet(items, synthetic=False, left_out=left_out, limit="eval.perplexity_pairs")


def exchanges(given: EvalSet) -> list[Exchange]:
    """Each prompt with the answer that is read."""
    return [(item.prompt, item.right or "") for item in given.items if isinstance(item, Item)]


class Reading(WithoutAnswers):
    """An answer to each prompt is read; its perplexity is that of all answers' tokens together."""

    def measure(self, name: str, given: EvalSet, bench: Bench) -> Measured:
        """Of an answer that was cut off at `data.max_length` what is left counts, if anything is."""
        read = exchanges(given)
        found = bench.likelihoods(read)
        totals = [Total(-float(logp), float(tokens)) for logp, tokens in zip(found.logps, found.tokens, strict=True)]
        rate = mean_rate(totals, PERPLEXITY, "likelihood")
        rows = [TokensRow.of(name, *exchange, total) for exchange, total in zip(read, totals, strict=True)]
        cut_off = int((~found.whole).sum())
        return Measured({name: rate and rate._replace(answers=len(read), cut_off=cut_off)}, rows)

    def batches(self, given: EvalSet, config: EvalConfig, scored_in: ScoredIn | None) -> int:
        return ceil(len(given.items) / config.batch_size)

    def asked(self, given: EvalSet) -> Sequence[str]:
        return []

    def read(self, given: EvalSet) -> Sequence[Exchange]:
        return exchanges(given)


PERPLEXITY_OF_PAIRS = Evaluation(
    name="perplexity",
    load=perplexity_items,
    columns=(Column("perplexity", "perplexity", main=False, higher_is_better=False),),
    way=Reading(),
    keys=("perplexity_pairs",),
)
