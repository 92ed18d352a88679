"""Prepared sets of revisions (S-CAI, arXiv 2502.16691): said once by a fixed model, for any number of runs to train on.

A set is a folder of JSON lines in TRL's conversational preference format, a pair a row:

    datasets.load_dataset("json", data_files="OUT/pairs-*.jsonl", split="train")

is what `trl.DPOTrainer` takes; `.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")` of it is
what `trl.SFTTrainer` takes. There is no column `messages`: beside `prompt`, TRL refuses it. `cai.data=OUT` trains on
the set here.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.aliases import Adapter
from fedjax_rai.cai.constitution import draw
from fedjax_rai.cai.programs import converse, sampling
from fedjax_rai.cai.revise import Talk
from fedjax_rai.config.files import ONLINE, digest
from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.data.order import passes
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.phase import Phase, Said, talk
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory import advice
from fedjax_rai.mesh import replicated
from fedjax_rai.model.peft import CONFIG as ADAPTER_CONFIG
from fedjax_rai.model.peft import WEIGHTS, load_adapter
from fedjax_rai.runs import conversations, files
from fedjax_rai.runs.conclude import synthetic_parts
from fedjax_rai.runs.conversations import Conversation
from fedjax_rai.runs.folder import CONFIG, SUMMARY, began_with, differences, open_folder, pins_of
from fedjax_rai.runs.inputs import check_inputs, check_unchanged
from fedjax_rai.text.prompts import ASSISTANT, USER

SHARD = 512  # conversations to a file
SET, PROGRESS = "set.json", "progress.jsonl"


class Batch(NamedTuple):
    """Conversations that were said at once, in order of their numbers."""

    told: list[tuple[int, Conversation]]
    tokens: int  # generated


def prepare(config: ExperimentConfig, out: Path, prompts: int | None = None, adapter: Path | None = None) -> Path:
    """The set in `out`, finished: begun, gone on with, or found done.

    `prompts` conversations, as many as the server has red prompts if not given. `adapter`, a PEFT folder of the
    config's own shape, is the policy; without it that is the base. Nothing is written before config, data and model
    have been read. Raises InputError for an `out` that holds anything but this very set.
    """
    config, setting, asked = read_request(config, out, prompts, adapter)
    if finished(out, asked):
        terminal.say(f"{out}: already finished")
        return out
    said = Sayer(setting, config, policy(setting, adapter), asked["prompts"])
    said.check()
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / SET, asked)
    open_folder(out, config, setting)
    with files.alone(out):
        write_shards(said, out)
    conclude(setting, config, out)
    return out


def read_request(
    config: ExperimentConfig, out: Path, prompts: int | None, adapter: Path | None
) -> tuple[ExperimentConfig, Setting, dict[str, Any]]:
    """(the set's config, its setting, what else decides it); writes nothing. Raises InputError as `prepare` does."""
    if config.cai.data != ONLINE:
        raise InputError(f"cai.data = {config.cai.data}: must be {ONLINE!r} to prepare a set")
    config = config.model_copy(update={"output": str(out), "cai": config.cai.model_copy(update={"enabled": True})})
    check_inputs([config])
    check_config(out, config)
    asked_by = None if adapter is None else adapter_digest(adapter)
    setting = Setting(config, pins=pins_of(began_with(out)))
    asked = {"prompts": len(setting.texts.materials.red_prompts) if prompts is None else prompts, "adapter": asked_by}
    return config, setting, asked


def adapter_digest(folder: Path) -> str:
    """Of its two files; raises InputError where one is not there."""
    for name in (ADAPTER_CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"--adapter {folder}: no {name} there; must be a folder in PEFT's format")
    return digest([folder / ADAPTER_CONFIG, folder / WEIGHTS])


def check_config(out: Path, config: ExperimentConfig) -> None:
    """Raises InputError if the folder holds anything but a set of that config."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / SET).is_file():
        raise InputError(f"{out}: exists and is not a prepared set; name another folder")
    if (out / CONFIG).is_file():
        _refuse(out, differences(relevant(load_config(out / CONFIG)), relevant(config)))
        check_unchanged(config, out, began_with(out).get("files", {}))


def finished(out: Path, asked: dict[str, Any]) -> bool:
    """Raises InputError if the folder holds another set than the one asked for."""
    if (out / SET).is_file():
        _refuse(out, differences(files.read_json(out / SET), asked))
    return (out / SUMMARY).is_file()


def _refuse(out: Path, changed: list[tuple[str, Any, Any]]) -> None:
    if changed:
        listed = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed)
        raise InputError(f"{out}: holds another set; name another folder, or undo\n{listed}")


def policy(setting: Setting, folder: Path | None) -> Adapter:
    """The adapter in a PEFT folder, of the config's own shape, else InputError; a fresh one where there is none."""
    if folder is None:
        return setting.fresh_adapter("adapter")
    model, own = setting.shapes
    lora, adapter = load_adapter(folder, model)
    changed = differences(vars(own), vars(lora))
    if changed:
        listed = "\n".join(f"  lora.{key}: {new!r} there, {old!r} in the config" for key, old, new in changed)
        raise InputError(f"--adapter {folder}: is of another shape\n{listed}")
    return jax.device_put(adapter, replicated(setting.models.mesh))


class Sayer:
    """Holds the conversations of a set: each depends on the seed and its own number alone.

    They are said in batches of one size, `cai.prompts_per_chunk` or `cai.prompts`, within a shard; the last one is
    filled up with copies, so that there is one program. Which others a conversation is said beside can move the last
    bits of its logits, and shards do not change with an interruption: so neither does a single byte.
    """

    def __init__(self, setting: Setting, config: ExperimentConfig, adapter: Adapter, n: int):
        own, red = config.cai, setting.texts.red_prompts
        most = min(own.prompts_per_chunk or own.prompts, SHARD, n)
        # what is held at once is a batch
        self.sized = config.model_copy(
            update={"cai": own.model_copy(update={"prompts_per_chunk": most, "prompts": most})}
        )
        self.setting, self.config, self.adapter, self.n = setting, config, adapter, n
        self.options = Phase(Setting(self.sized, setting)).options
        self.rows = passes(len(red.tokens), n, config.seed)

    def check(self) -> None:
        """Read all that is used, so that what is wrong is said before anything is written."""
        advice.announce(self.sized, sizes.saying(self.setting))
        self.setting.texts.name_unknown_categories()
        _ = self.setting.models.tokenizer.closing, self.setting.models.base

    def batches(self, shard: int) -> list[np.ndarray]:
        """The numbers of a shard's conversations, in batches."""
        ids = np.arange(shard * SHARD, min((shard + 1) * SHARD, self.n))
        return [ids[i : i + self.options.chunk] for i in range(0, len(ids), self.options.chunk)]

    def say(self, ids: np.ndarray) -> Batch:
        """These conversations, at most a batch."""
        setting, filled = self.setting, np.resize(ids, self.options.chunk)
        talk = self.talk(filled)
        chain = converse(
            setting.model,
            self.options,
            setting.models.base,
            self.adapter,
            talk,
            setting.texts.requests,
            sampling(self.config.cai),
        )
        said = Said(self.rows[filled], np.asarray(talk.principles), chain)
        told = list(zip(ids.tolist(), conversations.read(setting, said), strict=False))
        return Batch(told, sum(int(np.asarray(answers.valid)[: len(ids)].sum()) for answers in chain))

    def talk(self, ids: np.ndarray) -> Talk:
        """To begin the conversations of these numbers."""
        principles = np.concatenate([self._principles(int(i)) for i in ids])
        keys = jax.vmap(lambda i: rng.stream(self.setting.root, "prepared", conversation=i))(jnp.asarray(ids))
        return talk(self.setting, self.rows[ids], principles, keys)

    def _principles(self, i: int) -> np.ndarray:
        category = self.setting.texts.materials.red_prompts[self.rows[i]].category
        g = rng.host(self.config.seed, "prepared principles", conversation=i)
        return draw(self.setting.texts.constitution, [category], self.config.cai.revisions, g)


def write_shards(said: Sayer, out: Path) -> None:
    """All shards that are still to do, each whole or not at all; a shard's pairs are written last."""
    shards = range(-(-said.n // SHARD))
    left = [shard for shard in shards if not _pairs(out, shard).exists()]
    total, done = (sum(len(said.batches(shard)) for shard in own) for own in (shards, set(shards) - set(left)))
    if done:
        terminal.say(f"{out}: going on after {len(shards) - len(left)} of {len(shards)} shards")
    with terminal.progress(out.name, total, done, unit="batch") as advance:
        for shard in left:
            began, pairs, dropped, tokens = time.perf_counter(), [], [], 0
            for ids in said.batches(shard):
                batch = said.say(ids)
                for i, own in batch.told:
                    (dropped if cause(own) else pairs).append(row(said.setting, i, own))
                tokens += batch.tokens
                advance(f"shard {shard}, {len(pairs)} pairs")
            spent = {"shard": shard, "generated_tokens": tokens, "seconds": round(time.perf_counter() - began, 3)}
            past = [old for old in files.read_rows(out / PROGRESS) if old["shard"] != shard]
            files.write_rows(out / PROGRESS, [*past, spent])
            files.write_rows(out / f"dropped-{shard:05}.jsonl", dropped)
            files.write_rows(_pairs(out, shard), pairs)


def _pairs(out: Path, shard: int) -> Path:
    return out / f"pairs-{shard:05}.jsonl"


def row(setting: Setting, i: int, own: Conversation) -> dict[str, Any]:
    """A pair to be trained on, or a degenerate conversation with its cause in place of the pair.

    `turns` are all that were said, without the constitution's few-shot turns, which stand before them all.
    """
    said = list(turns(setting, own))
    pair = {"prompt": said[:1], "chosen": said[-1:], "rejected": said[1:2]}
    return {
        "id": i,
        **(pair if cause(own) is None else {"cause": cause(own)}),
        "turns": said,
        "principles": own.principles,
        "category": own.category,
        "seed": setting.config.seed,
    }


def cause(own: Conversation) -> str | None:
    """Why it makes no pair. Tokens that differ may still give the same text, or none: white space at an end is lost."""
    texts = own.response, own.revisions[-1]
    return own.degenerate or (None if all(texts) else "empty") or ("equal" if texts[0] == texts[1] else None)


def turns(setting: Setting, own: Conversation) -> Iterator[dict[str, str]]:
    """Question, response, then critique and revision by each principle, behind the requests for them."""
    asks = {principle.name: principle for principle in setting.texts.constitution.principles}
    texts = [own.prompt, own.response]
    for name, critique, revision in zip(own.principles, own.critiques, own.revisions, strict=True):
        texts += [asks[name].critique, critique, asks[name].revision, revision]
    for place, text in enumerate(texts):
        yield {"role": (USER, ASSISTANT)[place % 2], "content": text}


def conclude(setting: Setting, config: ExperimentConfig, out: Path) -> None:
    """Write the summary that marks the set as finished: counts of what is in its files."""
    pairs, dropped = (_rows(out.glob(f"{kind}-*.jsonl")) for kind in ("pairs", "dropped"))
    spent = files.read_rows(out / PROGRESS)
    summary = {
        "conversations": len(pairs) + len(dropped),
        "red_prompts": len(setting.texts.materials.red_prompts),
        "pairs": len(pairs),
        "dropped": _counts(own["cause"] for own in dropped),
        "generated_tokens": sum(own["generated_tokens"] for own in spent),
        "seconds": round(sum(own["seconds"] for own in spent), 1),
        "principles": _shares(pairs, dropped, lambda own: set(own["principles"])),
        "categories": _shares(pairs, dropped, lambda own: [own["category"]]),
        "synthetic": [part for part in synthetic_parts(config) if part in ("model", "data")],
    }
    files.write_json(out / SUMMARY, summary)


def _rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return [row for path in sorted(paths) for row in files.read_rows(path)]


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _shares(pairs: list[dict], dropped: list[dict], names: Any) -> dict[str, dict[str, int]]:
    """How many conversations, and pairs of them, have each name."""
    made = _counts(name for own in pairs for name in names(own))
    held = _counts(name for own in (*pairs, *dropped) for name in names(own))
    return {name: {"conversations": n, "pairs": made.get(name, 0)} for name, n in held.items()}


def report(out: Path) -> str:
    """A finished set in lines: what it holds, what it cost, and where it lies."""
    own = files.read_json(out / SUMMARY)
    causes = ", ".join(f"{n} {cause.replace('_', ' ')}" for cause, n in own["dropped"].items())
    parts = ", ".join(own["synthetic"])
    lines = [f"SYNTHETIC (tiny world: {parts})"] if parts else []
    lines.append(
        f"{own['pairs']} pairs of {own['conversations']} conversations" + (f"; dropped: {causes}" * bool(causes))
    )
    if not own["pairs"]:
        lines.append("no pairs: nothing can be trained on this; an --adapter that answers unsafely gives some")
    lines.append(f"{own['generated_tokens']} tokens generated in {own['seconds']:.0f} s")
    return "\n".join([*lines, str(out)])
