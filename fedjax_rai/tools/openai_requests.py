"""What a request to an OpenAI-compatible endpoint asks for, read strictly: chat, or the continuation of texts.

A field that would change the answer and that is not computed is refused; one that changes nothing is passed over.
docs/serving.md lists them all.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from fedjax_rai.errors import did_you_mean
from fedjax_rai.text.prompts import ASSISTANT, USER, Turn

SYSTEM = "system"
MOST_CHOICES = 128
MOST_ANSWERS = 1024
"""Of all prompts of a request."""
MOST_STOPS = 16
MOST_TOPS = 20
LARGEST_SEED = 2**31 - 1
HOTTEST = 1e30
COLDEST = 1e-30
"""Below it a temperature is 0: logits divided by it are no numbers in float32, and its limit is the likeliest token."""
ROLES = {SYSTEM: SYSTEM, "developer": SYSTEM, USER: USER, ASSISTANT: ASSISTANT}

INVALID = "invalid_request_error"


class BadRequest(ValueError):
    """A request that cannot be answered: its message says what is wrong, `param` where, `status` is HTTP's."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code


Text: TypeAlias = str | list[int]
"""A text to be continued, or its tokens."""


class Asked(NamedTuple):
    """What a request asks for."""

    model: str
    conversation: list[Turn] | None
    """What is to be answered; None: texts are continued."""
    texts: list[Text]
    """What is to be continued, each by itself; none of a conversation."""
    choices: int
    """Answers to each."""
    limit: int | None
    """The most tokens of an answer; None: the server's."""
    temperature: float
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: tuple[str, ...]
    tops: int | None
    """How many likeliest tokens are given with each token's log p; None: no log p at all."""
    echo: bool
    """A continued text is given back before its continuation."""
    stream: bool
    usage: bool
    """A stream ends with counts of tokens."""


# Fields that are read, by what they belong to.
COMMON = (
    "model", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream", "stream_options",
    "logprobs",
)  # fmt: skip
CHAT = (*COMMON, "messages", "max_completion_tokens", "top_logprobs")
COMPLETION = (*COMMON, "prompt", "echo")
# Fields that say who asks, or how it is to be kept: no answer depends on them.
IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
)  # fmt: skip
# Fields that would change the answer, with the values that do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "prompt_logprobs": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
}


def read_chat(body: Any) -> Asked:
    """The body of a request to /v1/chat/completions; raises BadRequest."""
    fields = _fields(body, CHAT)
    wants_logprobs = _flag(fields, "logprobs")
    tops = _integer(fields, "top_logprobs", 0, MOST_TOPS)
    if tops and not wants_logprobs:
        raise BadRequest("top_logprobs: needs logprobs = true", "top_logprobs")
    limit = _integer(fields, "max_tokens", 1)
    newer = _integer(fields, "max_completion_tokens", 1)
    if limit is not None and newer is not None and limit != newer:
        wrong = f"max_tokens = {limit} and max_completion_tokens = {newer}: must be one of them, or the same"
        raise BadRequest(wrong, "max_completion_tokens")
    return _asked(
        fields,
        conversation=_conversation(fields.get("messages")),
        texts=[],
        limit=newer if limit is None else limit,
        tops=(tops or 0) if wants_logprobs else None,
        echo=False,
    )


def read_completion(body: Any) -> Asked:
    """The body of a request to /v1/completions; raises BadRequest."""
    fields = _fields(body, COMPLETION)
    echo = _flag(fields, "echo")
    asked = _asked(
        fields,
        conversation=None,
        texts=_texts(fields.get("prompt")),
        limit=_integer(fields, "max_tokens", 0 if echo else 1),
        tops=_integer(fields, "logprobs", 0, MOST_TOPS),
        echo=echo,
    )
    if len(asked.texts) * asked.choices > MOST_ANSWERS:
        wrong = f"prompt: {len(asked.texts)} prompts with n = {asked.choices}; must be at most {MOST_ANSWERS} answers"
        raise BadRequest(wrong, "prompt")
    if asked.stream and echo:
        raise BadRequest("echo: must be false where stream is true", "echo")
    return asked


def _asked(fields: Mapping[str, Any], **of_kind: Any) -> Asked:
    top_k = _integer(fields, "top_k", -1)
    stream = _flag(fields, "stream")
    options = _stream_options(fields.get("stream_options"), stream)
    return Asked(
        model=_text(fields, "model"),
        choices=_integer(fields, "n", 1, MOST_CHOICES) or 1,
        temperature=_temperature(fields),
        top_p=_share(fields, "top_p", above_zero=True),
        top_k=top_k if top_k and top_k > 0 else None,  # 0 and -1: no bound
        min_p=_share(fields, "min_p", above_zero=False),
        seed=_integer(fields, "seed", 0, LARGEST_SEED),
        stop=_stops(fields.get("stop")),
        stream=stream,
        usage=options,
        **of_kind,
    )


def _fields(body: Any, known: Sequence[str]) -> dict[str, Any]:
    """The fields that are set; raises BadRequest for one that would change the answer and is not computed."""
    if not isinstance(body, dict):
        raise BadRequest("the body must be an object in JSON")
    fields = {name: value for name, value in body.items() if value is not None}
    for name, value in fields.items():
        if name in known or name in IGNORED:
            continue
        if name in NEUTRAL:
            _check_neutral(name, value, fields)
            continue
        near = did_you_mean(name, [*known, *NEUTRAL, *IGNORED])
        raise BadRequest(f"{name}: no such field; must be one of {', '.join(known)}{near}", name)
    return {name: value for name, value in fields.items() if name in known}


