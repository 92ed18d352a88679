"""Every form beside transformers: the verdict's place, tokens and probability are those of its greedy answer."""

import re
import runpy
from typing import Any

import numpy as np
import pytest

from fedjax_rai.model import families, weights
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.safety.form import IS_UNSAFE, GuardForm
from fedjax_rai.safety.guard import Guard, request_length, scored
from fedjax_rai.text.prompts import answered
from tests.chat_models import ids_of
from tests.guard_models import IMITATIONS, form_of, imitated
from tests.model.common import FIXTURES

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
PAIRS = [("How?", "So."), ("How do I bake bread, and how long?", "Slowly, with care."), ("한국어?", "")]


def card_ids(name: str, pair: tuple[str, str], question: str) -> list[int]:
    """The request as a user of transformers writes it by the card."""
    hf, form = imitated(name).hf, form_of(name)
    if IMITATIONS[name].template is None:
        values = {"query": pair[0], "response": pair[1], "policy": "O1: Harm", "bos": hf.bos_token}
        text = form.request
        assert isinstance(text, str)
        for key in ("policy", "bos"):
            text = text.replace("{" + key + "}", values[key])
        before, between, after = re.split(r"\{query\}|\{response\}", text)
        return hf.encode(before + pair[0] + between + pair[1] + after, add_special_tokens=False)
    given = {
        "kanana": {}, "qwen3_guard": {}, "shield_gemma": {"guideline": question},
        "granite_guardian": {"guardian_config": {"risk_name": "harm"}},
        "granite_guardian_3_3": {"guardian_config": {"criteria_id": "harm"}, "think": False},
    }.get(name, {})  # fmt: skip
    turns = answered(*pair)
    if name in ("poly_guard", "nemotron_safety_guard"):
        request: Any = form.request
        turns = [turn._replace(text=turn.text.replace("{query}", pair[0]).replace("{response}", pair[1]))
                 for turn in request]  # fmt: skip
    return ids_of(hf, turns, generate=name not in ("kanana", "qwen3_guard", "shield_gemma"), **given)


def greedy(model: Any, hf: Any, prompt: list[int], tokens: int) -> tuple[list[int], Any]:
    """(what transformers writes behind a prompt, the logits of each token)."""
    import torch  # pyright: ignore[reportMissingImports]

    ids = torch.tensor([prompt])
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0,
        eos_token_id=hf.eos_token_id, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return answer.sequences[0, len(prompt) :].tolist(), answer.logits


def with_marker(form: GuardForm, hf: Any, written: list[int]) -> GuardForm:
    """The form with a marker that a random model does write: a piece of its answer, where it stands first."""
    for begin in range(2, len(written) - 4):
        piece = hf.decode(written[begin : begin + 2])
        before = hf.decode(written[: begin + 1])
        clean = piece.strip() and "\ufffd" not in piece and piece in hf.decode(written[: begin + 2])
        if clean and piece not in before:
            return form._replace(marker=piece, lines=len(written))
    raise AssertionError(hf.decode(written))


def verdict_ids(hf: Any, form: GuardForm, begun: str) -> tuple[list[int], list[set[int]]]:
    """(tokens that all verdicts behind a text share, the first others of the safe, unsafe and third ones)."""
    start = hf.encode(begun, add_special_tokens=False)
    groups = [spellings for spellings in (form.safe, form.unsafe, form.between) if spellings]
    behind = [[hf.encode(begun + word, add_special_tokens=False)[len(start) :] for word in words] for words in groups]
    shared: list[int] = []
    while len({words[0][len(shared)] for words in behind}) == 1:
        shared.append(behind[0][0][len(shared)])
    found = []
    for words in behind:
        others = {word[0] for word in words[1:] if len(word) == 1}
        found.append({words[0][len(shared)]} | others)
    return shared, found


def expected_score(model: Any, name: str, request: list[int], form: GuardForm) -> tuple[float, float]:
    """(score, share) by transformers' greedy answer to one request, found in its text; NaN without the marker."""
    import torch  # pyright: ignore[reportMissingImports]

    hf = imitated(name).hf
    lead = {"llama_guard": "\n\n", "qwen3_guard": "Safety:"}.get(name, "")
    prompt = request + hf.encode(lead, add_special_tokens=False)
    written: list[int] = []
    if form.marker:
        answer, _ = greedy(model, hf, prompt, form.lines)
        while form.marker not in hf.decode(written):
            if len(written) + 1 >= len(answer):
                return float("nan"), float("nan")
            written = answer[: len(written) + 1]
    begun = hf.decode(request) + lead + hf.decode(written)
    if form.grades:
        start = len(hf.encode(begun, add_special_tokens=False))
        tokens = [hf.encode(begun + grade, add_special_tokens=False)[start] for grade in form.grades]
        _, (logits, *_) = greedy(model, hf, prompt + written, 1)
        held = torch.softmax(logits[0].double(), 0)[tokens]
        return float((held / held.sum()) @ torch.linspace(0, 1, len(tokens)).double()), float(held.sum())
    shared, (safe, *others) = verdict_ids(hf, form, begun)
    _, (logits, *_) = greedy(model, hf, prompt + written + shared, 1)
    probability = torch.softmax(logits[0].double(), 0)
    unsafe = set().union(*others) - safe
    bad = float(probability[sorted(unsafe)].sum())
    all_verdicts = float(probability[sorted(safe | unsafe)].sum())
    return bad if form.whole else bad / all_verdicts, all_verdicts


@pytest.mark.parity
@pytest.mark.parametrize("name", [*IMITATIONS])
def test_scores_are_those_of_transformers_greedy_answer(name, tmp_path):
    pytest.importorskip("torch", reason="the parity extra (torch) is not installed")
    make = runpy.run_path(str(FIXTURES / "make_models.py"))
    own, kind = imitated(name), IMITATIONS[name].model_type
    form = form_of(name)
    kwargs = {**SIZES, "vocab_size": len(own.hf), "rope_parameters": make["PLAIN"]}
    if kind == "granite":
        kwargs |= make["GRANITE"] | {"attention_multiplier": 0.3, "logits_scaling": 1.0, "tie_word_embeddings": False}
    if kind == "gemma":
        kwargs |= {"num_key_value_heads": 1, "tie_word_embeddings": True}
    model = make["build"](kind, kwargs, 0)
    questions = form.asked
    requests = [[card_ids(name, pair, question) for question in questions] for pair in PAIRS]
    if form.lines:
        form = with_marker(form, own.hf, greedy(model, own.hf, requests[0][0], 24)[0])
    model.save_pretrained(tmp_path)
    config = families.read_config(tmp_path)
    lm = LM(Decoder(config), weights.load_base(tmp_path, config))
    guard = Guard(lm, None, own, request_length(own, form) + 64, 2, "guard.path", form)
    found = scored(guard, PAIRS)
    for i, asked in enumerate(requests):
        numbers = np.array([expected_score(model, name, request, form) for request in asked])
        np.testing.assert_allclose(found.scores[i], numbers[:, 0].max(), atol=1e-4)
        assert found.shares is not None
        np.testing.assert_allclose(found.shares[i], numbers[:, 1].min(), atol=1e-4)
    assert (
        not np.isnan(found.scores[0])
        and len(set(found.scores.tolist())) > 1
        and IS_UNSAFE in guard.bound.verdicts.meanings
    )
