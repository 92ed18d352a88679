"""A finished run in words, in lines of at most 100 characters."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_rai.evals.agreement import Agreement
from fedjax_rai.evals.means import UNITS
from fedjax_rai.evals.rate import PERCENT, Verdict
from fedjax_rai.evals.spoilt import AnswerCounts
from fedjax_rai.evals.suite import evaluations
from fedjax_rai.experiment.cost import CaiCost
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import ANSWERS, SUMMARY
from fedjax_rai.runs.rows import Critique, Filtered, GuardAsked, GuardQuality, PairCounts, Rate, Summary, read_summary
from fedjax_rai.terminal import plural, verb


def report(folder: Path) -> str:
    """What a finished run measured, what was trained on, what that cost, and where it lies."""
    summary = read_summary(folder / SUMMARY)
    return "\n".join([*lines(summary, silent(files.read_rows(folder / ANSWERS))), str(folder)])


def lines(summary: Summary, without_any: Mapping[str, int] | None = None) -> Iterator[str]:
    """A summary in words. `without_any`: the `silent` rates."""
    if summary.synthetic:
        yield f"SYNTHETIC (tiny world: {', '.join(summary.synthetic)}): says nothing about real models"
    yield "percent, 95 % intervals over prompts"
    absent = unmeasured(summary.rates, summary.sets)
    rates = {name: rate for name, rate in summary.rates.items() if name not in absent}
    asked = {words(name): count for name, count in (without_any or {}).items()}
    for name, rate in named_by_judge(rates, summary.sets).items():
        yield f"  {name:<40}{shown(rate, asked.get(name, 0))}"
    yield from not_measured(absent)
    yield from answer_lines(summary.rates, summary.sets, summary.answers)
    yield from agreement_lines(summary.agreement)
    if summary.guard:
        yield guard_line(summary.guard)
    if summary.guard_asked:
        yield asked_line(summary.guard_asked)
    if summary.filter:
        yield filter_line(summary.filter)
    if summary.diverged_clients:
        yield f"left out because training diverged: {plural(summary.diverged_clients, 'client')}, summed over rounds"
    if summary.critique:
        yield from critique_lines(summary.critique)
    if summary.cost.cai:
        yield from cai_lines(summary.cost.cai, summary.pairs)


def unmeasured(rates: Mapping[str, Rate | None], sets: Mapping[str, str]) -> dict[str, str]:
    """Rate -> title of its evaluation, of the evaluations of which nothing was measured."""
    found = {}
    for evaluation in evaluations(sets).values():
        names = [column.rate for column in evaluation.columns if column.rate in rates]
        if not any(rates[name] for name in names):
            found |= dict.fromkeys(names, evaluation.columns[0].title)
    return found


def not_measured(absent: Mapping[str, str]) -> list[str]:
    """A line of the titles of what is `unmeasured`; none where there is nothing."""
    if not absent:
        return []
    titles = ", ".join(dict.fromkeys(absent.values()))
    return textwrap.wrap(f"  not measured: {titles}", 100, subsequent_indent="    ", break_on_hyphens=False)


def silent(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Rate -> how many answers its judge was asked about, where it had a verdict on none; `rows` of answers.jsonl."""
    verdicts: dict[str, list[Verdict]] = {}
    for row in rows:
        for rate, of_row in row.get("verdicts", {}).items():
            verdicts.setdefault(rate, []).extend(of_row)
    return {rate: len(given) for rate, given in verdicts.items() if given and not any(v is not None for v in given)}


def words(rate: str) -> str:
    """What a rate is called in lines."""
    return rate.replace("_", " ")


def named_by_judge(rates: Mapping[str, Rate | None], sets: Mapping[str, str]) -> dict[str, Rate | None]:
    """Rates by what they are called here: the rates of harm with their judges, and which one is the primary."""
    headlines = [evaluation.columns[0].rate for evaluation in evaluations(sets).values() if evaluation.judges_harm]
    primary = {headline: _by_primary(headline, rates) for headline in headlines}
    named = {}
    for name, rate in rates.items():
        if primary.get(name):
            continue
        named[words(name) + (" (primary)" if name in primary.values() else "")] = rate
    return named


def _by_primary(headline: str, rates: Mapping[str, Rate | None]) -> str | None:
    """The rate by the judge that gave the headline rate, under that judge's name."""
    by_judge = [name for name, rate in rates.items() if name.startswith(f"{headline}_by_") and rate]
    return next((name for name in by_judge if rates[name] == rates.get(headline)), None)


def shown(rate: Rate | None, asked: int = 0) -> str:
    """A rate and its interval. `asked`: of one that is None, answers that its judge was asked about in vain."""
    if rate is None:
        return f"no verdict on any of {plural(asked, 'answer')}" if asked else "not measured"
    missing = ""
    if rate.without_verdict:
        is_share = rate.answers and rate.unit == PERCENT.name
        of_all = f"; {share_of_all(rate):.1f} of all {rate.answers}" if is_share else ""
        missing = f"  (no verdict: {rate.without_verdict}{of_all})"
    unit = UNITS[rate.unit]
    digits = unit.digits
    named = "" if unit == PERCENT else f" {unit.name}"
    return f"{rate.mean:5.{digits}f}  {rate.interval(digits)}{named}{missing}"


