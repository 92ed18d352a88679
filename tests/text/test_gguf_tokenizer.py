"""A GGUF file's metadata becomes the tokenizer that the model was trained with, or a clear no."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.text.gguf_tokenizer import SPLITS, GgufTokenizer, tokenizer_of
from tests.gguf_files import TEMPLATE, USER_DEFINED, byte_level, sentencepiece


def made(vocabulary: dict[str, Any], **others: Any) -> GgufTokenizer:
    metadata = {"general.architecture": "llama", "tokenizer.chat_template": TEMPLATE}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    return tokenizer_of(metadata | {key.replace("__", "."): value for key, value in others.items()}, "a.gguf")


def pieces(tokenizer: GgufTokenizer, text: str) -> list[str]:
    return tokenizer.fast.encode(text, add_special_tokens=False).tokens


def test_a_byte_level_vocabulary_merges_and_keeps_special_tokens_whole() -> None:
    tokenizer = made(byte_level())
    assert pieces(tokenizer, "hell a<|end|>") == ["hell", "\u0120a", "<|end|>"]
    ids = tokenizer.fast.encode("h\u00e9 \ud55c", add_special_tokens=False).ids
    assert tokenizer.fast.decode(ids) == "h\u00e9 \ud55c"
    assert tokenizer.stops == [261]
    assert tokenizer.config["eos_token"] == "<|end|>" and tokenizer.config["pad_token"] == "<|pad|>"
    assert tokenizer.config["chat_template"] == TEMPLATE
    assert not tokenizer.notes


def words(pre: str, text: str) -> list[str]:
    """How a named split cuts a text into words, before anything is merged."""
    fast = made(byte_level(pre)).fast
    return [text[left:right] for _, (left, right) in fast.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["it", "'s", " ", " 1234", " ok", "!!", "\n"]),
        ("smollm", ["it", "'s", "  ", "1", "2", "3", "4", " ok", "!!", "\n"]),
        ("llama-bpe", ["it", "'s", " ", " ", "123", "4", " ok", "!!\n"]),
        ("qwen2", ["it", "'s", " ", " ", "1", "2", "3", "4", " ok", "!!\n"]),
        ("tekken", ["it", "'s", " ", " ", "1", "2", "3", "4", " ok", "!!\n"]),
        ("gpt-4o", ["it's", " ", " ", "123", "4", " ok", "!!\n"]),
    ],
)
def test_each_split_cuts_words_its_own_way(pre: str, expected: list[str]) -> None:
    assert words(pre, "it's  1234 ok!!\n") == expected


def test_a_whole_word_is_taken_unmerged_where_its_split_says_so() -> None:
    """`wxyz` cannot be merged from its letters, but is in the vocabulary."""
    vocabulary = byte_level("llama-bpe")
    vocabulary["tokens"] = [*vocabulary["tokens"], "wxyz"]
    vocabulary["token_type"] = [*vocabulary["token_type"], 1]
    assert pieces(made(vocabulary), "wxyz") == ["wxyz"]
    assert pieces(made(vocabulary | {"pre": "qwen2"}), "wxyz") == ["w", "x", "y", "z"]


def test_qwens_text_is_composed_first() -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    assert pieces(made(byte_level("qwen2")), decomposed) == pieces(made(byte_level("qwen2")), composed)
    assert pieces(made(byte_level("gpt-2")), decomposed) != pieces(made(byte_level("gpt-2")), composed)


def test_a_split_that_is_not_named_is_the_familys_and_that_is_noted() -> None:
    nameless = byte_level(None)
    assert made(nameless).notes == ["tokenizer.ggml.pre does not say how text is split into words; taken as 'gpt-2'"]
    assert "'qwen2'" in made(nameless, general__architecture="qwen2").notes[0]
    with pytest.raises(InputError, match="tokenizer.ggml.pre is 'smolm', only: .*did you mean smollm"):
        made(byte_level("smolm"))
    assert {"default", "llama-bpe", "qwen2", "smollm", "tekken"} <= SPLITS.keys()


def test_sentencepiece_merges_by_score_and_falls_back_on_bytes() -> None:
    """`hell` is made of `he` and `ll`, which have better scores than `or`; `x` is in no piece."""
    tokenizer = made(sentencepiece())
    assert pieces(tokenizer, "hell wor") == ["\u2581hell", "\u2581wor"]
    assert pieces(tokenizer, "<|user|>a") == ["<|user|>", "a"]  # a space before the first piece of a text only
    assert pieces(tokenizer, "ax") == ["\u2581a", "<0x78>"]
    ids = tokenizer.fast.encode("hell \ud55c", add_special_tokens=False).ids
    assert tokenizer.fast.decode(ids) == "hell \ud55c"
    assert tokenizer.fast.encode("a").tokens == ["<s>", "\u2581a"]
    assert made(sentencepiece() | {"add_bos_token": False}).fast.encode("a").tokens == ["\u2581a"]


def test_texts_begin_and_end_as_the_file_says() -> None:
    """Without a word from the file, Llama 3's begin with bos and Qwen's do not."""
    named = byte_level("llama-bpe") | {"bos_token_id": 260}
    del named["add_bos_token"]
    assert made(named).fast.encode("hell").tokens == ["<|pad|>", "hell"]
    assert made(named | {"pre": "qwen2"}).fast.encode("hell").tokens == ["hell"]
    assert made(named | {"pre": "qwen2", "add_eos_token": True}).fast.encode("hell").tokens == ["hell", "<|end|>"]
    pair = made(named | {"add_eos_token": True}).fast.encode("hell", "he")
    assert pair.tokens == ["<|pad|>", "hell", "<|end|>", "<|pad|>", "he", "<|end|>"]


def test_spaces_before_a_text_are_its_familys() -> None:
    assert pieces(made(sentencepiece() | {"add_space_prefix": False}), "hell") == ["hell"]
    assert pieces(made(sentencepiece(), general__architecture="gemma3"), "hell a") == ["hell", "\u2581a"]
    assert pieces(made(sentencepiece(), general__architecture="phi3"), "<|user|>a") == ["<|user|>", "\u2581a"]


def test_gemmas_runs_of_spaces_are_written_as_spaces() -> None:
    vocabulary = sentencepiece()
    vocabulary["tokens"] = [*vocabulary["tokens"], "  "]
    vocabulary["token_type"] = [*vocabulary["token_type"], USER_DEFINED]
    vocabulary["scores"] = [*vocabulary["scores"], -1000.0]
    assert pieces(made(vocabulary, general__architecture="gemma3"), "a  b") == ["a", "\u2581\u2581", "b"]


def test_a_users_token_is_whole_but_not_special() -> None:
    vocabulary = byte_level()
    vocabulary["token_type"] = [*vocabulary["token_type"][:-1], USER_DEFINED]
    fast = made(vocabulary).fast
    added = json.loads(fast.to_str())["added_tokens"]
    assert [token["content"] for token in added if not token["special"]] == ["<|assistant|>"]
    assert fast.encode("a<|assistant|>").tokens == ["a", "<|assistant|>"]


def test_all_ends_are_stops_and_templates_have_names() -> None:
    tokenizer = made(
        byte_level() | {"eot_token_id": 262, "eom_token_id": 261},
        tokenizer__chat_templates=["tool_use"],
        **{"tokenizer__chat_template__tool_use": "{{ tools }}"},
    )
    assert tokenizer.stops == [261, 262]
    assert tokenizer.templates == {"default": TEMPLATE, "tool_use": "{{ tools }}"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merges": []}, "has no tokenizer.ggml.merges"),
        ({"merges": ["he"]}, "has 'he'; must be two tokens"),
        ({"merges": ["h q"]}, "makes no tokenizer"),
        ({"model": "t5"}, "tokenizer.ggml.model is 't5'"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(byte_level() | change)


def test_tokens_that_stand_twice_and_scores_that_are_missing_are_refused() -> None:
    twice = byte_level()
    twice["tokens"] = [*twice["tokens"][:-1], "<|pad|>"]
    with pytest.raises(InputError, match=r"'<\|pad\|>' stands twice in the vocabulary, as 260 and 263"):
        made(twice)
    with pytest.raises(InputError, match="has 0 tokenizer.ggml.scores for 2"):
        made(sentencepiece() | {"scores": []})


def test_a_folder_of_it_is_read_by_transformers(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from fedjax_rai.text.tokenizer import load_tokenizer
    from fedjax_rai.tools.import_gguf import import_gguf
    from tests.gguf_files import write_gguf

    import_gguf(write_gguf(tmp_path / "a.gguf").path, tmp_path / "out")
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    assert tokenizer.end_of_turn == "<|end|>" and tokenizer.end_ids == (261,)
    assert tokenizer.decode(tokenizer.encode("hell  a")) == "hell  a"
