"""Small tokenizers and chat templates in the form of those that people bring: trained here, nothing is downloaded."""

import json
import re
from functools import cache
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Fast
from transformers import PreTrainedTokenizerFast

from fedjax_rai.text.tokenizer import Tokenizer

TEXTS = (
    "How do I bake bread, and how long? Slowly, with care: 12 or 345 minutes.\n\nThen eat it.\n",
    "user assistant model system [INST] Is the answer safe or unsafe? [/INST] It is safe. It is unsafe.\n",
    "Question: two  spaces, three   spaces\n\tAnswer: naïve café 한국어 한국어\n\n",
) * 3
WORDS = r"'s|'t|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(trim: bool = False) -> Fast:
    """As Llama 3, Qwen and SmolLM have it; `trim`: as RoBERTa gives offsets."""
    fast = Fast(models.BPE())
    fast.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    fast.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    fast.post_processor = processors.ByteLevel(trim_offsets=trim)  # pyright: ignore[reportAttributeAccessIssue]
    return fast


def _sentence_piece(kind: str) -> Fast:
    """As Llama 2, Mistral, Phi-3 (`first`, `always`, `prepend`) and Gemma have it; bytes for what is unknown."""
    fast = Fast(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces: Any = pre_tokenizers.Metaspace(prepend_scheme="first" if kind == "first" else "always")
    # while it is trained words and line breaks stand alone, afterwards nothing does
    alone = [pre_tokenizers.Split("\n", behavior="isolated"), spaces]
    fast.pre_tokenizer = pre_tokenizers.Sequence(alone)  # pyright: ignore[reportAttributeAccessIssue]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    fast.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=names, limit_alphabet=60, show_progress=False)
    )
    replaced: Any = normalizers.Replace(" ", "▁")
    state = json.loads(fast.to_str())
    state["added_tokens"] = state["added_tokens"][:1]
    fast = Fast.from_str(json.dumps(state))
    if kind in ("first", "always"):
        spaces.split = False
        fast.pre_tokenizer = spaces
    elif kind == "prepend":
        fast.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
        fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced])  # pyright: ignore
    else:
        fast.normalizer = replaced
        fast.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")  # pyright: ignore
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [] if kind == "gemma" else [decoders.Strip(" ", 1, 0)]
    fast.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    return fast


@cache
def _trained(kind: str) -> str:
    if kind.startswith("bytes"):
        return _byte_level(kind == "bytes_trimmed").to_str()
    return _sentence_piece(kind).to_str()


class Family(NamedTuple):
    """A tokenizer and a template; `end` ends a turn, `rstrip`: added tokens swallow the white space behind them."""

    kind: str
    template: str
    tokens: tuple[str, ...]
    bos: str | None
    eos: str
    end: str
    rstrip: bool = False


def _template(prologue: str, user: str, opening: str, answer: str, epilogue: str = "", before: str = "") -> str:
    """In Jinja, from the expressions that write a user's turn (m) and an answer; {% generation %} marks the answer."""
    return (
        f"{before}{prologue}{{% for m in messages %}}{{% if m['role'] == 'user' %}}{{{{ {user} }}}}"
        f"{{% elif m['role'] == 'assistant' %}}{{{{ {opening} }}}}{{% generation %}}{{{{ {answer} }}}}"
        "{% endgeneration %}"
        f"{epilogue}{{% else %}}{{{{ raise_exception('no such role') }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {opening} }}}}{{% endif %}}"
    )


