"""Answers to a user's own prompts: how to try a model or an adapter before, or after, a run."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from fedjax_rai import rng, terminal
from fedjax_rai.aliases import Adapter, Array, Int, Key
from fedjax_rai.config.load import load_config
from fedjax_rai.config.schema import ModelConfig
from fedjax_rai.errors import InputError
from fedjax_rai.memory.advice import device_limit
from fedjax_rai.memory.footprint import base_bytes
from fedjax_rai.mesh import AXES, base_shardings, make_mesh
from fedjax_rai.model.architecture import DecoderConfig
from fedjax_rai.model.decoder import LM, Decoder, abstract_base
from fedjax_rai.model.families import read_config
from fedjax_rai.model.lora import NO_LORA, Lora
from fedjax_rai.model.peft import load_adapter, name_other_base
from fedjax_rai.model.weights import load_base
from fedjax_rai.reading import checked_text, decode_text, parse_json, read_text
from fedjax_rai.runs import compiled
from fedjax_rai.runs.folder import CONFIG
from fedjax_rai.runs.target import Target
from fedjax_rai.text.generation import name_uncomputed
from fedjax_rai.text.hub import resolve
from fedjax_rai.text.prompts import prompt, question
from fedjax_rai.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, stop_ids
from fedjax_rai.train.dispatch import read_late
from fedjax_rai.train.generate import Answers, Decoding, Sampling
from fedjax_rai.train.queue import answer_all, read
from fedjax_rai.train.speaker import merged


class Request(NamedTuple):
    """Who is asked, and how answers are decoded; the defaults are greedy."""

    model: str  # a Hugging Face folder, owner/name on the hub, or "tiny"
    revision: str | None = None  # branch, tag or commit of a name on the hub
    adapter: Path | None = None  # a folder in PEFT's format
    raw: bool = False  # prompts as they are, without the chat template
    dtype: str = "bfloat16"  # of weights and activations
    max_new: int = 128  # the most tokens of an answer
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int = 0  # of sampling
    batch_size: int = 16  # prompts answered at once; changes no answer in float32, in bfloat16 by rounding only
    merged: bool = False  # the adapter is added to the weights first: fewer products a token, numbers but for rounding
    quantize: str = "none"  # kernels of the base, as `model.quantize`


class WrittenPrompt(NamedTuple):
    """A prompt as its user wrote it: an object with `prompt` (text) or `token_ids`, and its place for messages."""

    where: str
    row: Any


class EncodedPrompt(NamedTuple):
    """A prompt as token ids; `chat`: by the chat template, so that the end of a turn ends the answer."""

    ids: list[int]
    chat: bool


class Answer(NamedTuple):
    token_ids: list[int]  # the new ones, up to and including the end token
    text: str | None  # None where there is no tokenizer


class ModelFiles(NamedTuple):
    """The model that a request names, all read but the weights of its base."""

    folder: Path
    config: DecoderConfig
    lora: Lora
    adapter: Adapter | None
    tokenizer: Tokenizer | None


def key_of(seed: Any, row: Any) -> Key[Array, ""]:
    """The random key of the answer to the prompt of that number, from 0; both whole numbers, which may be traced."""
    return rng.stream(jax.random.key(seed), "generate", row=row)


def answers(request: Request, prompts: Sequence[WrittenPrompt]) -> Iterator[Answer]:
    """An answer to each prompt, in order.

    In float32 it depends on its own prompt and the seed only; in bfloat16 also, by rounding, on the batch that it
    stands in. Raises InputError, with the prompt's place, for what is wrong with prompts before the weights are read,
    and for the first prompt to which the model gives no numbers. An answer is given as soon as it and all before it are
    there; shorter prompts are answered first. What the model's files ask for and is not done is said.
    """
    files = read_model(request)
    longest = None if files.config.longest is None else files.config.longest - request.max_new
    rows = [encode(written, files, request.raw, longest) for written in prompts]
    name_uncomputed(files.folder)
    lm, adapter = load(request, files)
    keys = jax.vmap(partial(key_of, request.seed))(np.arange(len(rows)))
    # float32 is asked for to compare, so no TF32 in its products
    precision = jax.default_matmul_precision("highest" if request.dtype == "float32" else "default")
    waiting: dict[int, Answer] = {}
    given = 0
    with precision, terminal.progress("answering", len(rows), unit="prompt") as advance:
        for chat in (False, True):
            numbers = np.array([i for i, row in enumerate(rows) if row.chat == chat], int)
            decoding = Decoding(sampling(request, files.config.vocab_size), end_ids(files, chat), request.max_new)
            size = min(request.batch_size, max(len(numbers), 1))
            texts = [rows[i].ids for i in numbers]
            programs = answer_all(lm, adapter, texts, keys[numbers], decoding, size)
            for finished in read_late(programs):
                picked, found = read(finished)
                for number, answer in zip(numbers[picked].tolist(), read_answers(found, files.tokenizer), strict=True):
                    if not answer.token_ids:
                        raise InputError(_no_numbers(prompts[number].where, request))
                    waiting[number] = answer
                advance(steps=len(picked))
                while given in waiting:
                    yield waiting.pop(given)
                    given += 1


def of_target(target: Target, dtype: str | None = None, merged: bool = False) -> Request:
    """Who is asked, by what a command's TARGET names: a run computes as its config says, unless a `dtype` is given.

    Raises InputError for an adapter that cannot be merged: into a base in few bits.
    """
    model = ModelConfig() if target.run is None else load_config(target.run / CONFIG).model
    if merged and model.quantize != "none":
        raise InputError(f"--merged: the base of {target.name} is in {model.quantize}; must be left out")
    return Request(
        target.model,
        target.revision,
        target.adapter,
        dtype=dtype or model.dtype,
        merged=merged,
        quantize=model.quantize,
    )


def load(request: Request, files: ModelFiles) -> tuple[LM, Adapter | None]:
    """The model with its weights, and its adapter unless that was merged; over all devices, as `least_split` says."""
    weights = resolve(request.model, request.revision, weights=True)
    compiled.keep_compiled()
    shardings = base_shardings(make_mesh(fsdp=least_split(files.config)), abstract_base(files.config))
    lm = LM(Decoder(files.config, files.lora), load_base(weights, files.config, shardings))
    if request.merged and files.adapter is not None:
        return _merged_in_place(lm, files.adapter), None
    return lm, files.adapter


def least_split(config: DecoderConfig) -> int:
    """Into how many parts the base is cut: the fewest of which one takes no more than half of a device's memory.

    The other half is for the KV cache and what is computed. Where no cut is that fine, it is the one whose parts are
    smallest: not every number of devices divides the base. Rows lie over all devices in any case.
    """
    devices, limit = jax.device_count(), device_limit()
    held = {}
    for fsdp in range(1, devices + 1):
        if devices % fsdp == 0:
            mesh = AbstractMesh((devices // fsdp, fsdp, 1), AXES, axis_types=(AxisType.Auto,) * 3)
            held[fsdp] = base_bytes(config, mesh)
            if limit is None or 2 * held[fsdp] <= limit:
                return fsdp
    return min(held, key=held.__getitem__)


def read_model(request: Request) -> ModelFiles:
    """Raises InputError for a model or an adapter that cannot be read; an adapter of another base is named."""
    folder = resolve(request.model, request.revision)
    config = read_config(folder, dtype=request.dtype, quantize=request.quantize)
    lora, adapter = NO_LORA, None
    if request.adapter is not None:
        lora, adapter = load_adapter(request.adapter, config)
        name_other_base(request.adapter, request.model, request.revision)
    tokenizer = load_tokenizer(request.model, request.revision) if has_tokenizer(folder) else None
    return ModelFiles(folder, config, lora, adapter, tokenizer)


_merged_in_place = jax.jit(merged, donate_argnames="lm")
"""The model with the adapter in its weights, in the place of the one without: no copy of the base is held."""


def _no_numbers(where: str, request: Request) -> str:
    """Why there is no answer: not even the end of one was generated."""
    adapter = "" if request.adapter is None else f" with the adapter in {request.adapter}"
    return (
        f"{where}: no answer: the logits of {request.model}{adapter} are no numbers (NaN or infinity), or "
        f"all one number, in {request.dtype}: its weights are finite and overflow when multiplied"
    )


def sampling(request: Request, vocabulary: int) -> Sampling:
    """How tokens are drawn; a bound that the request leaves out is not computed."""
    return Sampling(
        np.float32(request.temperature),
        top_p=None if request.top_p is None else np.float32(request.top_p),
        top_k=None if request.top_k is None else np.int32(min(request.top_k, vocabulary)),
        min_p=None if request.min_p is None else np.float32(request.min_p),
    )


def end_ids(files: ModelFiles, chat: bool) -> Int[Array, "ends"]:
    """What ends an answer: the end of a turn in a chat, else what the model's own files say; -1: nothing does."""
    ids = files.tokenizer.end_ids if chat and files.tokenizer else stop_ids(files.folder)
    return jnp.array(ids or (-1,))


