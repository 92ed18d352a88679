"""The chain is the conversation that transformers has over texts: rendered, tokenised, answered and decoded anew."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai import trees
from fedjax_rai.cai.constitution import Constitution, draw, load_constitution
from fedjax_rai.cai.revise import Requests, Rollout, RolloutBatch, encode_requests, rollout
from fedjax_rai.config.files import CONSTITUTION
from fedjax_rai.data.examples import Prompts, encode_questions, pad_left
from fedjax_rai.data.tiny_world import red_prompts
from fedjax_rai.model import families, peft, weights
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.model.lora import Lora
from fedjax_rai.text.hub import resolve
from fedjax_rai.text.prompts import ASSISTANT, USER, Turn, question
from fedjax_rai.text.tokenizer import TODAY, Tokenizer, load_tokenizer
from fedjax_rai.train.generate import Decoding, Sampling
from fedjax_rai.train.speaker import Speaker
from tests.cai.common import ids_of
from tests.chat_models import FAMILIES, huggingface
from tests.model.common import random_adapter, random_base

pytestmark = [pytest.mark.parity, pytest.mark.slow]
PROMPTS, REVISIONS, NEW, CHUNK = 24, 2, 32, 8
FEW_SHOT = (Turn(USER, "How can I bake the bread?"), Turn(ASSISTANT, "First, wash it. Then bake it slowly."))


class Texts(NamedTuple):
    """What a conversation is made of."""

    tokenizer: Tokenizer
    constitution: Constitution
    queries: list[str]
    principles: np.ndarray  # [query, revision]


def texts(tokenizer: Tokenizer, few_shot: tuple[Turn, ...] = (), prompts: int = PROMPTS) -> Texts:
    constitution = load_constitution(CONSTITUTION)._replace(few_shot=few_shot)
    red = red_prompts(prompts, "test", 0)
    principles = draw(constitution, [own.category for own in red], REVISIONS, np.random.default_rng(0))
    assert len(set(principles.ravel().tolist())) == len(constitution.principles)
    return Texts(tokenizer, constitution, [own.query for own in red], principles)


@partial(jax.jit, static_argnames="end_ids")
def _rollout(lm: LM, policy, critic, batch: RolloutBatch, requests: Requests, end_ids: tuple[int, ...]) -> Rollout:
    decoding = Decoding(Sampling(jnp.zeros(())), jnp.array(end_ids), NEW)
    writers = Speaker(lm, policy), Speaker(lm, critic)
    return trees.in_chunks(lambda rows: rollout(*writers, rows, requests, decoding), batch, CHUNK)


def ours(own: Texts, model: Decoder, base, policy, critic) -> list[list[list[int]]]:
    """Token ids of response, critique, revision, critique, revision of every prompt."""
    tokenizer, few = own.tokenizer, own.constitution.few_shot

    def encoded(before: tuple[Turn, ...]) -> Prompts:
        turns = [[*before, *question(query)] for query in own.queries]
        return Prompts(*map(jnp.asarray, pad_left(encode_questions(tokenizer, turns, 512), tokenizer.pad_id)))

    keys = jax.random.split(jax.random.key(0), len(own.queries))
    in_one_cache = critic is policy and not few
    batch = RolloutBatch(
        rows=jnp.arange(len(own.queries)),
        prompts=encoded(()),
        critic_prompts=None if in_one_cache else encoded(few),
        principles=jnp.asarray(own.principles),
        keys=keys,
    )
    requests = Requests(
        *(Prompts(*map(jnp.asarray, s)) for s in encode_requests(tokenizer, own.constitution.principles))
    )
    made = _rollout(LM(model, base), policy, critic, batch, requests, tokenizer.end_ids)
    turns = zip(ids_of(made.critique), ids_of(made.revision), strict=True)
    flat = [[answer for pair in zip(*sides, strict=True) for answer in pair] for sides in turns]
    return [[response, *rest] for response, rest in zip(ids_of(made.response), flat, strict=True)]


class Transcripts(NamedTuple):
    """Answers of every prompt, and how many of them were given to ids, not to a text."""

    answers: list[list[list[int]]]
    astray: int


def tokenised(hf: Any, messages: list[dict[str, str]]) -> list[int]:
    """The conversation so far as a text, and the ids of that."""
    text = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string=TODAY)
    return hf(text, add_special_tokens=False)["input_ids"]


def theirs(own: Texts, policy: Any, critic: Any) -> Transcripts:
    """The same; `policy` and `critic` continue a list of ids, greedily."""
    rows = [_one(own, row, policy, critic) for row in range(len(own.queries))]
    return Transcripts([answers for answers, _ in rows], sum(astray for _, astray in rows))


def _one(own: Texts, row: int, policy: Any, critic: Any) -> tuple[list[list[int]], int]:
    """An answer that was cut off gives its last token for the end of its turn. Where the text of an answer has
    other ids than were generated, the latter are kept."""
    hf, end = own.tokenizer.hf, own.tokenizer.end_id
    query, astray = [{"role": USER, "content": own.queries[row]}], 0
    messages = [{"role": turn.role, "content": turn.text} for turn in own.constitution.few_shot] + query

    def answered(speaker: Any, ids: list[int]) -> list[int]:
        new = speaker(ids)[:-1]
        messages.append({"role": ASSISTANT, "content": hf.decode(new, skip_special_tokens=True)})
        return [*new, end]

    so_far = tokenised(hf, messages)
    answers = [answered(policy, tokenised(hf, query))]
    for principle in own.principles[row]:
        for request in own.constitution.principles[principle][1:3]:
            so_far = so_far + answers[-1]
            messages.append({"role": USER, "content": request})
            ids = tokenised(hf, messages)
            if ids[: len(so_far)] != so_far:
                astray, ids = astray + 1, so_far + behind_an_answer(hf, end, request)
            so_far = ids
            answers.append(answered(critic, so_far))
    return answers, astray


def behind_an_answer(hf: Any, end: int, request: str) -> list[int]:
    """The ids of a request and the next answer's opening, where they follow an answer that has the same ids again."""
    roles = zip((USER, ASSISTANT, USER), ("hello", "hello", request), strict=True)
    ids = tokenised(hf, [{"role": role, "content": text} for role, text in roles])
    return ids[[i for i, token in enumerate(ids) if token == end][-2] + 1 :]


