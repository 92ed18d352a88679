"""Every form of a guard on an imitated tokenizer of its own: how it is asked, its verdict's place, who is refused."""

import numpy as np
import pytest

from fedjax_rai.data.sources import Pair
from fedjax_rai.errors import InputError
from fedjax_rai.safety.form import IS_NEITHER, IS_SAFE, IS_UNSAFE, bound, fill, opening
from fedjax_rai.safety.forms import FORMS, REQUEST, form_for, told_form
from fedjax_rai.safety.guard import is_conversation, training_examples
from fedjax_rai.text.tokenizer import Tokenizer, load_tokenizer
from tests.chat_models import FAMILIES, LLAMA_GUARD, huggingface, tokenizer
from tests.guard_models import IMITATIONS, form_of, imitated

names = pytest.mark.parametrize("name", [*IMITATIONS])


def test_every_released_form_has_an_imitation():
    assert {*IMITATIONS} == {*FORMS} - {"request"}


@names
def test_a_guard_is_asked_as_its_template_or_card_has_it_and_its_verdict_follows(name):
    own = imitated(name)
    asked = bound(own, form_of(name))
    ids = asked.request_ids("How?", "So.", "G") + asked.lead_ids
    assert own.hf.decode(ids).rstrip(" ").endswith(IMITATIONS[name].request.rstrip(" "))
    meanings = dict(zip(asked.verdicts.ids.tolist(), asked.verdicts.meanings.tolist(), strict=True))
    for spelling, meaning in ((asked.form.safe[0], IS_SAFE), (asked.form.unsafe[0], IS_UNSAFE)):
        # what the whole text has as its next token, behind the marker where the guard writes lines
        begun = opening(own, asked.form, ("How?", "So."), "G") + asked.blank + asked.form.before_verdict
        whole = own.encode(begun + spelling)
        place = (len(own.encode(begun)) if asked.form.marker else len(ids) - len(asked.lead_ids)) + len(asked.lead_ids)
        assert asked.form.marker or whole[:place] == ids
        assert meanings[whole[place]] == meaning


@names
def test_the_verdict_is_read_where_training_puts_it(name):
    own, form = imitated(name), form_of(name)
    asked = bound(own, form)
    for harmful in (False, True):
        examples, cut = training_examples(own, form, [Pair("How?", "So.", harmful, "x")], 4096)
        ids = examples.tokens[0][examples.valid[0]].tolist()
        begin = int(examples.loss_mask[0].argmax())
        assert ids[:begin] == asked.request_ids("How?", "So.", form.asked[0]) and not cut.any()
        answer = own.hf.decode(ids[begin:])
        ends = own.end_of_turn if is_conversation(form) else own.hf.eos_token
        assert form.marker in answer and answer.endswith(ends)
        written = answer[: answer.index(form.marker) + len(form.marker)]
        place = len(own.encode(own.hf.decode(ids[:begin]) + written)) if form.marker else begin
        verdict = ids[place + len(asked.lead_ids)]
        meanings = dict(zip(asked.verdicts.ids.tolist(), asked.verdicts.meanings.tolist(), strict=True))
        assert meanings[verdict] == (IS_UNSAFE if harmful else IS_SAFE)


@names
def test_a_checkpoint_tells_its_form_by_its_name(name):
    plain = tokenizer("llama2")
    assert told_form(plain, IMITATIONS[name].checkpoint) == FORMS[name]
    assert told_form(plain, f"/models/{IMITATIONS[name].checkpoint.upper()}") == FORMS[name]
    assert form_for(plain, "meta-llama/Llama-2-7b-chat-hf") is REQUEST


@pytest.mark.parametrize(
    "name",
    ["llama_guard", "qwen3_guard", "kanana", "kt_safety_guard", "shield_gemma", "granite_guardian",
     "granite_guardian_3_3"],
)  # fmt: skip
def test_a_checkpoint_tells_its_form_by_template_or_tokens(name):
    assert form_for(imitated(name), "/models/step-12") == FORMS[name]


@pytest.mark.parametrize("chosen", ["request", "wild_guard", "qwen3_guard"])
def test_a_guard_in_anothers_form_is_refused(chosen):
    with pytest.raises(InputError, match=rf"guard.form = {chosen}: x is asked in the form llama_guard, as its name"):
        form_for(imitated("llama_guard"), "x", chosen)
    assert form_for(imitated("llama_guard"), "x", "llama_guard") == FORMS["llama_guard"]


