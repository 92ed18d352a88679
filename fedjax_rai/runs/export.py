"""A finished run as a folder that others load: its adapter in PEFT's format, or base and adapter merged."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedjax_rai import terminal
from fedjax_rai.config.files import ONLINE
from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import CaiConfig, ExperimentConfig, FilterConfig, is_hub_name
from fedjax_rai.data.mix import entries
from fedjax_rai.errors import InputError
from fedjax_rai.evals.means import UNITS
from fedjax_rai.evals.rate import PERCENT
from fedjax_rai.model.families import read_config
from fedjax_rai.model.peft import load_adapter, save_adapter
from fedjax_rai.model.weights import save_merged
from fedjax_rai.runs import compiled, files
from fedjax_rai.runs.folder import ADAPTER, CONFIG, SUMMARY, pinned
from fedjax_rai.runs.rows import Rate, Summary, read_summary
from fedjax_rai.text.hub import resolve

# What AutoTokenizer reads, and what generation stops at.
_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
    "additional_chat_templates",
)  # fmt: skip


def export(folder: Path, out: Path, merged: bool = False, dtype: str | None = None) -> None:
    """Write the run in `folder` to OUT, with tokenizer, chat template and a model card.

    `merged`: a checkpoint that `AutoModelForCausalLM.from_pretrained` loads, of `dtype` (bfloat16 if not given);
    otherwise the adapter (float32 if not given). OUT appears whole, or not at all. Raises InputError for a folder that
    is no finished run, and an OUT that is not empty.
    """
    chosen = dtype or ("bfloat16" if merged else "float32")
    if not (folder / SUMMARY).is_file() or not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: not the folder of a finished run (it has no {SUMMARY}); run it to its end first")
    for written in (out, _part(out)):
        files.check_writable(written, str(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not an empty folder; name another one")
    config = pinned(folder, load_config(folder / CONFIG))
    summary = read_summary(folder / SUMMARY)
    source = resolve(config.model.path, config.model.revision, weights=merged)
    shape = read_config(source)
    compiled.keep_compiled()
    lora, adapter = load_adapter(folder / ADAPTER, shape)
    with _whole(out) as part:
        if merged:
            terminal.say(f"merging the adapter into {config.model.path}, {chosen}")
            if config.model.quantize != "none":
                terminal.say(
                    f"the run's base was in {config.model.quantize}: the adapter is added to the model's own weights, "
                    "which answer a little otherwise than what was evaluated"
                )
            save_merged(part, source, shape, lora, adapter, chosen)
            _copy(source, part, (*_TOKENIZER, "generation_config.json"))
        else:
            save_adapter(part, shape, lora, adapter, config.model.path, config.model.revision, chosen)
            _copy(source, part, _TOKENIZER)
        files.write_text(part / "README.md", card(config, summary, merged))


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all is written, and is removed otherwise."""
    out = out.absolute()
    part = _part(out)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(out: Path) -> Path:
    """Where a folder lies while it is written."""
    whole = out.absolute()
    return whole.with_name(f".{whole.name}.{os.getpid()}.part")


def _copy(source: Path, out: Path, patterns: tuple[str, ...]) -> None:
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, out / path.name)


def card(config: ExperimentConfig, summary: Summary, merged: bool) -> str:
    """The model card: what the adapter was trained on, how, behind which guards, and what was measured."""
    lines = [
        *front_matter(config, merged),
        "",
        f"# {Path(config.output or 'run').name}",
        "",
        origin(config, merged),
    ]
    if summary.synthetic:
        synthetic = ", ".join(summary.synthetic)
        lines += ["", f"**Synthetic**: {synthetic}. The numbers below say nothing about real models."]
    lines += ["", "## Training", ""]
    lines += [f"* {line}" for line in training(config, summary)]
    lines += ["", "## Results", "", "Percent, with 95 % intervals over prompts.", ""]
    lines += ["| rate | mean | interval |", "|---|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {cells(rate)} |" for name, rate in summary.rates.items()]
    return "\n".join([*lines, ""])


def front_matter(config: ExperimentConfig, merged: bool) -> Iterator[str]:
    """What the hub reads of a card: library, base (where it is on the hub) and tags."""
    base = config.model.path
    yield "---"
    yield f"library_name: {'transformers' if merged else 'peft'}"
    if is_hub_name(base) and not Path(base).exists():
        yield f"base_model: {base}"
    yield "tags: [federated-learning, lora, safety, fedjax-rai]"
    yield "---"


def origin(config: ExperimentConfig, merged: bool) -> str:
    """A sentence: what this is, and of which base."""
    model = config.model
    kind = "A model" if merged else "A LoRA adapter"
    revision = f" (revision {model.revision})" if model.revision else ""
    quantized = "" if model.quantize == "none" else f", its kernels in {model.quantize} while training"
    return f"{kind} trained by federated fine-tuning with `fedjax_rai` on `{model.path}`{revision}{quantized}."


def training(config: ExperimentConfig, summary: Summary) -> Iterator[str]:
    """What was trained on, how, and behind which guards."""
    fed, lora, filtering = config.federated, config.lora, config.filter
    for entry in entries(config.data, config.seed):
        yield f"data: `{entry.config.path}`, language {entry.config.language or config.data.language}"
    yield (
        f"{fed.algorithm}: {fed.rounds} rounds, {fed.cohort} of {fed.clients} clients a round, {fed.local_steps} local "
        f"steps of {fed.batch_size} examples, learning rate {fed.learning_rate:g}"
    )
    yield f"each client's guard filter: {filter_words(filtering)}"
    yield constitutional(config.cai)
    patterns = {**lora.rank_pattern, **lora.alpha_pattern}
    yield f"LoRA: rank {lora.rank}, alpha {lora.alpha:g}" + (f", {patterns}" if patterns else "")
    yield f"seed {config.seed}; {summary.cost.local.trained_tokens:,} trained tokens"


def filter_words(filtering: FilterConfig) -> str:
    """What the clients' filter does."""
    if not filtering.enabled or filtering.action == "keep":
        return "off"
    return "on" if filtering.action == "drop" else "on, refusals in the place of unsafe answers"


def constitutional(cai: CaiConfig) -> str:
    """Whether there was constitutional AI, and of what kind."""
    if not (cai.enabled and cai.iterations):
        return "constitutional AI: off"
    prompts = "red prompts" if cai.data == ONLINE else f"pairs of {cai.data}"
    return (
        f"constitutional AI ({cai.method}), due every {cai.every} rounds: {cai.iterations} iterations on "
        f"{cai.prompts} {prompts}"
    )


def cells(rate: Rate | None) -> str:
    """Mean and interval, as two cells of a table."""
    if rate is None:
        return "not measured | "
    unit = UNITS[rate.unit]
    digits = unit.digits
    named = "" if unit == PERCENT else f" {unit.name}"
    return f"{rate.mean:.{digits}f}{named} | {rate.interval(digits)}"