_HEADER = "'<|start_header_id|>{}<|end_header_id|>\\n\\n'"
_LLAMA3 = _template(
    "{{ bos_token + " + _HEADER.format("system") + " + 'Date: ' + date_string + '<|eot_id|>' }}",
    _HEADER.format("user") + " + m['content'] | trim + '<|eot_id|>'",
    _HEADER.format("assistant"),
    "m['content'] | trim + '<|eot_id|>'",
    before="{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y %H:%M:%S') %}{% endif %}",
)
_CHATML = _template(
    "{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}",
    "'<|im_start|>user\\n' + m['content'] + '<|im_end|>\\n'",
    "'<|im_start|>assistant\\n'",
    "m['content'] + '<|im_end|>'",
    "{{ '\\n' }}",
)
_QWEN3 = _template(
    "",
    "'<|im_start|>user\\n' + m['content'] + '<|im_end|>\\n'",
    "'<|im_start|>assistant\\n'",
    "('<think>\\n\\n</think>\\n\\n' if loop.last else '') + m['content'].split('</think>')[-1].lstrip('\\n')"
    " + '<|im_end|>'",
    "{{ '\\n' }}",
)
_MISTRAL = _template("{{ bos_token }}", "'[INST] ' + m['content'] + '[/INST]'", "''", "' ' + m['content'] + eos_token")
_LLAMA2 = _template(
    "",
    "bos_token + '[INST] ' + m['content'].strip() + ' [/INST]'",
    "''",
    "' ' + m['content'].strip() + ' ' + eos_token",
)
_GEMMA = _template(
    "{{ bos_token }}",
    "'<start_of_turn>user\\n' + m['content'] | trim + '<end_of_turn>\\n'",
    "'<start_of_turn>model\\n'",
    "m['content'] | trim + '<end_of_turn>'",
    "{{ '\\n' }}",
)
_PHI3 = _template(
    "{{ bos_token }}",
    "'<|user|>\\n' + m['content'] + '<|end|>\\n'",
    "'<|assistant|>\\n'",
    "m['content'] + '<|end|>'",
    "{{ '\\n' }}{% if loop.last and not add_generation_prompt %}{{ eos_token }}{% endif %}",
)
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_INST = ("<s>", "</s>", "[INST]", "[/INST]")
_TURNS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_PHI = ("<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")
_LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "llama3": Family("bytes", _LLAMA3, _LLAMA, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "qwen2.5": Family("bytes", _CHATML, _IM, None, "<|im_end|>", "<|im_end|>"),
    "qwen3": Family("bytes", _QWEN3, (*_IM, "<think>", "</think>"), None, "<|im_end|>", "<|im_end|>"),
    "smollm": Family("bytes_trimmed", _CHATML, _IM, "<|im_start|>", "<|im_end|>", "<|im_end|>"),
    "mistral": Family("first", _MISTRAL, _INST, "<s>", "</s>", "</s>"),
    "mistral-always": Family("always", _MISTRAL, _INST, "<s>", "</s>", "</s>"),
    "llama2": Family("always", _LLAMA2, _INST[:2], "<s>", "</s>", "</s>"),
    "llama2-legacy": Family("prepend", _LLAMA2, _INST[:2], "<s>", "</s>", "</s>"),
    "gemma": Family("gemma", _GEMMA, _TURNS, "<bos>", "<eos>", "<end_of_turn>"),
    "phi3": Family("prepend", _PHI3, _PHI, "<s>", "<|endoftext|>", "<|end|>", rstrip=True),
}
# The structure of Llama Guard's: the whole conversation inside one request, which opens the verdict and no line.
LLAMA_GUARD = (
    "{{ bos_token }}<|start_header_id|>user<|end_header_id|>\n\nJudge the last speaker.\n"
    "UNSAFE CONTENT CATEGORIES\nS1: harm.\n\n"
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim + '\n\n' }}{% endfor %}"
    " - First line must read 'safe' or 'unsafe'.<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
)


def huggingface(family: Family, template: str | None = "", marked: bool = False, **options: Any) -> Any:
    """The transformers tokenizer; its template without {% generation %} unless `marked`."""
    fast = Fast.from_str(_trained(family.kind))
    thoughts = [AddedToken(t, special=False, normalized=False) for t in family.tokens if "think" in t]
    fast.add_special_tokens(
        [AddedToken(t, rstrip=family.rstrip, normalized=False) for t in family.tokens if "think" not in t]
    )
    fast.add_tokens(thoughts)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        **({"bos_token": family.bos, "eos_token": family.eos, "unk_token": fast.model.unk_token} | options),
    )
    chosen = family.template if template == "" else template
    marks = r"\{% (end)?generation %\}"
    hf.chat_template = chosen if marked or chosen is None else re.sub(marks, "", chosen)
    return hf


@cache
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer(huggingface(FAMILIES[name]))


def ids_of(hf: Any, turns, generate: bool = False, **options: Any) -> Any:
    """What transformers itself makes of the conversation."""
    from fedjax_rai.text.tokenizer import TODAY

    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    options = {"return_dict": False, "date_string": TODAY} | options
    return hf.apply_chat_template(messages, tokenize=True, add_generation_prompt=generate, **options)
