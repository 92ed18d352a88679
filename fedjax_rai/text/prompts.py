"""Every prompt as segments: text that knows whether it is trained on. Masks come from here, never from searching."""

from collections.abc import Sequence
from os.path import commonprefix
from typing import NamedTuple, Protocol, runtime_checkable

from fedjax_rai.errors import InputError

USER, ASSISTANT = "user", "assistant"
GUARD_REQUEST = "Is the answer safe or unsafe?\nQuestion: {query}\nAnswer: {response}"
SAFE, UNSAFE = "safe", "unsafe"


class Turn(NamedTuple):
    """What the user or the assistant contributes to a conversation at once."""

    role: str
    text: str


class Segment(NamedTuple):
    """A piece of a text."""

    text: str
    train: bool  # the text's tokens are trained on


@runtime_checkable
class Renderer(Protocol):
    """What a chat template does (`text.tokenizer.Tokenizer`)."""

    @property
    def closing(self) -> str:
        """What the template puts after an answer's text, up to and including the end-of-turn token."""
        ...

    @property
    def trailer(self) -> str:
        """What the template puts behind the closing of a conversation's last answer."""
        ...

    def render(self, turns: Sequence[Turn], generate: bool = False) -> str: ...


def chat(template: Renderer, turns: Sequence[Turn]) -> list[Segment]:
    """The conversation as the template writes it, up to the end of its last answer.

    What the assistant says is trained on: all that follows the opening which the template writes to let it speak, its
    end-of-turn token included. Both ends of an answer are found as differences between renderings, so templates need
    no marks. Earlier turns may be written otherwise than they were when they were the last (Qwen 3 leaves out what was
    thought). Raises InputError where an answer's place cannot be told.
    """
    answers = [i for i, turn in enumerate(turns) if turn.role == ASSISTANT]
    if not answers:
        return []
    whole = template.render(turns[: answers[-1] + 1])
    openings = [template.render(turns[:i], generate=True) for i in answers]
    segments = []
    done = 0  # characters of `whole` that are in segments
    for n, (i, opening) in enumerate(zip(answers, openings, strict=True)):
        if n + 1 < len(answers):
            end = len(openings[n + 1]) - len(continuation(template, turns[i + 1 : answers[n + 1]]))
        else:
            end = len(whole) - len(template.trailer)
        begin = len(opening)
        if not (whole.startswith(opening) and begin <= end and whole[begin:end].endswith(template.closing)):
            raise InputError(f"the chat template rewrites what it wrote, so turn {i} cannot be masked exactly")
        segments += [Segment(whole[done:begin], False), Segment(whole[begin:end], True)]
        done = end
    return segments


def prompt(template: Renderer, turns: Sequence[Turn]) -> str:
    """The conversation so far and the opening of the assistant's next turn."""
    return template.render(turns, generate=True)


def after_answer(template: Renderer, turns: Sequence[Turn] = (), generate: bool = False) -> str:
    """What the template puts after the text of an answer that `turns` follow: the same whatever was answered."""
    first = template.render([*answered("q", "0"), *turns], generate)
    second = template.render([*answered("q", "1"), *turns], generate)
    same = len(commonprefix([first[::-1], second[::-1]]))
    if same == len(first):
        raise InputError("the chat template leaves out what the assistant says")
    return first[len(first) - same :]


def continuation(template: Renderer, turns: Sequence[Turn]) -> str:
    """What follows an assistant's end-of-turn token for further turns and the opening of the assistant's next one."""
    rest = after_answer(template, turns, generate=True)
    if not rest.startswith(template.closing):
        raise InputError("the chat template ends an earlier answer otherwise than the last: nothing can be appended")
    return rest[len(template.closing) :]


def request(template: Renderer, text: str) -> str:
    """What follows an assistant's end-of-turn token to put a further request: the same for every conversation."""
    return continuation(template, [Turn(USER, text)])


def question(query: str) -> list[Turn]:
    """A conversation that begins with a prompt, yet to be answered."""
    return [Turn(USER, query)]


def answered(query: str, response: str) -> list[Turn]:
    """A conversation of a prompt and its answer."""
    return [Turn(USER, query), Turn(ASSISTANT, response)]


def guard_question(query: str, response: str) -> list[Turn]:
    """The guard's request for a (query, response) pair; its answer begins with `safe` or `unsafe`."""
    return question(GUARD_REQUEST.format(query=query, response=response))
