"""Prepared sets of revisions (S-CAI, arXiv 2502.16691): generated once, by a fixed model, for any number of runs.

A set is a folder of JSON lines in TRL's conversational preference format, a pair a row:

    datasets.load_dataset("json", data_files="OUT/pairs-*.jsonl", split="train")

is what `trl.DPOTrainer` takes; `.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")` of it is
what `trl.SFTTrainer` takes. There is no column `messages`: beside `prompt`, TRL refuses it. `cai.data=OUT` trains on
the set here.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.aliases import Adapter
from fedjax_rai.cai.constitution import draw
from fedjax_rai.cai.options import make_sampling
from fedjax_rai.cai.queued import programs_of, queued_rollout
from fedjax_rai.cai.revise import RolloutBatch
from fedjax_rai.config.files import ONLINE, digest
from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ExperimentConfig
from fedjax_rai.config.views import relevant
from fedjax_rai.data.order import passes
from fedjax_rai.errors import InputError
from fedjax_rai.experiment import sizes
from fedjax_rai.experiment.layout import choose_mesh
from fedjax_rai.experiment.phase import rollout_batch
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.memory import advice
from fedjax_rai.mesh import replicated, ways
from fedjax_rai.model.peft import CONFIG as ADAPTER_CONFIG
from fedjax_rai.model.peft import WEIGHTS, load_adapter, name_other_base
from fedjax_rai.runs import compiled, conversations, files
from fedjax_rai.runs.conclude import synthetic_parts
from fedjax_rai.runs.conversations import Conversation
from fedjax_rai.runs.folder import CONFIG, SUMMARY, began_with, differences, open_folder, pins_of
from fedjax_rai.runs.inputs import check_inputs, check_unchanged
from fedjax_rai.text.prompts import ASSISTANT, USER
from fedjax_rai.train.generate import Decoding
from fedjax_rai.train.speaker import Speaker, speaker

SHARD = 512  # conversations to a file
SET, PROGRESS = "set.json", "progress.jsonl"


def prepare(config: ExperimentConfig, out: Path, prompts: int | None = None, adapter: Path | None = None) -> Path:
    """The set in `out`, finished: begun, gone on with, or found done.

    `prompts` conversations, as many as the server has red prompts if not given. `adapter`, a PEFT folder of the
    config's own shape, is the policy; without it that is the base. Nothing is written before config, data and model
    have been read. Raises InputError for an `out` that holds anything but this very set.
    """
    config, setting, request = read_request(config, out, prompts, adapter)
    if finished(out, request):
        terminal.say(f"{out}: already finished")
        return out
    compiled.keep_compiled()
    writer = Writer(setting, config, policy(setting, adapter), request["prompts"])
    writer.check()
    out.mkdir(parents=True, exist_ok=True)
    with files.alone(out):
        check_config(out, config)  # another process may have been there since
        if not finished(out, request):
            files.write_json(out / SET, request)
            open_folder(out, config, setting)
            writer.write(out)
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
    digest_of_adapter = None if adapter is None else adapter_digest(adapter)
    setting = Setting(config, pins=pins_of(began_with(out)))
    choose_mesh([setting], sizes.preparing)
    count = len(setting.texts.materials.red_prompts) if prompts is None else prompts
    return config, setting, {"prompts": count, "adapter": digest_of_adapter}


def adapter_digest(folder: Path) -> str:
    """The digest of an adapter's two files; raises InputError where one is not there."""
    for name in (ADAPTER_CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"--adapter {folder}: no {name} there; must be a folder in PEFT's format")
    return digest([folder / ADAPTER_CONFIG, folder / WEIGHTS])


def check_config(out: Path, config: ExperimentConfig) -> None:
    """Raises InputError if the folder holds anything but a set of that config."""
    if not os.path.isfile(out / SUMMARY):
        files.check_writable(out, str(out))
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / SET).is_file():
        raise InputError(f"{out}: exists and is not a prepared set; name another folder")
    if (out / CONFIG).is_file():
        _refuse(out, differences(relevant(load_config(out / CONFIG)), relevant(config)))
        check_unchanged(config, out, began_with(out).get("files", {}))


def finished(out: Path, request: dict[str, Any]) -> bool:
    """Whether the set is complete; raises InputError if the folder holds another one than is asked for."""
    if (out / SET).is_file():
        _refuse(out, differences(files.read_object(out / SET), request))
    return (out / SUMMARY).is_file()


def _refuse(out: Path, changed: list[tuple[str, Any, Any]]) -> None:
    if changed:
        listed = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed)
        raise InputError(f"{out}: holds another set; name another folder, or undo\n{listed}")


