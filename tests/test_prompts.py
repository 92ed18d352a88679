"""Segments, masks and lengths: what is trained on is known by construction."""

import numpy as np
import pytest

from fedjax_rai.data.examples import bucket, encode_chats, length_batches, pad_left
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.safety.guard import training_examples
from fedjax_rai.text.prompts import USER, Turn, answered, chat, guard_question, prompt, question, request
from fedjax_rai.text.tokenizer import load_tokenizer

TALK = [*answered("How do I bake?", "Slowly."), *answered("And then?", "Eat <|x|>.")]


class Template:
    """Chat templates as text: a prologue, an end of turn, and what follows it."""

    def __init__(self, prologue: str, end: str, after: str):
        self.prologue, self.end_of_turn, self.after = prologue, end, after

    def render(self, turns, generate=False):
        text = "".join(f"[{turn.role}]\n{turn.text}{self.end_of_turn}{self.after}" for turn in turns)
        return self.prologue + text + ("[assistant]\n" if generate else "")


TEMPLATES = [Template("", "<e>", ""), Template("<s>sys\n", "<|im_end|>", "\n"), Template("<s>", " </s>", "\n\n")]


@pytest.mark.parametrize("template", TEMPLATES)
def test_only_what_the_assistant_says_is_trained_on_its_end_included(template):
    segments = chat(template, TALK)
    trained, end = [s.text for s in segments if s.train], template.end_of_turn
    assert trained == [f"Slowly.{end}", f"Eat <|x|>.{end}"]
    assert template.render(TALK).startswith("".join(s.text for s in segments))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_request_continues_any_conversation(template):
    so_far = "".join(s.text for s in chat(template, TALK[:2]))
    assert so_far + request(template, "Revise.") == prompt(template, [*TALK[:2], Turn(USER, "Revise.")])


def test_a_template_that_rewrites_history_is_refused():
    class Rewriting(Template):
        def render(self, turns, generate=False):
            return super().render(turns[-1:] if len(turns) > 2 else turns, generate)

    with pytest.raises(InputError, match="rewrites earlier turns"):
        chat(Rewriting("", "<e>", ""), TALK)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


def test_the_end_of_turn_token_is_in_the_loss_and_padding_is_not(tokenizer):
    examples, truncated = encode_chats(tokenizer, [answered("Hi", "Yes."), answered("A longer question?", "No.")], 64)
    assert not truncated.any()
    for tokens, mask, valid in zip(*examples, strict=True):
        trained = tokens[mask]
        assert tokenizer.decode(trained) in ("Yes.", "No.") and trained[-1] == tokenizer.end_id
        assert not mask[~valid].any() and (tokens == tokenizer.end_id).sum() == 2


def test_pad_may_equal_the_end_of_turn(tokenizer, monkeypatch):
    """Many tokenizers pad with eos: the mask must not care."""
    ours, _ = encode_chats(tokenizer, [answered("Hi", "Yes."), answered("A longer question?", "No.")], 64)
    monkeypatch.setattr(tokenizer, "pad_id", tokenizer.end_id)
    padded, _ = encode_chats(tokenizer, [answered("Hi", "Yes."), answered("A longer question?", "No.")], 64)
    np.testing.assert_array_equal(ours.loss_mask, padded.loss_mask)
    np.testing.assert_array_equal(ours.valid, padded.valid)


def test_too_long_is_cut_and_counted(tokenizer):
    examples, truncated = encode_chats(tokenizer, [answered("word " * 60, "never seen"), answered("Hi", "Yes.")], 32)
    assert truncated.tolist() == [True, False] and examples.tokens.shape == (2, 32)
    assert not examples.loss_mask[0].any() and examples.loss_mask[1].any()


def test_the_guards_verdict_is_kept_when_the_pair_is_too_long(tokenizer):
    pair = [Pair("word " * 60, "more " * 60, True, "x")]
    examples, cut = training_examples(tokenizer, pair, 32)
    assert cut.all() and tokenizer.decode(examples.tokens[0][examples.loss_mask[0]]) == "unsafe"


def test_a_template_without_the_end_of_turn_token_is_refused():
    template = Template("", "<|im_end|>", "")
    template.end_of_turn, template.render = "</s>", Template("", "<|im_end|>", "").render
    with pytest.raises(InputError, match="does not end an answer with"):
        chat(template, TALK)


def test_no_examples_are_no_rows(tokenizer):
    assert encode_chats(tokenizer, [], 32)[0].tokens.shape == (0, 16)


def test_buckets_and_length_batches():
    assert [bucket(n) for n in (0, 1, 16, 17, 100)] == [16, 16, 16, 32, 112]
    texts = [[1] * n for n in (30, 3, 17, 5, 40)]
    seen = []
    for own, batch in length_batches(texts, 2, 0):
        assert batch.tokens.shape[0] == 2 and batch.tokens.shape[1] == bucket(max(len(texts[i]) for i in own))
        assert [int(row.sum()) for row in batch.valid][: len(own)] == [len(texts[i]) for i in own]
        assert batch.valid[:, -1].all()
        seen += own.tolist()
    assert seen == [1, 3, 2, 0, 4]
    assert pad_left([[1, 2], [3]], 9).tokens[1].tolist() == [9] * 15 + [3]


def test_tiny_template_round_trips(tokenizer):
    assert tokenizer.render(question("Hi"), generate=True) == "<|bos|><|user|>Hi<|end|><|assistant|>"
    text = "naïve 한국어 \n\t <b>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "Answer: r" in guard_question("q", "r")[0].text
    safe, unsafe = tokenizer.verdict_ids
    assert safe != unsafe
