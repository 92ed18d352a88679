"""The end of a run: its evaluation, and the summary that marks it as finished."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rai.aliases import Adapter
from fedjax_rai.config.files import ONLINE
from fedjax_rai.config.schema import TINY, ExperimentConfig
from fedjax_rai.data.mix import entries
from fedjax_rai.data.sources import Pair
from fedjax_rai.evals.agreement import agreements
from fedjax_rai.evals.spoilt import answer_counts
from fedjax_rai.evals.suite import kinds_of
from fedjax_rai.experiment import cost
from fedjax_rai.experiment.cost import Cost, ProbeCost
from fedjax_rai.experiment.evaluation import critique, evaluate
from fedjax_rai.experiment.filtering import ClientPairs
from fedjax_rai.experiment.materials import Materials
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.model.lora import size
from fedjax_rai.runs import files
from fedjax_rai.runs.folder import ANSWERS, DATA, EVALUATION, SUMMARY, run_folder
from fedjax_rai.runs.record import METRICS, REVISIONS
from fedjax_rai.runs.rows import (
    Critique,
    Filtered,
    GuardAsked,
    GuardQuality,
    Memory,
    PairCounts,
    Phase,
    Quality,
    Rate,
    Round,
    Seconds,
    Summary,
    read_data,
    read_rounds,
)


def conclude(setting: Setting, adapter: Adapter, memory: Callable[[], Memory | None]) -> None:
    """Evaluate, and write eval.json, answers.jsonl and, last, the summary that marks the run as finished.

    `memory`: what the run held, asked for when all else is done.
    """
    folder = run_folder(setting.config)
    began = time.perf_counter()
    rates, answers = evaluate(setting, adapter)
    seconds = round(time.perf_counter() - began, 1)
    files.write_json(folder / EVALUATION, rates)
    files.write_rows(folder / ANSWERS, answers)
    summary = summarize(setting, folder, rates, seconds)
    summary = summary._replace(answers=answer_counts(answers), agreement=agreements(answers))
    summary = summary._replace(memory=memory())
    files.write_json(folder / SUMMARY, summary)


def summarize(setting: Setting, folder: Path, rates: Mapping[str, Any], evaluation_seconds: float) -> Summary:
    """The summary of a run whose rounds are over, from what stands in its folder."""
    config = setting.config
    rounds = read_rounds(folder / METRICS)
    filtering = config.filter.enabled
    return Summary(
        rates={name: rate and Rate(**rate) for name, rate in rates.items()},
        rounds=config.federated.rounds,
        seed=config.seed,
        synthetic=synthetic_parts(config),
        adapter_parameters=size(*setting.shapes),
        truncated_examples=setting.texts.truncated,
        diverged_clients=int(sum(row.diverged for row in rounds)),
        guard=guard_quality(setting) if filtering else None,
        filter=filtered(setting) if filtering else None,
        seconds=seconds_of(rounds, evaluation_seconds),
        cost=cost_of(setting, rounds),
        critique=critique_of(setting, folder),
        pairs=pairs_of([row.cai for row in rounds if row.cai]),
        data=read_data(folder / DATA).summary if (folder / DATA).is_file() else None,
        not_computed=setting.models.not_computed,
        sets=kinds_of(setting.texts.materials.evaluations),
        layout=setting.models.layout_reason,
        guard_asked=guard_asked(setting) if filtering else None,
    )


def guard_quality(setting: Setting) -> GuardQuality | None:
    """The guard's verdicts on the clients' pairs against their true labels; None where no pair has both."""
    if all(pair.harmful is None for pair in setting.texts.materials.pairs):
        return None
    found = setting.guarding.quality
    fitted, released = found["fitted"], found["released"]
    if released is None:
        return None
    fitted_quality = Quality(**fitted) if fitted else None
    return GuardQuality(fitted_quality, Quality(**released), setting.guarding.threshold)


def guard_asked(setting: Setting) -> GuardAsked | None:
    """The form in which the guard was asked about the clients' pairs, and its verdicts' share; None: no model was."""
    guarding = setting.guarding
    if guarding.is_function:
        return None
    shares = np.asarray(guarding.scored.shares)
    known = shares[~np.isnan(shares)]
    tried = guarding.self_test
    return GuardAsked(
        form=guarding.form.name,
        share=float(known.mean()) if len(known) else None,
        least_share=float(known.min()) if len(known) else None,
        without_verdict=int(len(shares) - len(known)),
        self_test=None if tried is None else tried.auroc,
    )


def filtered(setting: Setting) -> Filtered:
    """What the filter left of all clients' pairs; the harmful share is known to this simulation alone."""
    made = setting.texts.materials
    left_by_filter = ClientPairs(setting)
    rows = np.concatenate(left_by_filter.kept)
    left = [left_by_filter.pair(row) for row in rows.tolist()]
    labels = [pair.harmful for pair in left if pair.harmful is not None]
    dealt = np.concatenate(setting.client_rows)  # a partition may leave pairs out
    return Filtered(
        kept=len(left),
        dropped=len(dealt) - len(left),
        without_score=int(np.isnan(setting.guarding.scores[dealt]).sum()),
        harmful_share_kept=sum(labels) / len(labels) if labels else None,
        replaced=len(left_by_filter.replaced),
        evaded_kept=evaded_kept(made, rows, left),
    )


