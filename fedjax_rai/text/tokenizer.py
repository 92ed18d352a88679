"""Hugging Face tokenizers, behind the few verbs that this package needs, and the shipped tiny one."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from fedjax_rai.errors import InputError
from fedjax_rai.text.prompts import SAFE, UNSAFE, Segment, Turn

TINY = "tiny"
SPECIALS = PAD, BOS, END, USER_OPENS, ASSISTANT_OPENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def resolve(path: str) -> Path:
    """The folder of a model: `tiny` is the shipped synthetic one."""
    if path == TINY:
        return Path(str(resources.files("fedjax_rai"))) / "assets" / "tiny"
    return Path(path)


class Tokenizer:
    """Text to ids and back. Special tokens are never added unasked: templates write them out."""

    def __init__(self, hf: Any):
        self.hf = hf
        if hf.eos_token is None or hf.chat_template is None:
            raise InputError(
                f"tokenizer {hf.name_or_path}: it needs an eos_token and a chat_template (a chat model's has both)"
            )
        self.end_of_turn: str = hf.eos_token
        self.end_id: int = hf.eos_token_id
        self.pad_id: int = hf.eos_token_id if hf.pad_token_id is None else hf.pad_token_id

    def encode(self, text: str) -> list[int]:
        return self.hf.encode(text, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        return self.hf.decode(list(ids), skip_special_tokens=True)

    def render(self, turns: Sequence[Turn], generate: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        return self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)

    def encode_segments(self, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
        """(ids, trained on) of segments, each tokenised on its own, so that no token straddles a mask's edge."""
        ids, mask = [], []
        for segment in segments:
            own = self.encode(segment.text)
            ids += own
            mask += [segment.train] * len(own)
        return ids, mask

    @cached_property
    def verdict_ids(self) -> tuple[int, int]:
        """First tokens of the guard's two answers, (safe, unsafe)."""
        safe, unsafe = self.encode(SAFE)[0], self.encode(UNSAFE)[0]
        if safe == unsafe:
            raise InputError("this tokenizer begins `safe` and `unsafe` with the same token, so the guard cannot score")
        return safe, unsafe


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a model folder, by AutoTokenizer; never touches the network for a local folder."""
    from transformers import AutoTokenizer

    folder = resolve(path)
    if not folder.is_dir():
        raise InputError(f"model.path = {path}: no such folder")
    try:
        return Tokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no tokenizer that transformers can read ({error})") from error


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
