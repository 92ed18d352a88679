"""Conversations of several turns in training: what is in the loss, and templates that take no system prompt."""

import pytest

from fedjax_rai.data.columns import SYSTEM, Pair
from fedjax_rai.data.examples import encode_chats
from fedjax_rai.errors import InputError
from fedjax_rai.experiment.texts import check_system_prompts
from fedjax_rai.text.prompts import ASSISTANT, USER, Turn
from fedjax_rai.text.tokenizer import Tokenizer, load_tokenizer
from tests.chat_models import FAMILIES, huggingface, tokenizer

PAIR = Pair("And 4?", "Four.", None, before=(Turn(USER, "What is 3?"), Turn(ASSISTANT, "Three.")))
INSTRUCTED = PAIR._replace(before=(Turn(SYSTEM, "Be brief."), *PAIR.before))


def test_a_pair_s_turns_and_exchanges_are_those_of_its_conversation():
    assert INSTRUCTED.turns == [
        Turn("system", "Be brief."),
        Turn("user", "What is 3?"),
        Turn("assistant", "Three."),
        Turn("user", "And 4?"),
        Turn("assistant", "Four."),
    ]
    assert INSTRUCTED.exchanges == [("What is 3?", "Three."), ("And 4?", "Four.")]
    assert Pair("q", "a", None).exchanges == [("q", "a")]


@pytest.mark.parametrize("pair", [PAIR, INSTRUCTED])
def test_every_answer_of_a_conversation_is_trained_on_and_nothing_else(pair):
    """As TRL trains on `messages` with assistant_only_loss: both answers, each with its end-of-turn token."""
    tiny = load_tokenizer("tiny")
    examples, cut = encode_chats(tiny, [pair.turns], 256)
    trained = tiny.hf.decode(examples.tokens[0][examples.loss_mask[0]])
    assert trained == "Three.<|end|>Four.<|end|>" and not cut.any()


def test_a_system_prompt_is_refused_where_the_template_does_not_write_it_out():
    chats = [PAIR.turns, INSTRUCTED.turns]
    check_system_prompts(load_tokenizer("tiny"), chats)
    check_system_prompts(tokenizer("gemma"), [PAIR.turns])
    with pytest.raises(InputError, match="takes no system prompt, which 1 of 2 training conversations begin with"):
        check_system_prompts(tokenizer("gemma"), chats)  # raises an exception of its own
    silent = "{% for m in messages if m['role'] != 'system' %}{{ m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}"
    leaves_out = Tokenizer(huggingface(FAMILIES["qwen2.5"], silent))
    with pytest.raises(InputError, match="takes no system prompt"):
        check_system_prompts(leaves_out, chats)
