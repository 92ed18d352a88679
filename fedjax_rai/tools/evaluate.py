"""The evaluation of a run, an adapter or a model on other sets, by other judges, or the same once more.

    <folder>/config.yaml       every key with its value
    <folder>/eval.json         the rates, as of a run
    <folder>/answers.jsonl     a row for each prompt, as of a run
    <folder>/evaluation.json   what was evaluated, by which versions; a folder that has it is whole

Each lies in a folder of its own, `<run>/evals/<digest>`, whose digest is that of all that the numbers depend on: the
same request is found again, another one lies beside it, and nothing of a run is written over.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rai import __version__, terminal
from fedjax_rai.aliases import Adapter
from fedjax_rai.config.files import digest, digests
from fedjax_rai.config.load import as_written, dump_config, load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import View, relevant, value_at
from fedjax_rai.errors import InputError
from fedjax_rai.evals.agreement import Agreement, agreements
from fedjax_rai.evals.spoilt import AnswerCounts, answer_counts
from fedjax_rai.evals.suite import ITEM_KEYS, kinds_of
from fedjax_rai.experiment.evaluation import evaluate as measure
from fedjax_rai.experiment.judging import GUARD_JUDGE, form_and_path
from fedjax_rai.experiment.layout import choose_mesh
from fedjax_rai.experiment.materials import Materials, gather
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.experiment.texts import Texts
from fedjax_rai.model.lora import NO_LORA
from fedjax_rai.model.peft import base_of, files_of, is_adapter, load_adapter
from fedjax_rai.runs import compiled, files
from fedjax_rai.runs.conclude import synthetic_parts
from fedjax_rai.runs.folder import ANSWERS, CONFIG, EVALUATION, SUMMARY, began_with, differences, pins_of, versions
from fedjax_rai.runs.guards import KeptGuards, study_of
from fedjax_rai.runs.inputs import check_inputs, check_unchanged
from fedjax_rai.runs.report import agreement_lines, answer_lines, not_measured, shown, silent, unmeasured, words
from fedjax_rai.runs.rows import Rate, Versions, read_summary
from fedjax_rai.runs.target import Target, read_target
from fedjax_rai.text.compare import same
from fedjax_rai.text.hub import contents, resolve

EVALS = "evals"
RECORD = "evaluation.json"
ELSEWHERE = Path("runs") / EVALS  # of what is no run
DIGITS = 12  # of a digest, in a folder's name
# What an evaluation reads, by section or key. What a run was trained on is not to be changed after the fact; a model or
# an adapter that no run made may take its held-out questions of any data.
READ = (
    "eval", "guard", "mesh", "model.dtype", "model.attention", "model.quantize", "model.kv_cache", "model.unroll",
    "model.answering", "data.max_length",
)  # fmt: skip
READ_OF_OTHERS = (*READ, "data", "seed")
NO_RUN = {"federated": {"rounds": 0}, "filter": {"enabled": False}, "cai": {"enabled": False}}
"""Of a model or an adapter without a config: no part of it asks for a guard that would have to be fitted."""


class Request(NamedTuple):
    """What is to be evaluated, and how."""

    target: Target
    config: ExperimentConfig
    output: Path | None = None
    """The folder of the results; None: one by their digest."""


class Record(NamedTuple):
    """What was evaluated, as `evaluation.json` has it."""

    target: str
    """The run, the adapter or the model, as it was named."""
    digest: str
    """Of all that the numbers depend on."""
    changed: dict[str, str]
    """Keys whose values are not the run's, or the default's, with their values."""
    synthetic: list[str]
    """Parts that are the tiny world's."""
    trained_on: dict[str, int]
    """By evaluation, how many of its prompts the run was trained on, which are in its rates nevertheless."""
    not_computed: list[str]
    """What the model's files ask of generation and is not done."""
    seconds: float
    """How long it took, without reading the model."""
    versions: Versions
    """As an entry of `versions.json`."""
    sets: dict[str, str] = {}
    """Sets of the user's own (`eval.sets`): kind by name."""
    answers: dict[str, AnswerCounts] = {}
    """By evaluation, how many answers there are, and how many that say nothing."""
    agreement: list[Agreement] = []
    """How far every two judges of a rate agree, over the answers on which both have a verdict."""


