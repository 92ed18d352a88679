"""Every prompt as segments: text that knows whether it is trained on. Masks come from here, never from searching."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from fedjax_rai.errors import InputError

USER, ASSISTANT = "user", "assistant"
GUARD_REQUEST = "Is the answer safe or unsafe?\nQuestion: {query}\nAnswer: {response}"
SAFE, UNSAFE = "safe", "unsafe"


class Turn(NamedTuple):
    role: str
    text: str


class Segment(NamedTuple):
    text: str
    train: bool


@runtime_checkable
class Renderer(Protocol):
    """What a chat template does (`text.tokenizer.Tokenizer`)."""

    end_of_turn: str

    def render(self, turns: Sequence[Turn], generate: bool = False) -> str: ...


def chat(template: Renderer, turns: Sequence[Turn]) -> list[Segment]:
    """The conversation in the template's form; what the assistant says is trained on, its end-of-turn token included.

    Works with any template under which a conversation's beginning renders to a beginning of the whole, and which ends
    an answer with the eos token; raises InputError where that does not hold.
    """
    segments, done = [], ""
    for i, turn in enumerate(turns):
        if turn.role != ASSISTANT:
            continue
        before, after = template.render(turns[:i], generate=True), template.render(turns[: i + 1])
        if not (before.startswith(done) and after.startswith(before)):
            raise InputError(f"the chat template rewrites earlier turns, so turn {i} cannot be masked exactly")
        answer = after[len(before) :]
        at = answer.find(template.end_of_turn, len(turn.text.strip()))
        if at < 0:
            raise InputError(f"the chat template does not end an answer with the eos_token {template.end_of_turn}")
        end = at + len(template.end_of_turn)
        segments += [Segment(before[len(done) :], False), Segment(answer[:end], True)]
        done = before + answer[:end]
    return segments


def prompt(template: Renderer, turns: Sequence[Turn]) -> str:
    """The conversation so far and the opening of the assistant's next turn."""
    return template.render(turns, generate=True)


def request(template: Renderer, text: str) -> str:
    """What follows an assistant's end-of-turn token to put a further request: the same for every conversation."""
    opening = [Turn(USER, "q"), Turn(ASSISTANT, "a")]
    whole = prompt(template, [*opening, Turn(USER, text)])
    before = "".join(segment.text for segment in chat(template, opening))
    if not whole.startswith(before):
        raise InputError("the chat template rewrites earlier turns, so a request cannot be appended to a conversation")
    return whole[len(before) :]


def question(query: str) -> list[Turn]:
    return [Turn(USER, query)]


def answered(query: str, response: str) -> list[Turn]:
    return [Turn(USER, query), Turn(ASSISTANT, response)]


def guard_question(query: str, response: str) -> list[Turn]:
    """The guard's request for a (query, response) pair; its answer begins with `safe` or `unsafe`."""
    return question(GUARD_REQUEST.format(query=query, response=response))
