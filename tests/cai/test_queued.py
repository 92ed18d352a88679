"""Conversations by a queue are those of the rollout, token by token, however many rows there are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.cai.queued import programs_of, queued_rollout
from fedjax_rai.cai.revise import Rollout, degenerate, rollout
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.train.generate import Decoding, Sampling
from fedjax_rai.train.speaker import Speaker
from tests import small
from tests.cai.common import ENDS, NEW, REQUESTS, SPEAKER
from tests.cai.test_revise import CASES, GREEDY, HOT, PROMPTS, QUICK, batch_of, conversations, roll_out


def by_queue(policy, critic, batch, sampling: Sampling, rows: int) -> tuple[Rollout, list[str]]:
    """What a queue makes of a batch, and what it said as it went on."""
    told: list[str] = []
    decoding = Decoding(sampling, np.array(ENDS), NEW)
    speakers = Speaker(SPEAKER, policy), Speaker(SPEAKER, critic)
    return queued_rollout(*speakers, batch, REQUESTS, decoding, rows, told.append), told


@pytest.mark.parametrize(("rows", "heat"), [(2, HOT), small.slow(8, GREEDY)])  # fewer than conversations, and more
@pytest.mark.parametrize(
    ("critic", "before", "same", "revisions"),
    [(pytest.param if name in QUICK else small.slow)(*case, id=name) for name, case in CASES.items()],
)
def test_conversations_are_those_of_the_rollout(critic, before, same, revisions, heat, rows):
    policy = small.adapter()
    judge = policy if critic == "policy" else None
    batch = batch_of(PROMPTS, revisions, before, same)
    made, told = by_queue(policy, judge, batch, heat, rows)
    assert conversations(made) == conversations(roll_out(policy, judge, batch, heat))
    np.testing.assert_array_equal(made.rows, batch.rows)
    np.testing.assert_array_equal(made.principles, batch.principles)
    each = -(-len(PROMPTS) // rows)
    assert told == ["responses"] * each + ["revisions"] * each
    assert programs_of(len(PROMPTS), rows) == len(told)


@pytest.mark.slow
@pytest.mark.parametrize("computed", [{"window": 5}, {"kv_cache": "int8"}, {"attention": "chunked"}])
def test_however_a_model_is_computed_they_are_those_of_the_rollout(computed):
    """Within a window positions must be those of the tokens, wherever a conversation was moved to."""
    config = SPEAKER.model.config
    kinds = tuple(replace(kind, window=computed["window"]) for kind in config.kinds) if "window" in computed else None
    changed = {"kinds": kinds} if kinds else computed
    lm = LM(Decoder(replace(config, **changed), SPEAKER.model.lora), SPEAKER.base)
    speaker = Speaker(lm, small.adapter())
    batch = batch_of(PROMPTS, 3, same=True)
    expected = jax.jit(lambda: rollout(speaker, speaker, batch, REQUESTS, Decoding(HOT, jnp.array(ENDS), NEW)))()
    made = queued_rollout(speaker, speaker, batch, REQUESTS, Decoding(HOT, np.array(ENDS), NEW), 2, print)
    assert conversations(made) == conversations(expected)


def test_nothing_is_said_of_a_response_that_is_none():
    """A token whose embedding is NaN, in one of the prompts: what the critic says of it is no critique."""
    embedding = SPEAKER.base["embed_tokens"].at[PROMPTS[0][0]].set(jnp.nan)
    policy = Speaker(LM(SPEAKER.model, {**SPEAKER.base, "embed_tokens": embedding}), small.adapter())
    batch = batch_of(same=True)
    made = queued_rollout(
        policy, Speaker(SPEAKER, None), batch, REQUESTS, Decoding(GREEDY, np.array(ENDS), NEW), 2, print
    )
    lost = ~made.response.valid.any(axis=1)
    assert lost.any() and not lost.all()
    for answers in (made.critique, made.revision):
        assert np.array_equal(~answers.valid.any(axis=(1, 2)), lost)
    assert np.array_equal(degenerate(made)["empty"] & ~degenerate(made)["cut_off"], lost)


def test_a_model_whose_logits_are_no_numbers_says_nothing():
    """Not even an end: an answer that is none is never taken for one."""
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, small.adapter())
    made, _ = by_queue(broken, broken, batch_of(same=True), GREEDY, 2)
    assert not any(answers.valid.any() for answers in made.answers)
