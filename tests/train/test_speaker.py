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
from fedjax_rai.memory.footprint import merged_bytes
from fedjax_rai.mesh import replicated
from fedjax_rai.model.architecture import FUSED, outputs
from fedjax_rai.model.decoder import LM, Decoder, forward, init_base, unembed
from fedjax_rai.model.lora import NO_LORA, Lora, init_adapter
from fedjax_rai.train.generate import Sampling
from fedjax_rai.train.speaker import speaker
from tests import mesh_laws, small
from tests.cai.common import REQUESTS, SPEAKER, on_device, options

ROWS = 5
KEY = jax.eval_shape(lambda: jax.random.key(0))


def merging(lm: LM) -> LM:
    """The same model, whose config asks for merged answers."""
    return LM(replace(lm.model, config=replace(lm.model.config, answering="merged")), lm.base)


def check_close(ours, expected) -> None:
    """Every leaf of a base."""
    jax.tree.map(lambda mine, theirs: np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6), ours, expected)


def test_apart_it_is_the_model_that_was_given():
    adapter = small.adapter()
    assert speaker(small.LM, adapter) == (small.LM, adapter)


def test_the_base_alone_has_nothing_to_merge():
    lm = merging(small.LM)
    assert speaker(lm, None) == (lm, None)


def test_merged_kernels_are_the_sum_of_the_published_formula():
    """W + alpha / r * a b of every projection, side by side in a kernel (arXiv 2106.09685); all else is as it was."""
    adapter = small.adapter()
    found = speaker(merging(small.LM), adapter)
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
@pytest.mark.parametrize("heat", [0.0, small.slow(1.0)])
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


def test_what_is_not_adapted_is_shared_and_what_is_takes_what_is_planned():
    """Of a base with a large vocabulary: four layers, q|k|v 16 x 32 and gate|up 16 x 48, of which q and up alone."""
    config = replace(small.CONFIG, vocab_size=4096, num_hidden_layers=4, answering="merged")
    adapters = Lora(("q_proj", "up_proj"), rank=2, alpha=4.0)
    lm = LM(Decoder(config, adapters), init_base(config, jax.random.key(0)))
    adapter = init_adapter(config, adapters, jax.random.key(1))
    found = speaker(lm, adapter).lm.base
    assert found["embed_tokens"] is lm.base["embed_tokens"] and found["norm"] is lm.base["norm"]
    new = [name for name in found["layers"] if found["layers"][name] is not lm.base["layers"][name]]
    assert sorted(new) == ["gate_up_proj", "qkv_proj"]
    assert sum(found["layers"][name].nbytes for name in new) == 4 * 4 * (16 * 32 + 16 * 48)
    assert merged_bytes(lm.model, fsdp=1) == 4 * 4 * (16 * 32 + 16 * 48) == 2 * merged_bytes(lm.model, fsdp=2)


def test_sums_are_made_a_layer_at_a_time():
    """Those of all 64 layers, in float32, would be twice the bfloat16 kernels."""
    config = replace(small.CONFIG, dtype="bfloat16", num_hidden_layers=64, hidden_size=64, intermediate_size=256)
    base = jax.eval_shape(lambda key: init_base(config, key), KEY)
    base = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), base)
    lm = LM(Decoder(replace(config, answering="merged"), small.LORA), base)
    adapter = jax.eval_shape(lambda key: init_adapter(config, small.LORA, key), KEY)
    memory = jax.jit(speaker).lower(lm, adapter).compile().memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 0.75 * 4 * 64 * 64 * 512, "of gate and up"


def test_a_sum_is_rounded_once():
    """Beside zeros in bfloat16 the merged kernel is the product in float32, to the nearest."""
    config = replace(small.CONFIG, dtype="bfloat16", answering="merged")
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), small.BASE)
    adapter = small.adapter()
    found = speaker(LM(Decoder(config, small.LORA), zeros), adapter).lm.base["layers"]["down_proj"]
    a, b = (np.asarray(adapter["layers"]["down_proj"][side], np.float64) for side in "ab")
    exact = 4.0 / 2 * np.einsum("lir,lro->lio", a, b)
    summands = 4.0 / 2 * np.einsum("lir,lro->lio", np.abs(a), np.abs(b))
    assert (np.abs(np.asarray(found, np.float64) - exact) <= 2**-8 * np.abs(exact) * 1.001 + 1e-6 * summands).all()


def test_in_bfloat16_logits_differ_by_the_rounding_of_kernels():
    """Each merged weight is rounded once, by 2^-8 of it at most: of the size of the base's own rounding."""
    config = replace(small.CONFIG, dtype="bfloat16")
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init_base(config, jax.random.key(0)))
    lm, adapter = LM(Decoder(config, small.LORA), base), init_adapter(config, small.LORA, jax.random.key(1))
    adapter = jax.tree.map(lambda leaf: leaf + 0.05, adapter)
    tokens = jnp.arange(48).reshape(4, 12) % small.VOCAB

    def logits(lm, adapter):
        return unembed(lm, forward(lm, adapter, tokens, jnp.ones((4, 12), int)))

    apart, alone = logits(lm, adapter), logits(lm, None)
    assert small.distance(alone, apart) > 0.1
    assert small.distance(logits(*speaker(merging(lm), adapter)), apart) < 2e-2


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


@pytest.mark.parametrize("fsdp", [small.slow(1), 2])
def test_on_several_devices_merged_kernels_lie_where_the_base_s_do(fsdp):
    mesh = small.mesh(2, fsdp)
    lm = merging(mesh_laws.placed_base(mesh))
    adapter = jax.device_put(small.adapter(), replicated(mesh))
    found = speaker(lm, adapter).lm.base
    for name in FUSED:
        mine, theirs = found["layers"][name].sharding, lm.base["layers"][name].sharding
        assert mine.is_equivalent_to(theirs, 3), name
    if fsdp == 2:
        assert not found["layers"]["qkv_proj"].sharding.is_fully_replicated
    expected = speaker(merging(small.LM), small.adapter()).lm.base
    check_close(found, expected)


@pytest.mark.parametrize("kind", ("int8", "nf4"))
def test_a_base_in_few_bits_takes_no_adapter(kind):
    with pytest.raises(ValueError, match=f"answering\n.*must be apart where model.quantize = {kind}: no adapter"):
        ModelConfig(quantize=kind, answering="merged")
    assert ModelConfig(answering="merged").answering == "merged"
