"""Segments, masks and lengths: what is trained on is known by construction."""

import numpy as np
import pytest

from fedjax_rai.data.examples import bucket, encode_chats, length_batches, pad_left
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.safety.forms import REQUEST
from fedjax_rai.safety.guard import training_examples
from fedjax_rai.text.prompts import USER, Turn, answered, chat, guard_question, prompt, question, request
from fedjax_rai.text.tokenizer import load_tokenizer

TALK = [*answered("How do I bake?", "Slowly."), *answered("And then?", "Eat <|x|>.")]


class Template:
    """Chat templates as text: a prologue, an end of turn, and what follows it."""

    def __init__(self, prologue: str, end: str, after: str):
        self.prologue, self.closing, self.trailer = prologue, end, after

    def render(self, turns, generate=False):
        text = "".join(f"[{turn.role}]\n{turn.text}{self.closing}{self.trailer}" for turn in turns)
        return self.prologue + text + ("[assistant]\n" if generate else "")


TEMPLATES = [Template("", "<e>", ""), Template("<s>sys\n", "<|im_end|>", "\n"), Template("<s>", " </s>", "\n\n")]


@pytest.mark.parametrize("template", TEMPLATES)
def test_only_what_the_assistant_says_is_trained_on_its_end_included(template):
    segments = chat(template, TALK)
    trained, end = [s.text for s in segments if s.train], template.closing
    assert trained == [f"Slowly.{end}", f"Eat <|x|>.{end}"]
    assert template.render(TALK).startswith("".join(s.text for s in segments))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_request_continues_any_conversation(template):
    so_far = "".join(s.text for s in chat(template, TALK[:2]))
    assert so_far + request(template, "Revise.") == prompt(template, [*TALK[:2], Turn(USER, "Revise.")])


def test_an_answer_may_hold_what_ends_a_turn():
    """Its place is a difference of renderings: nothing is searched for."""
    template = TEMPLATES[1]
    talk = [*answered("q", "one<|im_end|>\ntwo"), *answered("q", "<|im_end|>")]
    trained = [s.text for s in chat(template, talk) if s.train]
    assert trained == ["one<|im_end|>\ntwo<|im_end|>", "<|im_end|><|im_end|>"]


def test_a_template_that_shortens_history_is_masked_as_the_whole_is_written():
    """As Qwen 3 does, which drops what was thought in earlier turns, however long."""

    class Forgetting(Template):
        def render(self, turns, generate=False):
            kept = [turn._replace(text=turn.text.split("|")[-1]) for turn in turns[:-1]]
            return super().render([*kept, *turns[-1:]], generate)

    talk = [*answered("q", "a long thought|one"), *answered("r", "thought|two")]
    segments = chat(Forgetting("", "<e>", ""), talk)
    assert [s.text for s in segments if s.train] == ["one<e>", "thought|two<e>"]
    assert "".join(s.text for s in segments) == "[user]\nq<e>[assistant]\none<e>[user]\nr<e>[assistant]\nthought|two<e>"


def test_a_template_that_rewrites_history_is_refused():
    class Last(Template):
        def render(self, turns, generate=False):
            return super().render(turns[-1:] if len(turns) > 2 else turns, generate)

    class Opened(Template):
        def render(self, turns, generate=False):
            return super().render(turns, generate) + ("<think>" if generate else "")

    with pytest.raises(InputError, match="leaves out what the assistant says"):
        chat(Last("", "<e>", ""), TALK)
    with pytest.raises(InputError, match="rewrites what it wrote, so turn 1 cannot be masked"):
        chat(Opened("", "<e>", ""), TALK)


def test_a_template_that_ends_earlier_answers_otherwise_takes_no_request():
    class Ending(Template):
        def render(self, turns, generate=False):
            return super().render(turns, generate).replace("<e>", "<f>", len(turns) - 1)

    with pytest.raises(InputError, match="ends an earlier answer otherwise"):
        request(Ending("", "<e>", ""), "q")


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
    examples, cut = training_examples(tokenizer, REQUEST, pair, 32)
    assert cut.all() and tokenizer.decode(examples.tokens[0][examples.loss_mask[0]]) == "unsafe"


def test_a_template_without_the_end_of_turn_token_is_refused():
    template = Template("", "<|im_end|>", "")
    template.closing, template.render = "</s>", Template("", "<|im_end|>", "").render
    with pytest.raises(InputError, match="turn 1 cannot be masked exactly"):
        chat(template, TALK[:2])


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
