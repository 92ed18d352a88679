"""A row whose logits are no numbers has no answer, and its neighbours answer as they would without it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.cai.revise import Rollout, degenerate, examples
from fedjax_rai.data.examples import Prompts, pad_left
from fedjax_rai.train.generate import Answers, Decoding, Sampling, append, sample, start
from tests import small

END, NEW = 0, 5
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
BROKEN = {
    "all NaN": jnp.full(small.VOCAB, jnp.nan),
    "one NaN": jnp.zeros(small.VOCAB).at[7].set(jnp.nan),
    "one infinity": jnp.zeros(small.VOCAB).at[7].set(jnp.inf),
    "all minus infinity": jnp.full(small.VOCAB, -jnp.inf),
    "all one number": jnp.full(small.VOCAB, 2.5),
}


@partial(jax.jit, static_argnames=("bounded", "close"))
def answers_behind(logits, temperature, bounded: bool, close: bool) -> Answers:
    """Answers to the prompts, where the logits behind the second one are replaced by these."""
    prompts = Prompts(*map(jnp.asarray, pad_left(PROMPTS, END)))
    state = start(small.MODEL, len(PROMPTS), prompts.tokens.shape[1] + NEW)
    state = append(small.LM, None, state, prompts.tokens, prompts.valid)
    state = state._replace(logits=state.logits.at[1].set(logits))
    sampling = Sampling(temperature, top_k=jnp.int32(5) if bounded else None)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(len(PROMPTS)))
    return sample(small.LM, None, state, keys, Decoding(sampling, jnp.array([END]), NEW), close)[1]


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bounded", [False, True])
def test_a_row_without_numbers_has_no_answer(kind, temperature, bounded):
    found = answers_behind(BROKEN[kind], jnp.float32(temperature), bounded, False)
    whole = answers_behind(jnp.arange(small.VOCAB, dtype=jnp.float32), jnp.float32(temperature), bounded, False)
    assert np.asarray(whole.valid).any(axis=1).all()
    assert np.asarray(found.valid).any(axis=1).tolist() == [True, False, True]
    assert bool(found.ended[1]), "nobody waits for it"
    for row in (0, 2):
        assert np.asarray(found.tokens)[row].tolist() == np.asarray(whole.tokens)[row].tolist()
        assert np.asarray(found.valid)[row].tolist() == np.asarray(whole.valid)[row].tolist()


def test_a_conversation_without_numbers_makes_no_pair_and_is_counted_as_empty():
    lost = Answers(jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2), bool), jnp.ones(1, bool))
    whole = Answers(jnp.array([[5, END]]), jnp.ones((1, 2), bool), jnp.ones(1, bool))
    prompts = Prompts(jnp.array([[3]]), jnp.ones((1, 1), bool))
    for response, revision in ((lost, whole), (whole, lost), (lost, lost)):
        last = jax.tree.map(lambda leaf: leaf[:, None], revision)
        rollout = Rollout(jnp.zeros(1, jnp.int32), jnp.zeros((1, 1), jnp.int32), response, last, last)
        causes = degenerate(rollout)
        assert not causes["cut_off"][0] and causes["empty"][0]
    assert not examples(prompts, lost).loss_mask.any()
    assert examples(prompts, whole).loss_mask.any()
