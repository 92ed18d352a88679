"""Responses have OpenAI's shape: what a client reads of them is worked out by hand here."""

import math

from fedjax_rai.tools import openai_responses as responses
from fedjax_rai.tools.openai_requests import BadRequest
from fedjax_rai.tools.openai_responses import Choice, Head, Usage
from fedjax_rai.tools.sampler import Token

TEXTS = {0: "Hi", 1: " there", 2: "\ufffd", 3: "<end>", 4: " there"}
CHAT = Head("chatcmpl-1", 1000, "m", chat=True)
TEXT = Head("cmpl-1", 1000, "m", chat=False)
TOKENS = [Token(0, -0.5, ((0, -0.5), (3, -1.5))), Token(1, -2.0, ((4, -0.25), (1, -2.0)))]


def test_a_chat_response():
    choice = Choice(0, "Hi there", TOKENS, "stop", end=Token(3, -0.1))
    made = responses.whole(CHAT, [choice], Usage(5, 3), 1, TEXTS.__getitem__)
    assert made == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi there", "refusal": None},
                "logprobs": {
                    "content": [
                        {
                            "token": "Hi", "logprob": -0.5, "bytes": [72, 105],
                            "top_logprobs": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}],
                        },
                        {
                            "token": " there", "logprob": -2.0, "bytes": [32, 116, 104, 101, 114, 101],
                            "top_logprobs": [
                                {"token": " there", "logprob": -0.25, "bytes": [32, 116, 104, 101, 114, 101]}
                            ],
                        },
                    ],
                    "refusal": None,
                },
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }  # fmt: skip


def test_no_log_p_where_none_was_asked_for():
    made = responses.whole(CHAT, [Choice(0, "Hi", [Token(0)], "length")], Usage(5, 1), None, TEXTS.__getitem__)
    assert made["choices"][0]["logprobs"] is None


def test_a_continued_text_with_its_prompt():
    """The prompt's first token has no log p; the end has one; of two tokens with one text the likelier is kept."""
    prompt = [Token(1), Token(0, -1.0, ((0, -1.0), (3, -1.25)))]
    choice = Choice(0, "Hi", TOKENS[:1], "stop", " thereHi", prompt, Token(1, -2.0, ((4, -0.25), (1, -2.0))))
    made = responses.whole(TEXT, [choice], Usage(2, 2), 2, TEXTS.__getitem__)
    (given,) = made["choices"]
    assert given["text"] == " thereHiHi" and made["object"] == "text_completion"
    assert given["logprobs"] == {
        "tokens": [" there", "Hi", "Hi", " there"],
        "token_logprobs": [None, -1.0, -0.5, -2.0],
        "top_logprobs": [None, {"Hi": -1.0, "<end>": -1.25}, {"Hi": -0.5, "<end>": -1.5}, {" there": -0.25}],
        "text_offset": [0, 6, 8, 10],
    }


def test_chunks_of_a_stream():
    opened = responses.opening(CHAT, 1)
    assert opened["object"] == "chat.completion.chunk"
    assert opened["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    (first,) = responses.chunk(CHAT, Choice(1, "Hi", [], None), None, TEXTS.__getitem__)["choices"]
    assert first == {"index": 1, "delta": {"content": "Hi"}, "logprobs": None, "finish_reason": None}
    (last,) = responses.chunk(CHAT, Choice(1, "", [], "stop"), None, TEXTS.__getitem__)["choices"]
    assert last == {"index": 1, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    (text,) = responses.chunk(TEXT, Choice(0, " there", TOKENS[1:], None), 1, TEXTS.__getitem__, 2)["choices"]
    assert text["text"] == " there" and text["logprobs"]["text_offset"] == [2]
    assert responses.closing(CHAT, Usage(1, 2))["usage"]["total_tokens"] == 3


def test_half_a_character_has_no_bytes():
    made = responses.whole(CHAT, [Choice(0, "", [Token(2, -1.0)], "stop")], Usage(1, 1), 0, TEXTS.__getitem__)
    (token,) = made["choices"][0]["logprobs"]["content"]
    assert token["bytes"] is None and token["top_logprobs"] == []


def test_errors():
    wrong = responses.error(BadRequest("n = 0: must be more", "n"))
    assert wrong == {
        "error": {"message": "n = 0: must be more", "type": "invalid_request_error", "param": "n", "code": None}
    }
    assert responses.error(BadRequest("failed", status=500))["error"]["type"] == "server_error"


def test_log_0_is_a_number_of_json():
    assert responses.finite(float("-inf")) == -9999.0 and responses.finite(-1.5) == -1.5
    assert responses.finite(None) is None
    assert math.isnan(responses.finite(math.nan))  # no log 0: json.dumps refuses it
