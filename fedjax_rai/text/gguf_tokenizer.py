"""The tokenizer that a GGUF file's metadata describes, as Hugging Face's `tokenizer.json` and what goes with it.

A file has the vocabulary, and for byte-level BPE the merges; how text is split before merging it gives by a name only
(`tokenizer.ggml.pre`), and each name is a row of SPLITS.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fedjax_rai.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Fast

CONTROL = 3
USER_DEFINED = 4
SPACE = "\u2581"  # what SentencePiece writes for a space

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
LLAMA3 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
QWEN2 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
GPT4O = rf"{_CASED[0]}{_ENDINGS}?|{_CASED[1]}{_ENDINGS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


class Split(NamedTuple):
    """How a byte-level BPE splits text into words before it merges."""

    pattern: str | None = None
    """Of a word; None: GPT-2's."""
    digits: bool = False
    """Every digit is a word, before all else."""
    whole: bool = False
    """A word that is in the vocabulary is not merged but taken."""
    composed: bool = False
    """Text is brought to NFC first."""


SPLITS = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "olmo", "jais"), Split()),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), Split(digits=True)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), Split(LLAMA3, whole=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Split(LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), Split(QWEN2, composed=True)),
    "tekken": Split(TEKKEN, whole=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Split(GPT4O)),
}
"""By `tokenizer.ggml.pre`."""
BEGIN = ("llama-bpe", "llama3", "llama-v3")
"""Those whose texts begin with bos, unless the file says otherwise."""


class GgufTokenizer(NamedTuple):
    """What a folder needs, so that AutoTokenizer reads it."""

    fast: "Fast"
    """Its `to_str()` is `tokenizer.json`."""
    config: dict[str, Any]
    """`tokenizer_config.json`."""
    templates: dict[str, str]
    """Chat templates by name; `default` is the one that is taken unasked. Empty for a base model."""
    stops: list[int]
    """The tokens that end an answer."""
    notes: list[str]
    """What the file does not say, and what was taken instead."""


def tokenizer_of(metadata: Mapping[str, Any], where: str) -> GgufTokenizer:
    """The tokenizer in a GGUF file's metadata; `where` names the file in messages.

    Raises InputError for kinds of vocabulary, splits and special tokens that are not known or do not fit together.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in BUILDERS:
        raise InputError(f"{where}: tokenizer.ggml.model is {kind!r}, only: {', '.join(BUILDERS)}")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise InputError(f"{where}: has no tokenizer.ggml.tokens, the vocabulary")
    _check_distinct(tokens, where)
    specials = _special_tokens(metadata, tokens, where)
    notes: list[str] = []
    try:
        fast = BUILDERS[kind](metadata, where, notes)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises no narrower one for merges that do not fit a vocabulary
        raise InputError(f"{where}: its vocabulary makes no tokenizer ({error})") from error
    _add_tokens(fast, metadata, specials)
    _put_around(fast, metadata, specials)
    stops = _stops(metadata, len(tokens), where)
    templates = _templates(metadata)
    if not templates:
        notes.append("it has no chat template: a base model, or its template was left out")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= specials
    if "default" in templates:
        config["chat_template"] = templates["default"]
    return GgufTokenizer(fast, config, templates, stops, notes)


def _check_distinct(tokens: Sequence[str], where: str) -> None:
    """Raises InputError where a token stands twice: a `tokenizer.json` gives a text one id."""
    if len(set(tokens)) == len(tokens):
        return
    first: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if token in first:
            raise InputError(f"{where}: token {token!r} stands twice in the vocabulary, as {first[token]} and {i}")
        first[token] = i


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    return bool(metadata.get(f"tokenizer.ggml.{key}", default))


def _special_tokens(metadata: Mapping[str, Any], tokens: Sequence[str], where: str) -> dict[str, str]:
    """The texts of the special tokens that the file names, by Hugging Face's names."""
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    found = {}
    for name, key in keys.items():
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            found[name] = tokens[_checked_id(int(token), len(tokens), f"tokenizer.ggml.{key}_token_id", where)]
    return found


def _checked_id(token: int, size: int, key: str, where: str) -> int:
    if not 0 <= token < size:
        raise InputError(f"{where}: {key} is {token}, but the vocabulary has {size} tokens")
    return token


def _stops(metadata: Mapping[str, Any], size: int, where: str) -> list[int]:
    """End of text, of turn and of message, each once."""
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    named = [_checked_id(int(metadata[key]), size, key, where) for key in keys if metadata.get(key) is not None]
    return list(dict.fromkeys(named))


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name."""
    found = {}
    if metadata.get("tokenizer.chat_template"):
        found["default"] = metadata["tokenizer.chat_template"]
    for name in metadata.get("tokenizer.chat_templates") or ():
        found[name] = metadata[f"tokenizer.chat_template.{name}"]
    return found


def _add_tokens(fast: "Fast", metadata: Mapping[str, Any], specials: Mapping[str, str]) -> None:
    """Mark the tokens that stand in a text as they are: control tokens, which are special, and the user's own."""
    from tokenizers import AddedToken

    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    vocabulary = fast.get_vocab()
    control = {token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL} | set(specials.values())
    for token, kind in zip(tokens, kinds, strict=True):
        if token not in vocabulary:  # a run of spaces, which has another spelling there
            continue
        if token in control:
            fast.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            fast.add_tokens([AddedToken(token, normalized=False, special=False)])


