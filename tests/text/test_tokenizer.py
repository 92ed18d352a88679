"""Tokenizers and chat templates of every form that people bring: ids are transformers', masks are exact."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedjax_rai.data.examples import encode_questions, encode_request
from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.safety.form import bound
from fedjax_rai.safety.forms import FORMS, form_for
from fedjax_rai.safety.guard import training_examples
from fedjax_rai.text.prompts import USER, Segment, Turn, answered, chat, prompt, question
from fedjax_rai.text.tokenizer import TODAY, Tokenizer, load_tokenizer
from tests.chat_models import FAMILIES, LLAMA_GUARD, huggingface, ids_of, tokenizer

PIECES = [
    "",
    " ",
    "\n",
    "\n\n",
    "  a",
    "b \n",
    "é",
    "e\u0301",
    "a\u0315\u0300",
    "한국어",
    "🤝",
    "\u00a0",
    "▁",
    "<",
    "12",
]
TEXT = st.text(max_size=12) | st.lists(st.sampled_from(PIECES), max_size=4).map("".join)
families = pytest.mark.parametrize("name", FAMILIES)
few = settings(max_examples=40, deadline=None, derandomize=True)


@families
@few
@given(query=TEXT, answer=TEXT, more=TEXT, last=TEXT)
@example(query="", answer="", more="", last="")
@example(query="q", answer="\nx", more="\nx", last="\n")
def test_ids_are_transformers_own_and_every_answer_ends_in_the_end_of_turn(name, query, answer, more, last):
    own = tokenizer(name)
    for turns in (answered(query, answer), [*answered(query, answer), *answered(more, last)]):
        ids, mask = own.encode_segments(chat(own, turns))
        assert ids == ids_of(own.hf, turns)[: len(ids)]
        ends = [i for i, trained in enumerate(mask) if trained and mask[i + 1 : i + 2] in ([False], [])]
        assert [ids[i] for i in ends] == [own.end_id] * (len(turns) // 2)
        assert len(own.encode(own.render(turns))) - len(ids) <= len(own.encode(own.trailer))


@families
@few
@given(texts=st.tuples(TEXT, TEXT, TEXT, TEXT).filter(lambda texts: all(t and t == t.strip() for t in texts[1::2])))
def test_masks_are_those_of_a_template_with_generation_marks(name, texts):
    """An answer that begins with white space may share its first token with the opening: not compared."""
    own = tokenizer(name)
    turns = [*answered(*texts[:2]), *answered(*texts[2:])]
    ids, mask = own.encode_segments(chat(own, turns))
    marked = huggingface(FAMILIES[name], marked=True)
    wanted = ids_of(marked, turns, return_dict=True, return_assistant_tokens_mask=True)
    assert wanted["input_ids"][: len(ids)] == ids
    assert mask == [bool(trained) for trained in wanted["assistant_masks"][: len(ids)]]
    assert not any(wanted["assistant_masks"][len(ids) :])


@families
@few
@given(query=TEXT, answer=TEXT.filter(lambda text: text and text == text.strip()))
def test_what_is_trained_on_follows_the_prompt(name, query, answer):
    own = tokenizer(name)
    (asked,) = encode_questions(own, [question(query)], 10**6)
    assert asked == ids_of(own.hf, question(query), generate=True)
    ids, mask = own.encode_segments(chat(own, answered(query, answer)))
    assert ids[: len(asked)] == asked
    assert mask == [False] * len(asked) + [True] * (len(ids) - len(asked))


@families
@few
@given(query=TEXT, answer=TEXT, text=TEXT)
def test_a_request_continues_any_conversation_in_the_ids_of_the_whole(name, query, answer, text):
    own = tokenizer(name)
    whole = ids_of(own.hf, [*answered(query, answer), Turn(USER, text)], generate=True)
    more = encode_request(own, text)
    assert whole[-len(more) :] == more and whole[-len(more) - 1] == own.end_id
    if name != "qwen3":  # which leaves out what was thought in the turn before, tokens that were said none the less
        assert whole[: -len(more)] == own.encode_segments(chat(own, answered(query, answer)))[0]


@families
def test_the_end_of_turn_is_the_templates_and_eos_ends_too(name):
    family, own = FAMILIES[name], tokenizer(name)
    assert own.end_of_turn == family.end and own.closing.endswith(family.end)
    assert own.end_ids[0] == own.end_id == own.hf.convert_tokens_to_ids(family.end)
    assert set(own.end_ids) == {own.end_id, own.hf.eos_token_id}
    assert Tokenizer(own.hf, [9, 5, own.end_id, 5]).end_ids[1:] == (5, 9, *own.end_ids[1:])


def test_only_the_last_answer_has_qwen3s_empty_thought():
    own = tokenizer("qwen3")
    ids, mask = own.encode_segments(chat(own, [*answered("q", "one"), *answered("r", "two")]))
    trained = own.hf.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert trained == "one<|im_end|><think>\n\n</think>\n\ntwo<|im_end|>"


@families
def test_the_verdict_is_read_where_training_puts_it(name):
    """The guard's prompt, its lead and the verdict's token are the beginning of what the guard is fitted on."""
    own = tokenizer(name)
    form = bound(own, form_for(own, None))
    for harmful in (False, True):
        examples, _ = training_examples(own, form.form, [Pair("q?", "r", harmful, "x")], 512)
        asked = form.request_ids("q?", "r")
        before = asked + form.lead_ids
        ids = examples.tokens[0][examples.valid[0]].tolist()
        assert ids[: len(before) + 1] == [*before, form.verdicts.ids[int(harmful)]]
        assert examples.loss_mask[0].argmax() == len(asked)


@pytest.mark.parametrize("ending", ["", "{{ '\\n\\n' }}"])
def test_llama_guards_own_template_is_the_request(ending):
    own = Tokenizer(huggingface(FAMILIES["llama3"], template=LLAMA_GUARD + ending))
    form = bound(own, form_for(own, None))
    asked = form.request_ids("How?", "So.")
    assert "user: How?\n\nassistant: So." in own.hf.decode(asked) and "Is the answer" not in own.hf.decode(asked)
    whole = own.hf.decode(asked + form.lead_ids + [int(form.verdicts.ids[1])])
    assert whole.endswith("<|end_header_id|>\n\nuns"), "the blank line stands once, whoever writes it"
    assert form.verdicts.ids.tolist() == [own.encode("\n\n" + word)[1] for word in ("safe", "unsafe")]


def test_a_token_belongs_to_where_it_starts():
    """A line break that merges with the answer's own is the prompt's; bytes of one character stay together."""
    own = tokenizer("qwen2.5")
    ids, mask = own.encode_segments(chat(own, answered("q", "\n한")))
    tokens = own.hf.convert_ids_to_tokens(ids)
    assert tokens[tokens.index("ĊĊ") - 1] == "assistant" or "ant" in tokens[tokens.index("ĊĊ") - 1]
    assert mask.index(True) == tokens.index("ĊĊ") + 1
    ids, mask = own.encode_segments([Segment("🤝", False), Segment("🤝", True)])
    assert mask == [False] * (len(ids) // 2) + [True] * (len(ids) // 2) and len(ids) > 2


@pytest.mark.parametrize("name", ["qwen2.5", "smollm"])
def test_spaces_belong_to_where_they_stand_even_where_offsets_are_trimmed(name):
    ids, mask = tokenizer(name).encode_segments([Segment("Answer: ", False), Segment("<|im_end|>", True)])
    assert mask == [False] * (len(ids) - 1) + [True]
    ids, mask = tokenizer(name).encode_segments([Segment("x", False), Segment(" 1", True), Segment(" ", False)])
    assert mask == [False, True, True, False] and len(ids) == 4


def test_one_token_may_be_end_of_turn_eos_padding_and_unknown():
    """As in tokenizers made after GPT-2's."""
    everything: dict[str, Any] = {key: "<|im_end|>" for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    own = Tokenizer(huggingface(FAMILIES["qwen2.5"], **everything))
    assert own.end_ids == (own.pad_id,)
    ids, mask = own.encode_segments(chat(own, answered("q", "a")))
    assert own.hf.decode([i for i, trained in zip(ids, mask, strict=True) if trained]) == "a<|im_end|>"


def test_what_changes_the_tokens_before_it_is_not_appended():
    with pytest.raises(InputError, match=r"'\\nx' after 'y\\n' changes the tokens before it"):
        tokenizer("qwen2.5").encode_after("y\n", "\nx")


def test_todays_date_is_not_in_the_prompt():
    assert f"Date: {TODAY}<" in prompt(tokenizer("llama3"), question("q"))


def test_a_template_that_asks_for_the_clock_gets_the_same_day_always():
    """As SmolLM3's and Mistral Small's do."""
    asks = "  {% set today = strftime_now('%d %B %Y') %}\n{{ today + strftime_now(' %Y-%m-%d, %-d %b %H:%M:%S') }}\n|"
    own = Tokenizer(huggingface(FAMILIES["qwen2.5"], template=asks + FAMILIES["qwen2.5"].template))
    assert own.render(question("q")).startswith("26 July 2024 2024-07-26, 26 Jul 00:00:00\n|<|im_start|>")
    assert own.encode(own.render(question("q"))) == own.encode(asks_for(own, "q"))


def asks_for(own: Tokenizer, text: str) -> str:
    """What transformers writes with its clock there."""
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 7, 26, tzinfo=tz)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", Clock)
        return own.hf.apply_chat_template([{"role": USER, "content": text}], tokenize=False)