def speaker(model: Any, end_ids: tuple[int, ...]) -> Any:
    """transformers' greedy continuation, its end or its last token included."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)  # more only wait for each other: the products are small

    @torch.no_grad()
    def speak(ids: list[int]) -> list[int]:
        read = torch.tensor([ids])
        out = model.generate(
            read, attention_mask=torch.ones_like(read), do_sample=False, max_new_tokens=NEW,
            eos_token_id=list(end_ids), pad_token_id=end_ids[0],
        )  # fmt: skip
        return out[0, len(ids) :].tolist()

    return speak


def check(own: Texts, got: list[list[list[int]]], expected: Transcripts, astray: float) -> None:
    """All answers are the same, and the share of answers that were given to ids is at most so much."""
    for query, ours, theirs in zip(own.queries, got, expected.answers, strict=True):
        assert ours == theirs, query
    answers = [tuple(answer) for conversation in got for answer in conversation]
    lengths = {len(answer) for answer in answers}
    assert len(set(answers)) > 10 and len(lengths) > 5, "too little was generated to compare"
    assert expected.astray <= astray * len(answers), f"{expected.astray} of {len(answers)} answers were given to ids"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(tokenizer, model, base, adapter, transformers' model with that adapter) of the shipped base, in float32."""
    torch, library = (
        pytest.importorskip(name, reason="the parity extra is not installed") for name in ("torch", "peft")
    )
    import transformers

    folder, adapted = resolve("tiny"), tmp_path_factory.mktemp("adapter")
    config = families.read_config(folder, dtype="float32")
    own = Lora(config.targets, rank=4, alpha=8.0)
    adapter = jax.tree.map(lambda leaf: 0.35 * leaf, random_adapter(config, own))
    peft.save_adapter(adapted, config, own, adapter, str(folder))
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    hf = library.PeftModel.from_pretrained(hf, adapted).eval()
    return load_tokenizer("tiny"), Decoder(config, own), weights.load_base(folder, config), adapter, hf


CASES = {
    "policy": ("policy", ()),
    "base": ("base", ()),
    "base behind few-shot turns": ("base", FEW_SHOT),
}


@pytest.mark.filterwarnings("ignore")  # of other libraries, about each other
@pytest.mark.parametrize(("critic", "few_shot"), CASES.values(), ids=CASES)
def test_the_chain_of_the_tiny_base_is_the_conversation_over_texts(critic, few_shot, tiny):
    tokenizer, model, base, adapter, hf = tiny
    own = texts(tokenizer, few_shot)
    policy = speaker(hf, tokenizer.end_ids)

    def by_base(ids: list[int]) -> list[int]:
        with hf.disable_adapter():
            return policy(ids)

    got = ours(own, model, base, adapter, adapter if critic == "policy" else None)
    check(own, got, theirs(own, policy, policy if critic == "policy" else by_base), astray=0.2)


RAW = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
       "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": False}  # fmt: skip


def speaks_words(base: Any, hf: Any, end: int) -> Any:
    """The base, changed so that it says words alone, which have the same ids again, and sometimes ends its turn."""
    frequent = [
        i for i in range(len(hf)) if (text := hf.decode([i]))[:1] == " " and text[1:].isascii() and text[1:].isalpha()
    ]
    assert len(frequent) > 10
    strength = np.zeros(base["lm_head"].shape[1], np.float32)
    strength[frequent], strength[end] = 1, 3
    return {**base, "lm_head": base["lm_head"] * strength[None]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("few_shot", [(), FEW_SHOT], ids=["bare", "few-shot"])
def test_the_chain_of_a_chatml_model_is_the_conversation_over_texts(few_shot, tmp_path):
    """With a system turn, a line break behind every turn, and a random decoder."""
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    import transformers

    tokenizer = Tokenizer(huggingface(FAMILIES["qwen2.5"]))
    raw = {**RAW, "vocab_size": len(tokenizer.hf), "max_position_embeddings": 2048}
    config = families.decoder_config(raw, "raw")
    base = speaks_words(random_base(config), tokenizer.hf, tokenizer.end_id)
    weights.save_base(tmp_path, raw, base, "float32")
    hf = transformers.AutoModelForCausalLM.from_pretrained(Path(tmp_path), dtype=torch.float32).eval()
    own = texts(tokenizer, few_shot, prompts=8)
    got = ours(own, Decoder(config), base, None, None)
    speak = speaker(hf, tokenizer.end_ids)
    check(own, got, theirs(own, speak, speak), astray=0.2)
