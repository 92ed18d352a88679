"""Answers as an OpenAI-compatible endpoint gives them: whole, in chunks of a stream, and errors."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedjax_rai.tools.openai_requests import INVALID, BadRequest
from fedjax_rai.tools.sampler import Token

Decode = Callable[[int], str]
"""The text of one token, special ones included."""


class Head(NamedTuple):
    """What all parts of a response begin with."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    chat: bool

    def of(self, stream: bool = False) -> dict[str, Any]:
        """The fields of a whole response, or of a chunk."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if stream else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class Choice(NamedTuple):
    """One answer."""

    index: int
    text: str
    tokens: Sequence[Token]
    """Of the answer, ends left out."""
    finish: str | None
    """`stop` or `length`; None: it goes on."""
    before: str = ""
    """A prompt that is given back."""
    before_tokens: Sequence[Token] = ()
    end: Token | None = None
    """The token that ended it: of a continued text it has its log p, too."""


class Usage(NamedTuple):
    """Tokens that were read, each prompt once, and that were generated, ends included."""

    prompt: int
    completion: int

    def as_object(self) -> dict[str, int]:
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


def whole(head: Head, choices: Sequence[Choice], usage: Usage, tops: int | None, decode: Decode) -> dict[str, Any]:
    """A response that is not streamed."""
    shape = _chat_choice if head.chat else _text_choice
    shaped = [shape(choice, tops, decode) for choice in choices]
    return {**head.of(), "choices": shaped, "usage": usage.as_object()}


def _chat_choice(choice: Choice, tops: int | None, decode: Decode) -> dict[str, Any]:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": _chat_logprobs(choice.tokens, tops, decode),
        "finish_reason": choice.finish,
    }


def _text_choice(choice: Choice, tops: int | None, decode: Decode) -> dict[str, Any]:
    tokens = [*choice.before_tokens, *_with_end(choice)]
    return {
        "index": choice.index,
        "text": choice.before + choice.text,
        "logprobs": None if tops is None else _text_logprobs(tokens, tops, decode),
        "finish_reason": choice.finish,
    }


def _with_end(choice: Choice) -> list[Token]:
    return [*choice.tokens, *([] if choice.end is None else [choice.end])]


def opening(head: Head, index: int) -> dict[str, Any]:
    """The first chunk of an answer in a chat, which says who speaks."""
    delta = {"role": "assistant", "content": ""}
    return {
        **head.of(stream=True),
        "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}],
    }


def chunk(head: Head, choice: Choice, tops: int | None, decode: Decode, offset: int = 0) -> dict[str, Any]:
    """A chunk of a stream: what came to an answer. `offset`: characters of its tokens that came before."""
    if not head.chat:
        logprobs = None if tops is None else _text_logprobs(_with_end(choice), tops, decode, offset)
        shaped = {"index": choice.index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish}
        return {**head.of(stream=True), "choices": [shaped]}
    logprobs = _chat_logprobs(choice.tokens, tops, decode) if choice.tokens else None
    delta = {"content": choice.text} if choice.text or choice.tokens else {}
    shaped = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": choice.finish}
    return {**head.of(stream=True), "choices": [shaped]}


def closing(head: Head, usage: Usage) -> dict[str, Any]:
    """The last chunk of a stream whose tokens are to be counted."""
    return {**head.of(stream=True), "choices": [], "usage": usage.as_object()}


def _chat_logprobs(tokens: Sequence[Token], tops: int | None, decode: Decode) -> dict[str, Any] | None:
    if tops is None:
        return None
    content = []
    for token in tokens:
        top = [_chat_token(id, logp, decode) for id, logp in token.top[:tops]]
        content.append({**_chat_token(token.id, token.logp, decode), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _chat_token(id: int, logp: float | None, decode: Decode) -> dict[str, Any]:
    text = decode(id)
    return {"token": text, "logprob": finite(logp), "bytes": None if "\ufffd" in text else list(text.encode())}


def _text_logprobs(tokens: Sequence[Token], tops: int, decode: Decode, offset: int = 0) -> dict[str, Any]:
    """Lists by token; the first token of a text has no log p. `offset`: characters before the first token."""
    texts = [decode(token.id) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    top = [_by_text(token, tops, decode) for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [finite(token.logp) for token in tokens],
        "top_logprobs": top if tops else None,
        "text_offset": offsets,
    }


LEAST = -9999.0
"""What stands for log 0, as JSON has no word for it and OpenAI has this."""


def finite(logp: float | None) -> Any:
    """A log p as JSON can hold it; NaN stays, so that no response can hold it."""
    return LEAST if logp == -math.inf else logp


def _by_text(token: Token, tops: int, decode: Decode) -> dict[str, float] | None:
    """The likeliest tokens by their texts; of several with one text, the likeliest."""
    if token.logp is None:
        return None
    found: dict[str, float] = {}
    for id, logp in token.top[:tops]:
        found.setdefault(decode(id), finite(logp))
    return found


def models(name: str, created: int) -> dict[str, Any]:
    """The list of what is served: one model."""
    return {"object": "list", "data": [model(name, created)]}


def model(name: str, created: int) -> dict[str, Any]:
    """What is served."""
    return {"id": name, "object": "model", "created": created, "owned_by": "fedjax-rai"}


def error(wrong: BadRequest) -> dict[str, Any]:
    """What is wrong, in the shape of OpenAI's errors."""
    kind = INVALID if wrong.status < 500 else "server_error"
    return {"error": {"message": str(wrong), "type": kind, "param": wrong.param, "code": wrong.code}}
