"""What a run cost, against values worked out by hand; no expectation calls what it tests."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from fedjax_rai.experiment import cost
from fedjax_rai.experiment.cost import Epoch, Parameters, Spent
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.model.decoder import forward, unembed
from tests import small
from tests.tiny_runs import vary

# small.CONFIG by hand: 2 layers, width 16, MLP 24, 2 heads and 1 key-value head of 8 channels, 23 tokens.
QKV = 16 * (16 + 8 + 8)
OUT = 16 * 16
GATE_UP = 16 * (24 + 24)
DOWN = 24 * 16
HEAD = 23 * 16
KERNELS = 2 * (QKV + OUT + GATE_UP + DOWN) + HEAD
# small.LORA: rank 2 on q, k, v, o, gate, up, down; in + out of each.
ADAPTER = 2 * 2 * ((16 + 16) + (16 + 8) + (16 + 8) + (16 + 16) + (16 + 24) + (16 + 24) + (24 + 16))


def test_a_token_meets_four_kernels_a_layer_and_the_unembedding():
    count = cost.parameters(small.CONFIG, small.LORA)
    assert (KERNELS, ADAPTER) == (4208, 928)
    assert count == Parameters(kernels=4208, unembedding=HEAD, adapter=928, remat=False)
    layers = [leaf for leaf in jax.tree.leaves(small.BASE["layers"]) if leaf.ndim == 3]
    assert len(layers) == 4 and sum(leaf.size for leaf in layers) == KERNELS - HEAD, "as the base itself has them"
    assert sum(leaf.size for leaf in jax.tree.leaves(small.adapter())) == ADAPTER


def test_a_forward_pass_takes_two_flops_a_parameter_and_a_step_four_and_six():
    count = Parameters(kernels=1000, unembedding=400, adapter=10, remat=False)
    assert cost.forward_flops(count) == 2020
    assert cost.step_flops(count) == 4000 + 60
    assert cost.step_flops(count._replace(remat=True)) == 4000 + 60 + 1220, "layers are computed twice, logits once"


def test_whether_layers_are_computed_again_is_the_models():
    again = dataclasses.replace(small.CONFIG, remat="full")
    assert cost.parameters(again, small.LORA).remat and not cost.parameters(small.CONFIG, small.LORA).remat


def test_a_forward_pass_is_what_xla_counts():
    """XLA counts the loop over layers for one of them; norms, rotations and attention come on top.

    The base must be there before it is traced: one that is first read inside is a tracer, and its reading counted.
    """
    lm, adapter = small.LM, small.adapter()
    tokens = np.ones((2, 4), np.int32)

    def logits(tokens):
        return unembed(lm, forward(lm, adapter, tokens, tokens))

    analysis: Any = jax.jit(logits).lower(tokens).cost_analysis()
    by_hand = 2 * ((KERNELS - HEAD + ADAPTER) / 2 + HEAD)
    assert by_hand < analysis["flops"] / tokens.size < 1.25 * by_hand


def test_seconds_are_rounds_times_the_median_of_all_but_the_first():
    assert cost.seconds([100.0, 2.0, 9.0, 4.0]) == 16.0
    assert cost.seconds([5.0]) == 5.0
    assert cost.seconds([]) == 0.0


COUNT = Parameters(kernels=100, unembedding=40, adapter=10, remat=False)  # 220 FLOPs a token forward, 460 a step
ROUNDS = [Spent(9.0, 1, 2, 4, 3), Spent(2.0, 2, 3, 5, 4)]  # 8 tokens forward, 7 through steps
EPOCH = Epoch(questions=30, prompts=10, replay=5, batch_size=3, iterations=4)


def test_costs_are_totals_over_rounds():
    found = cost.local_cost(COUNT, ROUNDS)
    assert found.flops == 8 * 220 + 7 * 460 == 4980
    assert (found.generated_tokens, found.read_tokens, found.trained_tokens, found.step_tokens) == (3, 5, 9, 7)
    assert found.seconds == 4.0


def test_a_full_epoch_revises_every_question_and_trains_on_each_once():
    """Three times the prompts; a batch of 3 holds 2 revisions beside 1 replayed, so 15 iterations in place of 4."""
    found = cost.cai_cost(COUNT, ROUNDS, EPOCH)
    assert found.full_epoch_flops == 3 * 1760 + 15 / 4 * 3220 == 17355
    assert found.share_saved == pytest.approx(1 - 4980 / 17355)
    assert (found.phases, found.untrained_phases) == (2, 0)
    ragged = cost.cai_cost(COUNT, ROUNDS, EPOCH._replace(questions=31))
    assert ragged.full_epoch_flops == pytest.approx(3.1 * 1760 + 16 / 4 * 3220), "a begun batch is a batch"
    alone = cost.cai_cost(COUNT, ROUNDS, EPOCH._replace(replay=0))
    assert alone.full_epoch_flops == 3 * 1760 + 10 / 4 * 3220, "without replay a batch is revisions alone"


def test_more_than_a_full_epoch_is_no_saving():
    found = cost.cai_cost(COUNT, ROUNDS, EPOCH._replace(questions=5))  # half of the generation; 3 of 4 iterations
    assert found.full_epoch_flops == 1760 / 2 + 3220 * 3 / 4 == 3295
    assert found.share_saved == pytest.approx(1 - 4980 / 3295)


def test_a_phase_that_learnt_nothing_saves_nothing():
    nothing = [spent._replace(learnt=False) for spent in ROUNDS]
    found = cost.cai_cost(COUNT, nothing, EPOCH)
    assert found.share_saved is None and found.full_epoch_flops == 0
    assert (found.flops, found.phases, found.untrained_phases) == (4980, 2, 2), "it costs what it costs"

    half = cost.cai_cost(COUNT, [nothing[0], ROUNDS[1]], EPOCH)
    assert half.untrained_phases == 1
    assert half.full_epoch_flops == 3 * 5 * 220 + 15 / 4 * 4 * 460, "of the second alone"
    assert half.share_saved == pytest.approx(1 - 4980 / half.full_epoch_flops)


def test_a_question_that_stands_twice_is_one(config):
    config = vary(config, cai={"prompts": 10, "batch_size": 3, "iterations": 4, "replay": 5})
    setting = Setting(config)
    red = setting.texts.materials.red_prompts
    twice = [red[0], red[0]._replace(query="another"), red[0]]
    setting.texts.materials = setting.texts.materials._replace(red_prompts=twice)
    assert cost.full_epoch(setting) == Epoch(questions=2, prompts=10, replay=5, batch_size=3, iterations=4)