def share_of_all(rate: Rate) -> float:
    """Percent of all answers that count towards a rate, those without a verdict among the others."""
    return rate.mean * max(rate.answers - rate.without_verdict, 0) / rate.answers


def answer_lines(
    rates: Mapping[str, Rate | None], sets: Mapping[str, str], answers: Mapping[str, AnswerCounts] | None = None
) -> Iterator[str]:
    """A line for each evaluation whose answers were cut off or are empty, whoever judged them, if anybody could."""
    for evaluation in evaluations(sets).values():
        measured = [rates[column.rate] for column in evaluation.columns if rates.get(column.rate)]
        counted = (answers or {}).get(evaluation.name) or (
            measured[0] if measured else None
        )  # a rate of an older version
        found = spoilt(counted) if counted and evaluation.generates else ""
        if found:
            yield f"  {evaluation.columns[0].title}: {found}"


def agreement_lines(agreement: Sequence[Agreement]) -> Iterator[str]:
    """A line for every two judges of a rate: Cohen's kappa, and on how many answers both say the same."""
    for found in agreement:
        common = sum(found.counts)
        if common:
            kappa = "undefined" if found.kappa is None else f"{found.kappa:z.2f}"
            same = f"{found.both + found.neither} of {common} the same"
            yield f"  {found.rate}, {found.first} and {found.second}: kappa {kappa}, {same}"


def spoilt(rate: Any) -> str:
    """How many of a rate's answers were cut off or are empty; "" where none."""
    cut_off = f"{rate.cut_off} of {rate.answers} answers cut off at eval.max_new_tokens" if rate.cut_off else ""
    empty = f"{rate.empty} of {rate.answers} empty" if rate.empty else ""
    lost = f"{rate.non_finite} of these no numbers" if rate.non_finite else ""
    return ", ".join(part for part in (cut_off, empty, lost) if part)


def guard_line(guard: GuardQuality) -> str:
    """The guard that was used, against the true labels."""
    quality = guard.fitted or guard.released
    numbers = ", ".join(f"{name} {value:.1f}" for name, value in quality._asdict().items())
    return f"guard on the clients' pairs: {numbers}"


def asked_line(asked: GuardAsked) -> str:
    """How the guard was asked, and how sure it was of giving a verdict at all."""
    line = f"guard asked in the form {asked.form}"
    if asked.share is not None and asked.least_share is not None:
        line += f": its verdicts hold {asked.share:.3f} of the probability (mean; least {asked.least_share:.3f})"
    if asked.without_verdict:
        line += f"; {asked.without_verdict} without a verdict"
    return line if asked.self_test is None else f"{line}; self-test AUROC {asked.self_test:.2f}"


def filter_line(left: Filtered) -> str:
    """What the clients' filters left."""
    line = f"filter: {left.kept} pairs kept, {left.dropped} dropped"
    if left.without_score:
        line += f" ({left.without_score} without a score)"
    if left.replaced:
        line += f", a refusal in {plural(left.replaced, 'pair')}"
    if left.harmful_share_kept is not None:
        line += f"; {100 * left.harmful_share_kept:.1f} % of the kept are harmful"
    if left.evaded_kept is not None:
        line += f"; {plural(left.evaded_kept, 'rewritten answer')} passed"
    return line


def critique_lines(critique: Critique) -> Iterator[str]:
    """What revision made of unsafe and of safe responses."""
    yield f"revision of responses, unsafe by {critique.judge}"
    yield f"  {critique.unsafe} unsafe: {percent(critique.made_safe)} made safe"
    left_alone, made_unsafe = percent(critique.left_alone), percent(critique.made_unsafe)
    yield f"  {critique.safe} safe: {left_alone} left alone, {made_unsafe} made unsafe"
    if critique.without_verdict:
        yield f"  {critique.without_verdict} without a verdict"


def cai_lines(cost: CaiCost, pairs: PairCounts | None = None) -> Iterator[str]:
    """What the CAI phases took, and what that saved of a full epoch."""
    phases = plural(cost.phases, "phase")
    tokens = f"{cost.generated_tokens} tokens generated, {cost.trained_tokens} trained on"
    yield f"constitutional AI: {phases}, {cost.seconds:.0f} s, {tokens}"
    if pairs and pairs.cut_off:
        yield f"  {pairs.cut_off} of {pairs.conversations} {cut_off_at(pairs.cut_off, cost)}"
    if cost.untrained_phases:
        untrained = plural(cost.untrained_phases, "phase")
        yield f"  {untrained} had no usable revision, or diverged and was undone: no revision was learnt, nothing saved"
    if cost.share_saved is None:
        return
    if cost.share_saved > 0:
        yield f"  {100 * cost.share_saved:.1f} % of a full epoch's FLOPs saved"
    else:
        yield f"  as many FLOPs as {1 - cost.share_saved:.1f} full epochs"


def cut_off_at(number: int, cost: CaiCost) -> str:
    """What cut off conversations, or prepared pairs, which nothing was generated for."""
    if cost.generated_tokens:
        return f"conversations {verb(number, 'was', 'were')} cut off at cai.max_new_tokens"
    return f"prepared pairs {verb(number, 'is', 'are')} longer than data.max_length"


def percent(value: float | None) -> str:
    """A percentage, or that there is none."""
    return "none" if value is None else f"{value:.1f} %"