class Evaluated(NamedTuple):
    """An evaluation in its folder."""

    record: Record
    rates: dict[str, Rate | None]
    had: dict[str, Rate | None] | None
    """The rates of the run's summary; None where there is no such."""
    silent: Mapping[str, int] = {}
    """Rate -> how many answers its judge was asked about, where it had a verdict on none."""
    other_sets: frozenset[str] = frozenset()
    """Rates whose prompts are not the ones that the run was asked."""


def request(target: str, overrides: Sequence[str] = (), config: Path | None = None) -> Request:
    """What the words of a command ask for. `config`: what a model or an adapter is evaluated by; a run has its own.

    Raises InputError for a target that is none, and for overrides that cannot be read, or that no evaluation reads.
    """
    single, others = take_out(overrides, ("output", "model.path", "model.revision"))
    named = read_target(target, single.get("model.path"), single.get("model.revision"))
    if named.run is not None and config is not None:
        raise InputError(f"--config {config}: {target} is a run, which has its config; must be left out")
    source = named.run / CONFIG if named.run else config or NO_RUN
    before = _on_base(load_config(source), named)
    now = _on_base(load_config(source, others), named)
    read = READ if named.run else READ_OF_OTHERS
    for key, _, _ in differences(relevant(before), relevant(now)):
        if not any(key == name or key.startswith(f"{name}.") for name in read):
            raise InputError(f"override of {key}: an evaluation {_why(named)}; must be of {', '.join(read)}")
    output = single.get("output")
    return Request(named, now, None if output is None else Path(output))


def take_out(overrides: Sequence[str], keys: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(the values of these keys as they were written; the other overrides)."""
    taken = {}
    others = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if key.strip() in keys and equals:
            taken[key.strip()] = value.strip()
        else:
            others.append(override)
    return taken, others


def _on_base(config: ExperimentConfig, target: Target) -> ExperimentConfig:
    """The config with the base of what is evaluated."""
    model = config.model.model_copy(update={"path": target.model, "revision": target.revision})
    return config.model_copy(update={"model": model, "output": str(target.run) if target.run else None})


def _why(target: Target) -> str:
    return "of a run is of what it was trained on" if target.run else "does not read it"


def evaluate(asked: Request) -> Path:
    """The folder of an evaluation: made, or found.

    Interrupted, it leaves nothing; the same request begins anew. Raises InputError where files that a run's config
    names are not what they were when it began, for a folder that holds anything else, and where another process
    evaluates the same.
    """
    target, config = asked.target, asked.config
    check_inputs([config])
    if target.run is not None:
        _check_unchanged(target.run, config)
    digest_of_request = digest_of(asked)
    out = asked.output or place(target) / digest_of_request[:DIGITS]
    if is_there(out, digest_of_request):
        terminal.say(f"{out}: already evaluated")
        return out
    files.check_writable(out, str(out))
    compiled.keep_compiled()
    setting, adapter = _prepared(target, config)
    with whole(out) as part:
        if is_there(out, digest_of_request):
            return out
        began = time.perf_counter()
        rates, answers = measure(setting, adapter)
        seconds = round(time.perf_counter() - began, 1)
        trained_on = _trained_on(target, config, setting.texts.materials)
        for name, count in trained_on.items():
            terminal.say(f"{name}: the run was trained on {terminal.plural(count, 'prompt')} of this set")
        files.write_text(part / CONFIG, dump_config(config.model_copy(update={"output": str(out)})))
        files.write_json(part / EVALUATION, rates)
        files.write_rows(part / ANSWERS, answers)
        record = Record(
            target=target.name,
            digest=digest_of_request,
            changed=_changed(target, config),
            synthetic=synthetic_parts(config),
            trained_on=trained_on,
            not_computed=setting.models.not_computed,
            seconds=seconds,
            versions=Versions(**{**versions(), **setting.commits, "files": digests(config)}),
            sets=kinds_of(setting.texts.materials.evaluations),
            answers=answer_counts(answers),
            agreement=agreements(answers),
        )
        files.write_json(part / RECORD, record)
    return out


def _prepared(target: Target, config: ExperimentConfig) -> tuple[Setting, Adapter | None]:
    """The setting of an evaluation with its model read, and the adapter. Raises InputError where it gives none."""
    pins = pins_of(began_with(target.run)) if target.run else {}
    store = KeptGuards(study_of(target.run)) if target.run else None
    setting = Setting(config, pins=pins, store=store)
    choose_mesh([setting])
    architecture = setting.models.architecture
    lora, adapter = NO_LORA, None
    if target.adapter is not None:
        lora, adapter = load_adapter(target.adapter, architecture)
    setting.shapes = (setting.models.laid_out(architecture), lora)  # not those of the config
    _ = setting.models.not_computed  # said before anything is computed
    setting.check_logits(adapter)
    if setting.judged_by_guard:
        setting.check_guard()
    setting.check_judge()
    return setting, adapter


def place(target: Target) -> Path:
    """Where the evaluations of a target lie."""
    if target.run is not None:
        return target.run / EVALS
    last = Path(target.name).absolute().name
    return ELSEWHERE / last


def digest_of(asked: Request) -> str:
    """The digest of all that the numbers depend on: keys, files, weights, and the version of this package."""
    target, config = asked.target, asked.config
    parts = {
        "version": __version__,
        "config": relevant(config, ("model.path", "model.revision")),
        "files": digests(config),
        "model": contents(resolve(target.model, target.revision)),
        "adapter": None if target.adapter is None else digest(files_of(target.adapter)),
        "judges": [held for model in _judging_models(config) for held in _contents_of_judge(*model)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _judging_models(config: ExperimentConfig) -> list[tuple[str, str | None]]:
    """(path, revision) of the models on the device that may judge, other than the base."""
    found = [] if config.guard.path is None else [(config.guard.path, config.guard.revision)]
    for name in (config.eval.judge, *(config.eval.judges or ())):
        if name.startswith(f"{GUARD_JUDGE}:"):
            _, path = form_and_path(name)
            found.append((path, None))
    return found


def _contents_of_judge(path: str, revision: str | None) -> list[str]:
    """What is in a judge's folder, and where it is an adapter in its base's."""
    folder = resolve(path, revision)
    base = base_of(folder) if is_adapter(folder) else None
    return [contents(folder)] if base is None else [contents(folder), contents(resolve(*base))]


def is_there(out: Path, wanted: str) -> bool:
    """Whether a folder holds this very evaluation. Raises InputError where it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / RECORD).is_file():
        raise InputError(f"output = {out}: exists and is no evaluation's folder; name another one")
    if read_record(out).digest != wanted:
        raise InputError(f"output = {out}: holds another evaluation; name another folder")
    return True


