"""Answers to a user's own prompts: how to try a model or an adapter before, or after, a run."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.data.examples import length_batches
from fedjax_rai.errors import InputError
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.families import read_config, read_json
from fedjax_rai.model.lora import NO_LORA
from fedjax_rai.model.peft import load_adapter
from fedjax_rai.model.weights import load_base
from fedjax_rai.text.hub import resolve
from fedjax_rai.text.prompts import prompt, question
from fedjax_rai.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, stop_ids
from fedjax_rai.train.generate import Decoding, Sampling, generate


class Row(NamedTuple):
    """A prompt: what was asked as ids, and whether by the chat template, so that the end of a turn ends the answer."""

    ids: list[int]
    chat: bool


class Answer(NamedTuple):
    token_ids: list[int]  # the new ones, up to and including the end token
    text: str | None  # None where there is no tokenizer


def answers(
    path: str,
    revision: str | None,
    adapter: Path | None,
    prompts: Path,
    *,
    max_new: int,
    temperature: float,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    dtype: str,
    raw: bool,
    seed: int,
    batch_size: int,
) -> Iterator[Answer]:
    """An answer to each row of a JSON-lines file, in its order; no answer depends on another or on the batch size.

    A row holds `prompt`, a text that the chat template is applied to (unless `raw`), or `token_ids`, taken as they are.
    Raises InputError, with file and line, before the weights are read. An answer is given as soon as it and all before
    it are there; shorter prompts are answered first.
    """
    folder = resolve(path, revision)
    config = read_config(folder, dtype=dtype)
    lora, own = load_adapter(adapter, config) if adapter else (NO_LORA, None)
    tokenizer = load_tokenizer(path, revision) if has_tokenizer(folder) else None
    most = None if config.longest is None else config.longest - max_new
    rows = read_rows(prompts, tokenizer, config.vocab_size, raw, most)
    if ignored := ignored_settings(folder):
        terminal.say(f"not computed, though generation_config.json asks for it: {', '.join(ignored)}")
    lm = LM(Decoder(config, lora), load_base(resolve(path, revision, weights=True), config))
    sampling = Sampling(
        np.float32(temperature),
        top_p=None if top_p is None else np.float32(top_p),
        top_k=None if top_k is None else np.int32(min(top_k, config.vocab_size)),
        min_p=None if min_p is None else np.float32(min_p),
    )
    keys = jax.vmap(lambda row: rng.stream(jax.random.key(seed), "generate", row=row))(np.arange(len(rows)))
    # float32 is asked for to compare, so no TF32 in its products
    precision = jax.default_matmul_precision("highest" if dtype == "float32" else "default")
    said: dict[int, Answer] = {}
    given = 0
    with precision, terminal.progress("generating", len(rows)) as advance:
        for chat in (False, True):
            mine = np.array([i for i, row in enumerate(rows) if row.chat == chat])
            ends = jnp.array((tokenizer.end_ids if chat and tokenizer else stop_ids(folder)) or (-1,))
            size = min(batch_size, max(len(mine), 1))
            for picked, batch in length_batches([rows[i].ids for i in mine], size, 0, most):
                decoding = Decoding(sampling, ends, max_new)
                found = generate(lm, own, batch, keys[mine[np.resize(picked, size)]], decoding)
                tokens, valid = np.asarray(found.tokens), np.asarray(found.valid)
                for row, i in enumerate(mine[picked]):
                    ids = tokens[row][valid[row]].tolist()
                    said[int(i)] = Answer(ids, tokenizer.decode(ids) if tokenizer else None)
                    advance("")
                while given in said:
                    yield said.pop(given)
                    given += 1


def ignored_settings(folder: Path) -> list[str]:
    """What a model's generation config would change in the logits, and transformers' generate does, but we do not."""
    path = folder / "generation_config.json"
    named = read_json(path) if path.is_file() else {}
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0}
    return [f"{name} {named[name]}" for name, value in neutral.items() if named.get(name) not in (None, value)]


def read_rows(
    path: Path, tokenizer: Tokenizer | None, vocabulary: int, raw: bool, most: int | None = None
) -> list[Row]:
    """The prompts of a file as token ids, at most `most` each; blank lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    rows = [
        _short(_row(_json(line, where), where, tokenizer, vocabulary, raw), where, most)
        for where, line in ((f"{path}:{number}", line) for number, line in enumerate(lines, 1))
        if line.strip()
    ]
    if not rows:
        raise InputError(f"{path}: holds no prompts")
    return rows


def _short(row: Row, where: str, most: int | None) -> Row:
    if most is not None and len(row.ids) > most:
        raise InputError(
            f"{where}: {len(row.ids)} tokens; must be at most {max(most, 0)}, as this model's rotary embedding has a "
            "limit for prompt and answer together: shorten the prompt or lower --max-new"
        )
    return row


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error})") from None


def _row(row: Any, where: str, tokenizer: Tokenizer | None, vocabulary: int, raw: bool) -> Row:
    given = [key for key in ("prompt", "token_ids") if isinstance(row, dict) and key in row]
    if len(given) != 1:
        raise InputError(f'{where}: must be an object with either "prompt" (text) or "token_ids" (a list of ids)')
    if given == ["token_ids"]:
        return Row(_checked(row["token_ids"], where, vocabulary), False)
    if not isinstance(row["prompt"], str):
        raise InputError(f"{where}: prompt is {row['prompt']!r}, must be text")
    if tokenizer is None:
        raise InputError(f"{where}: this model has no tokenizer; give token_ids")
    if not raw and tokenizer.hf.chat_template is None:
        raise InputError(f"{where}: this model has no chat template; give --raw")
    if raw:
        return Row(_checked(tokenizer.hf(row["prompt"])["input_ids"], where, vocabulary), False)
    return Row(_checked(tokenizer.encode(prompt(tokenizer, question(row["prompt"]))), where, vocabulary), True)


def _checked(ids: Any, where: str, vocabulary: int) -> list[int]:
    if not isinstance(ids, Sequence) or isinstance(ids, str) or not ids or not all(type(i) is int for i in ids):
        raise InputError(f"{where}: must have at least one token, each a whole number")
    if wrong := [i for i in ids if not 0 <= i < vocabulary]:
        raise InputError(f"{where}: token {wrong[0]} is none of this model's; must be 0 to {vocabulary - 1}")
    return list(ids)