def read_answers(found: Answers, tokenizer: Tokenizer | None) -> Iterator[Answer]:
    """The answers of a batch, in its order; waits for the device."""
    for tokens, valid in zip(np.asarray(found.tokens), np.asarray(found.valid), strict=True):
        ids = tokens[valid].tolist()
        yield Answer(ids, tokenizer.decode(ids) if tokenizer else None)


def prompts_of_texts(texts: Sequence[str], place: str = "--prompt") -> list[WrittenPrompt]:
    """Each text a prompt. Raises InputError for one that says nothing."""
    found = []
    for number, text in enumerate(texts, 1):
        where = place if len(texts) == 1 else f"{place} (number {number})"
        if not text.strip():
            raise InputError(f"{where}: is empty; must be the text of a prompt")
        checked_text(text, where, "prompt")
        found.append(WrittenPrompt(where, {"prompt": text}))
    return found


def prompts_of_file(path: Path) -> list[WrittenPrompt]:
    """The prompts of a file of JSON lines; blank lines are passed over. Raises InputError with file and line."""
    text = read_text(path, "file of JSON lines", "*.json*")
    return [
        WrittenPrompt(where, parse_json(line, str(path), number)) for where, number, line in _lines(text, str(path))
    ]


def prompts_of_lines(data: bytes, name: str = "standard input") -> list[WrittenPrompt]:
    """The prompts of lines, one each: a line that begins with `{` is JSON, any other is the prompt's own text."""
    text = decode_text(data, name)
    found = []
    for where, number, line in _lines(text, name):
        is_json = line.lstrip().startswith("{")
        row = parse_json(line, name, number) if is_json else {"prompt": line.strip()}
        found.append(WrittenPrompt(where, row))
    return found


