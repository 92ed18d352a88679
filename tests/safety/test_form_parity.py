"""Every form beside transformers: the verdict's place, tokens and probability are those of its greedy answer."""

import re
import runpy
from typing import Any

import numpy as np
import pytest

from fedjax_rai.model import families, weights
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.safety.form import IS_UNSAFE
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
LINES = {
    "wild_guard": "Harmful request: yes\nResponse refusal: no\nHarmful response: yes",
    "poly_guard": "Harmful request: no\nRequest safety violations: S1\nResponse refusal: no\nHarmful response: no",
    "nemotron_safety_guard": '{"User Safety": "safe", "Response Safety": "unsafe"}',
    "granite_guardian_3_3": "<think>\n</think>\n<score> yes </score>",
}
"""What guards that write lines are taught to write; where the verdict stands is for the test to find."""


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
        turns = [turn._replace(text=turn.text.replace("{query}", pair[0]).replace("{response}", pair[1]))
                 for turn in form.request]  # fmt: skip
    return ids_of(hf, turns, generate=name not in ("kanana", "qwen3_guard", "shield_gemma"), **given)


def taught(model: Any, texts: list[tuple[list[int], list[int]]]) -> None:
    """Overfit a model to answer each request by its answer."""
    import torch  # pyright: ignore[reportMissingImports]

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rows = [torch.tensor([request + answer]) for request, answer in texts]
    for _ in range(150):
        loss = torch.zeros(())
        for row, (request, answer) in zip(rows, texts, strict=True):
            logits = model(row).logits[0, len(request) - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss) < 0.05:
            return


def expected_score(model: Any, name: str, request: list[int]) -> tuple[float, float]:
    """(score, share) by transformers' greedy answer to one request, found in its text."""
    import torch  # pyright: ignore[reportMissingImports]

    hf, form = imitated(name).hf, form_of(name)
    lead = {"llama_guard": "\n\n", "qwen3_guard": "Safety:"}.get(name, "")
    prompt = request + hf.encode(lead, add_special_tokens=False)
    ids = torch.tensor([prompt])
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max(form.lines, 1), do_sample=False, pad_token_id=0,
        eos_token_id=hf.eos_token_id, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    written = answer.sequences[0, len(prompt) :].tolist()
    at = 0
    while form.marker and form.marker not in hf.decode(written[:at]):
        at += 1
        assert at < len(written), (name, hf.decode(written))
    logits = answer.logits[at][0].double()
    begun = hf.decode(prompt + written[:at])
    classes = []
    for spellings in (form.safe, form.unsafe, form.between):
        mains = [hf.encode(begun + spelling, add_special_tokens=False) for spelling in spellings[:1]]
        others = [hf.encode(begun + spelling, add_special_tokens=False) for spelling in spellings[1:]]
        start = len(hf.encode(begun, add_special_tokens=False))
        classes.append({ids[start] for ids in mains} | {ids[start] for ids in others if len(ids) == start + 1})
    safe, unsafe, between = classes
    unsafe = (unsafe | between) - safe
    probability = torch.softmax(logits, 0)
    bad = float(probability[sorted(unsafe)].sum())
    all_verdicts = float(probability[sorted(safe | unsafe)].sum())
    return bad if form.whole else bad / all_verdicts, all_verdicts


@pytest.mark.parity
@pytest.mark.parametrize("name", [*IMITATIONS])
def test_scores_are_those_of_transformers_greedy_answer(name, tmp_path):
    pytest.importorskip("torch", reason="the parity extra (torch) is not installed")
    make = runpy.run_path(str(FIXTURES / "make_models.py"))
    own, form, kind = imitated(name), form_of(name), IMITATIONS[name].model_type
    kwargs = {**SIZES, "vocab_size": len(own.hf), "rope_parameters": make["PLAIN"]}
    if kind == "granite":
        kwargs |= make["GRANITE"] | {"attention_multiplier": 0.3, "logits_scaling": 1.0}
    model = make["build"](kind, kwargs, 0)
    questions = form.asked
    requests = [[card_ids(name, pair, question) for question in questions] for pair in PAIRS]
    if form.lines:
        with_lines = own.hf.encode(LINES[name], add_special_tokens=False)
        taught(model, [(asked[0], with_lines) for asked in requests])
    model.save_pretrained(tmp_path)
    config = families.read_config(tmp_path)
    lm = LM(Decoder(config), weights.load_base(tmp_path, config))
    guard = Guard(lm, None, own, request_length(own, form) + 64, 2, "guard.path", form)
    found = scored(guard, PAIRS)
    for i, asked in enumerate(requests):
        numbers = np.array([expected_score(model, name, request) for request in asked])
        np.testing.assert_allclose(found.scores[i], numbers[:, 0].max(), atol=1e-4)
        assert found.shares is not None
        np.testing.assert_allclose(found.shares[i], numbers[:, 1].min(), atol=1e-4)
    assert len(set(found.scores.tolist())) > 1 and IS_UNSAFE in guard.bound.verdicts.meanings
