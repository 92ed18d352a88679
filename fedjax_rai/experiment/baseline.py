"""What the base itself answers to benign prompts, on which drift is measured: made once for all arms."""

from functools import cached_property

from fedjax_rai import terminal
from fedjax_rai.config.views import View
from fedjax_rai.evals.drift import DRIFT, base_answers
from fedjax_rai.evals.evaluation import BaseAnswers
from fedjax_rai.evals.open_ended import Subject
from fedjax_rai.experiment.models import Models
from fedjax_rai.experiment.texts import Texts


class Baseline:
    """The base's greedy answers to the prompts of the drift."""

    KEYS = ("eval.max_new_tokens", "eval.batch_size")
    NEEDS = (Models, Texts)

    def __init__(self, config: View, pins: dict[str, str], models: Models, texts: Texts):
        self._config = config
        self._models = models
        self._texts = texts

    @cached_property
    def answers(self) -> BaseAnswers:
        """One answer to each prompt, of at most `eval.max_new_tokens` tokens."""
        prompts = self._texts.materials.evaluations[DRIFT.name].prompts
        config = self._config
        base = Subject(self._models.lm, None, self._models.tokenizer, config.data.max_length, config.eval.batch_size)
        with terminal.progress(f"the base answers {len(prompts)} benign prompts", None):
            return base_answers(base, prompts, config.eval.max_new_tokens)
