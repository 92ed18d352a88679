"""A tokenizer that loses text is refused when it is loaded; one that only lacks Hangul, and says so, is named."""

import json
import shutil

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fedjax_rai.errors import InputError
from fedjax_rai.text.hub import resolve
from fedjax_rai.text.tokenizer import HANGUL, LATIN, Tokenizer, load_tokenizer
from tests.chat_models import FAMILIES, tokenizer
from tests.test_model_json import POINTER

LOSING = {
    "spaces": ("\\s", ""),
    "double spaces": ("  +", " "),
    "line breaks": ("\n", " "),
    "digits": ("[0-9]", ""),
    "one digit": ("9", "8"),
    "capital letters": ("[A-Z]", "x"),
    "Hangul": ("[가-힣]", ""),
}


def byte_level(normalizer=None) -> Tokenizer:
    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    fast.decoder = decoders.ByteLevel()  # pyright: ignore
    if normalizer is not None:
        fast.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator([LATIN], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast))


def english_only() -> Tokenizer:
    """Characters of one English text, and a token for what is unknown."""
    vocabulary = {character: i for i, character in enumerate(sorted(set(LATIN) | {"<unk>"}))}
    fast = Fast(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    fast.decoder = decoders.Fuse()  # pyright: ignore
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_tokenizer_gives_back_what_it_is_given(name, capsys):
    tokenizer(name).check_text()
    assert tokenizer(name).has_hangul
    assert not capsys.readouterr().err


@pytest.mark.parametrize("what", LOSING)
def test_a_tokenizer_that_loses_text_is_refused(what):
    from tokenizers import Regex

    pattern, content = LOSING[what]
    losing = byte_level(normalizers.Replace(Regex(pattern), content))
    with pytest.raises(InputError, match="^tokenizer .*: loses text: "):
        losing.check_text()


def test_a_normal_form_loses_nothing():
    byte_level(normalizers.NFD()).check_text()
    byte_level().check_text()


def test_a_tokenizer_without_hangul_that_says_so_is_named(capsys):
    english = english_only()
    english.check_text()
    assert "has no Hangul" in capsys.readouterr().err
    assert not english.has_hangul
    assert english.decode(english.encode(LATIN)) == LATIN != HANGUL


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("tokenizer.json", POINTER, "tokenizer.json: is a pointer of Git LFS"),
        ("chat_template.jinja", POINTER, "chat_template.jinja: is a pointer of Git LFS"),
        ("tokenizer_config.json", POINTER, "tokenizer_config.json: is a pointer of Git LFS"),
        ("tokenizer.json", b"{", "no tokenizer that transformers can read"),
        ("tokenizer.json", b"[]", "no tokenizer that transformers can read"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE"}}', "no tokenizer that transformers can read"),
        ("tokenizer_config.json", b"[1]", "no tokenizer that transformers can read"),
        ("tokenizer_config.json", b"{" * 100_000, "no tokenizer that transformers can read"),
        (
            "generation_config.json",
            b'{"eos_token_id": ' + b"9" * 5000 + b"}",
            "holds a number of thousands",
        ),
    ],
)
def test_a_broken_file_is_refused_in_one_line(file, data, message, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(resolve("tiny"), folder)
    (folder / file).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def template_of(folder, template) -> str:
    """What loading and rendering say of the tiny tokenizer with another template in its settings."""
    shutil.copytree(resolve("tiny"), folder)
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    with pytest.raises(InputError) as caught:
        _ = load_tokenizer(str(folder)).closing
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ([{"name": "rag", "template": "x"}, {"name": "tools", "template": "x"}], "none of its chat templates is the"),
        ([{"name": "default", "template": 3}], "chat_template"),
        (3, "chat_template"),
        ("{% for %}", "its chat template refuses turns of user"),
        ("{{ 1 / 0 }}", "its chat template fails on turns of user"),
        ("{{ messages[7]['content']['x'] }}", "its chat template refuses turns of user"),
        ("{{ 'x' * (10 ** 400) }}", "its chat template fails on turns of user"),
    ],
)
def test_a_template_that_is_none_is_refused_by_name(template, message, tmp_path):
    refusal = template_of(tmp_path / "model", template)
    assert message in refusal and str(tmp_path) in refusal and "\n" not in refusal
