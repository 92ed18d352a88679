"""Hugging Face tokenizers, behind the few verbs that this package needs, and the shipped tiny one."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rai import terminal
from fedjax_rai.errors import InputError
from fedjax_rai.reading import one_line, read_object, refuse_pointer
from fedjax_rai.text.hub import WANTED, resolve
from fedjax_rai.text.prompts import USER, Segment, Turn, after_answer, answered

SPECIALS = PAD, BOS, END, USER_OPENS, ASSISTANT_OPENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Llama 3.2's template writes today's date unless it is given one: this is the one it has where there is no clock, so
# that a run is the same tomorrow.
TODAY = "26 Jul 2024"
# Others ask transformers' clock unconditionally (SmolLM3, Mistral Small). It hands templates no functions of ours, so
# they get a macro of that name, on a line of its own, which Jinja leaves no trace of.
_NOW = datetime(2024, 7, 26)
_FORMATTED = " | ".join(
    f"replace('{code}', '{_NOW.strftime(code)}')" for code in re.findall("%-?.", "%-d%-m%d%m%Y%y%b%B%a%A%H%I%M%S%p%j")
)
CLOCK = f"{{% macro strftime_now(form) %}}{{{{ form | {_FORMATTED} }}}}{{% endmacro %}}\n"
# A text that no template holds, and that is another one as Python or JSON would quote it.
PROBE = r"zq\xj"
# What must come back from its own tokens: single and double spaces, a tab, line breaks, digits, and Hangul.
LATIN = "What is 3 plus 4?\n\n  It is 7, \t not 0125689.\nEnd"
HANGUL = "3 더하기 4는 무엇입니까?"


class Tokenizer:
    """Text to ids and back. Special tokens are never added unasked: templates write them out.

    `hf` is a fast tokenizer, `stops` are the ids that its model's folder names as ends. A base model's tokenizer
    may lack a chat template and an eos token: InputError when they are first needed.
    """

    def __init__(self, hf: Any, stops: Iterable[int] = ()):
        self.hf = hf
        self._stops = tuple(stops)
        self.name: str = hf.name_or_path
        if not getattr(hf, "is_fast", False):
            raise InputError(
                f"tokenizer {self.name}: {type(hf).__name__} is a slow one and says not where in the text a token "
                "stands; must be a fast one (with a tokenizer.json)"
            )
        self.pad_id: int = next((i for i in (hf.pad_token_id, hf.eos_token_id) if i is not None), 0)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no special token is added."""
        return self.hf.encode(text, add_special_tokens=False, verbose=False)

    def encode_after(self, before: str, text: str) -> list[int]:
        """The ids that `text` has where it follows `before`; InputError if it changes those of `before`."""
        start = self.encode(before)
        whole = self.encode(before + text)
        if whole[: len(start)] != start:
            raise InputError(f"tokenizer {self.name}: {text!r} after {before!r} changes the tokens before it")
        return whole[len(start) :]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without special tokens."""
        return self.hf.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def check_text(self) -> None:
        """Raises InputError where a text of words, spaces, line breaks, digits and Hangul is lost in its own tokens.

        A tokenizer that lacks Hangul and says so, by its token for what is unknown, is named on standard error.
        """
        for text in (LATIN, HANGUL):
            ids = self.encode(text)
            decoded = self.decode(ids)
            if _same(decoded, text):
                continue
            if text == HANGUL and self.hf.unk_token_id in ids:
                terminal.say(f"tokenizer {self.name}: has no Hangul, its unknown token stands for it; Korean is lost")
                continue
            raise InputError(
                f"tokenizer {self.name}: loses text: {text!r} comes back from its tokens as {decoded!r}; must give "
                "back what it is given (transformers before 5.22 reads some byte-level tokenizers wrongly)"
            )

    @property
    def has_hangul(self) -> bool:
        """Whether Korean text comes back from its own tokens."""
        return _same(self.decode(self.encode(HANGUL)), HANGUL)

    @property
    def template(self) -> str:
        """The chat template, in Jinja."""
        found = self.hf.chat_template
        if found is None:
            raise InputError(f"tokenizer {self.name}: it has no chat_template; must be a chat model's")
        if isinstance(found, dict):
            if "default" not in found:
                listed = ", ".join(sorted(found)) or "none"
                raise InputError(f"tokenizer {self.name}: none of its chat templates is the default, only: {listed}")
            found = found["default"]
        if not isinstance(found, str):
            raise InputError(f"tokenizer {self.name}: its chat_template is {found!r}; must be a text")
        return found

    def render(self, turns: Sequence[Turn], generate: bool = False, given: Mapping[str, Any] | None = None) -> str:
        """The turns as the template writes them, on a day that is always the same; its other defaults are kept.

        `given`: variables of a template that wants more than turns, as guards' do.
        """
        content = self._written_out(given) if given else self._content
        return self._rendered(turns, content, generate, given)

    @cached_property
    def _content(self) -> Callable[[str], Any]:
        return self._written_out(None)

    def _written_out(self, given: Mapping[str, Any] | None) -> Callable[[str], Any]:
        """The form of a message's text that the template writes out: itself, or (Llama 3.2 vision) a list of parts."""
        refusal = None
        for content in (_text, _parts):
            try:
                if PROBE in self._rendered([Turn(USER, PROBE)], content, given=given):
                    return content
            except InputError as error:
                refusal = error if content is _text else refusal
        raise refusal or InputError(
            f"tokenizer {self.name}: its chat template leaves out what the user says, given as text or as a list of "
            "text parts; must write it out as it is"
        )

    def _rendered(
        self,
        turns: Sequence[Turn],
        content: Callable[[str], Any],
        generate: bool = False,
        given: Mapping[str, Any] | None = None,
    ) -> str:
        from jinja2 import TemplateError

        messages = [{"role": turn.role, "content": content(turn.text)} for turn in turns]
        template = CLOCK + self.template if "strftime_now" in self.template else self.template
        try:
            return self.hf.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generate,
                date_string=TODAY,
                **(given or {}),
            )
        except Exception as error:  # a template is a program, and may fail in any way
            roles = ", ".join(turn.role for turn in turns) or "none"
            verb = "refuses" if isinstance(error, TemplateError | TypeError | ValueError) else "fails on"
            wrong = one_line(error)
            raise InputError(f"tokenizer {self.name}: its chat template {verb} turns of {roles} ({wrong})") from error

    def check_ids(self, tokens: Any, vocabulary: int, key: str) -> None:
        """Raises InputError if an id is none of the model's that the config's `key` names: it would compute NaN."""
        worst = int(np.max(tokens, initial=0))
        if worst >= vocabulary:
            raise InputError(
                f"tokenizer {self.name}: token {self.hf.convert_ids_to_tokens(worst)!r} has id {worst}, but the model "
                f"has a vocab_size of {vocabulary}; {key} must be a model whose embedding was resized to its tokenizer"
            )

    def encode_segments(self, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
        """(ids, trained on) of the segments' whole text: the ids are what the tokenizer gives for it in one piece.

        A token is trained on if it starts inside a trained segment. So one that straddles a segment's edge belongs to
        where it starts, as does each of several tokens of one character; one of zero width (a trimmed space) starts
        where the token before it ended.
        """
        ids, starts = self._placed("".join(segment.text for segment in segments))
        edges = list(accumulate(len(segment.text) for segment in segments))
        trained = [segment.train for segment in segments] + [False]  # nothing starts behind the last, save zero widths
        return ids, [trained[bisect_right(edges, start)] for start in starts]

    def _placed(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, the character at which each starts). Starts never fall: normalizers may reorder a character's marks."""
        found = self.hf(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = found["input_ids"]
        starts = []
        start = 0
        end = 0
        for token, (left, right) in zip(ids, found["offset_mapping"], strict=True):
            if not 0 <= left <= right <= len(text) or self._literal.get(token, "") not in text[left:right]:
                raise InputError(
                    f"tokenizer {self.name}: says that token {token} stands at characters {left} to {right} of "
                    f"{text[:60]!r}, where it is not; must give true offsets, so that masks can be exact"
                )
            start = max(start, end if left == right else left)
            starts.append(start)
            end = right
        return ids, starts

    @cached_property
    def _added(self) -> dict[int, Any]:
        """Added tokens that are no white space, by id."""
        return {i: token for i, token in self.hf.added_tokens_decoder.items() if token.content.strip()}

    @cached_property
    def _literal(self) -> dict[int, str]:
        """Text of the tokens that only this very text gives; that of unknown characters stands for any text."""
        exact = {i: token.content for i, token in self._added.items() if token.special and not token.normalized}
        exact.pop(self.hf.unk_token_id, None)
        return exact

    @cached_property
    def _end(self) -> tuple[str, str, int]:
        """(closing, trailer, id of the end-of-turn token) of the template, read off a conversation.

        The end-of-turn token is the first added token after an answer's text. It need not be eos, and some tokenizers
        do not mark it as special.
        """
        tail = after_answer(self)
        text = self.render(answered("q", "0"))
        begin = len(text) - len(tail)
        for token, start in zip(*self._placed(text), strict=True):
            if start >= begin and token in self._added:
                before, found, after = text[start:].partition(self._added[token].content)
                if found:  # it does not stand for an unknown character
                    return text[begin:start] + before + found, after, token
        raise InputError(
            f"tokenizer {self.name}: its chat template puts {tail!r} after an answer; must put a special token there"
        )

    @property
    def closing(self) -> str:
        """What the template puts after an answer's text, up to and including the end-of-turn token."""
        return self._end[0]

    @property
    def trailer(self) -> str:
        """What the template puts behind the closing of a conversation's last answer."""
        return self._end[1]

    @cached_property
    def end_id(self) -> int:
        """The token that ends a turn, by the chat template; eos where there is none. InputError without either."""
        if self.hf.chat_template is not None:
            return self._end[2]
        if self.hf.eos_token_id is None:
            raise InputError(f"tokenizer {self.name}: it needs a chat_template or an eos_token (chat models have both)")
        return self.hf.eos_token_id

    @cached_property
    def end_of_turn(self) -> str:
        """The text of `end_id`."""
        return self.hf.convert_ids_to_tokens(self.end_id)

    @cached_property
    def specials(self) -> dict[str, int]:
        """The special tokens by how they are written, which `decode` leaves out."""
        return {token.content: id for id, token in self.hf.added_tokens_decoder.items() if token.special}

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """All tokens that end an answer: `end_id`, then eos and those that the generation config names, ascending."""
        return (self.end_id, *(i for i in self.named_ends if i != self.end_id))

    @property
    def named_ends(self) -> tuple[int, ...]:
        """eos and the tokens that the generation config names, ascending: ends whatever the chat template says."""
        return tuple(sorted({i for i in (self.hf.eos_token_id, *self._stops) if i is not None}))


def _text(text: str) -> str:
    return text


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _same(decoded: str, text: str) -> bool:
    """Whether a text came back, but for the form of its characters (a normalizer may write them otherwise)."""
    return unicodedata.normalize("NFKC", decoded) == unicodedata.normalize("NFKC", text)


def load_tokenizer(path: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a model (see `text.hub.resolve`), by AutoTokenizer, which never touches the network.

    Raises InputError for files that cannot be read, and for a tokenizer that loses text (`Tokenizer.check_text`).
    """
    from transformers import AutoTokenizer

    folder = resolve(path, revision)
    for pattern in (*WANTED, "additional_chat_templates/*"):
        for file in sorted(folder.glob(pattern)):
            refuse_pointer(file)
    try:
        hf = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = Tokenizer(hf, stop_ids(folder))
        tokenizer.check_text()
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises nothing narrower for what it cannot read or use, or panics
        raise InputError(f"{folder}: no tokenizer that transformers can read ({one_line(error)})") from error
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether there is anything in a model's folder that a tokenizer could be read from."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))


def encode_text(hf: Any, text: str, special: bool | None = None) -> list[int]:
    """The tokens of a text. Special ones are added as the tokenizer does it, unless the text begins with bos.

    `special` says whether they are, whatever the text begins with.
    """
    if special is None:
        begins = hf.bos_token is not None and text.startswith(hf.bos_token)
        special = not begins
    return hf.encode(text, add_special_tokens=special, verbose=False)


def stop_ids(folder: Path) -> tuple[int, ...]:
    """The ids that a model's folder names as eos: in generation_config.json, or in config.json where there is none."""
    configs = [folder / "generation_config.json", folder / "config.json"]
    present = [path for path in configs if path.is_file()]
    if not present:
        return ()
    path = present[0]
    named = read_object(path).get("eos_token_id")
    if named is None:
        return ()
    stops = named if isinstance(named, list) else [named]
    if not all(type(stop) is int for stop in stops):
        raise InputError(f"{path}: eos_token_id = {named!r}: must be a token id or a list of them")
    return tuple(stops)


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    """A byte-level BPE of `vocab_size` with the tiny chat template, saved as a Hugging Face folder; deterministic."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Fast(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
        ),
    )
    hf = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER_OPENS, ASSISTANT_OPENS],
    )
    hf.chat_template = TEMPLATE
    hf.save_pretrained(folder)
    return Tokenizer(hf)