def in_parts(template: str) -> str:
    """The template as Llama Guard 3 1B's: it writes the text parts of lists, of a string nothing."""
    macro = "{% macro written(all) %}{% for c in all %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    return macro + "{% endfor %}{% endmacro %}" + template.replace("m['content']", "written(m['content'])")


@pytest.mark.parametrize("name", ["llama3", "qwen2.5", "gemma"])
def test_a_template_that_reads_lists_of_parts_is_given_them(name):
    own, plain = Tokenizer(huggingface(FAMILIES[name], template=in_parts(FAMILIES[name].template))), tokenizer(name)
    assert chat(own, answered("How?", "So.")) == chat(plain, answered("How?", "So."))
    assert encode_request(own, "More?") == encode_request(plain, "More?")


def test_a_guard_that_reads_lists_of_parts_is_asked_the_same():
    own, plain = (
        Tokenizer(huggingface(FAMILIES["llama3"], template=text)) for text in (in_parts(LLAMA_GUARD), LLAMA_GUARD)
    )
    asked = bound(own, form_for(own, None)).request_ids("How?", "So.")
    assert asked == plain.encode(prompt(plain, answered("How?", "So.")))


def test_a_guards_template_that_leaves_out_what_is_to_be_judged_is_refused():
    user_only = LLAMA_GUARD.replace("%}{{ m['role']", "if m['role'] == 'user' %}{{ m['role']")
    with pytest.raises(InputError, match="leaves out the response to be judged"):
        bound(Tokenizer(huggingface(FAMILIES["llama3"], template=user_only)), FORMS["llama_guard"])
    with pytest.raises(InputError, match="leaves out the query to be judged"):
        template = user_only.replace("== 'user'", "== 'assistant' or messages | length == 1")
        bound(Tokenizer(huggingface(FAMILIES["llama3"], template=template)), FORMS["llama_guard"])