def test_what_looks_like_a_guard_of_no_known_form_must_be_told():
    other = LLAMA_GUARD.replace("First line must read 'safe' or 'unsafe'.", "Answer 1 or 2.")
    listed = Tokenizer(huggingface(FAMILIES["llama3"], template=other))
    plain = tokenizer("llama3")
    marked = huggingface(FAMILIES["llama3"])
    marked.add_special_tokens({"additional_special_tokens": ["<UNSAFE-A1>"]})
    for own, checkpoint, hint in (
        (listed, None, "its chat template lists categories"),
        (plain, "me/my-guardian", "its name is my-guardian"),
        (plain, "me/MD-Judge-v0_2-internlm2_7b", "its name is MD-Judge-v0_2"),
        (Tokenizer(marked), None, "it has tokens for verdicts, <UNSAFE-A1>"),
    ):
        with pytest.raises(InputError, match=rf"guard.form = auto: .* looks like a guard \({hint}.*must be one of req"):
            form_for(own, checkpoint)
        assert form_for(own, checkpoint, "request") is REQUEST
    with pytest.raises(InputError, match="guard.form = 'lama_guard': must be one of .*; did you mean llama_guard"):
        form_for(plain, None, "lama_guard")


def test_a_verdict_between_counts_as_the_key_says():
    own, form = imitated("qwen3_guard"), FORMS["qwen3_guard"]
    for between, meaning in (("unsafe", IS_UNSAFE), ("safe", IS_SAFE), ("none", IS_NEITHER)):
        assert bound(own, form, between).verdicts.meanings.tolist() == [IS_SAFE, IS_UNSAFE, meaning]


def test_every_category_of_kanana_is_unsafe():
    asked = bound(imitated("kanana"), FORMS["kanana"])
    words = imitated("kanana").hf.convert_ids_to_tokens(asked.verdicts.ids.tolist())
    assert words == ["<SAFE>", *(f"<UNSAFE-S{i}>" for i in (1, 2, 3, 4, 5, 6, 7))]
    assert asked.verdicts.meanings.tolist() == [IS_SAFE] + [IS_UNSAFE] * 7


def test_other_spellings_count_where_they_are_one_token_and_of_no_other_verdict():
    own = tokenizer("llama3")  # whose vocabulary has " is" and " a", and of "zq" no token
    form = REQUEST._replace(safe=("safe", "zq", " is"), unsafe=("unsafe", " a", " is"))
    asked = bound(own, form)
    found = dict(zip(own.hf.convert_ids_to_tokens(asked.verdicts.ids.tolist()), asked.verdicts.meanings, strict=True))
    assert {word.replace("Ġ", " "): int(meaning) for word, meaning in found.items()} == {
        "s": IS_SAFE, "uns": IS_UNSAFE, " is": IS_SAFE, " a": IS_UNSAFE,
    }  # fmt: skip


def test_the_tiny_guard_is_asked_by_our_own_request_in_one_spelling():
    tiny = load_tokenizer("tiny")
    form = form_for(tiny, None)
    asked = bound(tiny, form)
    assert form is REQUEST and asked.lead_ids == []
    assert asked.verdicts.ids.tolist() == [629, 635] and not asked.verdicts.whole
    assert asked.request_ids("q", "r") == [1, 3, 452, 264, 297, 512, 441, 514, 35, 203, 515, 30, 225, 85, 203, 510, 30,
                                           382, 2, 4]  # fmt: skip


def test_what_a_pair_holds_is_no_place_to_be_filled():
    assert fill("{query}|{response}", {"query": "{response}", "response": "{query}"}) == "{response}|{query}"


def test_a_long_pair_loses_the_end_of_its_response_then_of_its_query_and_no_word_of_the_request():
    own = imitated("wild_guard")
    asked = bound(own, FORMS["wild_guard"])
    empty = len(asked.request_ids("", ""))
    ids = asked.fitting_ids(("How? " * 3, "So. " * 500), "", empty + 40)
    text = own.hf.decode(ids)
    assert len(ids or ()) <= empty + 40 and text.endswith(IMITATIONS["wild_guard"].request.partition("So.")[2])
    assert "How? How? How?" in text and "So. So." in text and text.count("So.") < 500
    text = own.hf.decode(asked.fitting_ids(("How? " * 500, "So. " * 500), "", empty + 40))
    assert "AI assistant:\n\n\n---" in text and text.count("How?") > 3
    assert asked.fitting_ids(("How?", "So."), "", empty - 1) is None


def test_a_policy_that_is_not_shipped_is_asked_for():
    with pytest.raises(InputError, match="guard.form = md_judge: asks with the policy of its card.*extends: md_judge"):
        bound(imitated("md_judge"), FORMS["md_judge"])


def test_our_request_that_is_too_long_loses_its_beginning_as_in_training():
    tiny = load_tokenizer("tiny")
    asked = bound(tiny, REQUEST)
    whole = asked.request_ids("q " * 90, "r")
    assert asked.fitting_ids(("q " * 90, "r"), "", 50) == whole[-50:]
    np.testing.assert_array_equal(asked.fitting_ids(("q", "r"), "", 50), asked.request_ids("q", "r"))