def policy(setting: Setting, folder: Path | None) -> Adapter:
    """The adapter in a PEFT folder, of the config's own shape, else InputError; a fresh one where there is none."""
    if folder is None:
        return setting.fresh_adapter("adapter")
    model, configured = setting.shapes
    lora, adapter = load_adapter(folder, model)
    name_other_base(folder, setting.config.model.path, setting.config.model.revision)
    changed = differences(vars(configured), vars(lora))
    if changed:
        listed = "\n".join(f"  lora.{key}: {new!r} there, {old!r} in the config" for key, old, new in changed)
        raise InputError(f"--adapter {folder}: is of another shape\n{listed}")
    return jax.device_put(adapter, replicated(setting.models.mesh))


class Generated(NamedTuple):
    """Conversations that were generated at once."""

    conversations: list[tuple[int, Conversation]]  # by number, ascending
    tokens: int  # generated


class Writer:
    """Generates the conversations of a set, each of which depends on the seed and its own number alone.

    A shard's are generated together, `cai.prompts_per_chunk` or `cai.prompts` at once. Beside which others a
    conversation is generated can move the last bits of its logits, and shards do not change with an interruption: so
    neither does a single byte.
    """

    def __init__(self, setting: Setting, config: ExperimentConfig, adapter: Adapter, count: int):
        cai = config.cai
        shard = min(SHARD, count)
        parts = ways(setting.models.mesh)
        at_once = min(cai.prompts_per_chunk or cai.prompts, shard)
        self.at_once = parts * -(-at_once // parts)  # the same number on every device
        # what is held is a shard
        held = cai.model_copy(update={"prompts_per_chunk": self.at_once, "prompts": shard})
        self.shard_config = config.model_copy(update={"cai": held, "mesh": setting.models.layout})
        self.setting = setting
        self.config = config
        self.adapter = adapter
        self.count = count
        self.rows = passes(len(setting.texts.red_prompts.tokens), count, config.seed)

    def check(self) -> None:
        """Read all that is used, so that what is wrong is said before anything is written."""
        advice.announce(self.shard_config, sizes.preparing(self.setting))
        self.setting.revising.name_unknown_categories()
        _ = self.setting.models.not_computed, self.setting.models.tokenizer.closing, self.setting.models.base
        self.setting.check_logits(self.adapter)

    def shard(self, number: int) -> np.ndarray:
        """The numbers of a shard's conversations."""
        return np.arange(number * SHARD, min((number + 1) * SHARD, self.count))

    def batch(self, ids: np.ndarray) -> RolloutBatch:
        """What the conversations of these numbers are generated from."""
        principles = np.concatenate([self._principles(int(i)) for i in ids])
        keys = jax.vmap(lambda i: rng.stream(self.setting.root, "prepared", conversation=i))(jnp.asarray(ids))
        return rollout_batch(self.setting, self.rows[ids], principles, keys)

    def _principles(self, i: int) -> np.ndarray:
        category = self.setting.texts.materials.red_prompts[self.rows[i]].category
        g = rng.host(self.config.seed, "prepared principles", conversation=i)
        return draw(self.setting.revising.constitution, [category], self.config.cai.revisions, g)

    @cached_property
    def _speakers(self) -> tuple[Speaker, Speaker]:
        """Policy and critic; where the adapter is merged into kernels, once for all conversations."""
        lm = self.setting.lm
        policy = speaker(lm, self.adapter)
        return policy, policy if self.config.cai.critic == "policy" else Speaker(lm, None)

    def generate(self, ids: np.ndarray, advance: Callable[[str], object]) -> Generated:
        """The conversations of these numbers."""
        cai, end_ids = self.config.cai, self.setting.models.tokenizer.end_ids
        decoding = Decoding(make_sampling(cai), np.array(end_ids, np.int32), cai.max_new_tokens)
        requests = self.setting.revising.requests
        rollout = queued_rollout(*self._speakers, self.batch(ids), requests, decoding, self.at_once, advance)
        tokens = sum(int(answers.valid.sum()) for answers in rollout.answers)
        return Generated(list(zip(ids.tolist(), conversations.read(self.setting, rollout), strict=True)), tokens)

    def write(self, out: Path) -> None:
        """All shards that are still to do, each whole or not at all."""
        shards = range(-(-self.count // SHARD))
        left = [shard for shard in shards if not _pairs(out, shard).exists()]
        if len(left) < len(shards):
            terminal.say(f"{out}: going on after {len(shards) - len(left)} of {len(shards)} shards")
        total, to_do = self._programs(shards), self._programs(left)
        with terminal.progress(out.name, total, total - to_do, unit="batch") as advance:
            for shard in left:
                self._write_shard(out, shard, advance)

    def _programs(self, shards: Iterable[int]) -> int:
        return sum(programs_of(len(self.shard(shard)), self.at_once) for shard in shards)

    def _write_shard(self, out: Path, shard: int, advance: Callable[[str], None]) -> None:
        """One shard; its pairs are written last, so that where they are the shard is whole."""
        began = time.perf_counter()
        generated = self.generate(self.shard(shard), lambda kind: advance(f"shard {shard}, {kind}"))
        pairs, dropped = [], []
        for i, conversation in generated.conversations:
            kind = pairs if cause(conversation) is None else dropped
            kind.append(as_row(self.setting, i, conversation))
        seconds = round(time.perf_counter() - began, 3)
        spent = {"shard": shard, "generated_tokens": generated.tokens, "seconds": seconds}
        past = [old for old in files.read_rows(out / PROGRESS) if old["shard"] != shard]
        files.write_rows(out / PROGRESS, [*past, spent])
        files.write_rows(out / f"dropped-{shard:05}.jsonl", dropped)
        files.write_rows(_pairs(out, shard), pairs)


def _pairs(out: Path, shard: int) -> Path:
    return out / f"pairs-{shard:05}.jsonl"


def as_row(setting: Setting, i: int, conversation: Conversation) -> dict[str, Any]:
    """A pair to be trained on, or a degenerate conversation with its cause in place of the pair.

    `turns` are the whole conversation, without the constitution's few-shot turns, which stand before them all.
    """
    written = list(turns(setting, conversation))
    why = cause(conversation)
    if why is None:
        kind = {"prompt": written[:1], "chosen": written[-1:], "rejected": written[1:2]}
    else:
        kind = {"cause": why}
    return {
        "id": i,
        **kind,
        "turns": written,
        "principles": conversation.principles,
        "category": conversation.category,
        "seed": setting.config.seed,
    }


def cause(conversation: Conversation) -> str | None:
    """Why it makes no pair. Tokens that differ may still give the same text, or none: white space at an end is lost."""
    response = conversation.response
    revision = conversation.revisions[-1]
    if conversation.degenerate:
        return conversation.degenerate
    if not (response and revision):
        return "empty"
    return "equal" if response == revision else None


def turns(setting: Setting, conversation: Conversation) -> Iterator[dict[str, str]]:
    """Prompt, response, then critique and revision by each principle, behind the requests for them."""
    named = {principle.name: principle for principle in setting.revising.constitution.principles}
    texts = [conversation.prompt, conversation.response]
    by_principle = zip(conversation.principles, conversation.critiques, conversation.revisions, strict=True)
    for name, critique, revision in by_principle:
        texts += [named[name].critique, critique, named[name].revision, revision]
    for place, text in enumerate(texts):
        yield {"role": (USER, ASSISTANT)[place % 2], "content": text}


def conclude(setting: Setting, config: ExperimentConfig, out: Path) -> None:
    """Write the summary that marks the set as finished: counts of what is in its files."""
    pairs = _rows(out.glob("pairs-*.jsonl"))
    dropped = _rows(out.glob("dropped-*.jsonl"))
    spent = files.read_rows(out / PROGRESS)
    summary = {
        "conversations": len(pairs) + len(dropped),
        "red_prompts": len(setting.texts.materials.red_prompts),
        "pairs": len(pairs),
        "dropped": _counts(row["cause"] for row in dropped),
        "generated_tokens": sum(shard["generated_tokens"] for shard in spent),
        "seconds": round(sum(shard["seconds"] for shard in spent), 1),
        "principles": _shares(pairs, dropped, lambda row: set(row["principles"])),
        "categories": _shares(pairs, dropped, lambda row: [row["category"]]),
        "not_computed": setting.models.not_computed,
        "synthetic": [part for part in synthetic_parts(config) if part in ("model", "data")],
    }
    files.write_json(out / SUMMARY, summary)


def _rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return [row for path in sorted(paths) for row in files.read_rows(path)]


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _shares(
    pairs: list[dict], dropped: list[dict], names: Callable[[dict], Iterable[str]]
) -> dict[str, dict[str, int]]:
    """How many conversations, and pairs of them, have each name."""
    of_pairs = _counts(name for row in pairs for name in names(row))
    of_all = _counts(name for row in (*pairs, *dropped) for name in names(row))
    return {name: {"conversations": n, "pairs": of_pairs.get(name, 0)} for name, n in of_all.items()}


def report(out: Path) -> str:
    """A finished set in lines: what it holds, what it cost, and where it lies."""
    summary = files.read_object(out / SUMMARY)
    lines = []
    if summary["synthetic"]:
        lines.append(f"SYNTHETIC (tiny world: {', '.join(summary['synthetic'])})")
    held = f"{summary['pairs']} pairs of {summary['conversations']} conversations"
    causes = [f"{n} {name.replace('_', ' ')}" for name, n in summary["dropped"].items()]
    if causes:
        held += f"; dropped: {', '.join(causes)}"
    lines.append(held)
    if not summary["pairs"]:
        lines.append("no pairs: nothing can be trained on this; an --adapter that answers unsafely gives some")
    lines.append(f"{summary['generated_tokens']} tokens generated in {summary['seconds']:.0f} s")
    return "\n".join([*lines, str(out)])
