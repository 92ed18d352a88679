"""What is replayed: the base's likeliest answers to the benign prompts."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_rai.data.examples import Prompts
from fedjax_rai.experiment import replay
from fedjax_rai.experiment.setting import Setting
from fedjax_rai.train.generate import Answers, Decoding
from tests.tiny_runs import vary


def test_replayed_answers_are_the_bases_likeliest(config, monkeypatch):
    """Two prompts: no adapter, temperature 0, as long as `cai.max_new_tokens`; the answers alone are trained on."""
    asked: list[Any] = []

    def generate(lm: Any, adapter: Any, prompts: Prompts, keys: Any, decoding: Decoding) -> Answers:
        asked.append((adapter, float(decoding.sampling.temperature), decoding.max_new, len(prompts.tokens)))
        return Answers(jnp.full((2, 3), 7), jnp.ones((2, 3), bool), jnp.ones(2, bool))

    monkeypatch.setattr(replay, "generate", generate)
    setting = Setting(vary(config, cai={"max_new_tokens": 3, "replay": 2}))
    examples = setting.replay.examples
    assert asked == [(None, 0.0, 3, 2)]
    assert np.asarray(examples.loss_mask.sum(axis=1)).tolist() == [3, 3]
    assert (np.asarray(examples.tokens)[np.asarray(examples.loss_mask)] == 7).all()
