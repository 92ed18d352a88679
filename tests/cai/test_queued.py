"""Conversations by a queue are those of the rollout, token by token, however many rows there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.cai.queued import programs_of, queued_rollout
from fedjax_rai.cai.revise import Rollout
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


@pytest.mark.parametrize("rows", [2, small.slow(8)])  # fewer than conversations, and more
@pytest.mark.parametrize("heat", [small.slow(GREEDY), HOT])
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


def test_a_model_whose_logits_are_no_numbers_says_nothing():
    """Not even an end: an answer that is none is never taken for one."""
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, small.adapter())
    made, _ = by_queue(broken, broken, batch_of(same=True), GREEDY, 2)
    assert not any(answers.valid.any() for answers in made.answers)