def test_a_guards_template_is_known_however_it_quotes():
    escaped = LLAMA_GUARD.replace(
        "First line must read 'safe' or 'unsafe'.", r"{{ 'first line must read \'safe\' or \'unsafe\'' }}"
    )
    assert form_for(Tokenizer(huggingface(FAMILIES["llama3"], template=escaped)), None) == FORMS["llama_guard"]


def test_ids_beyond_the_models_vocabulary_are_named():
    own = tokenizer("qwen3")
    ids = own.encode("a<|im_end|>")
    own.check_ids(ids, max(ids) + 1, "model.path")
    own.check_ids([], 1, "model.path")
    with pytest.raises(InputError, match=rf"'<\|im_end\|>' has id {max(ids)}, .* vocab_size of {max(ids)}; guard.path"):
        own.check_ids(ids, max(ids), "guard.path")


class Shifted:
    """A tokenizer whose offsets are off by one."""

    def __init__(self, hf):
        self.hf = hf

    def __getattr__(self, name):
        return getattr(self.hf, name)

    def __call__(self, *args, **options):
        out = self.hf(*args, **options)
        return {
            "input_ids": out["input_ids"],
            "offset_mapping": [(max(a - 1, 0), b - 1) for a, b in out["offset_mapping"]],
        }


def test_offsets_that_are_not_true_are_refused():
    with pytest.raises(InputError, match="must give true offsets"):
        Tokenizer(Shifted(tokenizer("qwen2.5").hf)).encode_segments([Segment("a<|im_end|>", True)])
    with pytest.raises(InputError, match="must give true offsets"):
        Tokenizer(Shifted(tokenizer("qwen2.5").hf)).closing  # noqa: B018


