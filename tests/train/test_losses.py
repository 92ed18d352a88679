"""Losses: sums divided last, the laws of preference pairs, and TRL's numbers on a ragged batch (live in test_trl)."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rai.data.examples import Examples
from fedjax_rai.model import families, peft, weights
from fedjax_rai.model.decoder import LM, Decoder
from fedjax_rai.train import losses
from fedjax_rai.train.losses import PREFERENCES, LogRatios, Sum, sft, token_logps
from tests import small
from tests.model.common import FIXTURES, read_tensors

every = pytest.mark.parametrize("name", PREFERENCES)
TOLERANCE = 1e-5
BETA = jnp.float32(0.3)


def ratios(chosen, rejected, chosen_tokens=(3, 7), rejected_tokens=(5, 2)) -> LogRatios:
    return LogRatios(*(jnp.array(x, jnp.float32) for x in (chosen, rejected, chosen_tokens, rejected_tokens)))


# ---- laws


@every
def test_the_loss_of_a_policy_that_is_the_reference(name):
    expected = 1 / (4 * BETA**2) if name == "ipo" else math.log(2)
    np.testing.assert_allclose(PREFERENCES[name](ratios((0, 0), (0, 0)), BETA), expected, rtol=1e-6)


@every
def test_the_loss_falls_when_the_chosen_answer_becomes_likelier(name):
    """And rises with the rejected one; IPO's only up to its target 1 / (2 beta), where it is 0."""
    loss, pairs = PREFERENCES[name], ratios((0.5, -2), (1, -1))
    before = loss(pairs, BETA)
    assert (loss(pairs._replace(chosen=pairs.chosen + 0.1), BETA) < before).all()
    assert (loss(pairs._replace(rejected=pairs.rejected + 0.1), BETA) > before).all()
    if name == "ipo":
        at_target = ratios((3 / (2 * BETA), 7 / (2 * BETA)), (0, 0))
        np.testing.assert_allclose(loss(at_target, BETA), 0, atol=1e-12)
        assert (loss(at_target._replace(chosen=at_target.chosen + 0.1), BETA) > 0).all()


@every
def test_swapping_the_answers_at_zero_turns_the_gradient_round(name):
    def gradient(pairs, swapped):
        def loss(p):
            p = LogRatios(p.rejected, p.chosen, p.rejected_tokens, p.chosen_tokens) if swapped else p
            return PREFERENCES[name](p, BETA).sum()

        return jax.grad(loss)(pairs)

    there, back = (gradient(ratios((0, 0), (0, 0)), swapped) for swapped in (False, True))
    assert (there.chosen < 0).all() and (there.rejected > 0).all()
    for part in ("chosen", "rejected"):
        np.testing.assert_allclose(getattr(there, part), -getattr(back, part), rtol=1e-6)


@every
def test_only_the_length_normalised_losses_know_lengths(name):
    """They see token means: an answer of twice the tokens and twice the log-ratio is the same to them."""
    loss, pairs = PREFERENCES[name], ratios((0.5, -2), (1, 3))
    longer = pairs._replace(chosen_tokens=2 * pairs.chosen_tokens, rejected_tokens=3 * pairs.rejected_tokens)
    twice = longer._replace(chosen=2 * pairs.chosen, rejected=3 * pairs.rejected)
    same = longer if name == "sigmoid" else twice
    np.testing.assert_allclose(loss(same, BETA), loss(pairs, BETA), rtol=1e-6)
    other = twice if name == "sigmoid" else longer
    assert (jnp.abs(loss(other, BETA) - loss(pairs, BETA)) > 1e-3).all()


@every
def test_an_answer_without_tokens_leaves_loss_and_gradient_finite(name):
    for tokens in ((0, 4), (0, 0)):
        pairs = ratios((0, 2), (1, 0), tokens, (5, 0))
        for leaf in jax.tree.leaves(jax.value_and_grad(lambda p: PREFERENCES[name](p, BETA).sum())(pairs)):
            assert jnp.isfinite(leaf).all()


@every
@pytest.mark.parametrize("far", [1e3, -1e3])
def test_log_ratios_far_apart_leave_loss_and_gradient_finite(name, far):
    value, gradient = jax.value_and_grad(lambda p: PREFERENCES[name](p, BETA).sum())(ratios((far, far), (-far, -far)))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


@every
def test_another_beta_compiles_nothing(name):
    compiled = jax.jit(PREFERENCES[name])
    first, second = (compiled(ratios((0.5, -2), (1, 3)), jnp.float32(beta)) for beta in (0.1, 0.5))
    assert small.compilations(compiled) == 1 and (first != second).all()


