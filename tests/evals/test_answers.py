"""What a model is asked for: answers at the temperature that was wanted, sums of log p."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from fedjax_rai.data.sources import Choice
from fedjax_rai.evals import choice, open_ended
from fedjax_rai.evals.choice import both_answers, likelihoods, prefers_good
from fedjax_rai.evals.open_ended import Sampled, Subject, answers_to
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.text.tokenizer import Tokenizer, load_tokenizer
from fedjax_rai.train.generate import Answers
from fedjax_rai.train.queue import NONE, Finished
from tests import small


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("tiny")


def subject(tokenizer: Tokenizer, batch_size: int) -> Subject:
    lm = LM(Decoder(replace(small.CONFIG, vocab_size=10**6)), small.BASE)
    return Subject(lm, None, tokenizer, 64, batch_size)


def test_answers_come_in_the_order_of_their_prompts_with_keys_of_their_own(tokenizer, monkeypatch):
    """A generator that answers with the last letter of its prompt's last word and keeps what it was asked with."""
    asked: list[Any] = []

    def answer_all(lm: Any, adapter: Any, prompts: Any, keys: Any, decoding: Any, rows: int) -> Iterator[Finished]:
        asked.append((jax.random.key_data(keys), decoding, rows))
        letters = [next(letter for letter in "xyz" if f"letter {letter}" in tokenizer.decode(ids)) for ids in prompts]
        ids = [tokenizer.encode(letter) for letter in letters]
        tokens = np.array([[own[0], tokenizer.end_ids[0]] for own in ids], np.int32)
        ended = np.array([letter != "y" for letter in letters])
        for order in ([5, NONE, 0, 2], [1, 4, NONE, 3]):
            answers = Answers(tokens[order], np.ones((4, 2), bool), ended[order])  # pyright: ignore
            yield Finished(np.array(order), np.zeros(len(order), int), answers)  # pyright: ignore

    monkeypatch.setattr(open_ended, "answer_all", answer_all)
    prompts = ["a rather long request for the letter x", "letter y", "the letter z"]
    done: list[int] = []
    sampled = Sampled(samples=2, temperature=0.25, max_new=7)
    got = answers_to(subject(tokenizer, 4), prompts, jax.random.key(0), sampled, lambda: done.append(1))
    assert got.texts == [["x", "x"], ["y", "y"], ["z", "z"]] and len(done) == 2
    assert got.cut_off == [[False, False], [True, True], [False, False]]
    ((keys, decoding, rows),) = asked
    assert len({tuple(key) for key in keys.tolist()}) == 6 and rows == 4, "a key for each answer"
    assert float(decoding.sampling.temperature) == 0.25 and decoding.max_new == 7
    assert decoding.sampling[1:] == (None, None, None)


def test_the_likelihood_of_an_answer_is_the_sum_over_its_tokens(tokenizer, monkeypatch):
    """A model whose every token has log p -1: an answer's is minus its number of tokens, the end of its turn included.

    The mean would be -1 for all, and the short answer no likelier than the long one.
    """
    read: list[int] = []

    def answer_logps(lm: Any, adapter: Any, examples: Any) -> tuple[np.ndarray, np.ndarray]:
        read.append(len(examples.tokens))
        tokens = examples.loss_mask.sum(axis=1).astype(np.float32)
        return -tokens, tokens

    monkeypatch.setattr(choice, "_answer_logps", answer_logps)
    choices = [Choice("q", "no", "no, never and not at all", "a"), Choice("q", "well, well, well", "yes", "b")]
    logps, tokens, whole = likelihoods(subject(tokenizer, 3), both_answers(choices))
    lengths = [len(tokenizer.encode(text)) for own in choices for text in (own.good, own.bad)]
    assert tokens.tolist() == (-logps).tolist()
    ends = -logps - lengths
    assert len(set(ends.tolist())) == 1 and ends[0] >= 1, "behind each answer the same end of its turn"
    assert whole.all() and read == [3, 3], "the last batch is filled up"
    good, bad = logps[0::2], logps[1::2]
    assert [prefers_good(good[i], bad[i], True) for i in (0, 1)] == [True, False]


def test_what_is_longer_than_the_limit_is_cut_off(tokenizer, monkeypatch):
    monkeypatch.setattr(choice, "_answer_logps", lambda lm, adapter, e: (e.tokens[:, 0] * 0.0, e.tokens[:, 0]))
    *_, whole = likelihoods(subject(tokenizer, 2), [("q", "short"), ("q", "long " * 99)])
    assert whole.tolist() == [True, False]


def test_an_answer_whose_logits_are_no_numbers_is_empty_and_counted(tokenizer, monkeypatch, capsys):
    """Of each of two programs the first row has no answer, and of the second the last is of no prompt."""
    word = tokenizer.encode("x")[:1]

    def answer_all(*_: Any) -> Iterator[Finished]:
        tokens = np.array([[*word, tokenizer.end_ids[0]]] * 2, np.int32)
        valid = np.ones(tokens.shape, bool)
        valid[0] = False
        answers = Answers(tokens, valid, np.ones(2, bool))  # pyright: ignore
        for numbers in ([0, 1], [2, NONE]):
            yield Finished(np.array(numbers), np.zeros(2, int), answers)  # pyright: ignore

    monkeypatch.setattr(open_ended, "answer_all", answer_all)
    prompts = ["a", "aaa aaa aaa", "aaaaa aaaaa aaaaa aaaaa"]
    got = answers_to(subject(tokenizer, 2), prompts, jax.random.key(0), Sampled(1, 0.0, 7))
    assert got.texts == [[""], ["x"], [""]]
    assert "2 of 3 answers are none: the logits are no numbers" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_log_probability_that_is_none_prefers_nothing(broken):
    assert prefers_good(broken, -1.0, True) is None and prefers_good(-1.0, broken, True) is None
