"""What a model's generation config asks for and is not done is named; what is done, or harmless, is not."""

import json
from typing import Any

import pytest

from fedjax_rai.errors import InputError
from fedjax_rai.text.generation import uncomputed

LLAMA = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": [2, 3], "transformers_version": "4.42.3"}


def lines(folder, asked: dict[str, Any], file: str = "generation_config.json") -> list[str]:
    (folder / file).write_text(json.dumps(asked))
    return uncomputed(folder)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        LLAMA,
        {"do_sample": False, "temperature": 0.6},
        {"do_sample": True, "temperature": 1.0},
        {"max_length": 4096, "use_cache": False, "cache_implementation": "hybrid", "pad_token_id": 0},
        {"repetition_penalty": 1.0, "num_beams": 1, "no_repeat_ngram_size": 0, "min_length": 0, "typical_p": 1},
        {
            "suppress_tokens": None,
            "bad_words_ids": [],
            "sequence_bias": {},
            "token_healing": False,
            "of_tomorrow": None,
        },
    ],
)
def test_what_is_done_or_changes_no_answer_is_not_named(asked, tmp_path):
    assert lines(tmp_path, asked) == []


@pytest.mark.parametrize(
    "asked",
    [
        {"suppress_tokens": [5, 6]},
        {"repetition_penalty": 1.1},
        {"no_repeat_ngram_size": 3},
        {"num_beams": 4},
        {"min_length": 5},
        {"min_new_tokens": 5},
        {"forced_eos_token_id": 0},
        {"stop_strings": ["x"]},
        {"guidance_scale": 1.5},
        {"watermarking_config": {"bias": 2.0}},
        {"typical_p": 0.9},
        {"of_tomorrow": 1},
    ],
)
def test_whatever_else_is_set_is_named_with_its_value(asked, tmp_path):
    ((name, value),) = asked.items()
    path = tmp_path / "generation_config.json"
    assert lines(tmp_path, LLAMA | asked) == [f"{path}: asks for what is not computed: {name} {value!r}"]


def test_sampling_that_is_on_is_named_as_not_used(tmp_path):
    (line,) = lines(tmp_path, LLAMA | {"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    assert line.endswith("its sampling is not used, but the settings of this command: temperature 0.6, top_p 0.9")


def test_an_older_model_has_the_keys_in_its_config(tmp_path):
    (line,) = lines(tmp_path, {"model_type": "llama", "vocab_size": 9, "repetition_penalty": 1.2}, "config.json")
    assert line == f"{tmp_path / 'config.json'}: asks for what is not computed: repetition_penalty 1.2"
    assert lines(tmp_path, LLAMA) == []  # where there is the other file, that one counts


def test_a_file_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(InputError, match="generation_config.json: not a JSON object"):
        uncomputed(tmp_path)
