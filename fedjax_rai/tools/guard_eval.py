"""`fedjax-rai guard eval`: how good a guard is on questions that it was not fitted on, before and after its fit."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.config.load import dump_config, load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.threshold_rule import DROP, RECALL, ThresholdRule, parse_rule
from fedjax_rai.data.roles import GUARD, share_out
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.guard_fit import calibrated_on, question_digests
from fedjax_rai.experiment.guarding import NO_HELD_OUT
from fedjax_rai.experiment.layout import choose_mesh
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.runs import compiled, files
from fedjax_rai.runs.conclude import synthetic_parts
from fedjax_rai.runs.folder import CONFIG, versions
from fedjax_rai.runs.guards import KeptGuards, study_of
from fedjax_rai.safety import measures
from fedjax_rai.safety.calibration import Calibration
from fedjax_rai.safety.measures import Interval, Judged
from fedjax_rai.tools.guard_fit import check
from fedjax_rai.tools.guard_pictures import draw

RESULT = "guard.json"
EVALUATED = "guard-eval"
OF_A_GUARD = ("model", "data")  # what may be the tiny world's of what a guard is measured on
FITTED, RELEASED, FUNCTION = "fitted", "as released", "function"
SHOWN = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "hmean": "Hmean"}
SHOWN |= {"auroc": "AUROC", "auprc": "AUPRC"}
FEWEST = 2
"""Questions of a category or a language that is reported apart."""


class Request(NamedTuple):
    """What is asked of an evaluation."""

    rule: ThresholdRule | None = None
    """By which held-out questions choose the threshold; None: as a run would have it."""
    questions: int | None = None
    """How many questions are taken, at random; None: all."""
    out: Path | None = None
    """The folder of the result; None: a new one beside the guard."""


class Tested(NamedTuple):
    """A labelled answer that a guard is measured on."""

    pair: Pair
    question: str
    """Equal for all answers to one question."""
    language: str


class TestSet(NamedTuple):
    """What a guard is measured on, and what was left out."""

    __test__ = False  # no test of pytest's
    answers: list[Tested]
    left_out: dict[str, int]
    """Answers by the reason; in no measure."""


class Scored(NamedTuple):
    """A guard's scores of a test set, and its threshold."""

    judged: Judged
    known: np.ndarray
    """bool[n]: of the test set, the answers that have a score."""
    threshold: float
    chosen: str
    """How the threshold was."""
    temperature: float | None
    where_chosen: dict[str, Any] | None
    """What the threshold had on the held-out answers that chose it; None: they did not."""


class Chosen(NamedTuple):
    """A threshold, and how it came about."""

    threshold: float
    words: str
    rule: ThresholdRule | None = None
    """By which held-out questions chose it; None: they did not."""


class Evaluated(NamedTuple):
    """What was measured, and where it lies."""

    folder: Path
    result: dict[str, Any]