def _put_around(fast: "Fast", metadata: Mapping[str, Any], specials: Mapping[str, str]) -> None:
    """Have the tokenizer begin and end with the tokens that the file says, where special tokens are asked for.

    A file that does not say it begins with bos where its vocabulary is SentencePiece's or Llama 3's, as in llama.cpp.
    """
    from tokenizers.processors import TemplateProcessing

    begins = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in BEGIN
    before = specials.get("bos_token") if _flag(metadata, "add_bos_token", begins) else None
    after = specials.get("eos_token") if _flag(metadata, "add_eos_token", False) else None
    if before is None and after is None:
        return
    single = " ".join(filter(None, (before, "$A", after)))
    second = " ".join(f"{token}:1" for token in (before, "$B", after) if token)
    added = [(token, fast.token_to_id(token)) for token in {before, after} if token]
    fast.post_processor = TemplateProcessing(single=single, pair=f"{single} {second}", special_tokens=added)


def _byte_level(metadata: Mapping[str, Any], where: str, notes: list[str]) -> "Fast":
    """A byte-level BPE, GPT-2's kind."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    split = _split(metadata, where, notes)
    vocabulary = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    if not metadata.get("tokenizer.ggml.merges"):
        raise InputError(f"{where}: has no tokenizer.ggml.merges, which a byte-level BPE needs")
    merges = [_merge(text, where) for text in metadata["tokenizer.ggml.merges"]]
    fast = Fast(models.BPE(vocabulary, merges, ignore_merges=split.whole))
    if split.composed:
        fast.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
    if split.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None))
    fast.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    fast.decoder = decoders.ByteLevel()
    return fast


def _merge(text: str, where: str) -> tuple[str, str]:
    left, space, right = text.partition(" ")
    if not space or not left or not right or " " in right:
        raise InputError(f"{where}: tokenizer.ggml.merges has {text!r}; must be two tokens with one space between")
    return left, right


def _split(metadata: Mapping[str, Any], where: str, notes: list[str]) -> Split:
    """How the file's text is split; where it does not say it, as its family does."""
    name = metadata.get("tokenizer.ggml.pre")
    if name is not None and name not in SPLITS:
        known = ", ".join(SPLITS)
        raise InputError(f"{where}: tokenizer.ggml.pre is {name!r}, only: {known}{did_you_mean(name, SPLITS)}")
    if name not in (None, "default"):
        return SPLITS[name]
    family = "gpt-2"
    if str(metadata.get("general.architecture")).startswith("qwen"):
        family = "qwen2"
    elif "<|begin_of_text|>" in metadata["tokenizer.ggml.tokens"]:
        family = "llama-bpe"
    notes.append(f"tokenizer.ggml.pre does not say how text is split into words; taken as {family!r}")
    return SPLITS[family]


def _sentencepiece(metadata: Mapping[str, Any], where: str, notes: list[str]) -> "Fast":
    """A SentencePiece BPE with bytes to fall back on, of Llama's, Gemma's or Phi-3's form."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    architecture = str(metadata.get("general.architecture"))
    gemma = architecture.startswith("gemma")
    tokens = metadata["tokenizer.ggml.tokens"]
    if gemma:  # its runs of spaces are written as spaces
        tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    merges = _merges(vocabulary, _ranks(metadata, len(tokens), gemma, where))
    fast = Fast(
        models.BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = not gemma and _flag(metadata, "add_space_prefix", True)
    if gemma:
        fast.normalizer = normalizers.Replace(" ", SPACE)
        fast.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    elif architecture == "phi3":  # as in Phi-3's own file: a space before each piece between special tokens
        steps = [normalizers.Replace(" ", SPACE)]
        fast.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), *steps] if prefix else steps)
    else:
        scheme = "first" if prefix else "never"
        fast.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    decoding: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        decoding.append(decoders.Strip(content=" ", left=1))
    fast.decoder = decoders.Sequence(decoding)
    return fast


def _ranks(metadata: Mapping[str, Any], size: int, by_place: bool, where: str) -> Sequence[float]:
    """What SentencePiece prefers, a number a token, the larger the sooner: its scores, or (Gemma) its place."""
    if by_place:
        return range(0, -size, -1)
    scores = metadata.get("tokenizer.ggml.scores")
    if not scores or len(scores) != size:
        raise InputError(f"{where}: has {len(scores or ())} tokenizer.ggml.scores for {size} tokens; must be one each")
    return scores


def _merges(vocabulary: Mapping[str, int], ranks: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece vocabulary amounts to: every way to halve a token, in the order of preference."""
    found = []
    for token, i in vocabulary.items():
        halved = [pair for pair in _halvings(token) if pair[0] in vocabulary and pair[1] in vocabulary]
        halved.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(ranks[i], len(pair[0]), len(pair[1]), pair) for pair in halved]
    found.sort(key=lambda entry: entry[:3], reverse=True)  # a stable sort, so equal ones stay in order
    return [pair for *_, pair in found]


def _halvings(token: str) -> Iterator[tuple[str, str]]:
    return ((token[:i], token[i:]) for i in range(1, len(token)))


BUILDERS: dict[str, Callable[[Mapping[str, Any], str, list[str]], "Fast"]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}
"""By `tokenizer.ggml.model`."""
