"""What is replayed beside the revisions of a CAI phase, so that training on them does not cost utility."""

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rai import rng, terminal
from fedjax_rai.cai.revise import examples
from fedjax_rai.config.views import View
from fedjax_rai.data.examples import BUCKET, Examples
from fedjax_rai.experiment.models import Models
from fedjax_rai.experiment.texts import Texts
from fedjax_rai.train.generate import Decoding, Sampling, generate


class Replay:
    """Benign prompts with the base's own greedy answers."""

    KEYS = ("cai.max_new_tokens",)
    NEEDS = (Models, Texts)

    def __init__(self, config: View, pins: dict[str, str], models: Models, texts: Texts):
        self._config = config
        self._models = models
        self._texts = texts

    @cached_property
    def examples(self) -> Examples:
        """[m, l], m being `cai.replay` where there are so many benign prompts; answered once, on the device."""
        benign = self._texts.materials.benign_prompts
        if not benign:
            nothing = jnp.zeros((0, BUCKET), jnp.int32)
            return Examples(nothing, nothing.astype(bool), nothing)
        prompts = self._texts.questions(benign)
        keys = jax.random.split(rng.stream(jax.random.key(self._config.seed), "replay"), len(benign))
        end_ids = np.array(self._models.tokenizer.end_ids, np.int32)
        greedy = Decoding(Sampling(np.float32(0)), end_ids, self._config.cai.max_new_tokens)
        with terminal.progress(f"answering {len(benign)} replayed prompts", None):
            answers = jax.block_until_ready(generate(self._models.lm, None, prompts, keys, greedy))
        return examples(prompts, answers)
