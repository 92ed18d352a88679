"""Answers by a copy of the base with the adapter in it are those of the adapter beside the base."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.cai import revise
from fedjax_rai.cai.programs import generate_rollout
from fedjax_rai.cai.revise import RolloutBatch
from fedjax_rai.config.schema import ModelConfig
from fedjax_rai.evals import open_ended
from fedjax_rai.mesh import replicated
from fedjax_rai.model.architecture import FUSED, outputs
from fedjax_rai.model.decoder import LM, Decoder, forward, init_base, unembed
from fedjax_rai.model.lora import NO_LORA, init_adapter
from fedjax_rai.train.generate import Sampling
from fedjax_rai.train.writer import writer
from tests import mesh_laws, small
from tests.cai.common import REQUESTS, SPEAKER, on_device, options

ROWS = 5


def merging(lm: LM) -> LM:
    """The same model, whose config asks for merged answers."""
    return LM(replace(lm.model, config=replace(lm.model.config, answering="merged")), lm.base)


def check_close(ours, expected) -> None:
    """Every leaf of a base."""
    jax.tree.map(lambda mine, theirs: np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6), ours, expected)


def test_apart_it_is_the_model_that_was_given():
    adapter = small.adapter()
    assert writer(small.LM, adapter) == (small.LM, adapter)


def test_the_base_alone_has_nothing_to_merge():
    lm = merging(small.LM)
    assert writer(lm, None) == (lm, None)


def test_merged_kernels_are_the_sum_of_the_published_formula():
    """W + alpha / r * a b of every projection, side by side in a kernel (arXiv 2106.09685); all else is as it was."""
    adapter = small.adapter()
    found = writer(merging(small.LM), adapter)
    assert found.adapter is None and found.lm.model.lora == NO_LORA and found.lm.model.config.answering == "apart"
    base, layers = dict(small.BASE), dict(small.BASE["layers"])
    for kernel in FUSED:
        added = []
        for target in outputs(small.CONFIG, kernel):
            a, b = (np.asarray(adapter["layers"][target][side], np.float64) for side in "ab")
            added.append(4.0 / 2 * np.einsum("lir,lro->lio", a, b))
        layers[kernel] = np.asarray(layers[kernel], np.float64) + np.concatenate(added, axis=-1)
    base["layers"] = layers
    check_close(found.lm.base, base)


def conversations(critic_is_policy: bool) -> RolloutBatch:
    """What a critic that is not the policy reads again stands in it."""
    prompts = on_device([[1 + row, 3, 7] for row in range(ROWS)])
    principles = jnp.arange(2 * ROWS, dtype=jnp.int32).reshape(ROWS, 2) % 3
    again = None if critic_is_policy else prompts
    return RolloutBatch(jnp.arange(ROWS), prompts, again, principles, jax.random.split(jax.random.key(0), ROWS))


@pytest.mark.parametrize("critic_is_policy", [True, False])
@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_conversations_are_those_of_the_adapter_beside_the_base(critic_is_policy, heat):
    """Token by token in float32; a critic that is the base has no part of the adapter in it."""
    adapter, sampling = small.adapter(strength=0.3), Sampling(jnp.float32(heat))

    def rollout(lm: LM, critic: bool = critic_is_policy):
        how = options(critic_is_policy=critic, chunk=2)
        return generate_rollout(lm, how, adapter, conversations(critic), REQUESTS, sampling)

    apart = rollout(SPEAKER)
    jax.tree.map(np.testing.assert_array_equal, rollout(merging(SPEAKER)), apart)
    other = rollout(SPEAKER, not critic_is_policy).critique.tokens
    assert (np.asarray(other) != apart.critique.tokens).any(), "it matters who criticises"


@pytest.mark.parametrize("critic_is_policy", [True, False])
def test_conversations_are_written_by_it(monkeypatch, critic_is_policy):
    """A critic that is the base is the base itself."""
    asked = []

    def rollout(policy, critic, *_):
        asked.append((policy, critic))
        raise KeyboardInterrupt  # all is known

    monkeypatch.setattr(revise, "rollout", rollout)
    how = options(critic_is_policy=critic_is_policy, chunk=3)  # which no other test has compiled
    given = (small.adapter(), conversations(critic_is_policy), REQUESTS, Sampling(jnp.float32(0)))
    with pytest.raises(KeyboardInterrupt):
        generate_rollout(merging(SPEAKER), how, *given)
    ((policy, critic),) = asked
    assert policy.adapter is None and policy.lm.model.lora == NO_LORA
    if critic_is_policy:
        assert critic is policy
    else:
        assert critic.adapter is None and critic.lm.model == merging(SPEAKER).model


def test_in_bfloat16_logits_differ_by_the_rounding_of_kernels():
    """Each merged weight is rounded once, by 2^-9 of it at most: of the size of the base's own rounding."""
    config = replace(small.CONFIG, dtype="bfloat16")
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init_base(config, jax.random.key(0)))
    lm, adapter = LM(Decoder(config, small.LORA), base), init_adapter(config, small.LORA, jax.random.key(1))
    adapter = jax.tree.map(lambda leaf: leaf + 0.05, adapter)
    tokens = jnp.arange(48).reshape(4, 12) % small.VOCAB

    def logits(lm, adapter):
        return unembed(lm, forward(lm, adapter, tokens, jnp.ones((4, 12), int)))

    apart, alone = logits(lm, adapter), logits(lm, None)
    assert small.distance(alone, apart) > 0.1
    assert small.distance(logits(*writer(merging(lm), adapter)), apart) < 2e-2


def test_an_evaluation_s_answers_are_written_by_it(monkeypatch):
    """Once for all batches of a set, not in each."""
    asked = []

    def answer_all(lm, adapter, *_):
        asked.append((lm, adapter))
        return iter(())

    monkeypatch.setattr(open_ended, "answer_all", answer_all)

    class Words:
        end_ids = (0,)

        def check_ids(self, *_):
            pass

    monkeypatch.setattr(open_ended, "encode_questions", lambda *_: [[1, 2]])
    subject = open_ended.Subject(merging(small.LM), small.adapter(), Words(), 16, 2)  # pyright: ignore
    open_ended.answers_to(subject, ["p"], jax.random.key(0), open_ended.Sampled(1, 0.0, 4))
    ((lm, adapter),) = asked
    assert adapter is None and lm.model.lora == NO_LORA
    assert small.distance(lm.base["layers"], small.BASE["layers"]) > 1e-2


@pytest.mark.parametrize("fsdp", [1, 2])
def test_on_several_devices_merged_kernels_lie_where_the_base_s_do(fsdp):
    mesh = small.mesh(2, fsdp)
    lm = merging(mesh_laws.placed_base(mesh))
    adapter = jax.device_put(small.adapter(), replicated(mesh))
    found = writer(lm, adapter).lm.base
    for name in FUSED:
        mine, theirs = found["layers"][name].sharding, lm.base["layers"][name].sharding
        assert mine.is_equivalent_to(theirs, 3), name
    if fsdp == 2:
        assert not found["layers"]["qkv_proj"].sharding.is_fully_replicated
    expected = writer(merging(small.LM), small.adapter()).lm.base
    check_close(found, expected)


def test_a_base_in_few_bits_takes_no_adapter():
    with pytest.raises(ValueError, match="answering\n.*must be apart where model.quantize = nf4: no adapter"):
        ModelConfig(quantize="nf4", answering="merged")
    assert ModelConfig(answering="merged").answering == "merged"
