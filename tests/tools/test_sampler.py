"""What is put into one batch, and what of a batch becomes whose answer; by hand, without a model."""

import numpy as np
import pytest

from fedjax_rai.tools import sampler
from fedjax_rai.tools.sampler import Piece, Row, Settings, Token

END = 9


def row(prompt: int, limit: int) -> Row:
    return Row([1] * prompt, Settings(limit), lambda piece: None)


@pytest.mark.parametrize(
    ("count", "parts", "rows"), [(1, 1, 1), (3, 1, 4), (8, 1, 8), (9, 1, 16), (1, 2, 2), (5, 2, 8), (3, 3, 6)]
)
def test_rows_of_a_batch_are_few_numbers(count, parts, rows):
    assert sampler.padded_rows(count, parts) == rows


def test_a_batch_ends_before_prompt_and_limit_are_too_long_together():
    rows = [row(4, 6), row(2, 8), row(5, 2), row(1, 1)]
    assert sampler.fitting(rows, 16, None) == 4
    assert sampler.fitting(rows, 3, None) == 3
    assert sampler.fitting(rows, 16, 12) == 2  # 5 + 8 are more than 12
    assert sampler.fitting(rows[::-1], 16, 7) == 2  # 5 + 2, then 5 + 8
    assert sampler.fitting([row(30, 30)], 16, 12) == 1  # what is too long by itself is refused elsewhere


def made(tokens, valid=None, lost=False) -> sampler._Made:
    """What a program gives for one row, with log p that tell the tokens apart."""
    tokens = np.array([tokens])
    logps = -tokens / 10
    top_ids = np.stack([tokens, tokens + 1], axis=-1)
    valid = np.ones(tokens.shape, bool) if valid is None else np.array([valid])
    top_logps = np.stack([logps, logps - 1], axis=-1)
    return sampler._Made(tokens, valid, np.array([lost]), logps, top_ids, top_logps)  # pyright: ignore


def taken(settings: Settings, *chunks, gone=False) -> tuple[list[Piece], bool]:
    """(what an answer was given, whether it goes on after the last chunk)."""
    given: list[Piece] = []
    row = Row([1], settings, given.append, lambda: gone)
    answer = sampler._Answer(row, lambda ids: "".join("abcdefgh"[i] for i in ids))
    goes_on = True
    for chunk in chunks:
        goes_on = answer.take(chunk, 0)
    return given, goes_on


def test_an_answer_ends_by_an_end_token_a_stop_string_or_its_limit():
    ends = Settings(8, end_ids=(END,))
    assert taken(ends, made([0, 1])) == ([Piece("ab", (Token(0), Token(1)))], True)
    assert taken(ends, made([0, END, 3])) == ([Piece("a", (Token(0),), "stop", 2, Token(END))], False)
    assert taken(ends._replace(limit=2), made([0, 1])) == ([Piece("ab", (Token(0), Token(1)), "length", 2)], False)
    stops = ends._replace(stop=("cd",))
    first, last = taken(stops, made([0, 1, 2]), made([3, 4]))[0]
    assert (first.text, last) == ("ab", Piece("", (), "stop", 4))  # the c waited, and is part of the stop string


def test_log_p_go_with_their_tokens():
    (piece,), _ = taken(Settings(8, end_ids=(END,), logprobs=True), made([1, END]))
    assert piece.tokens == (Token(1, -0.1, ((1, -0.1), (2, -1.1))),)
    assert piece.end == Token(END, -0.9, ((END, -0.9), (END + 1, -1.9)))


def test_rows_that_were_lost_or_that_nobody_waits_for():
    (piece,), goes_on = taken(Settings(8), made([0, 1], lost=True))
    assert piece.finish == "lost" and not goes_on
    assert taken(Settings(8), made([0, 1]), gone=True) == ([], False)
    assert taken(Settings(8), made([0, 1], valid=[False, False])) == ([], False)