def evaded_kept(made: Materials, rows: np.ndarray, trained: Sequence[Pair]) -> int | None:
    """How many of the clients' rewritten answers stand in the pairs of these rows that are trained on."""
    rewritten = made.evaded.changed
    if not rewritten.any():
        return None
    passed = [
        rewritten[row] and pair.response == made.pairs[row].response
        for row, pair in zip(rows.tolist(), trained, strict=True)
    ]
    return int(sum(passed))


def seconds_of(rounds: Sequence[Round], evaluation: float) -> Seconds:
    """How long training and evaluation took."""
    each = [row.seconds for row in rounds]
    start = rounds[0].start_seconds if rounds else None
    return Seconds(cost.seconds(each), round(sum(each), 1), evaluation, start)


def cost_of(setting: Setting, rounds: Sequence[Round]) -> Cost:
    """What the rounds cost, by phase."""
    count = cost.parameters(*setting.shapes)
    probes = [row.probe.seconds for row in rounds if row.probe]
    phases = [row.cai_spent for row in rounds if row.cai]
    return Cost(
        local=cost.local_cost(count, [row.local_spent for row in rounds]),
        probe=ProbeCost(len(probes), cost.seconds(probes)) if probes else None,
        cai=cost.cai_cost(count, phases, cost.full_epoch(setting)) if phases else None,
    )


def pairs_of(phases: Sequence[Phase]) -> PairCounts | None:
    """What became of the conversations, or of the prepared pairs, of all phases; None where there was no phase."""
    if not phases:
        return None
    causes = {
        "held_out": sum(phase.held_out or 0 for phase in phases),
        "cut_off": sum(phase.cut_off for phase in phases),
        "empty": sum(phase.empty or 0 for phase in phases),
        "equal": sum(phase.equal for phase in phases),
    }
    pairs = sum(phase.pairs for phase in phases)
    usable = sum(phase.usable for phase in phases)
    return PairCounts(pairs + sum(causes.values()), pairs, usable, **causes)


def critique_of(setting: Setting, folder: Path) -> Critique | None:
    """What revision made of responses; None where no conversation was held."""
    held = files.read_rows(folder / REVISIONS)
    return Critique(**critique(setting, held)) if held else None


def synthetic_parts(config: ExperimentConfig) -> list[str]:
    """Which parts of a run are the tiny world's."""
    synthetic = {
        "model": config.model.path == TINY,
        "data": any(entry.config.path == TINY for entry in entries(config.data, config.seed)),
        "AdvBench prompts": config.eval.advbench == TINY,
    }
    parts = [name for name, is_tiny in synthetic.items() if is_tiny]
    if config.cai.enabled and config.cai.data != ONLINE:
        prepared = Path(config.cai.data) / SUMMARY
        if prepared.is_file() and files.read_object(prepared)["synthetic"]:
            parts.append("revisions")
    return parts