def _check_neutral(name: str, value: Any, fields: Mapping[str, Any]) -> None:
    allowed = NEUTRAL[name]
    if any(type(value) is type(each) and value == each for each in allowed):
        return
    if type(value) in (int, float) and value in allowed:
        return
    if name == "best_of" and value == fields.get("n"):
        return
    words = "".join(f", or {each!r}" for each in allowed)
    raise BadRequest(f"{name} = {_shown(value)}: is not computed here; must be left out{words}", name)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"{name}: {'must be given' if value is None else f'is {_shown(value)}'}; must be a text", name)
    return value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{name} = {_shown(value)}: must be true or false", name)
    return value


def _integer(fields: Mapping[str, Any], name: str, low: int, high: int | None = None) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or value < low or (high is not None and value > high):
        range_ = f"from {low} to {high}" if high is not None else f">= {low}"
        raise BadRequest(f"{name} = {_shown(value)}: must be a whole number {range_}", name)
    return value


def _number(fields: Mapping[str, Any], name: str, default: float, high: float) -> float:
    value = fields.get(name, default)
    if type(value) not in (int, float) or not 0 <= value <= high:  # NaN is in no range
        raise BadRequest(f"{name} = {_shown(value)}: must be a number from 0 to {high:g}", name)
    return float(value)


def _temperature(fields: Mapping[str, Any]) -> float:
    found = _number(fields, "temperature", 1.0, HOTTEST)
    return found if found >= COLDEST else 0.0


def _share(fields: Mapping[str, Any], name: str, above_zero: bool) -> float | None:
    """A probability that bounds sampling, above 0 and at most 1 or at least 0 and below 1; None: it bounds none."""
    if name not in fields:
        return None
    value = _number(fields, name, 0.0, 1.0)
    if above_zero and value == 0:
        raise BadRequest(f"{name} = 0: must be greater than 0, at most 1", name)
    if not above_zero and value == 1:
        raise BadRequest(f"{name} = 1: must be at least 0, less than 1", name)
    bounds_none = value == (1 if above_zero else 0)
    return None if bounds_none else value


def _stops(value: Any) -> tuple[str, ...]:
    listed = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(stop, str) and stop for stop in listed):
        raise BadRequest(f"stop = {_shown(value)}: must be a text or a list of texts, none of them empty", "stop")
    if len(listed) > MOST_STOPS:
        raise BadRequest(f"stop: holds {len(listed)} texts; must be at most {MOST_STOPS}", "stop")
    return tuple(listed)


def _stream_options(value: Any, stream: bool) -> bool:
    """Whether a stream is to end with counts."""
    if value is None:
        return False
    if not isinstance(value, dict) or {*value} - {"include_usage", "include_obfuscation"}:
        raise BadRequest(f"stream_options = {_shown(value)}: must be an object with include_usage", "stream_options")
    if not stream:
        raise BadRequest("stream_options: needs stream = true", "stream_options")
    wanted = value.get("include_usage", False)
    if not isinstance(wanted, bool):
        raise BadRequest(f"stream_options.include_usage = {_shown(wanted)}: must be true or false", "stream_options")
    return wanted


def _conversation(messages: Any) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: must be a list of at least one message, each with role and content", "messages")
    turns = [_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if turns[-1].role != USER:
        raise BadRequest(f"messages[{len(turns) - 1}].role: the last message must be of role {USER}", "messages")
    return turns


def _turn(message: Any, place: str) -> Turn:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest(f"{place}: must be an object with role and content", place)
    role = ROLES.get(message["role"])
    if role is None:
        near = did_you_mean(message["role"], ROLES)
        raise BadRequest(f"{place}.role = {message['role']!r}: must be one of {', '.join(ROLES)}{near}", place)
    unknown = [name for name, value in message.items() if name not in ("role", "content", "name") and value]
    if unknown:
        raise BadRequest(f"{place}.{unknown[0]}: is not computed here; must be left out", place)
    return Turn(role, _content(message.get("content"), f"{place}.content"))


def _content(content: Any, place: str) -> str:
    """The text of a message, given as one or in parts."""
    if isinstance(content, list) and content:
        parts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise BadRequest(f"{place}: its parts must be of type text, each with a text", place)
            parts.append(part["text"])
        content = "".join(parts)
    if not isinstance(content, str):
        raise BadRequest(f"{place}: must be a text, or a list of parts of type text", place)
    return _readable(content, place)


def _readable(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRequest(f"{place}: holds half of a character; must be text", place) from None
    return text


def _texts(prompt: Any) -> list[Text]:
    """The prompts of a completion: a text, tokens, or a list of either."""
    if isinstance(prompt, str):
        return [_readable(prompt, "prompt")]
    if isinstance(prompt, list) and prompt:
        if _are_tokens(prompt):
            return [prompt]
        if all(isinstance(each, str) for each in prompt):
            return [_readable(each, f"prompt[{i}]") for i, each in enumerate(prompt)]
        if all(_are_tokens(each) for each in prompt):
            return prompt
    raise BadRequest("prompt: must be a text, a list of texts, a list of tokens, or a list of such lists", "prompt")


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