def _lines(text: str, name: str) -> list[tuple[str, int, str]]:
    """(place, number, line) of every line that is not blank; raises InputError where there is none.

    A byte order mark at the beginning of any is passed over: files may have been put together.
    """
    lines = [(number, line.lstrip("\ufeff")) for number, line in enumerate(text.split("\n"), 1)]
    found = [(f"{name}:{number}", number, line) for number, line in lines if line.strip()]
    if not found:
        raise InputError(f"{name}: holds no prompts")
    return found


def encode(written: WrittenPrompt, files: ModelFiles, raw: bool, longest: int | None) -> EncodedPrompt:
    """A prompt as token ids, at most `longest`; raises InputError for one that this model cannot be given."""
    encoded = _encoded(written, files, raw)
    if longest is not None and len(encoded.ids) > longest:
        raise InputError(
            f"{written.where}: {len(encoded.ids)} tokens; must be at most {max(longest, 0)}, as this model takes "
            f"{files.config.longest} for prompt and answer together ({_limit(files.config)}): shorten the prompt or "
            "lower --max-new"
        )
    return encoded


def _limit(config: DecoderConfig) -> str:
    """What limits the length of a sequence."""
    is_named = config.longest == config.max_position_embeddings
    return "max_position_embeddings" if is_named else "its rotary embedding's limit"


def _encoded(written: WrittenPrompt, files: ModelFiles, raw: bool) -> EncodedPrompt:
    where, row = written
    vocabulary = files.config.vocab_size
    given = [key for key in ("prompt", "token_ids") if isinstance(row, dict) and key in row]
    if len(given) != 1:
        raise InputError(f'{where}: must be an object with either "prompt" (text) or "token_ids" (a list of ids)')
    if given == ["token_ids"]:
        return EncodedPrompt(_checked(row["token_ids"], where, vocabulary), False)
    text = _text(row["prompt"], where)
    if files.tokenizer is None:
        raise InputError(f"{where}: this model has no tokenizer; give token_ids")
    if raw:
        return EncodedPrompt(_checked(files.tokenizer.hf(text)["input_ids"], where, vocabulary), False)
    if files.tokenizer.hf.chat_template is None:
        raise InputError(f"{where}: this model has no chat template; give --raw")
    ids = files.tokenizer.encode(prompt(files.tokenizer, question(text)))
    return EncodedPrompt(_checked(ids, where, vocabulary), True)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: prompt is {value!r}, must be text")
    return checked_text(value, where, "prompt")


def _checked(ids: Any, where: str, vocabulary: int) -> list[int]:
    if not isinstance(ids, Sequence) or isinstance(ids, str) or not ids or not all(type(i) is int for i in ids):
        raise InputError(f"{where}: must have at least one token, each a whole number")
    if wrong := [i for i in ids if not 0 <= i < vocabulary]:
        raise InputError(f"{where}: token {wrong[0]} is none of this model's; must be 0 to {vocabulary - 1}")
    return list(ids)