@every
def test_mapped_over_betas_and_pairs_is_one_by_one(name):
    betas, pairs = jnp.array([0.1, 0.5]), ratios((0.5, -2), (1, 3))
    got = jax.jit(jax.vmap(PREFERENCES[name], (None, 0)))(pairs, betas)
    expected = [
        [PREFERENCES[name](jax.tree.map(lambda x, i=i: x[i : i + 1], pairs), beta)[0] for i in range(2)]
        for beta in betas
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


# ---- log p of answers


answered = jax.jit(losses.answer_logps)


def test_token_logps_is_log_softmax():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    targets = jnp.array([[0, 4, 2], [1, 1, 3]])
    plain = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(token_logps(logits, targets), plain, atol=1e-6)


def test_micro_batches_add_up_to_the_whole():
    """The mean of ragged means is another number: (sum, weight) is not."""
    whole = small.corpus(8)
    loss = jax.jit(lambda e: sft(small.LM, None, e))
    parts = [loss(type(whole)(*(c[i : i + 2] for c in whole))) for i in range(0, 8, 2)]
    added = Sum(*(sum(column, jnp.zeros(())) for column in zip(*parts, strict=True)))
    np.testing.assert_allclose(added.mean(), loss(whole).mean(), rtol=1e-6)
    assert abs(float(np.mean([p.mean() for p in parts])) - float(added.mean())) > 1e-4


def test_what_padding_holds_changes_nothing():
    whole = small.corpus(8)
    other = whole._replace(tokens=jnp.where(whole.valid, whole.tokens, 5))
    losses = [sft(small.LM, None, e).mean() for e in (whole, other)]
    assert float(losses[0]) == float(losses[1])


def test_answers_add_up_to_the_sft_loss():
    batch, adapter = small.corpus(3), small.adapter()
    logps, tokens = answered(small.LM, adapter, batch)
    whole = jax.jit(losses.sft)(small.LM, adapter, batch)
    np.testing.assert_allclose(-logps.sum(), whole.total, rtol=1e-6)
    np.testing.assert_array_equal(tokens, batch.loss_mask.sum(1))
    assert float(whole.weight) == tokens.sum() and len(set(tokens.tolist())) > 1


def test_a_first_token_and_a_row_without_answer_count_for_nothing():
    batch = small.corpus(3)
    batch = batch._replace(loss_mask=batch.loss_mask.at[0].set(False).at[1, 0].set(True))
    logps, tokens = answered(small.LM, small.adapter(), batch)
    assert logps[0] == tokens[0] == 0
    assert tokens[1] == batch.loss_mask[1].sum() - 1
    without = answered(small.LM, small.adapter(), small.corpus(3))[0]
    np.testing.assert_array_equal(logps[1:], without[1:])


# ---- with TRL


@jax.jit
def evaluated(lm, adapter, batch, beta):
    """Of every preference loss and of SFT on the chosen answers: (mean, gradient). The reference is the base."""

    def means(adapter):
        (policy, tokens), (reference, _) = (losses.answer_logps(lm, own, batch) for own in (adapter, None))
        pairs = LogRatios(*jnp.split(policy - reference, 2), *jnp.split(tokens, 2))
        chosen = Examples(*(jnp.split(column, 2)[0] for column in batch))
        own = {name: loss(pairs, beta).mean() for name, loss in PREFERENCES.items()}
        own["sft"] = losses.sft(lm, adapter, chosen).mean()
        return own, own

    gradients, own = jax.jacrev(means, has_aux=True)(adapter)
    return {name: (own[name], gradients[name]) for name in own}


def check_reference(base_folder: Path, adapter_folder: Path, expected, scratch: Path) -> None:
    """Losses within 1e-5 of TRL's; gradients within 1e-5 of theirs, relative to the largest number in theirs."""
    config = families.read_config(base_folder)
    base = weights.load_base(base_folder, config)
    lora, adapter = peft.load_adapter(adapter_folder, config)
    tokens, loss_mask, valid = (jnp.asarray(expected[name]) for name in ("tokens", "loss_mask", "valid"))
    batch = Examples(tokens, loss_mask > 0, valid)
    for beta in (0.1, 0.5):
        got = evaluated(LM(Decoder(config, lora), base), adapter, batch, jnp.float32(beta))
        for name, (value, gradient) in got.items():
            key = name if name == "sft" else f"{name} {beta}"
            np.testing.assert_allclose(value, expected[key], atol=TOLERANCE, rtol=0, err_msg=key)
            peft.save_adapter(scratch, config, lora, gradient, "")
            ours = read_tensors(scratch / peft.WEIGHTS)
            theirs = {tensor: expected[f"{key} {tensor}"] for tensor in ours}
            largest = max(np.abs(leaf).max() for leaf in theirs.values())
            for tensor, leaf in theirs.items():
                assert np.abs(leaf).max() > 100 * TOLERANCE * largest  # else the tolerance would say little of it
                np.testing.assert_allclose(
                    ours[tensor], leaf, atol=TOLERANCE * largest, rtol=0, err_msg=f"{key} {tensor}"
                )


def test_losses_and_gradients_are_trls(tmp_path):
    stored = dict(np.load(FIXTURES / "preferences.npz"))
    for folder, config, tensors in (
        ("base", "config.json", "model.safetensors"),
        ("adapter", peft.CONFIG, peft.WEIGHTS),
    ):
        own = {name.split()[1]: leaf for name, leaf in stored.items() if name.startswith(f"{folder} ")}
        fields = str(own.pop(config))
        weights.save_safetensors(tmp_path / folder / tensors, own)
        (tmp_path / folder / config).write_text(fields)
    check_reference(tmp_path / "base", tmp_path / "adapter", stored, tmp_path / "gradient")