def target_config(target: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """The config of a target: a YAML file, or the folder of a run, a table's arm, or `guard fit`."""
    if target.is_dir():
        if not (target / CONFIG).is_file():
            raise InputError(
                f"{target}: no {CONFIG} there; must be a config, or the folder of a run or of `fedjax-rai guard fit`; "
                "a guard's adapter is evaluated by CONFIG guard.adapter=FOLDER"
            )
        config = load_config(target / CONFIG, overrides)
        return config.model_copy(update={"output": str(target)})
    return load_config(target, overrides, "runs/{stem}-guard")


def evaluate(config: ExperimentConfig, request: Request) -> Evaluated:
    """Measure the guard of a config on every labelled answer whose question is neither the guard's nor unlabelled.

    A guard that has to be fitted first is fitted. Writes `guard.json` and three pictures into a folder of its own.
    Raises InputError for a rule without held-out questions, and where nothing is left to measure on.
    """
    folder = Path(config.output or "runs/guard")
    files.check_writable(folder, f"output = {folder}")
    out = request.out or _new(folder / EVALUATED)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: is there already; must be a new folder")
    compiled.keep_compiled()
    setting = Setting(config, store=KeptGuards(study_of(folder)))
    choose_mesh([setting])
    check(setting)
    tested = test_set(setting, request.questions)
    scored = {name: _scored(setting, tested, name, request.rule) for name in _guards(setting)}
    result = describe(setting, tested, scored)
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(out / CONFIG, dump_config(config))
    thresholds = {name: of_guard.threshold for name, of_guard in scored.items()}
    first = next(iter(scored.values()))
    judged = {name: of_guard.judged for name, of_guard in scored.items()}
    draw(out, judged, thresholds, first.temperature, bool(result["synthetic"]))
    files.write_json(out / RESULT, result)
    return Evaluated(out, result)


def _new(folder: Path) -> Path:
    """The folder, or the first with a number that is not there yet: what was measured before stays."""
    number = 2
    place = folder
    while place.exists():
        place = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return place


# --- what it is measured on ---------------------------------------------------------------------------------------


def test_set(setting: Setting, questions: int | None) -> TestSet:
    """Every labelled answer of the config's data whose question the guard was not fitted, stopped or calibrated on.

    Questions of files are shared out as in a run; those of the guard's share are left out, and so are, of a saved
    guard, those that its notes name.
    """
    made, seed = setting.texts.materials, setting.config.seed
    parts = share_out(made.sources, seed)
    notes = setting.guarding.notes
    asked = question_digests({made.question(pair) for pair in (*made.guard_pairs, *made.guard_held_out)})
    asked |= set(notes.questions if notes else ())
    left_out: Counter[str] = Counter()
    answers = []
    for i, mixed in enumerate(made.sources):
        for name, by_source in parts.items():
            for pair in by_source[i]:
                question = made.question(pair)
                if name == GUARD or not question_digests([question]).isdisjoint(asked):
                    left_out["questions of the guard's"] += 1
                elif pair.harmful is None:
                    left_out["without a label"] += 1
                else:
                    answers.append(Tested(pair, question, mixed.language))
    kept = _some(answers, questions, rng.host(seed, "guard test questions"))
    if len(kept) < len(answers):
        left_out["--questions"] = len(answers) - len(kept)
    if not kept:
        raise InputError("no labelled answers are left to measure the guard on; must be other data, or more of them")
    return TestSet(kept, dict(left_out))


def _some(answers: list[Tested], questions: int | None, g: np.random.Generator) -> list[Tested]:
    """All answers to so many questions, drawn at random."""
    distinct = list(dict.fromkeys(each.question for each in answers))
    if questions is None or questions >= len(distinct):
        return answers
    chosen = {distinct[i] for i in g.permutation(len(distinct))[:questions]}
    return [each for each in answers if each.question in chosen]


# --- scores and thresholds ----------------------------------------------------------------------------------------


def _guards(setting: Setting) -> list[str]:
    """What is measured: a function; a guard as released; or after its fit, and before."""
    if setting.guarding.is_function:
        return [FUNCTION]
    return [FITTED, RELEASED] if setting.guarding.is_adapted else [RELEASED]


def _scored(setting: Setting, tested: TestSet, name: str, rule: ThresholdRule | None) -> Scored:
    before_fit = name == RELEASED and setting.guarding.is_adapted
    pairs = [each.pair for each in tested.answers]
    scores = setting.guarding.scores_of(pairs, as_released=before_fit)
    labels = [pair.harmful for pair in pairs]
    found = measures.judged(scores, labels, [each.question for each in tested.answers])
    if not len(found.scores):
        raise InputError(f"the guard, {name}, gives no answer a score; nothing can be measured")
    held_out = _before_fit(setting) if before_fit else setting.guarding.calibration
    chosen = _threshold(setting, held_out, before_fit, rule)
    there = None if held_out is None or chosen.rule is None else where_chosen(held_out.judged, chosen)
    temperature = None if held_out is None else held_out.temperature
    return Scored(found, ~np.isnan(scores), chosen.threshold, chosen.words, temperature, there)


def _before_fit(setting: Setting) -> Calibration | None:
    """What held-out questions tell of the guard before its fit; None where they are not at hand."""
    made = setting.texts.materials
    if not made.guard_held_out:
        return None
    return calibrated_on(setting.guarding.untuned, made.guard_held_out, made, setting.config.guard.choose)


def _threshold(setting: Setting, held_out: Calibration | None, before_fit: bool, rule: ThresholdRule | None) -> Chosen:
    """The threshold, and how it was chosen: never by the answers that are reported."""
    config = setting.config.guard
    given = "the default" if config.threshold is None else "guard.threshold"
    if rule is None:
        if before_fit:
            return Chosen(setting.guarding.untuned_threshold, given)
        if held_out is None or config.threshold is not None:
            return Chosen(setting.guarding.threshold, given)
        words = config.choose or held_out.rule
        return Chosen(setting.guarding.threshold, f"{words} on held-out questions", parse_rule(words))
    if held_out is None:
        if before_fit:
            return Chosen(setting.guarding.untuned_threshold, f"{given}, as its held-out answers are not at hand")
        raise InputError(f"--threshold {rule.name}: {NO_HELD_OUT}")
    asked = rule.name if rule.share is None else f"{rule.name}={rule.share:g}"
    return Chosen(measures.choose_threshold(held_out.judged, rule), f"{asked} on held-out questions", rule)


def where_chosen(held_out: Judged, chosen: Chosen) -> dict[str, Any]:
    """What its rule asks for, in percent, at a threshold on the held-out answers, and how many these are."""
    counts = {"answers": len(held_out.scores), "harmful": int(held_out.harmful.sum())}
    if chosen.rule and chosen.rule.name == DROP:
        dropped = measures.measures(held_out._replace(harmful=~held_out.harmful), chosen.threshold)
        return {"measure": "acceptable answers dropped", "percent": dropped["recall"]} | counts
    name = RECALL if chosen.rule and chosen.rule.name == RECALL else "hmean"
    return {"measure": SHOWN[name], "percent": measures.measures(held_out, chosen.threshold)[name]} | counts


# --- the result ---------------------------------------------------------------------------------------------------


def describe(setting: Setting, tested: TestSet, scored: Mapping[str, Scored]) -> dict[str, Any]:
    """What stands in `guard.json`: measures with intervals of all answers, by category and by language; curves."""
    notes = setting.guarding.notes
    questions = len({each.question for each in tested.answers})
    return {
        "synthetic": [part for part in synthetic_parts(setting.config) if part in OF_A_GUARD],
        "seed": setting.config.seed,
        "answers": len(tested.answers),
        "questions": questions,
        "left_out": tested.left_out,
        "draws": measures.DRAWS,
        "fit": None if notes is None else _of_fit(notes),
        "guards": {name: _described(tested, of_guard, setting.config.seed) for name, of_guard in scored.items()},
        "made_with": versions(),
    }


def _of_fit(notes: Any) -> dict[str, Any]:
    """Of the notes of a fit, what a reader needs to tell it from others."""
    names = ("base", "base_name", "data", "pairs", "harmful", "steps", "stopped_early")
    return {name: getattr(notes, name) for name in names}


def _described(tested: TestSet, scored: Scored, seed: int) -> dict[str, Any]:
    of_guard = scored.judged
    roc, pr = measures.roc(of_guard), measures.precision_recall(of_guard)
    return {
        "threshold": scored.threshold,
        "chosen_by": scored.chosen,
        "where_chosen": scored.where_chosen,
        "temperature": scored.temperature,
        "calibrated": _calibrated(scored),
        "all": _group(of_guard, scored.threshold, seed),
        "by_category": _groups(tested, scored, seed, lambda each: each.pair.category),
        "by_language": _groups(tested, scored, seed, lambda each: each.language),
        "roc": {"flagged_acceptable": roc.x.tolist(), "recall": roc.y.tolist(), "threshold": roc.thresholds.tolist()},
        "precision_recall": {"recall": pr.x.tolist(), "precision": pr.y.tolist(), "threshold": pr.thresholds.tolist()},
        "reliability": [each._asdict() for each in measures.reliability(of_guard)],
    }


def _calibrated(scored: Scored) -> dict[str, float] | None:
    """Brier score and ECE at the temperature of the held-out questions."""
    if scored.temperature is None:
        return None
    at = scored.judged._replace(scores=measures.calibrated(scored.judged.scores, scored.temperature))
    found = measures.measures(at, scored.threshold)
    return {name: found[name] for name in ("brier", "ece")}


def _group(given: Judged, threshold: float, seed: int) -> dict[str, Any]:
    """Measures of some answers, and how many these are."""
    found = measures.intervals(given, threshold, rng.host(seed, "guard intervals"))
    counts = {
        "answers": len(given.scores),
        "harmful": int(given.harmful.sum()),
        "questions": given.distinct_questions,
        "without_score": given.without_score,
    }
    return counts | {name: interval._asdict() for name, interval in found.items()}


def _groups(tested: TestSet, scored: Scored, seed: int, key: Callable[[Tested], str]) -> dict[str, Any]:
    """`_group` of the answers of each kind; nothing where all are of one."""
    kinds = np.array([key(each) for each in tested.answers])
    if len(set(kinds)) < FEWEST:
        return {}
    found = {}
    for kind in sorted(set(kinds)):
        chosen = kinds == kind
        given = measures.part(scored.judged, chosen[scored.known])
        without = int(np.sum(chosen & ~scored.known))
        found[str(kind)] = _group(given._replace(without_score=without), scored.threshold, seed)
    return found


# --- what is printed ----------------------------------------------------------------------------------------------


def report(evaluated: Evaluated) -> Iterator[str]:
    """The measures of each guard, with their 95 % intervals over questions, as lines."""
    result = evaluated.result
    if result["synthetic"]:
        yield f"SYNTHETIC (tiny world: {', '.join(result['synthetic'])}): says nothing about real models"
    answers, questions = (terminal.plural(result[name], name[:-1]) for name in ("answers", "questions"))
    yield f"{answers} to {questions}; percent, with 95 % intervals over questions ({result['draws']:,} draws)"
    for reason, count in result["left_out"].items():
        yield f"left out: {terminal.plural(count, 'answer')}, {reason}"
    for name, found in result["guards"].items():
        yield ""
        yield f"{name}: threshold {found['threshold']:.4g} ({found['chosen_by']})"
        if found["where_chosen"]:
            yield _where_chosen_line(found["where_chosen"])
        yield from _table(found)
        without = found["all"]["without_score"]
        if without:
            yield f"{terminal.plural(without, 'answer')} without a score, in none of these"
        yield _reliability_line(found)


def _where_chosen_line(there: Mapping[str, Any]) -> str:
    counts = f"{terminal.plural(there['answers'], 'answer')}, {there['harmful']:,} harmful"
    return f"where it was chosen, held out: {there['measure']} {there['percent']:.1f} %, of {counts}"


def _table(found: Mapping[str, Any]) -> Iterator[str]:
    rows = {"all": found["all"]}
    for kind in ("by_language", "by_category"):
        rows |= {f"{kind[3:]} {name}": group for name, group in found[kind].items()}
    width = max(map(len, rows))
    heads = "".join(f"{head:>21}" for head in SHOWN.values())
    yield f"{'':{width}}  {'answers':>7} {'questions':>9}{heads}"
    for name, group in rows.items():
        cells = "".join(f"{cell(Interval(**group[measure])):>21}" for measure in SHOWN)
        yield f"{name:{width}}  {group['answers']:>7,} {group['questions']:>9,}{cells}"


def cell(interval: Interval) -> str:
    """A measure as a person reads it: `75.5 [70.1, 80.2]`; `75.5 [?]` without an interval; `-` where undefined."""
    if np.isnan(interval.value):
        return "-"
    if np.isnan(interval.low):
        return f"{interval.value:.1f} [?]"
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _reliability_line(found: Mapping[str, Any]) -> str:
    every, at = found["all"], found["calibrated"]
    line = f"Brier {every['brier']['value']:.3f}, ECE {every['ece']['value']:.3f}"
    if at is None:
        return f"{line}; no temperature is known, as nothing was held out"
    return f"{line}; at temperature {found['temperature']:.3g}: Brier {at['brier']:.3f}, ECE {at['ece']:.3f}"
