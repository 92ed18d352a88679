"""Requests are read strictly: what would change the answer and is not computed is refused, with what is allowed."""

import math

import pytest

from fedjax_rai.text.prompts import Turn
from fedjax_rai.tools.openai_requests import BadRequest, read_chat, read_completion

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields):
    return read_chat({"model": "m", "messages": HELLO, **fields})


def completion(**fields):
    return read_completion({"model": "m", "prompt": "Once", **fields})


def test_the_defaults_are_those_of_openai():
    asked = chat()
    assert (asked.temperature, asked.choices, asked.stream, asked.tops, asked.limit, asked.seed) == (
        1.0, 1, False, None, None, None,
    )  # fmt: skip
    assert asked.conversation == [Turn("user", "Hello")] and asked.texts == [] and asked.stop == ()


def test_every_setting_is_read():
    asked = chat(
        n=2, max_completion_tokens=7, temperature=0, top_p=0.5, top_k=3, min_p=0.1, seed=5, stop="x", logprobs=True,
        top_logprobs=4, stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    assert asked.choices == 2 and asked.limit == 7 and asked.temperature == 0.0 and asked.seed == 5
    assert (asked.top_p, asked.top_k, asked.min_p) == (0.5, 3, 0.1)
    assert asked.stop == ("x",) and asked.tops == 4 and asked.stream and asked.usage


def test_bounds_that_bound_nothing_are_none():
    asked = chat(top_p=1, top_k=-1, min_p=0)
    assert (asked.top_p, asked.top_k, asked.min_p) == (None, None, None)
    assert chat(logprobs=True).tops == 0
    assert chat(max_tokens=3).limit == 3 and completion(max_tokens=0, echo=True, logprobs=1).limit == 0


@pytest.mark.parametrize(("written", "read"), [(1e-31, 0.0), (5e-324, 0.0), (1e-10, 1e-10), (1e30, 1e30), (2, 2.0)])
def test_a_temperature_whose_quotients_are_no_numbers_is_that_of_the_likeliest_token(written, read):
    assert chat(temperature=written).temperature == read


def test_a_field_that_is_null_is_left_out():
    """As clients write out what they were not told."""
    nulls = ("logit_bias", "tools", "stop", "seed", "response_format", "top_p", "max_tokens", "stream_options", "n")
    assert chat(**dict.fromkeys(nulls)) == chat() == chat(stop=[], top_logprobs=0, logprobs=False)


def test_roles_and_parts_of_messages():
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
        {"role": "assistant", "content": "c", "refusal": None},
        {"role": "user", "content": "한국어 مرحبا <b>"},
    ]
    turns = [Turn("system", "Be brief."), Turn("user", "ab"), Turn("assistant", "c"), Turn("user", "한국어 مرحبا <b>")]
    assert read_chat({"model": "m", "messages": messages}).conversation == turns


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_are_texts_or_tokens(prompt, texts):
    assert completion(prompt=prompt).texts == texts


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "me"}, {"metadata": {"a": "b"}}, {"store": True}, {"frequency_penalty": 0}, {"presence_penalty": 0.0},
        {"tools": []}, {"tool_choice": "none"}, {"response_format": {"type": "text"}}, {"logit_bias": {}},
        {"suffix": None}, {"n": 3, "best_of": 3}, {"parallel_tool_calls": True}, {"a_field_of_tomorrow": None},
    ],
)  # fmt: skip
def test_what_changes_no_answer_is_passed_over(harmless):
    assert chat(**harmless)._replace(choices=1) == chat()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty", "is not computed here; must be left out, or 0"),
        ({"tools": [{"type": "function"}]}, "tools", "is not computed here"),
        ({"response_format": {"type": "json_object"}}, "response_format", "{'type': 'text'}"),
        ({"best_of": 2}, "best_of", "is not computed here"),
        ({"ignore_eos": True}, "ignore_eos", "or False"),
        ({"temprature": 0}, "temprature", "did you mean temperature?"),
        ({"temperature": -1}, "temperature", "must be a number from 0 to 1e+30"),
        ({"temperature": True}, "temperature", "must be a number from 0"),
        ({"temperature": "0"}, "temperature", "must be a number from 0"),
        ({"temperature": 1e39}, "temperature", "from 0 to 1e+30"),
        ({"temperature": 10**400}, "temperature", "from 0 to 1e+30"),
        ({"temperature": math.nan}, "temperature", "from 0 to 1e+30"),
        ({"top_p": 10**400}, "top_p", "from 0 to 1"),
        ({"top_p": 0}, "top_p", "must be greater than 0, at most 1"),
        ({"min_p": 1}, "min_p", "must be at least 0, less than 1"),
        ({"top_k": -2}, "top_k", "must be a whole number >= -1"),
        ({"n": 0}, "n", "from 1 to 128"),
        ({"max_tokens": 0}, "max_tokens", "must be a whole number >= 1"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens", "or the same"),
        ({"seed": -1}, "seed", "from 0 to 2147483647"),
        ({"stop": ["a", ""]}, "stop", "none of them empty"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs = true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"logprobs": 3}, "logprobs", "must be true or false"),
        ({"stream": "yes"}, "stream", "must be true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream = true"),
        ({"model": None}, "model", "must be given"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0]", "must be one of system, developer, user"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages", "must be of role user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "of type text"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "messages[0]", "must be left out"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "half of a character"),
    ],
)
def test_bad_requests_say_what_where_and_what_is_allowed(fields, param, words):
    with pytest.raises(BadRequest) as refused:
        chat(**fields)
    assert refused.value.param == param and words in str(refused.value) and refused.value.status == 400


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": None}, "a text, a list of texts, a list of tokens"),
        ({"prompt": []}, "a text, a list of texts"),
        ({"prompt": [1, "a"]}, "a text, a list of texts"),
        ({"prompt": [True]}, "a text, a list of texts"),
        ({"messages": HELLO}, "messages: no such field"),
        ({"echo": True, "stream": True}, "must be false where stream is true"),
        ({"logprobs": True}, "from 0 to 20"),
        ({"max_tokens": 0}, ">= 1"),
        ({"prompt": ["a"] * 9, "n": 114}, "prompt: 9 prompts with n = 114; must be at most 1024 answers"),
    ],
)
def test_bad_completions(fields, words):
    with pytest.raises(BadRequest, match=words):
        completion(**fields)


def test_as_many_answers_as_are_allowed():
    assert len(completion(prompt=["a"] * 8, n=128).texts) == 8


def test_a_body_is_an_object():
    with pytest.raises(BadRequest, match="must be an object"):
        read_chat(["model"])