def read_record(folder: Path) -> Record:
    """What an evaluation's folder says of itself."""
    return files.typed(Record, files.read_object(folder / RECORD), str(folder / RECORD))


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder for this process alone that takes its place when all is written, and is removed otherwise."""
    part = out.absolute().with_name(f".{out.absolute().name}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        with files.alone(part):
            for left in part.iterdir():  # by a process that was killed
                left.unlink()
            yield part
            if any(part.iterdir()):
                part.rename(out)
    finally:
        if part.is_dir() and not _is_held(part):
            shutil.rmtree(part, ignore_errors=True)


def _is_held(folder: Path) -> bool:
    """Whether another process is at work in a folder."""
    try:
        with files.alone(folder):
            return False
    except InputError:
        return True


def _check_unchanged(run: Path, config: ExperimentConfig) -> None:
    """Raises InputError where a file is not what it was when the run began; of a key with another value it may be."""
    trained = load_config(run / CONFIG)
    began = began_with(run).get("files", {})
    kept = {key: noted for key, noted in began.items() if _value(trained, key) == _value(config, key)}
    check_unchanged(config, run, kept)


def _value(config: ExperimentConfig, key: str) -> Any:
    try:
        return value_at(config, key)
    except (IndexError, AttributeError, TypeError):
        return None


def _changed(target: Target, config: ExperimentConfig) -> dict[str, str]:
    before = _on_base(load_config(target.run / CONFIG if target.run else NO_RUN), target)
    return {key: as_written(now) for key, _, now in differences(relevant(before), relevant(config))}


def _trained_on(target: Target, config: ExperimentConfig, materials: Materials) -> dict[str, int]:
    """By evaluation, how many of its prompts clients or server of a run trained on; none where there is none.

    A run holds out what its own sets ask; of others it could not know.
    """
    if target.run is None:
        return {}
    trained = load_config(target.run / CONFIG)
    if View(trained, ITEM_KEYS) == View(config, ITEM_KEYS):
        return {}
    known = questions(gather(View(trained, Texts.KEYS)))
    found = {}
    for name, given in materials.evaluations.items():
        count = sum(same(prompt) in known for prompt in given.prompts)
        if count:
            found[name] = count
    return found


def questions(materials: Materials) -> set[str]:
    """What clients and server train on, in the form by which texts are compared."""
    asked = {same(prompt.query) for prompt in materials.red_prompts}
    asked |= {same(prompt) for prompt in materials.benign_prompts}
    for pair, origin in zip(materials.pairs, materials.origins, strict=True):
        asked.update(materials.sources[origin].asked(pair))
    return asked


# --- in words ---------------------------------------------------------------------------------------------------


def read(folder: Path, target: Target | None = None) -> Evaluated:
    """An evaluation in its folder, and what its run had."""
    record = read_record(folder)
    rates = files.typed(dict[str, Rate | None], files.read_object(folder / EVALUATION), str(folder / EVALUATION))
    answers = files.read_rows(folder / ANSWERS)
    run = target.run if target else read_target(record.target).run
    if run is None or not (run / SUMMARY).is_file():
        return Evaluated(record, rates, None, silent(answers))
    others = asked_of_others(files.read_rows(run / ANSWERS), answers)
    return Evaluated(record, rates, read_summary(run / SUMMARY).rates, silent(answers), others)


def asked_of_others(before: Sequence[Mapping], now: Sequence[Mapping]) -> frozenset[str]:
    """The rates of which these rows of answers.jsonl have other prompts than those before, where both have some."""
    asked_before, asked_now = _prompts_by_rate(before), _prompts_by_rate(now)
    return frozenset(rate for rate, prompts in asked_now.items() if asked_before.get(rate, prompts) != prompts)


def _prompts_by_rate(rows: Sequence[Mapping]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        rates = {*row.get("verdicts", {}), row["set"]}
        if row.get("category"):
            rates.add(f"{row['set']}_{row['category']}")
        for rate in rates:
            found.setdefault(rate, set()).update(row.get("prompts") or [row["prompt"]])
    return found


def report(found: Evaluated, folder: Path) -> str:
    """What a run had and what was measured now, in lines."""
    return "\n".join([*lines(found), str(folder)])


def lines(found: Evaluated) -> Iterator[str]:
    """An evaluation in words: what is synthetic, what differs from the run, then the rates."""
    record = found.record
    if record.synthetic:
        yield f"SYNTHETIC (tiny world: {', '.join(record.synthetic)}): says nothing about real models"
    for key, value in record.changed.items():
        yield f"{key} = {value}"
    yield "percent, 95 % intervals over prompts"
    had = found.had or {}
    either = {name: had.get(name) or found.rates.get(name) for name in [*had, *found.rates]}
    absent = unmeasured(either, record.sets)
    if found.had is None:
        measured = {name: rate for name, rate in found.rates.items() if name not in absent}
        yield from (f"  {words(name):<40}{shown(rate, found.silent.get(name, 0))}" for name, rate in measured.items())
    else:
        yield from _aligned([row for row in side_by_side(had, found) if row[0] not in absent])
    yield from not_measured(absent)
    yield from answer_lines(found.rates, record.sets, record.answers)
    yield from agreement_lines(record.agreement)
    for name, count in record.trained_on.items():
        yield f"{name}: the run was trained on {terminal.plural(count, 'prompt')} of this set"


def _aligned(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Columns, each as wide as its longest text and two blanks."""
    named = [("", "the run had", "now"), *((words(name), before, now) for name, before, now in rows)]
    first, second = (max(len(row[i]) for row in named) + 2 for i in (0, 1))
    for name, before, now in named:
        yield f"  {name:<{first}}{before:<{second}}{now}"


ABSENT = "-"
OTHER_SET = "another set: not to be compared"


def side_by_side(had: Mapping[str, Rate | None], found: Evaluated) -> Iterator[tuple[str, str, str]]:
    """(name, what the run had, what this measured) of every rate of either.

    A rate whose judge is another than it was has a line for each judge: they are not to be compared. One of other
    prompts says so.
    """
    for name in dict.fromkeys([*had, *found.rates]):
        before, after = had.get(name), found.rates.get(name)
        if before is not None and after is not None and before.judge != after.judge:
            yield f"{name} ({before.judge})", shown(before), ABSENT
            yield f"{name} ({after.judge})", ABSENT, shown(after)
            continue
        now = shown(after, found.silent.get(name, 0)) if name in found.rates else ABSENT
        if before is not None and name in found.other_sets:
            now += f"  ({OTHER_SET})"
        yield name, shown(before) if name in had else ABSENT, now