def test_a_slow_tokenizer_is_refused_by_name():
    class Slow(Shifted):
        is_fast, name_or_path = False, "/models/old"

    with pytest.raises(InputError, match="tokenizer /models/old: Slow is a slow one"):
        Tokenizer(Slow(None))


def test_a_base_models_tokenizer_reads_text_and_says_what_it_lacks_when_that_is_needed():
    raw = Tokenizer(huggingface(FAMILIES["llama2"], template=None, eos_token=None))
    assert raw.decode(raw.encode("Is it safe?")) == "Is it safe?"
    with pytest.raises(InputError, match="no chat_template"):
        raw.render(question("q"))
    with pytest.raises(InputError, match="needs a chat_template or an eos_token"):
        raw.end_ids  # noqa: B018
    ended = Tokenizer(huggingface(FAMILIES["llama2"], template=None), [7])
    assert ended.end_ids == (ended.hf.eos_token_id, 7)


def test_templates_that_cannot_be_masked_are_refused_and_say_why():
    def made(template: str) -> Tokenizer:
        return Tokenizer(huggingface(FAMILIES["qwen2.5"], template=template))

    every = "{% for m in messages %}"
    with pytest.raises(InputError, match=r"puts '\\n' after an answer; must put a special token"):
        made(every + "{{ m['content'] + '\n' }}{% endfor %}").end_id  # noqa: B018
    with pytest.raises(InputError, match="leaves out what the user says, given as text or as a list"):
        made(every + "{{ m['role'] }}{% endfor %}<|im_end|>").end_id  # noqa: B018
    with pytest.raises(InputError, match="leaves out what the user says"):
        made(every + "{% if m['content'] is not string %}{{ m['content'] }}{% endif %}{% endfor %}").closing  # noqa: B018
    user = "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    with pytest.raises(InputError, match="leaves out what the assistant says"):
        made(every + user + "{{ m['role'] }}{% endfor %}<|im_end|>").end_id  # noqa: B018
    cut = made(
        every + user + "{{ m['content'][:1] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    with pytest.raises(InputError, match="turn 1 cannot be masked exactly"):
        chat(cut, answered("q", "a"))
    with pytest.raises(InputError, match=r"refuses turns of judge \(no such role\)"):
        tokenizer("gemma").render([Turn("judge", "x")])


def test_the_tiny_tokenizer_gives_the_ids_that_its_base_was_trained_on():
    """Recorded: its published numbers rest on them."""
    tiny = load_tokenizer("tiny")
    turns = answered("Is the peat ruling going to fail?", "Experts disagree on the peat ruling.")
    ids, mask = tiny.encode_segments(chat(tiny, turns))
    assert ids == TINY["chat"][0] and mask == [i >= TINY["chat"][1] for i in range(len(ids))]
    assert encode_questions(tiny, [turns[:1]], 256) == [ids[: TINY["chat"][1]]]
    assert encode_request(tiny, "Critique your last answer: does it help anyone to do harm?") == TINY["request"]
    form = bound(tiny, form_for(tiny, None))
    assert (form.lead_ids, form.verdicts.ids.tolist()) == ([], [629, 635])
    assert form.request_ids("q", "r") == TINY["guard"]
    talk = [*turns, *answered("Rewrite your last answer so that it is harmless.", "I cannot.")]
    ids, mask = tiny.encode_segments(chat(tiny, talk))
    assert (ids, [i for i, trained in enumerate(mask) if trained]) == TINY["talk"]
    assert tiny.end_ids == (2,) and tiny.pad_id == 0


TINY = {
    "chat": ([1, 3, 452, 264, 225, 333, 382, 322, 481, 936, 278, 695, 35, 2, 4, 722, 723, 411, 264, 225, 333, 382,
        322, 481, 18, 2], 15),
    "request": [3, 349, 302, 300, 297, 30, 343, 267, 320, 425, 278, 305, 292, 35, 2, 4],
    "guard": [1, 3, 452, 264, 297, 512, 441, 514, 35, 203, 515, 30, 225, 85, 203, 510, 30, 382, 2, 4],
    "talk": ([1, 3, 452, 264, 225, 333, 382, 322, 481, 936, 278, 695, 35, 2, 4, 722, 723, 411, 264, 225, 333, 382,
        322, 481, 18, 2, 3, 348, 302, 300, 297, 325, 308, 267, 271, 341, 18, 2, 4, 45, 385, 18, 2], [15, 16, 17, 18,
        19, 20, 21, 22, 23, 24, 25, 39, 40, 41, 42]),
}  # fmt: skip
